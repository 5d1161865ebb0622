import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import SemanticIdSpace

spaces = st.lists(st.integers(1, 600), min_size=1, max_size=5).map(lambda sizes: SemanticIdSpace(tuple(sizes)))


@given(spaces, st.integers(0, 2**32 - 1))
def test_codes_and_tuples_are_one_to_one(space: SemanticIdSpace, seed: int) -> None:
    sids = np.random.default_rng(seed).integers(0, space.levels, (3, 5, space.depth))
    codes = space.encode(sids)
    assert codes.dtype == np.int64
    assert codes.min() >= 0 and codes.max() < space.size
    np.testing.assert_array_equal(space.decode(codes), sids)


def test_mixed_radix_weights_are_the_published_ones() -> None:
    # code = sum_l c_l * prod_{j<l} T_j
    assert SemanticIdSpace((10, 20, 30)).encode(np.array([3, 4, 5])) == 3 + 4 * 10 + 5 * 200


def test_a_code_outside_its_level_is_named() -> None:
    space = SemanticIdSpace((4, 8))
    with pytest.raises(ValueError, match=r"code 8 at \(1, 1\) is outside \[0, 8\) of level 1"):
        space.encode(np.array([[3, 7], [0, 8]]))
    with pytest.raises(ValueError, match="2 codes in the last axis"):
        space.encode(np.zeros((3, 3), int))


@pytest.mark.parametrize("levels", [(), (0, 3), (2**21, 2**21, 2**21)])
def test_impossible_spaces_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels"):
        SemanticIdSpace(levels)
