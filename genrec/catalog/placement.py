"""Where keys stand in a table of which each may stand in two buckets, so that keys are never moved."""

from __future__ import annotations

from math import ceil, isqrt

import numpy as np

SLOTS = 8  # of a bucket: keys and rows are one cache line where a key has 32 bits
GROUP = 64  # buckets: 4 KiB then, so that both of a key are close to each other
LEFT, RIGHT = 31, 33  # buckets of a group for either choice: coprime, so that keys with one in common part in the other
_SLICE = 1 << 20  # keys that are looked at at a time, where there may be many
_LOAD = 0.5  # keys per slot of a new table; somewhere above 0.65 both buckets of one are full


def home_buckets(keys: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """The two buckets, of so many, of each key: int64 [n] each."""
    q, group = np.divmod(keys, buckets // GROUP)
    return GROUP * group + q % LEFT, GROUP * group + LEFT + q % RIGHT


def find_new_places(keys: np.ndarray, room: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Places in an empty table with room for `room` keys: its groups, and bucket and slot of n distinct keys [n]."""
    groups = ceil(room / _LOAD / SLOTS / GROUP)
    while True:
        groups = _prime(groups)
        first, second = np.empty((2, keys.size), np.int32)
        for start in range(0, keys.size, _SLICE):
            part = slice(start, start + _SLICE)
            first[part], second[part] = home_buckets(keys[part], groups * GROUP)
        if (found := find_places(first, second, np.zeros(groups * GROUP, np.uint8))) is not None:
            return groups, *found
        groups += groups // 8 + 1


def find_places(first: np.ndarray, second: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Bucket and slot for each of n new keys that may stand in two buckets, [n] each; None if one finds no room.

    first, second: the two buckets, integers [n]. taken: uint8, slots of every bucket that are in use; counted up. Each
    key goes into the emptier bucket, the first one if they are equal. Few are placed at a time, because what is placed
    at once does not see itself.
    """
    bucket, slot = np.empty_like(first), np.empty(first.size, np.uint8)
    claims = np.empty(taken.size, np.int64)
    parts = max(1, 4 * first.size // taken.size)
    for part in range(parts):
        pending = np.arange(part, first.size, parts)
        while pending.size:
            one, other = first[pending], second[pending]
            wanted = np.where(taken[other] < taken[one], other, one)
            if taken[wanted].max() >= SLOTS:
                return None
            claims[wanted] = pending  # of several that want a bucket, one stays and gets it
            won = claims[wanted] == pending
            winners, to = pending[won], wanted[won]
            bucket[winners], slot[winners] = to, taken[to]
            taken[to] += 1
            pending = pending[~won]
    return bucket, slot


def _prime(least: int) -> int:
    """The smallest prime of at least `least`; 1 counts as one."""
    number = max(1, least)
    while any(number % divisor == 0 for divisor in range(2, isqrt(number) + 1)):
        number += 1
    return number
