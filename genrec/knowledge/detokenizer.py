"""Characters of a text while its tokens come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders make of bytes that are no whole character


class Detokenizer:
    """Turns the tokens of one text into characters as they come: the pieces together are the text of all tokens.

    A character whose last bytes have not come is kept back, and left out if they never come. What a piece costs depends
    on its own size, not on the text's: besides the new tokens only those of the piece before are decoded, because some
    tokenizers treat a text's first token in a way of its own (SentencePiece drops its space).

    The pieces are the text for every tokenizer whose decoder never takes back whole characters. Of those in use, only
    byte fallback (Llama 2) does, on bytes that are no UTF-8.

    decode: the text of tokens, int [n], with `UNFINISHED` for bytes that are no character.
    """

    def __init__(self, decode: Callable[[np.ndarray], str]) -> None:
        self._decode = decode
        self._tokens = np.empty(0, np.int32)  # those of the last piece, then those that are not shown whole
        self._context = 0  # how many of them are the last piece's
        self._shown = 0  # characters of them

    def add(self, tokens: np.ndarray) -> str:
        """The characters, perhaps none, that became whole with `tokens`, int [n]."""
        self._tokens = np.concatenate([self._tokens, tokens])
        text = self._decode(self._tokens)
        whole = text.rstrip(UNFINISHED)
        piece = whole[self._shown :]
        if piece and whole == text:
            self._tokens = self._tokens[self._context :]
            self._context, self._shown = self._tokens.size, len(self._decode(self._tokens))
        else:  # the same tokens are decoded again with the next ones
            self._shown = max(self._shown, len(whole))
        return piece
