"""The store of a live catalogue: versions of changes behind a base, in a Delta Lake table.

The state at version v is that of the last base at or before v, and the changes of the commits behind it in order. A
base holds the state of a version s, and is committed as a version c. A base that was compacted has s below c: what was
committed while it was written lies behind it. A base that begins anew, as the first one and as what a rollback past a
commit that cannot be read writes, has s = c: what lies before it does not lead to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from genrec.catalog import ResidualQuantizer, SemanticIdSpace
from genrec.catalog.kinds import Kinds, check_kinds
from genrec.errors import CatalogConflict, CatalogStoreError
from genrec.live.arrow_columns import fixed_bytes
from genrec.live.changes import Changes
from genrec.live.delta_log import DeltaLog, Unreadable
from genrec.live.rows import (
    REMOVE,
    SCHEMA,
    Refused,
    changes_of,
    conform,
    id_texts,
    is_new_without_code,
    keys_of,
    lacks_sid,
    merged,
    problems,
    quantized,
    removals,
    rows_of,
    says_code,
    squared_errors,
)

_NAME, _FORMAT, _ATTRIBUTES_FORMAT = "genrec catalogue", 1, 2  # the second: of catalogues that serve attributes
_TRIES = 100
_SERVED = ("item_id", "operation", "sid", "available", "popularity")
_RESTORE = "put it back from a copy, or go past it by `genrec catalog rollback`"
Known = Callable[[np.ndarray], np.ndarray]  # item ids, bytes S[w] [n] -> bool [n]


@dataclass(frozen=True)
class Commits:
    """What the commits behind a version come to.

    changes: of all commits up to `version`, in order. refused: commits that count as empty, and why. blocked: the
    commit behind `version` that cannot be read, or that begins anew, and why; None if all were read. Changes behind it
    are found by a base whose `base_version` is no smaller than it. embeddings: how many changes came with one;
    squared_error: the sum of their squared quantisation errors. Both are 0 without a quantiser.
    """

    changes: Changes
    version: int
    refused: list[tuple[int, str]]
    blocked: tuple[int, str] | None
    embeddings: int = 0
    squared_error: float = 0.0


@dataclass(frozen=True)
class Contents:
    """What a catalogue holds at a version.

    base: the version of its newest base. commits: others that its state is made of. refused: those of them that count
    as empty, and why. parts: the items, each once and with every field set but attributes, and their squared
    quantisation errors: float64, NaN for items without an embedding, and for all without a quantiser. Read one after
    the other.
    """

    base: int
    commits: int
    refused: list[tuple[int, str]]
    parts: Iterator[tuple[Changes, np.ndarray]]


@dataclass(frozen=True)
class LogEntry:
    """A line of the catalogue's log. time: seconds since 1970. rows: that it added, None if it does not say."""

    version: int
    time: float
    operation: str
    rows: int | None
    message: str


@dataclass(frozen=True)
class _Base:
    version: int
    state: int


@dataclass(frozen=True)
class _Judged:
    """Rows of the commits that count, in order, each one's version, and the rest as in `Commits`."""

    rows: pa.Table
    versions: np.ndarray
    reached: int
    refused: dict[int, str]
    blocked: tuple[int, str] | None

    def upto(self, version: int) -> pa.Table:
        """The rows of the commits up to `version`."""
        return self.rows.filter(pa.array(self.versions <= version))

    def without(self, late: dict[int, str]) -> _Judged:
        """The same with further commits refused."""
        if not late:
            return self
        counts = ~np.isin(self.versions, list(late))
        rows = self.rows.filter(pa.array(counts))
        return replace(self, rows=rows, versions=self.versions[counts], refused=self.refused | late)


class CatalogStore:
    """A live catalogue. One process may write while others read; what an instance has read is not shared by threads.

    space: the semantic IDs of its items. width: of the embeddings that it takes, None for none. kinds: of the
    attributes that it serves; others are kept. quantizer: the bundle's, None if it was not given.
    """

    def __init__(
        self,
        log: DeltaLog,
        space: SemanticIdSpace,
        width: int | None,
        kinds: Kinds,
        quantizer: ResidualQuantizer | None,
    ) -> None:
        self._log, self.space, self.width, self.kinds, self.quantizer = log, space, width, dict(kinds), quantizer

    @classmethod
    def create(
        cls,
        location: str,
        space: SemanticIdSpace,
        items: Iterable[Changes],
        storage_options: Mapping[str, str] | None = None,
        *,
        width: int | None = None,
        kinds: Kinds = MappingProxyType({}),
        message: str = "",
    ) -> None:
        """Make a catalogue, whose version 0 has the items.

        items: batches of distinct items, with every field set. width: of the embeddings that it is to take. kinds: of
        the attributes that it is to serve.
        Raises CatalogStoreError if the location holds anything or cannot be written to, ValueError for other kinds
        than there may be.
        """
        check_kinds(kinds)
        log = DeltaLog(location, storage_options)
        if (found := log.holds()) is not None:
            raise CatalogStoreError(f"{location}: holds {found}; name an empty location, or move that away")
        added = log.write((rows_of(batch, space) for batch in items), "base")
        description: dict[str, Any] = {"format": _FORMAT, "levels": list(space.levels), "embedding": width}
        if kinds:
            description |= {"format": _ATTRIBUTES_FORMAT, "attributes": dict(kinds)}
        log.create(added, _NAME, json.dumps(description), message)

    @classmethod
    def open(
        cls,
        location: str,
        quantizer: ResidualQuantizer | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> CatalogStore:
        """The catalogue at `location`.

        quantizer: the bundle's, which gives items their semantic IDs that come with an embedding alone.
        Raises CatalogStoreError if there is none, it is another table, or it does not fit the quantiser.
        """
        log = DeltaLog(location, storage_options)
        try:
            metadata = log.table.metadata()
        except DeltaError as error:
            raise log.failure("cannot be read", error, "put its log entries back from a copy") from error
        try:
            said = json.loads(metadata.description or "")
            levels, width, version = tuple(said["levels"]), said["embedding"], said["format"]
            kinds = dict(said.get("attributes", {}))
        except (ValueError, LookupError, TypeError):
            raise CatalogStoreError(
                f"{location}: is a Delta table, and not a catalogue of `genrec catalog init`; name another location"
            ) from None
        if version not in (_FORMAT, _ATTRIBUTES_FORMAT):
            readable = f"{_FORMAT} and {_ATTRIBUTES_FORMAT}"
            raise CatalogStoreError(f"{location}: has format {version}, this genrec reads {readable}; upgrade genrec")
        try:
            check_kinds(kinds)
        except ValueError as error:
            raise CatalogStoreError(f"{location}: cannot be served: {error}") from error
        if quantizer is not None and width is not None and (quantizer.levels, quantizer.dim) != (levels, width):
            raise CatalogStoreError(
                f"{location}: has levels {levels} and embeddings of {width}, the bundle's quantiser has "
                f"{quantizer.levels} and {quantizer.dim}; name the bundle that the catalogue was made of"
            )
        return cls(log, SemanticIdSpace(levels), width, kinds, quantizer)

    @property
    def table_id(self) -> str:
        """What tells this table from any other, also from a later one at its location."""
        return str(self._log.table.metadata().id)

    @property
    def version(self) -> int:
        """The version that `latest` found last."""
        return self._log.table.version()

    @property
    def _served(self) -> tuple[str, ...]:
        """The columns of a base that its items are served from."""
        return (*_SERVED, "attributes") if self.kinds else _SERVED

    def latest(self) -> int:
        """The newest version, by one cheap look at the store.

        Raises CatalogStoreError if it cannot be reached, or the log is damaged; try again later.
        """
        return self._log.poll()

    def base_version(self, version: int | None = None) -> int:
        """The version whose state the newest base at or before `version` (None: the newest version) holds.

        `read_base(version)` gives that state, and `read_commits` what is behind it. Raises CatalogStoreError.
        """
        return self._base(self.version if version is None else version).state

    def committed_at(self, version: int) -> float:
        """When a version was committed, in seconds since 1970. Raises CatalogStoreError."""
        try:
            return self._log.entry(version).time
        except Unreadable as error:
            raise self._log.failure(f"version {version} cannot be read", error, _RESTORE) from error

    def read_base(self, version: int) -> Iterator[Changes]:
        """The items of the newest base at or before `version`, batch by batch, with every field set.

        A batch is a row group, so all items are never in memory at once. Raises CatalogStoreError.
        """
        for rows in self._base_rows(self._base(version), self._served):
            yield self._changes(rows)

    def read_commits(self, after: int, upto: int, known: Known | None = None) -> Commits:
        """The changes of the commits after + 1 .. upto.

        known: tells which items exist at version `after`; without it the store is asked, which takes longer. It is
        asked about those alone that a commit changes and gives no semantic ID. Bases are passed over: their content is
        the state before. Raises CatalogStoreError if the store cannot be reached at all, or a quantiser is missing.
        """
        start = after
        if known is None:
            base = self._base(upto)
            if base.state > after:
                base = self._base(after)
            start, known = base.state, self._in_base(base)
        judged = self._settled(self._read(start, upto), known)
        wanted = self.with_sids(judged.rows.filter(pa.array(judged.versions > after)))
        refused = [(version, why) for version, why in sorted(judged.refused.items()) if version > after]
        errors = self._errors(wanted)
        errors = errors[~np.isnan(errors)]
        return Commits(self._changes(wanted), judged.reached, refused, judged.blocked, errors.size, float(errors.sum()))

    def lookup(self, item_ids: pa.Array, version: int) -> pa.Table:
        """The rows of those of `item_ids` (large_string) that exist at `version`, with everything that is known.

        Raises CatalogStoreError if the version cannot be read.
        """
        base = self._base(version)
        read = self._read(base.state, version)
        if read.blocked is not None:
            raise self._unread(read)
        held, judged = self._held(base, read, item_ids)
        rows = pa.concat_tables([held, judged.rows])
        return merged(rows.filter(pc.is_in(rows["item_id"], value_set=item_ids)))

    def contents(self, version: int) -> Contents:
        """All items of a version, which are never in memory at once.

        Raises CatalogStoreError if the version cannot be read, also while its parts are.
        """
        self._require(version, self.latest())
        base = self._base(version)
        read = self._read(base.state, version)
        if read.blocked is not None:
            raise self._unread(read)
        judged = self._settled(read, self._in_base(base))
        columns = self._served if self.quantizer is None else (*self._served, "embedding")
        parts = ((self._changes(rows), self._errors(rows)) for rows in self._snapshot(base, judged.rows, columns))
        commits = version - base.state - (base.version > base.state)
        return Contents(base.version, commits, sorted(judged.refused.items()), parts)

    def with_sids(self, rows: pa.Table) -> pa.Table:
        """`rows` with a sid where there is only an embedding, as far as there is a quantiser."""
        return rows if self.quantizer is None else quantized(rows, self.quantizer)

    def codes(self, rows: pa.Table) -> np.ndarray:
        """Codes of rows, int64 [n], -1 for those that say none. Raises CatalogStoreError if a quantiser is missing."""
        return self._changes(rows, {}).codes

    def commit(self, changes: Changes | pa.Table, expected_version: int, message: str, kind: str = "apply") -> int:
        """Write one version behind `expected_version`, which the changes were made for; gives its number.

        changes: with each item once; a table has columns as the store's, of which any may be missing. Whether the items
        exist is not looked at: a commit that changes an unknown item without a semantic ID is refused by its readers.
        Raises CatalogConflict if another version was written meanwhile, CatalogStoreError for changes that readers
        would refuse, and if the store cannot be written to.
        """
        try:
            rows = rows_of(changes, self.space) if isinstance(changes, Changes) else conform(changes)
        except Refused as error:
            raise CatalogStoreError(f"{self._log.location}: {error}; nothing was written") from error
        for bad, text in problems(rows, np.zeros(rows.num_rows, np.int64), self.space, self.width, self.kinds):
            if bad.any():
                raise CatalogStoreError(f"{self._log.location}: {text(int(bad.argmax()))}; nothing was written")
        return self._log.commit(self._log.write([rows], kind), kind, message, expected_version)

    def rollback(self, version: int, message: str = "") -> int:
        """A new version that is as `version` was; gives its number.

        It changes the items that were changed since; if what lies between cannot be read, it is a base.
        Raises CatalogConflict if another version was written meanwhile, CatalogStoreError for a version that is not
        there or not kept, and if the store cannot be written to.
        """
        newest = self.latest()
        self._require(version, newest)
        base = self._base(version)
        read = self._read(base.state, newest)
        if read.reached < version:
            raise self._unread(read)
        message = message or f"as version {version}"
        if read.blocked is not None:
            judged = self._settled(read, self._in_base(base))
            added = self._log.write(self._snapshot(base, judged.upto(version)), "base")
            return self._log.commit(added, "rollback", message, newest, newest + 1)
        touched = pc.unique(read.rows.filter(pa.array(read.versions > version))["item_id"])
        held, judged = self._held(base, read, touched)

        def state(rows: pa.Table) -> pa.Table:
            known = pa.concat_tables([held, rows])
            return merged(known.filter(pc.is_in(known["item_id"], value_set=touched)))

        return self.commit(_difference(state(judged.rows), state(judged.upto(version))), newest, message, "rollback")

    def compact(self, keep_versions: int = 100, message: str = "") -> int:
        """Write a base, and remove what the newest `keep_versions` versions do not need; gives the newest version.

        What others commit meanwhile stays, and is behind the base. Raises CatalogConflict if somebody else writes a
        base meanwhile, CatalogStoreError if a commit cannot be read, and if the store cannot be written to.
        """
        version = newest = self.latest()
        base = self._base(version)
        judged = self._settled(self._read(base.state, version), self._in_base(base))
        if judged.blocked is not None:
            raise self._unread(judged)
        if judged.rows.num_rows:
            added = self._log.write(self._snapshot(base, judged.rows), "base")
            newest = self._commit_base(added, version, base, message)
        self._log.clean(newest - keep_versions + 1)
        return newest

    def log(self, limit: int | None = None) -> list[LogEntry]:
        """The newest `limit` versions that are kept, newest first. Raises CatalogStoreError."""
        entries = []
        for version in self._kept()[::-1][:limit]:
            try:
                entry = self._log.entry(version)
            except Unreadable as error:
                entries.append(LogEntry(version, 0.0, "damaged", None, str(error)))
            else:
                entries.append(LogEntry(version, entry.time, entry.operation, entry.rows, entry.message))
        return entries

    def _require(self, version: int, newest: int) -> None:
        """Raises CatalogStoreError for a version that cannot be there."""
        if not 0 <= version <= newest:
            raise CatalogStoreError(f"{self._log.location}: has no version {version}; the newest is {newest}")

    def _kept(self) -> list[int]:
        """The versions that are kept, rising: those of the first base that is in the log, and behind it."""
        versions = self._log.versions()
        for place, version in enumerate(versions):
            with suppress(Unreadable):
                if self._log.entry(version).base is not None:
                    return versions[place:]
        return []

    def _base(self, version: int) -> _Base:
        """The newest base at or before `version`. Raises CatalogStoreError."""
        mark = self._log.mark(version)
        if mark is None:
            raise CatalogStoreError(f"{self._log.location}: version {version} has no base; name another location")
        return _Base(*mark)

    def _base_rows(self, base: _Base, columns: Iterable[str], only: pa.Array | None = None) -> Iterator[pa.Table]:
        """Row groups of a base; `only`: of these items. Raises CatalogStoreError."""
        try:
            for rows in self._log.batches(self._log.entry(base.version), list(columns)):
                yield rows if only is None else rows.filter(pc.is_in(rows["item_id"], value_set=only))
        except Unreadable as error:
            remedy = "put it back from a copy, or roll back to a version before it"
            raise self._log.failure(f"the base of version {base.version} cannot be read", error, remedy) from error

    def _unread(self, judged: _Judged) -> CatalogStoreError:
        number, why = judged.blocked or (judged.reached, "")
        return self._log.failure(f"version {number} cannot be read", why, _RESTORE)

    def _read(self, after: int, upto: int) -> _Judged:
        """The commits after + 1 .. upto, judged by their rows alone; `_settled` does the rest."""
        tables, versions = [SCHEMA.empty_table()], [np.empty(0, np.int64)]
        refused: dict[int, str] = {}
        blocked = None
        for version in range(after + 1, upto + 1):
            try:
                entry = self._log.entry(version)
                if entry.base == version:
                    raise Unreadable("it begins anew: what is before it does not lead to it")
                if entry.base is None and entry.rewrites:
                    raise Refused("it takes rows away; only appended rows are changes, so append rows that remove")
                rows = SCHEMA.empty_table() if entry.base is not None else self._log.rows(entry)
            except Refused as error:
                refused[version] = str(error)
            except Unreadable as error:
                blocked = (version, str(error))
                break
            else:
                tables.append(rows)
                versions.append(np.full(rows.num_rows, version))
        rows, commit = pa.concat_tables(tables), np.concatenate(versions)
        wrong: dict[int, str] = {}
        for bad, text in problems(rows, commit, self.space, self.width, self.kinds):
            at = np.flatnonzero(bad)
            for version, first in zip(*np.unique(commit[at], return_index=True), strict=True):
                wrong.setdefault(int(version), text(int(at[first])))
        reached = upto if blocked is None else blocked[0] - 1
        return _Judged(rows, commit, reached, refused, blocked).without(wrong)

    def _settled(self, read: _Judged, known: Known) -> _Judged:
        """Without the commits that change an item without a semantic ID that does not exist by then."""
        rows = read.rows
        removed, coded = removals(rows), says_code(rows)
        partial = ~removed & ~coded
        if not partial.any():
            return read
        key, distinct = keys_of(rows)
        asked = np.unique(key[partial])
        exists = np.zeros(len(distinct), bool)
        exists[asked] = known(fixed_bytes(distinct.take(pa.array(asked))))
        late: dict[int, str] = {}
        versions, starts = np.unique(read.versions, return_index=True)
        for version, start, end in zip(versions.tolist(), starts, [*starts[1:], rows.num_rows], strict=True):
            part = slice(start, end)
            strange = partial[part] & ~exists[key[part]]
            if strange.any():
                late[version] = is_new_without_code(distinct[int(key[part][strange.argmax()])].as_py())
                continue  # it counts as empty
            exists[key[part][coded[part]]] = True
            exists[key[part][removed[part]]] = False
        return read.without(late)

    def _in_base(self, base: _Base) -> Known:
        """What tells which items are in a base; it reads through their ids every time."""

        def known(ids: np.ndarray) -> np.ndarray:
            names, found = id_texts(ids), np.zeros(len(ids), bool)
            for rows in self._base_rows(base, ["item_id"], names):
                found[pc.index_in(rows["item_id"], value_set=names).to_numpy()] = True
            return found

        return known

    def _held(self, base: _Base, read: _Judged, item_ids: pa.Array) -> tuple[pa.Table, _Judged]:
        """The rows of a base of `item_ids` at least, and what settles `read`, by one way through the base."""
        partial = ~removals(read.rows) & ~says_code(read.rows)
        asked = read.rows.filter(pa.array(partial))["item_id"]
        every = pc.unique(pa.chunked_array([item_ids, *asked.chunks], SCHEMA.field("item_id").type))
        held = pa.concat_tables([SCHEMA.empty_table(), *self._base_rows(base, SCHEMA.names, every)])
        return held, self._settled(read, lambda ids: pc.is_in(id_texts(ids), value_set=held["item_id"]).to_numpy(False))

    def _changes(self, rows: pa.Table, kinds: Kinds | None = None) -> Changes:
        """Rows as changes; kinds: of the attributes in them, all that are served by default."""
        rows = self.with_sids(rows)
        alone = lacks_sid(rows)
        if alone.any():
            name = rows["item_id"][int(alone.argmax())].as_py()
            raise CatalogStoreError(
                f"{self._log.location}: item {name[:64]!r} and {int(alone.sum()) - 1} more have an embedding and no "
                "sid, and there is no quantiser to make one; name a bundle that has one (--bundle), or write sids"
            )
        return changes_of(rows, self.space, self.kinds if kinds is None else kinds)

    def _errors(self, rows: pa.Table) -> np.ndarray:
        """Squared quantisation errors of rows that have their sids: float64 [n], NaN where one is not known."""
        return np.full(rows.num_rows, np.nan) if self.quantizer is None else squared_errors(rows, self.quantizer)

    def _snapshot(self, base: _Base, rows: pa.Table, columns: Sequence[str] = SCHEMA.names) -> Iterator[pa.Table]:
        """The items of a base and of the commits behind it, with what is known of them, part by part.

        columns: that the items of the base are read with.
        """
        touched, held = pc.unique(rows["item_id"]), []
        for part in self._base_rows(base, columns):
            changed = pc.is_in(part["item_id"], value_set=touched)
            held.append(part.filter(changed))
            yield self.with_sids(part.filter(pc.invert(changed)))
        yield self.with_sids(merged(pa.concat_tables([*held, rows])))

    def _commit_base(self, added: list, state: int, base: _Base, message: str) -> int:
        """Commit a compacted base behind whatever was committed while it was written."""
        for _ in range(_TRIES):
            newest = self.latest()
            if self._base(newest) != base:
                break
            try:
                return self._log.commit(added, "compact", message or f"as version {state}", newest, state)
            except CatalogConflict:
                continue
        raise CatalogConflict(f"{self._log.location}: a base was written meanwhile; run `genrec catalog compact` again")


def _difference(now: pa.Table, then: pa.Table) -> pa.Table:
    """What makes the items of `now` those of `then`; both have every field set.

    Attributes that were not there become {}, because a null keeps what an item has.
    """
    gone = now["item_id"].filter(pc.invert(pc.is_in(now["item_id"], value_set=then["item_id"])))
    has = now["attributes"].take(pc.index_in(then["item_id"], value_set=now["item_id"])).is_valid()
    attributes = pc.if_else(pc.and_(has, then["attributes"].is_null()), "{}", then["attributes"])
    back = then.set_column(SCHEMA.get_field_index("attributes"), SCHEMA.field("attributes"), attributes)
    removed = conform(pa.table({"item_id": gone, "operation": pa.array([REMOVE] * len(gone), pa.string())}))
    return pa.concat_tables([back, removed])
