"""Plain arrays on disk, never pickled: one `.npy` file each, memory-mapped on load, or several in an archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save_array(path: Path, array: np.ndarray) -> None:
    """Write `array` to `path` (`.npy`), making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)


def load_archive(path: Path, what: str) -> dict[str, np.ndarray]:
    """All arrays of an archive (`.npz`), read and checked against their CRC-32, by name.

    what: is held there, in words. Raises ValueError that names the file and what is wrong with it.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # damaged archives make zipfile raise errors of many kinds
        raise ValueError(f"{path}: cannot be read as a {what}: {error}") from error


def load_array(path: Path, dtype: str | type, shape: tuple[int | None, ...], writable: bool = False) -> np.ndarray:
    """The array at `path`, memory-mapped.

    dtype: the wanted dtype, or a kind ("S" for bytes of any width). shape: wanted sizes, None for any. writable: for
    changes in the file, which others who have mapped it see.
    Raises ValueError that names the file and what is wrong with it.
    """
    try:
        mapped = np.load(path, mmap_mode="r+" if writable else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as an array: {error}") from error
    # A plain view of the mapping: np.memmap's own bookkeeping costs microseconds per operation.
    array = np.asarray(mapped)
    kind_matches = array.dtype.kind == dtype if dtype == "S" else array.dtype == np.dtype(dtype)
    if not kind_matches:
        raise ValueError(f"{path}: holds {array.dtype}, expected {np.dtype(dtype)}")
    fits = array.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=False)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{path}: has shape {array.shape}, expected ({wanted})")
    return array
