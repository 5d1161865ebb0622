"""Whether a live catalogue's store can be read, and how old it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import partial

from genrec.doctor.finding import Finding, judged
from genrec.errors import CatalogStoreError

_LOOKED_AT = 100
_finding = partial(judged, "store")


def store_findings(location: str, options: Mapping[str, str]) -> Iterator[Finding]:
    """What was found of the store at `location`. options: of the object store."""
    try:
        from genrec.live.store import CatalogStore
    except ModuleNotFoundError as error:
        yield _finding("packages", f"{error.name} is not installed", wrong="pip install 'genrec-triton[catalog]'")
        return
    try:
        store = CatalogStore.open(location, storage_options=options)
        newest = store.latest()
        entries = store.log(_LOOKED_AT)
    except CatalogStoreError as error:
        yield _finding("reached", str(error), wrong="mend the address, the credentials or the network; then ask again")
        return
    yield _finding("reached", f"{location}: version {newest}, {len(store.space.levels)} levels")
    for entry in entries:
        if entry.operation == "damaged":
            todo = "put the file back from a copy, or go past it: genrec catalog rollback"
            yield _finding(f"version {entry.version}", f"its entry is damaged: {entry.message}", wrong=todo)
    dated = [entry for entry in entries if entry.time]
    if dated:
        age = timedelta(seconds=round(time.time() - dated[0].time))
        yield _finding("age", f"version {dated[0].version} was written {age} ago")
    try:
        base = store.base_version()
        commits = store.read_commits(base, newest)
    except CatalogStoreError as error:
        yield _finding("commits", str(error), wrong="followers stop before it: mend the store")
        return
    yield _finding(
        "commits",
        f"{newest - base} behind the newest base",
        warning="" if newest - base < 1000 else "a start reads them all: genrec catalog compact",
    )
    for version, why in commits.refused:
        yield _finding(f"version {version}", f"counts as empty: {why}", warning="mend the writer, and commit it again")
    if commits.blocked is not None:
        version, why = commits.blocked
        yield _finding(f"version {version}", f"cannot be read: {why}", wrong="followers stay before it: put it back")
