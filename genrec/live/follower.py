"""The follower: turns what a store's table becomes into files that the steps of a server map. One per server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from genrec.catalog import CatalogVersion, TableFull
from genrec.catalog.published import BASES, CURRENT, MERGED, VERSIONS, Record
from genrec.errors import CatalogStoreError
from genrec.live.bases import (
    LocalBase,
    base_of_batches,
    base_of_version,
    most_touched,
    new_folder,
    remove_unfinished,
    unused_name,
    usable_bases,
)
from genrec.live.changes import Changes
from genrec.live.drift import LEAST_ITEMS
from genrec.live.fold import Fold
from genrec.live.status import Status

if TYPE_CHECKING:
    from genrec.live.store import CatalogStore, Commits

DRIFT_EVERY_S, _DRIFT_REST = 60.0, 20.0  # the second: in times of what the last measurement took
_MOST_FRESH = 4096  # touched items of the delta that is made for every version; more are merged into the one below


class Follower:
    """Follows one store into the folder `root`, of which it is the only writer.

    most_popular: rows of the popularity fallback that any answer can need. keep_s: for how long a version can be asked
    for after another took its place. log: takes lines for the operator. bundle: what drift is measured against, None if
    it is not.
    """

    def __init__(
        self,
        store: CatalogStore,
        root: Path,
        most_popular: int,
        keep_s: float,
        log: Callable[[str], None] = print,
        bundle: Path | None = None,
    ) -> None:
        """Publishes the store's newest version. Raises CatalogStoreError if the store cannot be read."""
        self._store, self._root, self._most_popular, self._keep_s, self._log = store, root, most_popular, keep_s, log
        self._space, self._bundle = store.space, bundle
        self._status = Status(0, -1, None, time.time())
        self._emptied: list[tuple[float, np.ndarray]] = []  # codes that lost their last item, and since when
        self._rebase: _Rebase | None = None
        self._tidied = False  # nothing can have become unused since folders were looked through
        self._drift = _DriftMeasured()
        self._torn = False  # something local failed half-way, such as on a full disk: what is in memory may lack a part
        for folder in (BASES, MERGED, VERSIONS):
            (root / folder).mkdir(parents=True, exist_ok=True)
        remove_unfinished(root)
        # Versions of an earlier follower may be in use.
        self._superseded = {int(folder.name): time.monotonic() for folder in (root / VERSIONS).iterdir()}
        self._start()

    # What it stands on.

    def _start(self) -> None:
        latest = self._store.latest()
        usable = usable_bases(self._root, self._store.table_id, self._space, self._store.kinds)
        published = self._published()
        if published is not None and published.base not in usable:  # of another store
            (self._root / CURRENT).unlink()
            published = None
        # That of the published version first: its rows are then the same again.
        if published is not None:
            usable += [published.base]
        try:
            for name in reversed(usable):
                try:
                    self._open(name)
                except (OSError, ValueError) as error:
                    self._log(f"catalogue: the local base {name} cannot be used ({error}); another one is made")
                else:
                    return self._go_on(latest)
            self._reload(latest)
        except CatalogStoreError:
            if self._status.published < 0:
                raise
            # A commit cannot be read. What comes before it is published, and `look` goes on from there.

    def _start_again(self) -> None:
        """Go on from the local base, as a follower does that was killed."""
        if self._rebase is not None:
            self._rebase.process.kill()
            self._rebase.process.wait()
        remove_unfinished(self._root)
        self._start()
        self._torn = False

    def _reload(self, latest: int) -> None:
        """Go on from the store's own newest base."""
        version = self._store.base_version()
        batches = self._store.read_base(latest)
        self._open(base_of_batches(self._root, self._store.table_id, self._space, version, batches, self._store.kinds))
        self._catch_up(latest)

    def _open(self, name: str) -> None:
        base = LocalBase.load(self._root, name, self._space)
        self._folded, self._rebase = base.version, None
        self._stand_on(base, Fold(CatalogVersion(base.version, base.items), base.items.live))

    def _stand_on(self, base: LocalBase, fold: Fold) -> None:
        """Go on from a base, and from a fold over it."""
        self._base, self._fold = base, fold
        self._merge()

    def _merge(self) -> None:
        """Make one delta of all that was folded since the base; what comes next has a small one of its own over it."""
        below, self._merged, self._tidied = self._fold.below, "", False
        if len(self._fold):
            delta = self._fold.delta(self._most_popular + _MOST_FRESH)
            self._merged = unused_name(self._root / MERGED, self._folded)
            with new_folder(self._root / MERGED / self._merged) as folder:
                delta.save(folder)
            below = CatalogVersion(self._folded, below.base, delta, base_version=self._base.version)
        self._fresh = Fold(below, self._fold.live)

    def _published(self) -> Record | None:
        try:
            return Record.load(self._root / CURRENT)
        except (OSError, ValueError):
            return None

    # What it does.

    def run(self, stop: Event, poll_s: float) -> None:
        """Follow until `stop` is set, with poll_s seconds between two looks at the store."""
        while not stop.is_set():
            begun = time.monotonic()
            self.look()
            # A second of work is followed by one of rest: the steps need the processor more.
            stop.wait(max(poll_s, time.monotonic() - begun))
        if self._drift.process is not None:
            self._drift.process.kill()
            self._drift.process.wait()

    def look(self) -> None:
        """Look at the store once, publish what is new, tidy up. Never raises for what the store or its files do."""
        known = self._status.problem
        try:
            latest = self._store.latest()
            self._status = replace(self._status, seen=latest, reached_at=time.time(), problem="")
            if self._torn:
                self._start_again()
            if latest > self._folded:
                self._status = replace(self._status, waiting_since=self._waiting_since(self._folded))
                self._go_on(latest)
            self._finish_rebase()
            self._tidy()
        except (OSError, ValueError) as error:  # the version before goes on
            problem = str(error)
            if problem != known:
                self._log(f"catalogue: stays at version {self._status.published}: {problem}")
            self._status = replace(self._status, problem=problem)
            self._torn = self._torn or isinstance(error, OSError)  # what the store does is a CatalogStoreError
        self._measure_drift()
        try:
            self._status.save(self._root)
        except OSError as error:  # a full disk: the status before stays, and grows old
            if not self._status.problem:
                self._log(f"catalogue: how it is cannot be written: {error}")

    def _waiting_since(self, folded: int) -> float | None:
        """When the oldest commit after `folded` was made, or a time before; None if there is none."""
        if self._status.seen <= folded:
            return None
        try:
            return self._store.committed_at(folded + 1)
        except CatalogStoreError:  # damaged, or not kept any more
            return self._status.waiting_since or self._status.reached_at

    def _go_on(self, latest: int) -> None:
        """As `_catch_up`, from the store's newest base where that goes past what cannot be read, or is not kept."""
        try:
            self._catch_up(latest)
        except (OSError, ValueError):
            if self._store.base_version() <= self._folded:
                raise
            self._reload(latest)

    def _catch_up(self, latest: int) -> None:
        """Fold what was committed up to `latest`, and publish it."""
        commits = self._store.read_commits(self._folded, latest, self._fresh.knows)
        changes = commits.changes.last_of_each()
        # Also codes that are named and come to nothing: a follower before this one may have set their bits.
        named = commits.changes.codes[commits.changes.codes >= 0]
        moved = np.union1d(self._fold.apply(changes, commits.version), named)
        self._folded = commits.version
        if len(self._fresh) + len(changes) > _MOST_FRESH:
            self._merge()
        else:
            self._fresh.apply(changes, commits.version)
        if self._rebase is not None:
            self._rebase.missed.append((commits.version, changes))
        for version, refusal in commits.refused:
            self._log(f"catalogue: version {version} is refused, it counts as empty: {refusal}")
            note = f"version {version}: {refusal}"
            self._status = replace(self._status, refused=self._status.refused + 1, last_refusal=note)
        self._note_errors(commits)
        if self._folded > self._status.published:
            self._publish(moved)
        if commits.blocked is not None:
            version, reason = commits.blocked
            raise CatalogStoreError(f"version {version} cannot be read: {reason}")

    def _publish(self, moved: np.ndarray) -> None:
        """Publish what is folded; moved: codes of which an item came or went since the masks were last changed."""
        version, before = self._folded, self._published()
        delta, below = self._fresh.delta(self._most_popular), self._fresh.below
        self._catalog = catalog = CatalogVersion(
            version, below.base, *below.deltas, delta, base_version=self._base.version
        )
        there = catalog.buckets_of(moved) >= 0
        is_new = before is None or before.version < version
        if is_new:
            with new_folder(self._root / VERSIONS / str(version)) as unfinished:
                delta.save(unfinished)
                items, committed_at = self._fold.live, self._store.committed_at(version)
                Record(version, self._base.name, self._merged, items, committed_at, time.time()).save(unfinished)
        try:
            # Also for a version that an earlier follower published: it stands on what is set here.
            self._base.masks.add(moved[there])
        except TableFull:
            self._log(f"catalogue: the masks of base {self._base.name} are full; a larger base is made")
            self._open(base_of_version(self._root, self._store.table_id, catalog))
            return self._publish(np.empty(0, np.int64))
        if is_new:
            pointer = self._root / f"{CURRENT}.new"
            pointer.unlink(missing_ok=True)
            pointer.symlink_to(f"{VERSIONS}/{version}")
            pointer.rename(self._root / CURRENT)
            if before is not None:
                self._superseded[before.version] = time.monotonic()
        if not there.all():
            self._emptied.append((time.monotonic(), moved[~there]))
        self._status = replace(self._status, published=version, waiting_since=self._waiting_since(version))
        self._begin_rebase(catalog)

    # How far the catalogue is from what the bundle was trained on.

    def _note_errors(self, commits: Commits) -> None:
        quantizer, drift = self._store.quantizer, self._drift
        drift.embeddings += commits.embeddings
        drift.squared_error += commits.squared_error
        if quantizer is None or quantizer.fit is None or drift.embeddings < LEAST_ITEMS:
            return
        if trained := quantizer.fit.error:
            ratio = drift.squared_error / drift.embeddings / trained
            self._status = replace(self._status, error_ratio=ratio)

    def _measure_drift(self) -> None:
        """Have what is published measured, now and then: that reads all of it, so a process of its own does it."""
        now, drift = time.monotonic(), self._drift
        if drift.process is not None and drift.process.poll() is not None:
            process, drift.process = drift.process, None
            drift.due = now + max(DRIFT_EVERY_S, _DRIFT_REST * (now - drift.begun))
            assert process.stdout is not None
            with process.stdout as said:
                answer = said.read()
            if process.returncode:
                self._log(f"catalogue: its drift could not be measured (status {process.returncode})")
            else:
                self._status = replace(self._status, drift=json.loads(answer))
        published = self._status.published
        if self._bundle is None or drift.process is not None or now < drift.due or published == drift.version:
            return
        arguments = [str(self._root), str(self._bundle)]
        process = subprocess.Popen([sys.executable, "-m", "genrec.live.drift", *arguments], stdout=subprocess.PIPE)
        drift.process, drift.version, drift.begun = process, published, now

    # What comes after.

    def _begin_rebase(self, catalog: CatalogVersion) -> None:
        if self._rebase is None and len(self._fold) > most_touched(len(self._base.items)):
            levels = ",".join(map(str, self._space.levels))
            arguments = [str(self._root), self._store.table_id, str(catalog.version), levels]
            process = subprocess.Popen([sys.executable, "-m", "genrec.live.bases", *arguments], stdout=subprocess.PIPE)
            self._rebase = _Rebase(process)

    def _finish_rebase(self) -> None:
        """Stand on the new base once it is made; the next version is the first that shows it."""
        rebase = self._rebase
        if rebase is None or rebase.process.poll() is None:
            return
        self._rebase = None
        if rebase.process.returncode:
            self._log(f"catalogue: no new base could be made (status {rebase.process.returncode}); the old one stays")
            remove_unfinished(self._root)
            self._tidied = False
            return
        assert rebase.process.stdout is not None
        base = LocalBase.load(self._root, rebase.process.stdout.read().decode().strip(), self._space)
        fold = Fold(CatalogVersion(base.version, base.items), base.items.live)
        moved = [np.empty(0, np.int64), *(fold.apply(changes, version) for version, changes in rebase.missed)]
        codes = np.unique(np.concatenate(moved))
        self._stand_on(base, fold)
        self._catalog = self._fresh.below
        there = self._catalog.buckets_of(codes) >= 0
        base.masks.add(codes[there])
        self._emptied.append((time.monotonic(), codes[~there]))

    def _tidy(self) -> None:
        """Clear bits that no version needs any more; remove versions and bases that nobody can ask for."""
        now = time.monotonic()
        due = [codes for since, codes in self._emptied if now - since > self._keep_s]
        if due:
            self._emptied = self._emptied[len(due) :]
            codes = np.concatenate(due)
            self._base.masks.discard(codes[self._catalog.buckets_of(codes) < 0])
        newest = max(self._superseded, default=None)
        for version, since in list(self._superseded.items()):
            if version != newest and now - since > self._keep_s + 1:
                shutil.rmtree(self._root / VERSIONS / str(version), ignore_errors=True)
                del self._superseded[version]
                self._tidied = False
        if self._rebase is None and not self._tidied:
            folders = [folder for folder in (self._root / VERSIONS).iterdir() if folder.name.isdecimal()]
            records = [Record.load(folder) for folder in folders]
            used = {self._base.name, self._merged} | {
                name for record in records for name in (record.base, record.merged)
            }
            for folder in (*(self._root / BASES).iterdir(), *(self._root / MERGED).iterdir()):
                if folder.name not in used:
                    shutil.rmtree(folder, ignore_errors=True)
            self._tidied = True


@dataclass
class _Rebase:
    """A base that is being made of a version. missed: commits since."""

    process: subprocess.Popen[bytes]
    missed: list[tuple[int, Changes]] = field(default_factory=list)


@dataclass
class _DriftMeasured:
    """How drift is kept up. process: that measures the version `version`, since `begun`. due: when the next one may.

    embeddings, squared_error: of all commits that were read, as in `Commits`.
    """

    process: subprocess.Popen[bytes] | None = None
    version: int = -1
    begun: float = 0.0
    due: float = 0.0
    embeddings: int = 0
    squared_error: float = 0.0
