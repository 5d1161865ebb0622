"""The few shapes that batches are padded to, by engines for which a new shape is dear."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, takewhile

AUTO, NONE = "auto", "none"  # of a deployment that names no sizes
_SHORTEST = 64
_STEP = 16  # tokens between two lengths, at least


@dataclass(frozen=True)
class Buckets:
    """Every one of `batches` prompts with every one of `lengths` tokens.

    What is added to fill one changes no answer: tokens behind a prompt are seen by nothing before them, and rows behind
    the batch are cut off.
    """

    batches: tuple[int, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, sizes in (("batches", self.batches), ("lengths", self.lengths)):
            if not sizes or min(sizes) < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"buckets: {name} {sizes} must be rising sizes of at least 1; name one or more")

    @classmethod
    def up_to(cls, tokens: int, batch: int, shortest: int = _SHORTEST) -> Buckets:
        """Buckets for prompts of up to `tokens` tokens, at most `batch` of them.

        Batch sizes double; a length is at most a quarter, or 16 tokens, above the one before, so that little is
        computed in vain. shortest: the least length, a power of 2 of at least 16.
        """
        lengths = ((4 + quarter) << octave for octave in count(shortest.bit_length() - 3) for quarter in range(4))
        wide = (length for length in lengths if length % _STEP == 0)
        return cls(_rising((1 << power for power in count()), batch), _rising(wide, tokens))

    @classmethod
    def of(cls, text: str, tokens: int, batch: int) -> Buckets | None:
        """Buckets as a deployment names them, for prompts of up to `tokens` tokens, at most `batch` of them.

        text: "auto" for `up_to`, "none" for None, or sizes of batches and lengths, as "1,4,16x64,128". Raises
        ValueError for anything else, and for sizes that do not hold the largest batch of the longest prompts.
        """
        if text == AUTO:
            return cls.up_to(tokens, batch)
        if text == NONE:
            return None
        try:
            batches, lengths = (tuple(map(int, sizes.split(","))) for sizes in text.split("x"))
        except ValueError:
            raise ValueError(
                f"buckets {text!r}: must be auto, none, or sizes of batches and lengths in tokens, as 1,4,16x64,128"
            ) from None
        buckets = cls(batches, lengths)
        if buckets.holding(batch, tokens) is None:
            raise ValueError(
                f"buckets {text}: the largest holds {batches[-1]} prompts of {lengths[-1]} tokens, but there may be "
                f"{batch} (max-batch-size) of {tokens} (the bundle's longest prompt): add these sizes, or use auto"
            )
        return buckets

    def holding(self, batch: int, tokens: int) -> tuple[int, int] | None:
        """The smallest bucket for `batch` prompts, the longest of `tokens`; None if there is none."""
        rows = next((size for size in self.batches if size >= batch), None)
        columns = next((size for size in self.lengths if size >= tokens), None)
        return None if rows is None or columns is None else (rows, columns)

    def __len__(self) -> int:
        return len(self.batches) * len(self.lengths)


def _rising(sizes: Iterable[int], most: int) -> tuple[int, ...]:
    """Those of the rising, endless `sizes` that are below `most`, and `most` itself."""
    return (*takewhile(lambda size: size < most, sizes), most)
