"""Parquet: a file, or a folder of parts whose schemas need not agree, also in folders `key=value/` as of Hive."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pa_dataset

from genrec.errors import DataError


def open_parts(path: Path) -> pa_dataset.Dataset:
    """All rows and columns of a file or of all parts: a column that a part lacks is null there.

    Keys of folders are text, so that `007` stays `007`, unless a part has a column of that name. Raises DataError for a
    column whose types have none in common, such as numbers and text.
    """
    source = pa_dataset.dataset(path.resolve(), format="parquet")
    if not path.is_dir():  # a folder that the file lies in says nothing of its rows
        return source
    places = {_within(path, part.path) for part in source.get_fragments()}
    folders = {folder for place in places for folder in place.split("/")[:-1]}
    keys = sorted({folder.partition("=")[0] for folder in folders if "=" in folder})
    kinds = _kinds(path, source)
    fields = pa.schema([(key, kinds.pop(key, pa.string())) for key in keys])
    return pa_dataset.dataset(
        path.resolve(),
        pa.schema([*kinds.items(), *fields], metadata=source.schema.metadata),
        format="parquet",
        partitioning=pa_dataset.partitioning(fields, flavor="hive"),
    )


def _kinds(path: Path, source: pa_dataset.Dataset) -> dict[str, pa.DataType]:
    """The type of each column that a part has."""
    found: dict[str, dict[pa.DataType, str]] = {}  # types by column, each with the first part that has it
    for part in source.get_fragments():
        for field in part.physical_schema:
            found.setdefault(field.name, {}).setdefault(field.type, part.path)
    kinds = {}
    for name, types in found.items():
        (kind, first), *others = types.items()
        for other, part in others:
            try:
                kind = _common(kind, other)
            except pa.ArrowException as error:
                raise DataError(
                    f"{path}: column {name!r} is {kind} in {_within(path, first)} and {other} in "
                    f"{_within(path, part)}; write it with one type in all parts (ids as text)"
                ) from error
        kinds[name] = kind
    return kinds


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Raises ArrowException if there is no type for the values of both."""
    one, other = (kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (one, other))
    one, other = (pa.large_string() if pa.types.is_string_view(kind) else kind for kind in (one, other))
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and one.tz != other.tz:
        one, other = (pa.timestamp(kind.unit, "UTC") for kind in (one, other))
    schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _within(path: Path, part: str) -> str:
    return Path(part).relative_to(path.resolve()).as_posix()
