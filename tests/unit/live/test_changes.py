"""Changes: joining them, and what several changes of an item come to."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from genrec.live.changes import Changes
from tests.unit.live.world import applied, changes, described

ATTRIBUTES = st.none() | st.tuples(st.none() | st.sampled_from(["x", "y"]), st.none() | st.just(1.0))
CHANGE = st.tuples(
    st.sampled_from("abcdef"),
    st.integers(-1, 3),
    st.integers(-1, 3),
    st.sampled_from([-1, 0, 1]),
    st.booleans(),
    ATTRIBUTES,
)


@given(rows=st.lists(CHANGE, max_size=40), known=st.booleans())
def test_one_change_of_each_does_what_all_do(rows: list[tuple], known: bool) -> None:
    state = dict.fromkeys("abcdef", (9, 7, False, ("old", None))) if known else {}
    # An item that is new always says its code; the store lets no other through.
    there, valid = set(state), []
    for name, code, popularity, available, removed, _ in rows:
        valid.append((name, max(code, 0) if name not in there else code, popularity, available, removed))
        (there.discard if removed else there.add)(name)
    every = described(changes(*valid), [row[5] for row in rows]) if rows else changes()
    merged = every.last_of_each()
    assert len(set(merged.item_ids.tolist())) == len(merged) == len({row[0] for row in valid})
    assert applied(state, merged) == applied(state, every)
    again = merged.last_of_each()
    assert applied(state, again) == applied(state, every)


def test_joined_changes_keep_their_order_and_their_ids() -> None:
    parts = [changes(("a", 1)), Changes.empty(), changes(("a-longer-one", 2, 3, 1), ("b", -1, -1, -1, True))]
    joined = Changes.concatenate(parts)
    assert joined.item_ids.tolist() == [b"a", b"a-longer-one", b"b"]
    assert joined.codes.tolist() == [1, 2, -1] and joined.removed.tolist() == [False, False, True]
    assert len(Changes.concatenate([])) == 0
    said = described(changes(("a", 1)), [("x", None)])
    joined = Changes.concatenate([changes(("b", 1)), said, Changes.empty()])
    assert joined.columns["brand"].tolist() == [None, "x"] and joined.described.tolist() == [False, True]


def test_changes_need_no_arrow() -> None:
    check = (
        "import sys; sys.modules.update(pyarrow=None, deltalake=None); import genrec.live.changes, genrec.errors, "
        "genrec.cli.catalog"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
