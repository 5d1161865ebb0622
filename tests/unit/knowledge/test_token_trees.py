"""Token trees of several texts behind one another: what goes in comes out, whole or in part."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genrec.knowledge.token_tree import TokenTree, TokenTrees


@st.composite
def forests(draw: st.DrawFn) -> list[TokenTree]:
    trees = []
    for size in draw(st.lists(st.integers(0, 9), min_size=1, max_size=5)):
        parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
        tokens = np.arange(len(trees) * 10, len(trees) * 10 + size, dtype=np.int32)
        trees.append(TokenTree(tokens, np.array(parents, np.int32), np.ones(size, np.float32)))
    return trees


def above(tree: TokenTree) -> dict[int, int]:
    """Of each token, the token above, -1 for none."""
    parents = [int(tree.tokens[parent]) if parent >= 0 else -1 for parent in tree.parents]
    return dict(zip(tree.tokens.tolist(), parents, strict=True))


@given(forests(), st.data())
def test_trees_are_joined_thinned_and_split(trees: list[TokenTree], data: st.DataObject) -> None:
    together = TokenTrees.of(trees)
    assert together.sizes.tolist() == [tree.size for tree in trees]
    np.testing.assert_array_equal(together.depths, np.concatenate([tree.depths for tree in trees]))
    for tree, same in zip(trees, together.split(), strict=True):
        for one, other in zip(tree, same, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype

    kept: list[int] = []
    for node, parent in enumerate(together.parents.tolist()):
        if (parent < 0 or parent in kept) and data.draw(st.booleans()):
            kept.append(node)
    thinned = together.chosen(np.array(kept, np.int64))
    assert thinned.tokens.tolist() == together.tokens[kept].tolist()
    assert thinned.depths.tolist() == together.depths[kept].tolist()
    for tree, left in zip(trees, thinned.split(), strict=True):
        assert above(left).items() <= above(tree).items()
