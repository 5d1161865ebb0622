"""The residual quantiser: nearest codes, safe files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genrec.catalog import Fit, QuantizerError, ResidualQuantizer


def brute_force(quantizer: ResidualQuantizer, embeddings: np.ndarray) -> np.ndarray:
    residual = embeddings.astype(np.float64)
    codes = []
    for book in quantizer.codebooks:
        distances = np.square(residual[:, None, :] - book[None].astype(np.float64)).sum(axis=2)
        codes.append(distances.argmin(axis=1))
        residual = residual - book[codes[-1]]
    return np.stack(codes, axis=1)


def codebooks(*levels: int, dim: int = 16) -> ResidualQuantizer:
    """Random ones, each level finer than the one before."""
    rng = np.random.default_rng(0)
    return ResidualQuantizer(
        [(rng.normal(size=(size, dim)) / 3**at).astype(np.float32) for at, size in enumerate(levels)]
    )


def random_embeddings(n: int = 600, dim: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, dim)).astype(np.float32)


VALUES = st.one_of(
    st.integers(-3, 3).map(float),  # many exact ties
    st.floats(-100, 100, width=32),
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray]:
    dim = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    books = [draw(arrays(np.float32, (size, dim), elements=VALUES)) for size in sizes]
    return books, draw(arrays(np.float32, (draw(st.integers(0, 12)), dim), elements=VALUES))


@given(problems(), st.integers(1, 13))
def test_codes_are_the_nearest(problem: tuple[list[np.ndarray], np.ndarray], chunk: int) -> None:
    books, embeddings = problem
    quantizer = ResidualQuantizer(books)
    codes = quantizer.encode(embeddings, chunk=chunk)
    assert codes.dtype == np.int32 and codes.shape == (len(embeddings), len(books))
    np.testing.assert_array_equal(codes, brute_force(quantizer, embeddings))


def test_ties_go_to_the_lowest_code() -> None:
    book = np.array([[5, 5], [1, 0], [-1, 0], [1, 0], [0, 1]], dtype=np.float32)
    codes = ResidualQuantizer([book]).encode(np.array([[0, 0], [1, 0], [0, 2]], dtype=np.float32))
    assert codes[:, 0].tolist() == [1, 1, 4]


def test_chunks_and_neighbours_do_not_matter() -> None:
    embeddings = random_embeddings()
    quantizer = codebooks(16, 16, 16)
    codes = quantizer.encode(embeddings)
    np.testing.assert_array_equal(quantizer.encode(embeddings, chunk=7), codes)
    np.testing.assert_array_equal(quantizer.encode(embeddings[::-1], chunk=1), codes[::-1])
    np.testing.assert_array_equal(codes, brute_force(quantizer, embeddings))


def test_decode_undoes_encode_for_centroids() -> None:
    # Each level is ten times finer than the one before, so that sums of centroids quantise to themselves.
    books = [scale * np.eye(4, dtype=np.float32) for scale in (100, 10, 1)]
    quantizer = ResidualQuantizer(books)
    codes = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    np.testing.assert_array_equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_encode_and_decode_refuse() -> None:
    quantizer = ResidualQuantizer([np.eye(3, dtype=np.float32)] * 2)
    for bad in (np.zeros((1, 4), dtype=np.float32), np.zeros(3, dtype=np.float32), np.zeros((1, 3), dtype=np.int64)):
        with pytest.raises(QuantizerError, match="expected float"):
            quantizer.encode(bad)
    bad_row = np.zeros((5, 3), dtype=np.float32)
    bad_row[4, 1] = np.nan
    with pytest.raises(QuantizerError, match="embedding 4 has values that are not finite"):
        quantizer.encode(bad_row, chunk=2)
    with pytest.raises(QuantizerError, match="chunk is 0"):
        quantizer.encode(bad_row, chunk=0)
    with pytest.raises(QuantizerError, match="code 3 of row 0 is outside level 1"):
        quantizer.decode(np.array([[0, 3]]))
    with pytest.raises(QuantizerError, match="integers"):
        quantizer.decode(np.array([[0.0, 1.0]]))


def test_codebooks_are_checked() -> None:
    good = np.eye(3, dtype=np.float32)
    for books in ([], [good, good[:, :2]], [good.astype(np.float64)], [good[:0]], [good * np.nan], [good[0]]):
        with pytest.raises(QuantizerError):
            ResidualQuantizer(books)


def test_save_and_load(tmp_path: Path) -> None:
    embeddings = random_embeddings()
    quantizer = codebooks(8, 4, 2)
    codebooks(2, 2, 2, 2).save(tmp_path)
    quantizer.save(tmp_path)  # replaces the one with more levels
    again = ResidualQuantizer.load(tmp_path)
    assert again.levels == (8, 4, 2)
    for a, b in zip(quantizer.codebooks, again.codebooks, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.encode(embeddings), quantizer.encode(embeddings))
    assert sorted(p.name for p in tmp_path.iterdir()) == [*(f"codebook_{i}.npy" for i in range(3)), "quantizer.json"]
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    again.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first


def test_how_well_it_fits_is_kept_beside_and_may_be_missing(tmp_path: Path) -> None:
    books = codebooks(8, 4, 2).codebooks
    ResidualQuantizer(books, Fit(0.25, 1.5)).save(tmp_path)
    assert ResidualQuantizer.load(tmp_path).fit == Fit(0.25, 1.5)
    meta = json.loads((tmp_path / "quantizer.json").read_text())
    assert meta.pop("fit") == {"error": 0.25, "variance": 1.5}
    (tmp_path / "quantizer.json").write_text(json.dumps(meta | {"of a later version": [1]}))
    assert ResidualQuantizer.load(tmp_path).fit is None  # of before, and what is not known is left alone
    ResidualQuantizer(books).save(tmp_path)
    assert json.loads((tmp_path / "quantizer.json").read_text()) == meta


@given(problems(), st.integers(1, 13))
def test_squared_errors_are_those_of_each_item(problem: tuple[list[np.ndarray], np.ndarray], chunk: int) -> None:
    books, embeddings = problem
    quantizer = ResidualQuantizer(books)
    codes = quantizer.encode(embeddings)
    found = quantizer.squared_errors(embeddings, codes, chunk)
    decoded = quantizer.decode(codes)
    expected = [
        sum((float(x) - float(y)) ** 2 for x, y in zip(*pair, strict=True))
        for pair in zip(embeddings, decoded, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def trap(path: Path) -> None:
    """An .npy file that would run code if it were unpickled."""
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)


FITTED = '{"format": 1, "levels": [4, 4], "dim": 3, "fit": %s}'


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "quantizer.json").unlink(), "quantizer.json: cannot be read"),
        (lambda d: (d / "quantizer.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "quantizer.json").write_text("[]"), "format is None"),
        (lambda d: (d / "quantizer.json").write_text('{"format": 2}'), "format is 2; this version reads format 1"),
        (lambda d: (d / "quantizer.json").write_text('{"format": 1, "levels": [4, 0], "dim": 3}'), "positive whole"),
        (lambda d: (d / "quantizer.json").write_text('{"format": 1, "levels": [4], "dim": true}'), "positive whole"),
        (lambda d: (d / "quantizer.json").write_text('{"format": 1, "levels": [4, 5], "dim": 3}'), "holds 4 codes"),
        (lambda d: (d / "quantizer.json").write_text('{"format": 1, "levels": [4, 4], "dim": 9}'), r"expected .*T, 9"),
        (lambda d: (d / "quantizer.json").write_text(FITTED % "3"), "fit 3 must have an error and a variance"),
        (lambda d: (d / "quantizer.json").write_text(FITTED % '{"error": 1}'), "must have an error and a variance"),
        (
            lambda d: (d / "quantizer.json").write_text(FITTED % '{"error": NaN, "variance": 1}'),
            "finite and at least 0",
        ),
        (lambda d: (d / "quantizer.json").write_text(FITTED % '{"error": -1, "variance": 1}'), "finite and at least 0"),
        (lambda d: (d / "codebook_1.npy").unlink(), r"codebook_1\.npy: not a readable"),
        (lambda d: (d / "codebook_1.npy").write_bytes(b""), r"codebook_1\.npy: not a readable"),
        (lambda d: (d / "codebook_1.npy").write_bytes((d / "codebook_1.npy").read_bytes()[:-1]), "not a readable"),
        (lambda d: (d / "codebook_1.npy").write_bytes((d / "codebook_1.npy").read_bytes() + b"x"), "header tells"),
        (lambda d: (d / "codebook_1.npy").write_bytes(pickle.dumps(Bomb())), "not a readable"),
        (lambda d: trap(d / "codebook_1.npy"), "not a readable"),
        (lambda d: np.save(d / "codebook_1.npy", np.eye(4, 3)), r"codebook_1\.npy: is float64"),
        (lambda d: np.save(d / "codebook_1.npy", np.full((4, 3), np.nan, dtype=np.float32)), "not finite"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, spoil: object, message: str) -> None:
    ResidualQuantizer([np.eye(4, 3, dtype=np.float32)] * 2).save(tmp_path)
    assert json.loads((tmp_path / "quantizer.json").read_text())["levels"] == [4, 4]
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(QuantizerError, match=message):
        ResidualQuantizer.load(tmp_path)


def test_zip_archives_are_refused(tmp_path: Path) -> None:
    ResidualQuantizer([np.eye(4, 3, dtype=np.float32)]).save(tmp_path)
    with (tmp_path / "codebook_0.npy").open("wb") as file:
        np.savez(file, np.eye(4, 3, dtype=np.float32))
    with pytest.raises(QuantizerError, match=r"codebook_0\.npy: not an \.npy file"):
        ResidualQuantizer.load(tmp_path)
