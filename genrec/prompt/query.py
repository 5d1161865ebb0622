"""Text queries as tokens. Only bundles trained with queries need the `tokenizers` package that this loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrec.prompt.layout import PromptLayout

_NOTHING = np.empty(0, np.int32)
# Only the first tokens are kept, so what stands far behind them need not be read: it may be made to take long.
_BYTES_PER_TOKEN = 16


class QueryTokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says why and what to do."""


class QueryTokenizer:
    """Turns queries into the backbone's tokens, by a `tokenizer.json` and a layout.

    Text is only ever text: what the tokenizer would single out (BOS, chat markers, SID tokens) is split as any other
    characters are, and tokens that the layout uses otherwise are left out.
    """

    def __init__(self, path: Path, layout: PromptLayout) -> None:
        """Read `path`. Raises QueryTokenizerError if the package is missing, or the file damaged or no match."""
        self._layout = layout
        self._tokenizer = _plain_tokenizer(path)
        size = _size(self._tokenizer)
        if size > layout.text_tokens:
            raise QueryTokenizerError(f"has {size} tokens, the layout has room for {layout.text_tokens}")

    def encode_batch(self, queries: Sequence[bytes]) -> list[np.ndarray]:
        """Tokens of UTF-8 `queries`, int32 [at most max_query] each, ready for `PromptLayout.encode`.

        White space counts as one space, and what lies beyond 16 bytes for each token is not read. Empty for a query of
        white space. Raises UnicodeDecodeError for what is not UTF-8.
        """
        longest = self._layout.max_query * _BYTES_PER_TOKEN
        texts = [_cut(" ".join(query.decode().split()), longest) for query in queries]
        places = [place for place, text in enumerate(texts) if text]
        tokens = [_NOTHING] * len(texts)
        if places:
            # The fast kind knows no offsets, which nobody asks for.
            encoded = self._tokenizer.encode_batch_fast([texts[place] for place in places], add_special_tokens=False)
            for place, one in zip(places, encoded, strict=True):
                tokens[place] = self._layout.query_tokens(one.ids)
        return tokens


def text_vocabulary(path: Path) -> int:
    """How many text tokens a layout needs for the tokenizer at `path`. Raises QueryTokenizerError."""
    return _size(_plain_tokenizer(path))


def _cut(text: str, size: int) -> str:
    """As many whole characters of `text` as `size` bytes of UTF-8 hold."""
    return text if 4 * len(text) <= size else text.encode()[:size].decode(errors="ignore")


def _size(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1) + 1


def _plain_tokenizer(path: Path) -> Any:
    """The tokenizer without what would single out, add, cut or fill up."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise QueryTokenizerError(
            "text queries need the package `tokenizers`: pip install 'genrec-triton[query]'"
        ) from error
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.encode("probe: \N{LATIN SMALL LETTER E WITH ACUTE} \N{SNOWMAN} 1")  # some fail only when used
        return tokenizer
    except OSError as error:
        raise QueryTokenizerError(f"cannot be read: {error}") from error
    except Exception as error:  # the package raises no class of its own
        raise QueryTokenizerError(f"is no tokenizer: {error}") from error
