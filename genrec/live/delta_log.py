"""A Delta table as a log: its entries one by one, their rows, and commits that take exactly the next version.

The log's entries are read here as they are, and not through a table's snapshot: a version has to be known by what its
commit did, a commit that is damaged has to stop a reader, and a base has to be told from changes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, create_table_with_add_actions

from genrec.errors import CatalogConflict, CatalogStoreError, shown
from genrec.json_files import parse_json
from genrec.live.rows import SCHEMA, Refused, conform

# A base carries these in its transaction: the version that it is, and the version whose state it holds.
BASE, BASE_STATE = "genrec-base", "genrec-base-state"
_LOG = "_delta_log"
_GROUP_BYTES, _GROUP_ROWS, _FILE_GROUPS = 64 << 20, 1 << 18, 16
_ORPHAN_S = 86_400
_SHORT_LOOKS = 9  # of ten
# An object store that does not answer is given up after seconds, not minutes: who polls it tries again.
_PATIENCE = {"connect_timeout": "3s", "timeout": "10s", "max_retries": "2", "retry_timeout": "10s"}
_FAILURES = (DeltaError, OSError, pa.ArrowException, ValueError)


class Unreadable(Exception):
    """A commit whose log entry or files are missing, cut or damaged; the message says which."""


@dataclass(frozen=True)
class DataFile:
    """A file that a commit adds. rows: as its statistics say, if they do. changes: whether its rows are new."""

    path: str
    size: int
    rows: int | None
    changes: bool


@dataclass(frozen=True)
class Entry:
    """What one commit did.

    time: seconds since 1970. rewrites: whether it takes rows away. base: the version whose state it holds, None for a
    commit that is no base.
    """

    version: int
    time: float
    operation: str
    message: str
    files: tuple[DataFile, ...]
    rewrites: bool
    base: int | None

    @property
    def rows(self) -> int | None:
        """Rows that it adds, if the statistics of all of its files say so."""
        counts = [file.rows for file in self.files if file.changes]
        return None if None in counts else sum(count for count in counts if count is not None)


class DeltaLog:
    """The table at `location`: a folder, or a URL of an object store."""

    def __init__(self, location: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.location = location
        self.is_local = "://" not in location
        self._uri = str(Path(location).resolve()) if self.is_local else location.rstrip("/")
        self._options = None if self.is_local else _PATIENCE | dict(storage_options or {})
        self._short_looks = 0  # before the next whole one

    def failure(self, what: str, error: BaseException | str, remedy: str) -> CatalogStoreError:
        """An error that names the location."""
        return CatalogStoreError(f"{self.location}: {what}: {_cause(error)}; {remedy}")

    @cached_property
    def files(self) -> pafs.FileSystem:
        """What is at the location, by path."""
        return pafs.PyFileSystem(DeltaStorageHandler(self._uri, self._options))

    @cached_property
    def table(self) -> DeltaTable:
        """The newest version that can be loaded, when this is first asked for. Raises CatalogStoreError."""
        try:
            return DeltaTable(self._uri, storage_options=self._options)
        except TableNotFoundError as error:
            raise CatalogStoreError(
                f"{self.location}: there is no live catalogue, or it cannot be read; name another location, or make "
                "one by `genrec catalog init`"
            ) from error
        except _FAILURES as error:
            damaged = self._first_damaged(0)
            if damaged is None or damaged[0] == 0:
                raise self.failure("cannot be opened", error, "see that it can be reached and read") from error
            return self.at(damaged[0] - 1)

    def at(self, version: int) -> DeltaTable:
        """The table as it was at `version`. Raises CatalogStoreError."""
        try:
            return DeltaTable(self._uri, version=version, storage_options=self._options)
        except _FAILURES as error:
            remedy = "`genrec catalog log` lists those that are kept"
            raise self.failure(f"version {version} cannot be loaded", error, remedy) from error

    def poll(self) -> int:
        """The newest version. Raises CatalogStoreError if the store cannot be reached or the log is damaged.

        Most looks ask for the next log entry alone, which is one request to an object store. Every tenth look, and
        those behind one that went wrong, are whole: they also see a log that was replaced, emptied or compacted.
        A folder is seen to have its newest entry at every look.
        """
        before = self.table.version()
        if not self._is_there(before + 1) and self._short_looks:
            self._short_looks -= 1
            if not self.is_local or self._is_there(before):
                return before
        self._short_looks = 0
        # An update of a table that is not there any more finds nothing new, and says nothing.
        if not self._is_there(before):
            self._open_again(before)  # gone, or compacted away since it was looked at last
        try:
            self.table.update_incremental()
        except _FAILURES as error:
            damaged = self._first_damaged(before + 1)
            if damaged is None:
                raise self.failure("cannot be read", error, "see that it can be reached") from error
            remedy = "put the file back from a copy, or remove it if it is the last: its changes are then lost"
            raise self.failure(f"version {damaged[0]} cannot be read", damaged[1], remedy) from error
        self._short_looks = _SHORT_LOOKS
        return self.table.version()

    def _is_there(self, version: int) -> bool:
        """Whether a version has a log entry, by one request. Raises CatalogStoreError."""
        try:
            self.files.open_input_file(_entry_path(version)).close()
        except FileNotFoundError:
            return False
        except _FAILURES as error:
            raise self.failure("cannot be read", error, "see that it can be reached") from error
        return True

    def _open_again(self, before: int) -> None:
        table = self.table
        del self.table
        try:
            found = self.table.version()
            if found < before:
                raise CatalogStoreError(
                    f"{self.location}: is at version {found}, and was at {before}: it was replaced; start again"
                )
        except CatalogStoreError:
            self.table = table
            raise

    def entry(self, version: int) -> Entry:
        """The commit that made `version`. Raises Unreadable."""
        path = _entry_path(version)
        try:
            with self.files.open_input_stream(path) as file:
                actions = [parse_json(line) for line in file.read().splitlines() if line.strip()]
            return _parsed(version, actions)
        except (*_FAILURES, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise Unreadable(f"log entry {path}: {_cause(error)}") from error

    def rows(self, entry: Entry) -> pa.Table:
        """The rows that a commit adds, as `SCHEMA` says. Raises Unreadable, Refused."""
        tables = [SCHEMA.empty_table()]
        for file in entry.files:
            if not file.changes:
                continue
            try:
                with self._opened(file) as parquet:
                    rows = parquet.read()
            except _FAILURES as error:
                raise Unreadable(f"file {file.path}: {_cause(error)}") from error
            if file.rows is not None and rows.num_rows != file.rows:
                raise Unreadable(f"file {file.path}: has {rows.num_rows} rows, the log says {file.rows}")
            tables.append(conform(rows))
        return pa.concat_tables(tables)

    def batches(self, entry: Entry, columns: Sequence[str]) -> Iterator[pa.Table]:
        """`columns` of the rows of a base, row group by row group. Raises Unreadable.

        The columns that are not asked for are null. A group in which a sid is missing brings its embeddings too.
        """
        for file in entry.files:
            try:
                with self._opened(file) as parquet:
                    for group in range(parquet.num_row_groups):
                        rows = parquet.read_row_group(group, columns=list(columns))
                        if "sid" in columns and "embedding" not in columns and rows["sid"].null_count:
                            rows = parquet.read_row_group(group, columns=[*columns, "embedding"])
                        yield conform(rows)
            except (*_FAILURES, Refused) as error:
                raise Unreadable(f"file {file.path}: {_cause(error)}") from error

    def _opened(self, file: DataFile) -> Any:
        source = self.files.open_input_file(file.path)
        if source.size() != file.size:
            raise OSError(f"has {source.size()} bytes, the log says {file.size}")
        return pq.ParquetFile(source)

    def write(self, rows: Iterable[pa.Table], kind: str) -> list[AddAction]:
        """Write rows into new files, which nothing refers to until they are committed. Raises CatalogStoreError.

        rows: one row group each, at most; larger ones are divided. kind: with which the files' names begin.
        """
        added = []
        groups = chain.from_iterable(map(_groups, rows))
        try:
            for first in groups:
                path = f"{kind}-{uuid4().hex}.parquet"
                count = 0
                with (
                    self.files.open_output_stream(path) as sink,
                    pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer,
                ):
                    for group in chain([first], islice(groups, _FILE_GROUPS - 1)):
                        writer.write_table(group)
                        count += group.num_rows
                size = self.files.get_file_info(path).size
                statistics = json.dumps({"numRecords": count})
                added.append(AddAction(path, size, {}, int(1000 * time.time()), True, statistics))
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise self.failure("cannot be written to", error, "see that it can be reached and has space") from error
        return added

    def create(self, added: list[AddAction], name: str, description: str, message: str) -> None:
        """Make the table; its version 0 is a base. Raises CatalogStoreError."""
        try:
            create_table_with_add_actions(
                self._uri,
                Schema.from_arrow(SCHEMA),
                added,
                name=name,
                description=description,
                configuration={"delta.enableExpiredLogCleanup": "false"},  # `clean` knows what is still needed
                storage_options=self._options,
                commit_properties=_properties("init", message, added, {BASE: 0, BASE_STATE: 0}),
            )
        except _FAILURES as error:
            raise self.failure("cannot be written to", error, "see that it can be reached") from error

    def commit(self, added: list[AddAction], kind: str, message: str, expected: int, base: int | None = None) -> int:
        """Append, or with `base` replace all by, the files of `added`, as the version behind `expected`.

        base: the version whose state the files hold. Raises CatalogConflict if that version is there already,
        CatalogStoreError if it cannot be written.
        """
        version = expected + 1
        marks = {} if base is None else {BASE: version, BASE_STATE: base}
        table = self.table if self.table.version() == expected else self.at(expected)
        try:
            table.create_write_transaction(
                [*added],
                "append" if base is None else "overwrite",
                table.schema(),
                commit_properties=_properties(kind, message, added, marks),
            )
        except _FAILURES as error:
            if self.poll() >= version:
                raise CatalogConflict(
                    f"{self.location}: version {version} was written meanwhile; read it and apply again"
                ) from error
            raise self.failure("cannot be written to", error, "see that it can be reached and has space") from error
        self.poll()
        return version

    def mark(self, version: int) -> tuple[int, int] | None:
        """The newest base at or before `version`: its own version, and that whose state it holds.

        Raises CatalogStoreError.
        """
        table = self.table if self.table.version() == version else self.at(version)
        try:
            own, state = table.transaction_version(BASE), table.transaction_version(BASE_STATE)
        except _FAILURES as error:
            raise self.failure(
                f"version {version} cannot be read", error, "put its log entry back from a copy"
            ) from error
        return None if own is None or state is None else (own, state)

    def holds(self) -> str | None:
        """The path of something at the location, None if there is nothing. Raises CatalogStoreError."""
        try:
            if self.is_local:
                Path(self._uri).mkdir(parents=True, exist_ok=True)
            found = self.files.get_file_info(pafs.FileSelector("", allow_not_found=True))
        except (DeltaError, OSError) as error:
            raise self.failure("cannot be written to", error, "see that it can be reached, or name another") from error
        return min((info.path for info in found), default=None)

    def versions(self) -> list[int]:
        """Versions whose log entries are kept, rising. Raises CatalogStoreError."""
        return sorted(int(name[:20]) for name in self._log_names() if re.fullmatch(r"\d{20}\.json", name))

    def clean(self, oldest: int) -> None:
        """Forget what no version from `oldest` on needs: log entries, their files, and files that nothing refers to.

        A file that nothing refers to may be of a writer that is at work, so it goes when it is a day old; and only if
        all entries that stay can be read, because it may be of one of them. Raises CatalogStoreError.
        """
        try:
            names, entries, unread = self._log_names(), {}, []
            for version in self.versions():
                try:
                    entries[version] = self.entry(version)
                except Unreadable:
                    unread.append(version)
            bases = [entry for entry in entries.values() if entry.base is not None]
            if not bases:
                return
            base = max((entry for entry in bases if entry.version <= oldest), default=bases[0], key=_version)
            first = min(base.version, (base.base or 0) + 1)
            if base.version and f"{base.version:020}.checkpoint.parquet" not in names:
                self.at(base.version).create_checkpoint()  # where readers of what is kept start
            needed = {file.path for entry in entries.values() if entry.version >= first for file in entry.files}
            known = {file.path for entry in entries.values() for file in entry.files}
            old = time.time() - _ORPHAN_S if max(unread, default=-1) < first else 0.0
            for info in self.files.get_file_info(pafs.FileSelector("")):
                if info.type == pafs.FileType.File and info.path not in needed:
                    if info.path in known or info.mtime.timestamp() < old:
                        self.files.delete_file(info.path)
            # What was being written into a folder has such a name, which is not listed.
            for path in Path(self._uri).glob("*.parquet#*") if self.is_local else ():
                if path.stat().st_mtime < old:
                    path.unlink()
            for name in sorted(names):  # the oldest first: what is left has no gap
                if re.match(r"\d{20}\.", name) and int(name[:20]) < first:
                    self.files.delete_file(f"{_LOG}/{name}")
        except _FAILURES as error:
            raise self.failure("old files cannot be removed", error, "run `genrec catalog compact` again") from error

    def _log_names(self) -> list[str]:
        try:
            found = self.files.get_file_info(pafs.FileSelector(_LOG))
        except (DeltaError, OSError) as error:
            raise self.failure("cannot be listed", error, "see that it can be reached") from error
        return [info.path.rpartition("/")[2] for info in found]

    def _first_damaged(self, since: int) -> tuple[int, str] | None:
        """The first version from `since` on whose entry is damaged or missing, and how; None if none is."""
        with suppress(CatalogStoreError):
            versions = [version for version in self.versions() if version >= since]
            for version in range(versions[0] if since == 0 else since, versions[-1] + 1) if versions else ():
                try:
                    self.entry(version)
                except Unreadable as error:
                    return version, str(error)
        return None


def _parsed(version: int, actions: list[dict[str, Any]]) -> Entry:
    """Raises ValueError and the like for actions that are no whole commit, or need what is not read here."""
    info: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    files = []
    for add in (action["add"] for action in actions if "add" in action):
        if add.get("deletionVector"):
            raise ValueError("it deletes rows by deletion vectors, which are not read here")
        rows = json.loads(add.get("stats") or "{}").get("numRecords")
        path = unquote(add["path"])
        if "://" in path or not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError(f"names the file {shown(path)}, which is outside of the table")
        files.append(DataFile(path, add["size"], rows, add["dataChange"]))
    if not actions:
        raise ValueError("is empty")
    # What is cut between two lines is still JSON. delta-rs counts its files, those of its change feed among them.
    said = int(info.get("files", (info.get("operationMetrics") or {}).get("num_added_files", 0)))
    if said > (named := sum("add" in action or "cdc" in action for action in actions)):
        raise ValueError(f"is cut: says that it adds {said} files, and names {named}")
    marks = {action["txn"]["appId"]: action["txn"]["version"] for action in actions if "txn" in action}
    return Entry(
        version,
        info.get("timestamp", 0) / 1000,
        info.get("kind") or info.get("operation", "").lower(),
        info.get("message") or "",
        tuple(files),
        any(action["remove"]["dataChange"] for action in actions if "remove" in action),
        marks[BASE_STATE] if marks.get(BASE) == version else None,
    )


def _properties(kind: str, message: str, added: list[AddAction], marks: Mapping[str, int]) -> CommitProperties:
    """No second try: a commit is for the version that it was made for."""
    return CommitProperties(
        custom_metadata={"kind": kind, "message": message, "files": len(added)},
        max_commit_retries=0,
        app_transactions=[Transaction(name, version) for name, version in marks.items()],
    )


def _groups(rows: pa.Table) -> Iterator[pa.Table]:
    """Parts of a size that a reader can take at once."""
    if rows.num_rows:
        size = max(1, min(_GROUP_ROWS, _GROUP_BYTES * rows.num_rows // max(1, rows.nbytes)))
        for start in range(0, rows.num_rows, size):
            yield rows.slice(start, size)


def _version(entry: Entry) -> int:
    return entry.version


def _entry_path(version: int) -> str:
    return f"{_LOG}/{version:020}.json"


def _cause(error: BaseException | str) -> str:
    """The gist of what a library says over many lines, the same for the same failure: no figures of the attempt."""
    text = re.sub(r"\x1b\[[0-9;]*m|↳| in [\d.]+[nµm]?s(?=,? )", "", str(error))
    return re.sub(r"\s+", " ", text.partition("0: <unknown>")[0]).strip()[:400]
