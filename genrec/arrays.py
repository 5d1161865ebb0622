"""Plain arrays on disk, never pickled: one `.npy` file each, memory-mapped on load, or several in an archive."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

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
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            # So a small file never becomes a large array.
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise ValueError("is compressed; write it by numpy.savez")
            if (held := sum(part.file_size for part in parts)) > (size := path.stat().st_size):
                raise ValueError(f"says that it holds {held} bytes, and has {size}")
            return {part.filename.removesuffix(".npy"): _stored_array(archive, part) for part in parts}
    except Exception as error:  # damaged archives make zipfile raise errors of many kinds
        said = " ".join(str(error).split())[:400] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a {what}: {said}") from error


def _stored_array(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive. Raises errors of many kinds."""
    with archive.open(part) as file:
        dtype, shape, order = _header(file, part.file_size)  # type: ignore[arg-type]
        data = bytearray(math.prod(shape) * dtype.itemsize)
        file.readinto(data)  # type: ignore[attr-defined]
        if file.read(1):  # reads to the end, which checks the CRC-32
            raise ValueError(f"{part.filename} is longer than its header says")
    return np.frombuffer(data, dtype).reshape(shape, order=order) if data else np.zeros(shape, dtype)


def _header(file: BinaryIO, size: int) -> tuple[np.dtype, tuple[int, ...], Literal["C", "F"]]:
    """What a `.npy` file of `size` bytes says of its array, whose bytes come next. Raises ValueError."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_columns, dtype = read(file)
    except Exception as error:  # Python's own reader of the header raises errors of many kinds
        raise ValueError(f"its header cannot be read: {' '.join(str(error).split())[:200]}") from error
    if dtype.kind in "OV" or not dtype.itemsize:
        raise ValueError(f"it holds {str(dtype)[:80]}, which is no plain type")
    held, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or held != left:
        raise ValueError(f"its header tells of {held} bytes, shape {str(shape)[:80]}, and {left} are there")
    return dtype, shape, "F" if by_columns else "C"


def load_array(path: Path, dtype: str | type, shape: tuple[int | None, ...], writable: bool = False) -> np.ndarray:
    """The array at `path`, memory-mapped.

    dtype: the wanted dtype, or a kind ("S" for bytes of any width). shape: wanted sizes, None for any. writable: for
    changes in the file, which others who have mapped it see.
    Raises ValueError that names the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            found, sizes, order = _header(file, path.stat().st_size)
            mapped = np.memmap(path, found, "r+" if writable else "r", file.tell(), sizes, order)
    except (OSError, ValueError) as error:
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
