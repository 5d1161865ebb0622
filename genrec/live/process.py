"""The follower as a process of its own: started with a server, started again when it ends, ended with the server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from genrec.bundle import Bundle
from genrec.catalog.published import CURRENT
from genrec.errors import CatalogStoreError
from genrec.live.status import STATUS, Status
from genrec.reporting.log import say

if TYPE_CHECKING:
    from typing_extensions import Self

_LONGEST_PAUSE_S = 30.0
_LOCK, _NOTE = "lock", "followed.json"
Made = TypeVar("Made")


@dataclass(frozen=True)
class FollowerOptions:
    """What a follower is started with. location: of the store. root: the folder that it publishes in, no one else's.

    public_key: of whoever has to have signed the bundle, None for anybody.
    storage_options: of the store, beside what the environment says. most_popular, keep_s, poll_s: `Follower`'s.
    """

    location: str
    bundle: str
    root: str
    most_popular: int
    keep_s: float
    storage_options: Mapping[str, str] = field(default_factory=dict)
    poll_s: float = 0.2
    public_key: str | None = None


class FollowerProcess:
    """Runs the follower of one server. A context manager: there is a version to serve on entry; it ends on exit."""

    def __init__(self, options: FollowerOptions, timeout_s: float = 600.0) -> None:
        self._options, self._timeout_s = options, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="follower", daemon=True)

    def __enter__(self) -> Self:
        """Raises CatalogStoreError if there is no version to serve after `timeout_s`."""
        root = Path(self._options.root)
        root.mkdir(parents=True, exist_ok=True)
        (root / STATUS).unlink(missing_ok=True)
        self._spawn()
        assert self._process is not None
        deadline = time.monotonic() + self._timeout_s
        while not ((root / STATUS).exists() and (root / CURRENT).exists()):
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                self._process.kill()
                what = f"ended with status {status}" if status is not None else f"took more than {self._timeout_s:g} s"
                raise CatalogStoreError(self._last_words() or f"{self._options.location}: the follower {what}")
            time.sleep(0.02)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()
            self._process.wait()
        self._watcher.join()

    def _last_words(self) -> str:
        try:
            return Status.load(Path(self._options.root)).problem
        except (OSError, ValueError, TypeError):
            return ""

    def _spawn(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        with self._process.stdin as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps(asdict(self._options)).encode())  # not as arguments: they hold credentials

    def _watch(self) -> None:
        """The server goes on with what was published while a follower that ended is started again."""
        pause = 1.0
        while not self._closed.wait(0.2):
            assert self._process is not None
            started = time.monotonic()
            if self._process.poll() is None:
                continue
            say(f"catalogue: the follower ended (status {self._process.returncode}): started again")
            if self._closed.wait(pause):
                return
            pause = min(2 * pause, _LONGEST_PAUSE_S) if time.monotonic() - started < _LONGEST_PAUSE_S else 1.0
            self._spawn()


@contextlib.contextmanager
def _only_writer(root: Path) -> Iterator[None]:
    """Raises CatalogStoreError if another follower publishes in `root`."""
    with (root / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CatalogStoreError(f"{root}: another follower publishes here; give each server a folder") from None
        yield


def follow(options: FollowerOptions, stop: threading.Event) -> None:
    """Follow until `stop` is set. Raises CatalogStoreError if there is nothing to serve."""
    from genrec.live.follower import Follower
    from genrec.live.store import CatalogStore

    root = Path(options.root)
    bundle = Bundle(options.bundle, Path(options.public_key) if options.public_key else None)

    def opened() -> CatalogStore:
        return CatalogStore.open(options.location, bundle.quantizer, dict(options.storage_options))

    with _only_writer(root):
        _forget_others(root, {"location": options.location, "levels": list(bundle.space.levels)})
        store = _as_soon_as_possible(opened, root, stop, say)
        if store is None:
            return
        if store.space != bundle.space:
            raise CatalogStoreError(
                f"{options.location}: has semantic IDs of levels {list(store.space.levels)}, the bundle "
                f"{options.bundle} of {list(bundle.space.levels)}; give the catalogue that was made for it"
            )
        begin = partial(Follower, store, root, options.most_popular, options.keep_s, say, bundle.path)
        follower = _as_soon_as_possible(begin, root, stop, say)
        if follower is not None:
            follower.run(stop, options.poll_s)


def _forget_others(root: Path, what: dict[str, object]) -> None:
    """Have nothing published that was made of another catalogue than `what`."""
    note = root / _NOTE
    with contextlib.suppress(OSError, ValueError):
        if json.loads(note.read_text()) == what:
            return
    (root / CURRENT).unlink(missing_ok=True)
    note.write_text(json.dumps(what) + "\n")


def _as_soon_as_possible(
    make: Callable[[], Made], root: Path, stop: threading.Event, log: Callable[[str], None]
) -> Made | None:
    """What `make` gives: tried again while the store is not there, as long as what was published before can be served.

    None if it is to stop before that. Raises what `make` does if there is nothing to serve.
    """
    while True:
        try:
            return make()
        except (OSError, ValueError) as error:
            if not (root / CURRENT).exists():
                raise
            log(f"catalogue: {error}; what was published before goes on")
            published = int(os.readlink(root / CURRENT).rpartition("/")[2])
            with contextlib.suppress(OSError):  # a full disk
                Status(published, published, None, _reached(root), problem=str(error)).save(root)
        if stop.wait(1.0):
            return None


def _reached(root: Path) -> float:
    try:
        return Status.load(root).reached_at
    except (OSError, ValueError, TypeError):
        return (root / CURRENT).lstat().st_mtime


def main() -> None:
    """Follow as the options on the standard input say, until SIGTERM or the end of the process that started this."""
    options = FollowerOptions(**json.load(sys.stdin))
    os.nice(15)  # the steps of the server come first
    stop, parent = threading.Event(), os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def end_with_parent() -> None:
        while not stop.wait(0.5):
            if os.getppid() != parent:
                stop.set()

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        follow(options, stop)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            Status(0, -1, None, time.time(), problem=str(error)).save(Path(options.root))  # for who started this
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
