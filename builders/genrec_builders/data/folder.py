"""Which files of a dataset folder hold what, by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from genrec.errors import DataError
from genrec_builders.data.found import some

TABLES = (".parquet", ".csv", ".tsv", ".jsonl")
_PREFIX = r"(?:(?P<prefix>.+)\.)?"
# What a file holds, and its name: with a prefix such as `Beauty.` or without, and with `.gz` where that is no Parquet.
_NAMES = {
    "interactions": (
        rf"{_PREFIX}inter\.json(\.gz)?",
        r"(?P<prefix>.+)\.inter(\.gz)?",
        rf"{_PREFIX}(interactions|inter)\.(parquet|(csv|tsv|jsonl)(\.gz)?)",
    ),
    "items": (
        rf"{_PREFIX}item\.json(\.gz)?",
        r"(?P<prefix>.+)\.item(\.gz)?",
        rf"{_PREFIX}(items|item)\.(parquet|(csv|tsv|jsonl)(\.gz)?)",
    ),
    "index": (rf"{_PREFIX}index\.json(\.gz)?",),
    "embeddings": (rf"{_PREFIX}embeddings\.(parquet|(csv|tsv|jsonl)(\.gz)?)",),
}
# How well-known datasets call them: MovieLens, and Amazon Reviews 2023, whose file of a category's items names those of
# its reviews. Read where no file has one of the names above.
_WELL_KNOWN = {
    "interactions": (r"ratings\.(dat|csv(\.gz)?)",),
    "items": (r"movies\.(dat|csv(\.gz)?)", r"meta_(?P<category>\w+)\.jsonl(\.gz)?"),
}
_REVIEWS = r"{category}\.(jsonl|csv)(\.gz)?"
_PART = re.compile(r"(^|\.)(train|valid|validation|test)$")
_ALMOST = re.compile(rf"{_PREFIX}(?P<stem>interactions|inter|items|item)\.(?P<end>.+)")
EXPECTED = (
    "inter.json and index.json, interactions and items as .parquet, .csv, .tsv or .jsonl, RecBole's NAME.inter and "
    "NAME.item, Amazon's NAME.jsonl and meta_NAME.jsonl, or MovieLens' ratings and movies as .csv or .dat"
)


@dataclass(frozen=True)
class DataFiles:
    """The files of a dataset, each the only one of its kind. At least one of the last three is there.

    index: semantic IDs by item, the catalogue if it is there; embeddings: the catalogue otherwise. others: names of
    what is not read, hidden files left out.
    """

    interactions: Path
    items: Path | None
    index: Path | None
    embeddings: Path | None
    others: list[str]


def ending(path: Path) -> str:
    """`.csv` of `interactions.csv` and of `interactions.csv.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix


def find_files(folder: Path) -> DataFiles:
    """The dataset's files in `folder`. Raises DataError if one is missing, or there are two for one purpose."""
    if not folder.is_dir():
        raise DataError(f"{folder}: not a directory; give the directory that holds the interactions and the items")
    found: dict[str, list[Path]] = {kind: [] for kind in _NAMES}
    prefixes: dict[str, str] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # hidden, such as `._Beauty.inter` of an archive that macOS packed
            continue
        kind, prefix = _kind(path)
        if kind is not None:
            found[kind].append(path)
            if prefix:
                prefixes.setdefault(prefix, path.name)
        else:
            others.append(path.name + "/" * path.is_dir())
    for kind in _WELL_KNOWN:
        if not found[kind]:
            found[kind] = [path for path in map(folder.joinpath, others) if _is_well_known(kind, path, others)]
    read = {path.name for paths in found.values() for path in paths}
    others = [name for name in others if name not in read]
    for kind, paths in found.items():
        if len(paths) > 1:
            raise DataError(
                f"{folder}: holds both {paths[0].name} and {paths[1].name}, and each has {_holds(kind)}; "
                "keep one of them, and move the other out of the folder"
            )
    if len(prefixes) > 1:
        one, other, *_ = prefixes.values()
        raise DataError(f"{folder}: holds two datasets, of {one} and of {other}; give each a folder of its own")
    interactions, items, index, embeddings = (paths[0] if paths else None for paths in found.values())
    catalogue = items or index or embeddings
    if interactions is None or catalogue is None:
        _refuse_missing(folder, interactions, catalogue, others)
        raise AssertionError("unreachable")
    return DataFiles(interactions, items, index, embeddings, others)


def _kind(path: Path) -> tuple[str | None, str | None]:
    """What a file holds by its name, and the name's prefix. A part of a split is not used."""
    for kind, patterns in _NAMES.items():
        for pattern in patterns:
            match = re.fullmatch(pattern, path.name)
            if match and not _PART.search(match["prefix"] or ""):
                return kind, match["prefix"]
    return None, None


def _is_well_known(kind: str, path: Path, names: list[str]) -> bool:
    patterns = list(_WELL_KNOWN[kind])
    if kind == "interactions":
        metas = (re.fullmatch(_WELL_KNOWN["items"][1], name) for name in names)
        patterns += [_REVIEWS.format(category=re.escape(meta["category"])) for meta in metas if meta]
    return path.is_file() and any(re.fullmatch(pattern, path.name) for pattern in patterns)


def _holds(kind: str) -> str:
    return {"index": "semantic IDs"}.get(kind, kind)


def _refuse_missing(folder: Path, interactions: Path | None, catalogue: Path | None, others: list[str]) -> None:
    """Raises DataError that names the missing file, and what in the folder could become it."""
    there = interactions or catalogue
    if there is None:
        missing = f"{folder}: no data found; expected {EXPECTED}"
    else:
        missing = _missing_partner(folder, there, interactions is None)
    hints = [hint for name in others if (hint := _hint(name))]
    if not hints and others:
        hints = [f"the folder holds {some(others)}: rename what is meant"]
    raise DataError("; ".join([missing, *hints[:1]]))


def _missing_partner(folder: Path, there: Path, want_interactions: bool) -> str:
    prefix = _kind(there)[1]
    dot = f"{prefix}." if prefix else ""
    if ending(there) == ".json":
        name = "inter.json" if want_interactions else "index.json"
        return f"{folder / (dot + name)}: missing; this form of data needs both inter.json and index.json"
    if ending(there) in (".inter", ".item"):
        name = "inter" if want_interactions else "item"
        return f"{folder / f'{prefix}.{name}'}: missing; RecBole's files need both NAME.inter and NAME.item"
    stem = "interactions" if want_interactions else "items"
    ends = [end for end in TABLES if end != ".parquet"]
    others = ", ".join(f"{dot}{stem}{end}" for end in ends)
    return f"{folder / f'{dot}{stem}.parquet'}: missing, and so are {others}; write one of them"


def _hint(name: str) -> str | None:
    """What to do with a file that is nearly of a known form; None if it is not."""
    base = name.removesuffix("/").removesuffix(".gz")
    stem, _, end = base.rpartition(".")
    if _PART.search(stem) and end in ("inter", "csv", "tsv", "jsonl", "parquet", "json"):
        whole = _PART.sub("", stem)
        return (
            f"{name} is one part of a split, and genrec splits by itself (each user's last item is the test item): "
            f"write all interactions into one file, e.g. {whole or 'NAME'}.inter, or rename the test part to it if "
            "its lists are whole histories"
        )
    match = _ALMOST.fullmatch(base)
    if match is None:
        return None
    if match["end"] == "json":
        return (
            f"{name} looks like a table: write it as JSON Lines, one object a line, e.g. "
            f"pandas.read_json({name!r}).to_json('{match['stem']}.jsonl', orient='records', lines=True)"
        )
    return f"{name} is in no form that is read: write it as {match['stem']}.parquet, .csv, .tsv or .jsonl"
