"""Which drafted tokens are accepted, of the logits that a pass gave."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genrec.knowledge.packed_trees import PackedTrees
from genrec.knowledge.texts import Verification


def judged(logits: Tensor, packed: PackedTrees, rule: Verification) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The model's own next token behind each packed one; which are accepted behind their parent; log-probabilities.

    logits: [S, vocabulary]. All found are [S]; roots are accepted. Log-probabilities are 0 where they cannot matter: in
    texts in which only tokens that the model would write itself are accepted, which leaves but one branch; None if that
    is all texts.
    """
    own, parents = most_probable(logits), packed.parents
    roots = packed.node == 0
    accepted = (own.take(parents) == packed.tokens) | roots
    if rule.top_k == 1 or accepted.all():
        return own, accepted, None
    refused = (~accepted).nonzero()[0]
    of = parents.take(refused)
    best = _picked(logits, of, own.take(of))
    # A probability is at most its ratio to the largest one.
    doubtful = refused[np.exp(_picked(logits, of, packed.tokens.take(refused)) - best) > rule.threshold]
    possible = accepted.copy()
    possible[doubtful] = True
    possible = packed.reached(possible)
    doubtful = doubtful[possible.take(doubtful)]
    if not doubtful.size:
        return own, accepted, None
    branched = np.zeros(packed.sizes.size, bool)
    branched[packed.owner.take(doubtful)] = True
    asked = (possible & branched.take(packed.owner) & ~roots).nonzero()[0]
    of = parents.take(asked)
    rows, row = np.unique(of, return_inverse=True)
    found = logits.index_select(0, _tensor(rows, logits)).float()
    scores = _picked(logits, of, packed.tokens.take(asked))
    probability = np.zeros(accepted.size)
    probability[asked] = scores - found.logsumexp(-1).cpu().numpy().take(row)
    # Ranks by counting what is more probable, and only where that can still matter: cheaper than a top-k of all.
    probable = (~accepted.take(asked) & (np.exp(probability.take(asked)) > rule.threshold)).nonzero()[0]
    above = found.index_select(0, _tensor(row.take(probable), logits))
    above = above > torch.from_numpy(scores.take(probable)[:, None]).to(above.device)
    accepted[asked.take(probable)] = above.sum(-1).cpu().numpy() < rule.top_k
    return own, accepted, probability


def most_probable(logits: Tensor) -> np.ndarray:
    """Tokens of the largest logits, int64 [S]. On a CPU by numpy, which takes a tenth of PyTorch's time."""
    if logits.device.type == "cpu":
        return logits.float().numpy().argmax(-1)
    return logits.argmax(-1).cpu().numpy()


def _picked(logits: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Logits of tokens `columns` in `rows`, int64 [n] each: float32 [n]."""
    if logits.device.type == "cpu":
        return logits.float().numpy()[rows, columns]
    return logits[_tensor(rows, logits), _tensor(columns, logits)].float().cpu().numpy()


def _tensor(array: np.ndarray, beside: Tensor) -> Tensor:
    return torch.from_numpy(array).to(beside.device)
