"""Residual quantisation: an embedding becomes a semantic ID, one code per level.

Level l quantises what the levels before it left over: `r_1 = x`, `c_l = argmin_k |r_l - C_l[k]|^2`,
`r_{l+1} = r_l - C_l[c_l]` (residual quantisation as in RQ-VAE, arXiv 2107.03312, with fixed codebooks). Fitting is in
`genrec_builders.semantic_ids`; this half needs only numpy, so that a server can give new items their IDs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1
_META = "quantizer.json"


class QuantizerError(ValueError):
    """Codebooks, embeddings or files that cannot be used; the message names what and where."""


@dataclass(frozen=True)
class Fit:
    """How well codebooks describe the catalogue that they were made of.

    error: mean squared distance between an embedding and the centroids of its codes, for items of that catalogue that
    the codebooks have not seen: as large as a new item's while nothing drifts. variance: mean squared distance of its
    embeddings from their mean.
    """

    error: float
    variance: float


class ResidualQuantizer:
    """Codebooks of L levels.

    codebooks: L arrays, level l float32 [T_l, D], finite. fit: None if it was not measured.
    Raises QuantizerError for other codebooks.
    """

    def __init__(self, codebooks: Sequence[np.ndarray], fit: Fit | None = None) -> None:
        if not codebooks:
            raise QuantizerError("no codebooks; a quantiser needs at least one level")
        for level, book in enumerate(codebooks):
            _check_codebook(f"codebook {level}", book, codebooks[0].shape[-1])
        self.codebooks = [np.ascontiguousarray(book) for book in codebooks]
        self.fit = fit

    @property
    def levels(self) -> tuple[int, ...]:
        """Codes per level, T_1 .. T_L."""
        return tuple(len(book) for book in self.codebooks)

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self.codebooks[0].shape[1]

    def encode(self, embeddings: np.ndarray, chunk: int = 4096) -> np.ndarray:
        """The nearest code of the residual at every level; of equally near ones, the lowest.

        The answer for an item depends on nothing but its embedding: neither on `chunk` nor on its neighbours.

        embeddings: float [n, D], finite; n may be 0. chunk: items at a time; about `16 * chunk * max(T_l)` bytes are
        needed. Returns int32 [n, L]. Raises QuantizerError for a wrong shape or type, or values that are not finite.
        """
        if chunk < 1:
            raise QuantizerError(f"chunk is {chunk}; use at least 1 item at a time")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim or embeddings.dtype.kind != "f":
            raise QuantizerError(
                f"embeddings are {embeddings.dtype} {list(embeddings.shape)}; expected float [n, {self.dim}]"
            )
        codes = np.empty((len(embeddings), len(self.codebooks)), dtype=np.int32)
        # float64: the products of float32 values are exact, so only near-ties need the second look in _nearest.
        # Repeated centroids can never win against their first copy: leaving them out spares many exact ties.
        firsts = [np.sort(np.unique(book, axis=0, return_index=True)[1]) for book in self.codebooks]
        books = [book[first].astype(np.float64) for book, first in zip(self.codebooks, firsts, strict=True)]
        for start in range(0, len(embeddings), chunk):
            residual = embeddings[start : start + chunk].astype(np.float64)
            finite = np.isfinite(residual).all(axis=1)
            if not finite.all():
                raise QuantizerError(f"embedding {start + int(np.argmin(finite))} has values that are not finite")
            for level, book in enumerate(books):
                nearest = _nearest(residual, book)
                codes[start : start + chunk, level] = firsts[level][nearest]
                residual -= book[nearest]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """float32 [n, D]: the sum of the centroids that `codes` (integer [n, L]) name. Raises QuantizerError."""
        if codes.ndim != 2 or codes.shape[1] != len(self.codebooks) or codes.dtype.kind not in "iu":
            raise QuantizerError(
                f"codes are {codes.dtype} {list(codes.shape)}; this quantiser takes integers [n, {len(self.codebooks)}]"
            )
        outside = np.argwhere((codes < 0) | (codes >= np.asarray(self.levels)))
        if len(outside):
            row, level = outside[0].tolist()
            raise QuantizerError(
                f"code {codes[row, level]} of row {row} is outside level {level}, which has {self.levels[level]} codes"
            )
        total = np.zeros((len(codes), self.dim), dtype=np.float64)
        for level, book in enumerate(self.codebooks):
            total += book[codes[:, level]]
        return total.astype(np.float32)

    def squared_errors(self, embeddings: np.ndarray, codes: np.ndarray, chunk: int = 4096) -> np.ndarray:
        """Squared distances between embeddings, float [n, D], and the centroids of their codes, integer [n, L].

        Returns float64 [n]. Raises QuantizerError for codes that are not the quantiser's.
        """
        errors = np.empty(len(embeddings))
        for start in range(0, len(embeddings), chunk):
            part = slice(start, start + chunk)
            errors[part] = np.square(embeddings[part].astype(np.float64) - self.decode(codes[part])).sum(axis=1)
        return errors

    def save(self, directory: Path | str) -> None:
        """Writes `quantizer.json` and `codebook_0.npy` .. into `directory`, replacing an earlier quantiser there.

        The same codebooks and fit always give the same bytes.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob("codebook_*.npy"):
            stale.unlink()
        for level, book in enumerate(self.codebooks):
            np.save(directory / f"codebook_{level}.npy", book, allow_pickle=False)
        meta = {"format": FORMAT_VERSION, "levels": list(self.levels), "dim": self.dim}
        if self.fit is not None:
            meta["fit"] = asdict(self.fit)
        (directory / _META).write_text(json.dumps(meta) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path | str) -> ResidualQuantizer:
        """Reads what `save` wrote; nothing in the files is executed.

        Raises QuantizerError for missing, truncated or foreign files, a newer format, or contents that disagree.
        """
        directory = Path(directory)
        levels, dim, fit = _read_meta(directory / _META)
        books = []
        for level, size in enumerate(levels):
            path = directory / f"codebook_{level}.npy"
            book = _read_npy(path)
            _check_codebook(str(path), book, dim)
            if len(book) != size:
                raise QuantizerError(f"{path}: holds {len(book)} codes where {_META} says {size}")
            books.append(book)
        return cls(books, fit)


def _nearest(residual: np.ndarray, book: np.ndarray) -> np.ndarray:
    """int64 [n]: the row of `book` [T, D] nearest to each row of `residual` [n, D] (both float64), lowest of ties."""
    centroids = np.einsum("td,td->t", book, book)
    rows = np.einsum("nd,nd->n", residual, residual)
    distances = centroids - 2.0 * (residual @ book.T)  # |r - c|^2 less |r|^2, which no comparison needs
    best = distances.argmin(axis=1)
    # A matrix product may round the same sum differently from one place or shape to another. So what it cannot tell
    # apart is measured again by direct differences, whose rounding depends on the two vectors alone.
    slack = 1e-11 * (np.sqrt(rows) + np.sqrt(centroids.max())) ** 2
    close = distances <= (distances[np.arange(len(best)), best] + slack)[:, None]
    doubtful = np.flatnonzero(close.sum(axis=1) > 1)
    for row in doubtful.tolist():
        candidates = np.flatnonzero(close[row])
        exact = np.square(residual[row] - book[candidates]).sum(axis=1)
        best[row] = candidates[exact.argmin()]
    return best


def _check_codebook(name: str, book: np.ndarray, dim: int) -> None:
    if book.dtype != np.float32 or book.ndim != 2 or len(book) < 1 or book.shape[1] != dim or dim < 1:
        raise QuantizerError(f"{name}: is {book.dtype} {list(book.shape)}; expected float32 [T, {dim}], T at least 1")
    if not np.isfinite(book).all():
        raise QuantizerError(f"{name}: holds values that are not finite")


def _read_meta(path: Path) -> tuple[list[int], int, Fit | None]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantizerError(f"{path}: cannot be read ({error.strerror}); is this a saved quantiser?") from error
    except (ValueError, RecursionError) as error:
        raise QuantizerError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT_VERSION:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise QuantizerError(f"{path}: format is {found!r}; this version reads format {FORMAT_VERSION}")
    levels, dim = meta.get("levels"), meta.get("dim")
    sizes = [*levels, dim] if isinstance(levels, list) and levels else [None]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise QuantizerError(f"{path}: levels {levels!r} and dim {dim!r} must be positive whole numbers")
    assert isinstance(levels, list) and isinstance(dim, int)
    return levels, dim, _read_fit(path, meta.get("fit"))


def _read_fit(path: Path, fit: object) -> Fit | None:
    """The fit that a quantiser was saved with; None for those of before it was measured."""
    if fit is None:
        return None
    values: list[Any] = [fit.get(name) for name in ("error", "variance")] if isinstance(fit, dict) else [None]
    if not all(type(value) in (int, float) and math.isfinite(value) and value >= 0 for value in values):
        raise QuantizerError(f"{path}: fit {fit!r} must have an error and a variance, finite and at least 0")
    return Fit(*values)


def _read_npy(path: Path) -> np.ndarray:
    try:
        # Mapped first: a header that promises more than the file holds is refused before anything is allocated.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise QuantizerError(f"{path}: not a readable .npy file ({error})") from error
    if not isinstance(mapped, np.memmap):
        raise QuantizerError(f"{path}: not an .npy file")
    if mapped.offset + mapped.nbytes != path.stat().st_size:
        raise QuantizerError(f"{path}: {path.stat().st_size} bytes, but its header tells of {mapped.nbytes}")
    return np.array(mapped)
