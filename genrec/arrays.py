"""Plain arrays on disk, never pickled: one `.npy` file each, memory-mapped on load, or several in an archive."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

NewArray = Callable[[str, tuple[int, ...], DTypeLike], np.ndarray]
"""Makes an array of zeros to fill, by its name, shape and dtype."""


def in_memory(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """A `NewArray` that keeps arrays in memory."""
    return np.zeros(shape, dtype)


def in_folder(folder: Path) -> NewArray:
    """A `NewArray` of files `NAME.npy` in `folder`, mapped to be written, with the bytes that `save_array` writes.

    It raises OSError for an array that the disk has no room for.
    """

    def new(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        path = folder / f"{name}.npy"
        folder.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
        if hasattr(os, "posix_fallocate"):
            # A write to a mapped page that the disk has no room for would end the process.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return np.asarray(array)

    return new


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
