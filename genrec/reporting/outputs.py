"""What a command may write over: a folder of its own making or an empty one, and only when the new one is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

_ELSEWHERE = "name another folder to write to"


@dataclass(frozen=True)
class Output:
    """A kind of folder that a command writes, and how to tell one.

    what: it is, as in "a bundle". names(folder): what says of a file's path in it, with "/", whether the command writes
    that name; None for a folder that is none of the kind, because its metadata is missing.
    """

    what: str
    names: Callable[[Path], Callable[[str], bool] | None]

    @classmethod
    def of_patterns(cls, what: str, markers: Sequence[str], patterns: Iterable[str]) -> Output:
        """Files whose paths match one of `patterns` (a "*" also matches "/"), one of `markers` among them.

        Without markers the names alone tell.
        """
        every = (*markers, *patterns)

        def matches(name: str) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in every)

        def names(folder: Path) -> Callable[[str], bool] | None:
            return matches if not markers or any((folder / marker).is_file() for marker in markers) else None

        return cls(what, names)


def require_output(out: Path, kind: Output, inputs: Iterable[Path | None] = ()) -> None:
    """Raises ValueError or an OSError, in a line that says what to do, if `out` must not be written.

    That is so if it is, holds or lies in one of `inputs`; if it is a file, or a folder that holds anything but what
    `kind` says; and if it cannot be replaced: a mount point, the current folder, or in a place that cannot be written
    to.
    """
    place = out.resolve()
    for read in inputs:
        if read is not None and (how := _overlap(place, read.resolve())):
            raise ValueError(f"{out}: {how} {read}, which is read; {_ELSEWHERE}")
    parent = next(folder for folder in (place, *place.parents) if folder.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{out}: {'is' if parent == place else f'{parent} is'} a file; {_ELSEWHERE}")
    if parent != place:
        _require_access(out, parent)
        return
    if (foreign := _foreign(place, kind)) is not None:
        raise FileExistsError(
            f"{out}: holds {foreign}, which is not of {kind.what} that genrec wrote, and is not replaced; "
            f"{_ELSEWHERE}, or move it away"
        )


def require_replaceable(out: Path, kind: Output, inputs: Iterable[Path | None] = ()) -> None:
    """As `require_output`, for a folder that `replaced` is to replace."""
    require_output(out, kind, inputs)
    place = out.resolve()
    if not place.exists():
        return
    if Path.cwd() == place or place in Path.cwd().parents:
        raise ValueError(f"{out}: is the folder that you are in, or holds it, and is replaced as a whole; {_ELSEWHERE}")
    if os.path.ismount(place):
        raise ValueError(f"{out}: is a mount point, which cannot be replaced; name a folder in it")
    _require_access(out, place.parent)


@contextmanager
def replaced(out: Path, kind: Output, check: Callable[[Path], object] = lambda folder: None) -> Iterator[Path]:
    """A folder to fill that becomes `out` only if the block and then `check` of it end well.

    What was there is removed only then, and only if `require_replaceable` still says nothing against it. `out` may be a
    link: the folder that it leads to is replaced.
    """
    place = out.resolve()
    staging, old = (place.with_name(f".{place.name}.{os.getpid()}.{state}") for state in ("partial", "replaced"))
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        check(staging)
        require_replaceable(out, kind)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed while it removed it
            place.rename(old)
        try:
            staging.rename(place)
        except BaseException:
            with suppress(FileNotFoundError):
                old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def require_space(out: Path, needed: int, what: str) -> None:
    """Raises OSError if the disk that `out` will lie on has not `needed` bytes left for `what`."""
    place = out.resolve()
    parent = next(folder for folder in (place, *place.parents) if folder.is_dir())
    if (free := shutil.disk_usage(parent).free) < needed:
        raise OSError(
            f"{out}: the disk has {_size(free)} left and {what} takes about {_size(needed)}; free some, or name a "
            "folder on another disk"
        )


def _overlap(out: Path, read: Path) -> str | None:
    if out == read:
        return "is the same as"
    if out in read.parents:
        return "holds"
    return "lies in" if read in out.parents else None


def _foreign(folder: Path, kind: Output) -> str | None:
    """The first file in `folder` that is not of the kind, by path."""
    ours: Callable[[str], bool] | None = None
    for name in _files(folder):
        ours = ours or kind.names(folder)
        if ours is None or not ours(name):
            return name
    return None


def _files(folder: Path) -> Iterator[str]:
    """Paths in `folder` of all that is no folder, with "/". Raises OSError for a folder that cannot be read."""

    def stop(error: OSError) -> None:
        raise error

    for at, folders, names in os.walk(folder, onerror=stop):
        links = [name for name in folders if (Path(at) / name).is_symlink()]  # not walked into
        folders.sort()
        for name in sorted([*names, *links]):
            yield (Path(at) / name).relative_to(folder).as_posix()


def _require_access(out: Path, parent: Path) -> None:
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{out}: {parent} cannot be written to; {_ELSEWHERE}")


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
