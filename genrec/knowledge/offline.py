"""Offline generation: the knowledge texts of a file of users or items, by a run that can be killed and goes on."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.bundle import sha256_of
from genrec.errors import InvalidRequest
from genrec.knowledge.decoder import Session, SpeculativeDecoder
from genrec.knowledge.entities import Entities, read_entities
from genrec.knowledge.model import VERIFICATIONS, KnowledgeModel
from genrec.knowledge.packed_model import require_precision
from genrec.knowledge.pools import Pools
from genrec.knowledge.texts import GREEDY, DecodingStatistics, Generated, TextRequest, Verification
from genrec.reporting.kept import require_same
from genrec.reporting.machine import Machine, Section, this_commit, this_machine
from genrec.reporting.outputs import Output, require_output

if TYPE_CHECKING:
    from genrec.reporting.progress import Track  # needs all that builds, which writing texts does not

_RECORD = b"genrec.knowledge"
_CODE_FORMAT = "1"  # another one when the same arguments come to give other texts
_PARTS = Output.of_patterns("finished texts", (), ["[0-9]*.parquet", "[0-9]*.parquet.partial"])
_SHOWN_IDS = 5
_Writable = Mapping[int, TextRequest]  # by position among the entities of the shard
# error: null if there is a text.
_SCHEMA = pa.schema(
    {
        "position": pa.int64(),
        "text": pa.large_string(),
        "tokens": pa.large_list(pa.int32()),
        "group": pa.large_string(),
        "error": pa.large_string(),
    }
)


@dataclass(frozen=True)
class GenerationOptions:
    """How texts are generated.

    verification: a name of `VERIFICATIONS`. precision: as in `PackedModel`. batch_size: texts at once. shard: (i,
    n), entities whose position is i modulo n are written. max_new_tokens: of a text, the folder's limit by default.
    grow: whether finished texts go to the pools. attempts: times that a text is tried alone after its batch has
    failed. compare: texts that are first written without drafts, to tell the speed-up. save_every_s: seconds after
    which finished texts are saved.
    """

    verification: str = "relaxed"
    precision: str = "float32"
    batch_size: int = 8
    shard: tuple[int, int] = (0, 1)
    max_new_tokens: int | None = None
    grow: bool = True
    attempts: int = 2
    compare: int = 0
    save_every_s: float = 10.0

    def __post_init__(self) -> None:
        if self.verification not in VERIFICATIONS:
            raise ValueError(f"verification is {self.verification!r}; it must be one of {', '.join(VERIFICATIONS)}")
        require_precision(self.precision)
        if not 0 <= self.shard[0] < self.shard[1]:
            raise ValueError(f"shard is {self.shard[0]}/{self.shard[1]}; it must be i/n with 0 <= i < n")
        for name, least in (("batch_size", 1), ("attempts", 1), ("compare", 0), ("save_every_s", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


class FailedEntities(Section):
    """Entities that have no text for the same reason. error: of the first. ids: of the first few."""

    error: str
    count: int
    ids: list[str]


class GenerationReport(Section):
    """`<out>.json`: what was written and how fast, over all the runs that it took.

    arguments: what the texts depend on. entities: of the shard, with a text or a failure each. tokens: of the texts.
    seconds: in the model (llm), the drafter (draft) and the rest of decoding (other). tokens_per_step: that a forward
    pass adds to a text. acceptance_by_depth: {depth from 1: share of a text's passes that accepted a draft of at least
    that depth}. autoregressive_tokens_per_s: without drafts, at the same batch size, if it was measured. speed_up: over
    that.
    """

    commit: str | None
    machine: Machine
    arguments: dict[str, str]
    batch_size: int
    entities: int
    texts: int
    tokens: int
    failures: list[FailedEntities]
    seconds: dict[str, float]
    texts_per_s: float
    tokens_per_s: float
    tokens_per_step: float
    acceptance_by_depth: dict[int, float]
    autoregressive_tokens_per_s: float | None
    speed_up: float | None


class _Record(Section):
    """In the metadata of every file of texts. statistics: of all the work up to it."""

    arguments: dict[str, str]
    statistics: DecodingStatistics
    autoregressive: DecodingStatistics | None = None


def generate(folder: Path, source: Path, out: Path, options: GenerationOptions, track: Track) -> GenerationReport:
    """Write the texts of the entities in `source` (see `read_entities`) with the knowledge folder `folder`.

    out: becomes a Parquet file with a row per entity in the order of `source`: id, text, tokens (list of int32), group,
    and error, null if there is a text. `<out>.json` becomes the report.

    Texts that are finished are kept in `<out>.parts` until all are. A run that was killed goes on when it is started
    again; with greedy verification it ends with the same texts as one that was not. When `out` is there, entities
    that it has errors of are tried again, and the other rows stay.

    About 1 kB of memory is taken per entity: a file of very many is better written in shards.

    Raises DataError for a bad `source`; ValueError for a bad folder or option, for texts of other arguments in `out` or
    its parts, for an `out` that is or lies in what is read, and if another process is writing it; FileExistsError if
    there is something else. What goes wrong with an entity is listed, not raised.
    """
    _require_places(folder, source, out)
    model = KnowledgeModel(folder)
    if options.max_new_tokens is not None and not 1 <= options.max_new_tokens <= model.settings.max_new_tokens:
        raise ValueError(f"max_new_tokens is {options.max_new_tokens}; it must be 1 to {model.settings.max_new_tokens}")
    entities = read_entities(source).shard(*options.shard)
    with _store(out, _arguments(folder, source, options)) as store:
        requests, errors = _requests(model, entities, store.texts(), options, track)
        if requests:
            errors |= _write(model, requests, store, options, track)
        texts = store.texts()
        failed = [
            {"position": at, "group": requests[at].group if at in requests else None, "error": error}
            for at, error in errors.items()
        ]
        rows = pa.concat_tables([texts, pa.Table.from_pylist(failed, _SCHEMA)]).sort_by("position")
        _write_table(out, rows.set_column(0, "id", entities.ids), store.record)
        report = _report(entities, texts, errors, store.record, options)
        _beside(out)[0].write_text(report.model_dump_json(indent=1) + "\n")
        shutil.rmtree(store.folder)
    return report


def _require_places(folder: Path, source: Path, out: Path) -> None:
    """Raises ValueError or OSError if `out`, its report or its parts are something else, or what is read."""
    report, parts = _beside(out)
    require_output(parts, _PARTS, (folder, source))
    for path in (out, report):
        if path.resolve() == source.resolve():
            raise ValueError(f"{path}: would be written, but the entities are read from it; name another output")
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder, and a file would be written; name another output")
    if report.exists():
        try:
            GenerationReport.model_validate_json(report.read_bytes())
        except (OSError, ValueError):
            raise FileExistsError(
                f"{report}: is no report on texts, and would be replaced by one; name another output, or move it away"
            ) from None


def _beside(out: Path) -> tuple[Path, Path]:
    """Where the report goes, and the finished texts until all are."""
    return out.with_name(out.name + ".json"), out.with_name(out.name + ".parts")


def _arguments(folder: Path, source: Path, options: GenerationOptions) -> dict[str, str]:
    """What the texts depend on, as the command line names it; files by their content, wherever they lie.

    Without the batch size: a run that took too much memory may go on with a smaller one.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = "\n".join(f"{path.relative_to(folder)} {sha256_of(path)}" for path in files)
    return {
        "folder": f"sha256 {sha256(content.encode()).hexdigest()[:12]}",
        "entities": f"sha256 {sha256_of(source)[:12]}",
        "verification": options.verification,
        "precision": options.precision,
        "max-new-tokens": str(options.max_new_tokens or "the folder's"),
        "grow": "yes" if options.grow else "no",
        "shard": f"{options.shard[0]}/{options.shard[1]}",
        "code format": _CODE_FORMAT,
    }


def _requests(
    model: KnowledgeModel, entities: Entities, texts: pa.Table, options: GenerationOptions, track: Track
) -> tuple[dict[int, TextRequest], dict[int, str]]:
    """Requests of the entities without a text, by position, and the errors of those refused.

    Members of a group follow one another: its pool grows while they are written.
    """
    requests: dict[int, TextRequest] = {}
    errors: dict[int, str] = {}
    missing = np.setdiff1d(np.arange(len(entities)), texts["position"].to_numpy()).tolist()
    with track("prompts") as task:
        for done, position in enumerate(missing, 1):
            try:
                requests[position] = entities.request(model, position, options.max_new_tokens)
            except Exception as error:  # the others must not fail for it, whatever it is
                errors[position] = _reason(error)
            task(done, len(missing), "")
    return dict(sorted(requests.items(), key=lambda request: request[1].group)), errors


def _write(
    model: KnowledgeModel, requests: _Writable, store: _Store, options: GenerationOptions, track: Track
) -> dict[int, str]:
    """Write the texts of `requests` to `store`; the errors of those that fail, by position."""
    if options.compare and store.record.autoregressive is None:
        drawn = np.random.default_rng(0).permutation(list(requests))[: options.compare].tolist()
        plain, statistics = _decoder(model, options, GREEDY, drafter=None), DecodingStatistics()
        with track("without drafts") as task:
            for done, _ in enumerate(_decode(plain, {at: requests[at] for at in drawn}, 1, statistics), 1):
                task(done, len(drawn), "")
        store.record = store.record.model_copy(update={"autoregressive": statistics})
    if options.grow:
        add_texts(model.pools, store.texts())
    errors: dict[int, str] = {}
    statistics = store.record.statistics
    began, before = time.monotonic(), statistics.tokens
    decoder = _decoder(model, options, VERIFICATIONS[options.verification], grow=options.grow)
    with track("generate") as task:
        for done, (position, result) in enumerate(_decode(decoder, requests, options.attempts, statistics), 1):
            if isinstance(result, Generated):
                store.add(position, model.text(result.tokens), result.tokens, requests[position].group)
                store.save(options.save_every_s)
            else:
                errors[position] = _reason(result)
            seconds = time.monotonic() - began
            rates = f"{done / seconds:.1f} texts/s, {(statistics.tokens - before) / seconds:.0f} tokens/s"
            task(done, len(requests), rates)
    store.save()
    return errors


def _decoder(
    model: KnowledgeModel, options: GenerationOptions, verification: Verification, **others: Any
) -> SpeculativeDecoder:
    return model.decoder(verification, options.batch_size, precision=options.precision, **others)


def _decode(
    decoder: SpeculativeDecoder, requests: _Writable, attempts: int, statistics: DecodingStatistics
) -> Iterator[tuple[int, Generated | Exception]]:
    """The texts of `requests` as they finish, or what went wrong with them. Work is counted in `statistics`.

    After an exception the state of a session is unknown. Its texts are tried one by one, `attempts` times each, since
    any one of them may be what all failed for; the rest go on together.
    """
    source = iter(requests.items())
    session, running = _session(decoder, statistics), dict[int, int]()
    while True:
        while len(running) < decoder.batch_size and (entry := next(source, None)):
            try:
                running[session.submit(entry[1])] = entry[0]
            except InvalidRequest as error:
                yield entry[0], error
        if not running:
            return
        try:
            steps = session.step()
        except Exception:
            for position in running.values():
                yield position, _decode_alone(decoder, requests[position], attempts, statistics)
            session, running = _session(decoder, statistics), {}
            continue
        for progress in steps:
            if progress.finished:
                yield running.pop(progress.index), progress.finished


def _decode_alone(
    decoder: SpeculativeDecoder, request: TextRequest, attempts: int, statistics: DecodingStatistics
) -> Generated | Exception:
    for _ in range(attempts):
        session = _session(decoder, statistics)
        try:
            session.submit(request)
            while not (finished := session.step()[0].finished):
                pass
            return finished
        except Exception as error:
            failure = error
    return failure


def _session(decoder: SpeculativeDecoder, statistics: DecodingStatistics) -> Session:
    session = decoder.session()
    session.statistics = statistics
    return session


class _Store:
    """Finished texts: a file per `save` in `folder`, and all of them in memory.

    record: goes into the next file. tables: of `_SCHEMA`, saved before; a position may be in several.
    """

    def __init__(self, folder: Path, record: _Record, tables: list[pa.Table], next_part: int) -> None:
        self.folder, self.record = folder, record
        self._tables, self._next_part = tables, next_part
        self._new: list[tuple[int, str, np.ndarray, str, None]] = []
        self._saved_at = time.monotonic()

    def add(self, position: int, text: str, tokens: np.ndarray, group: str) -> None:
        self._new.append((position, text, tokens, group, None))

    def save(self, at_least_s: float = 0.0) -> None:
        """Save what was added, if the last time was so many seconds ago."""
        if self._new and time.monotonic() - self._saved_at >= at_least_s:
            table = pa.table([list(column) for column in zip(*self._new, strict=True)], schema=_SCHEMA)
            _write_table(self.folder / f"{self._next_part:06}.parquet", table, self.record)
            self._tables.append(table)
            self._next_part += 1
            self._new, self._saved_at = [], time.monotonic()

    def texts(self) -> pa.Table:
        """All that are saved, one per position, in their order."""
        table = pa.concat_tables([_SCHEMA.empty_table(), *self._tables])
        return table.take(np.unique(table["position"].to_numpy(), return_index=True)[1])


@contextmanager
def _store(out: Path, arguments: dict[str, str]) -> Iterator[_Store]:
    """What is there of `out`, as a whole or in parts; kept from other processes until the block ends."""
    folder = _beside(out)[1]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"{out}: another process is writing it; wait until it has ended, or choose another output"):
        try:
            parts = sorted(folder.glob("*.parquet"))
            record, tables = _Record(arguments=arguments, statistics=DecodingStatistics()), []
            for path in [out, *parts] if out.exists() else parts:
                table, record = read_texts(path)
                # The first files did not note the code format, nor the precision.
                require_same(
                    path,
                    {"code format": "1", "precision": "float32", **record.arguments},
                    arguments,
                    f"repeat what it was made with to go on, name another output, or delete {out} and {folder}",
                )
                tables.append(table)
            yield _Store(folder, record, tables, int(parts[-1].stem) + 1 if parts else 0)
        finally:
            with suppress(OSError):  # it stays if it holds texts
                folder.rmdir()


@contextmanager
def locked(folder: Path, otherwise: str) -> Iterator[None]:
    """Keep other processes from `folder` until the block ends. Raises ValueError(otherwise) if one has it already."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(otherwise) from None
        yield
    finally:
        os.close(lock)


def read_texts(path: Path) -> tuple[pa.Table, _Record]:
    """The texts in a part or in an output, whose errors are left out. Raises ValueError that names it."""
    try:
        table = pq.read_table(path)
        record = _Record.model_validate_json(table.schema.metadata[_RECORD])
        if "position" not in table.column_names:
            table = table.append_column("position", pa.array(np.arange(len(table))))
        return table.filter(pc.is_null(table["error"])).select(_SCHEMA.names).cast(_SCHEMA), record
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot be read as texts that `genrec knowledge generate` wrote: {error}; delete it, or choose "
            "another output"
        ) from error


def _write_table(path: Path, table: pa.Table, record: _Record) -> None:
    """Write all of the file or nothing, even if the machine goes down."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        pq.write_table(table.replace_schema_metadata({_RECORD: record.model_dump_json()}), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InvalidRequest) else f"{type(error).__name__}: {error}"


def add_texts(pools: Pools, texts: pa.Table) -> None:
    """Add texts of `read_texts` to the pools of their groups. Raises ValueError for other tokens than the pools'."""
    pools.add([text.values.to_numpy() for text in texts["tokens"]], texts["group"].to_pylist())


def _failures(errors: dict[int, str], entities: Entities) -> list[FailedEntities]:
    """Errors that differ only in numbers and quoted values are the same reason; the most frequent comes first."""
    positions: dict[str, list[int]] = {}
    for at, error in sorted(errors.items()):
        positions.setdefault(re.sub(r"'[^']*'|\d+", "*", error), []).append(at)
    return [
        FailedEntities(
            error=errors[same[0]], count=len(same), ids=[entities.ids[at].as_py() for at in same[:_SHOWN_IDS]]
        )
        for same in sorted(positions.values(), key=len, reverse=True)
    ]


def _report(
    entities: Entities, texts: pa.Table, errors: dict[int, str], record: _Record, options: GenerationOptions
) -> GenerationReport:
    done, plain = record.statistics, record.autoregressive
    rate = done.tokens / max(done.total_s, 1e-9)
    plain_rate = plain.tokens / plain.total_s if plain and plain.tokens else None
    return GenerationReport(
        commit=this_commit(),
        machine=this_machine(),
        arguments=record.arguments,
        batch_size=options.batch_size,
        entities=len(entities),
        texts=len(texts),
        tokens=pc.sum(pc.list_value_length(texts["tokens"])).as_py() or 0,
        failures=_failures(errors, entities),
        seconds={"llm": done.llm_s, "draft": done.draft_s, "other": done.other_s},
        texts_per_s=done.texts / max(done.total_s, 1e-9),
        tokens_per_s=rate,
        tokens_per_step=done.tokens_per_step,
        acceptance_by_depth={d: n / done.text_steps for d, n in done.accepted_by_depth.items()},
        autoregressive_tokens_per_s=plain_rate,
        speed_up=rate / plain_rate if plain_rate else None,
    )
