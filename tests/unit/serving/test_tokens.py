"""The file of clients' tokens: what is wrong with it is said by line, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrec.serving.front import FrontError
from genrec.serving.front.tokens import read_tokens

HASH = "ab" * 32


def test_names_and_hashes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# clients\n\nshop {HASH.upper()}\n  batch\t{'0' * 64}  \nshop {'1' * 64}\n")
    assert read_tokens(path) == {HASH: "shop", "0" * 64: "batch", "1" * 64: "shop"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a-secret-token", "line 1 is no name with a hash; write a name"),
        ("# one\nshop a-secret-token", "line 2 is no name with a hash"),
        (f"shop {HASH} more", "line 1 is no name with a hash"),
        (f"sh\u00f6p {HASH}", "line 1 is no name with a hash"),
        (f"one {HASH}\ntwo {HASH}", "line 2: two clients have this token"),
        ("# nobody\n", "has no token, so nobody could ask anything"),
        (b"\xff", "is not UTF-8"),
        ("x" * ((1 << 20) + 1), "at most 1048576 are read"),
    ],
)
def test_a_file_that_cannot_be_used(content: str | bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FrontError) as caught:
        read_tokens(path)
    assert str(caught.value).startswith(f"{path}: ") and says in str(caught.value)
    assert "secret" not in str(caught.value) and HASH not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FrontError, match="the file of tokens cannot be read: No such file"):
        read_tokens(tmp_path / "nothing")
