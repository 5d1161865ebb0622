"""What a follower tells the processes of its server, in a file of the published folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

STATUS = "status.json"


@dataclass(frozen=True)
class Status:
    """What the follower knows, for metrics and readiness. Times are Unix seconds.

    seen: the newest version of the store. published: the version that the server answers from. waiting_since: when the
    oldest commit that is not published was committed, None if there is none. reached_at: when the store was last read.
    refused: commits that count as empty because a row of them is invalid; last_refusal says why. problem: why it does
    not go on, "" if it does. drift: the larger stability index of `genrec.live.drift`, of what was added to the bundle.
    error_ratio: mean squared quantisation error of the embeddings that the follower read in commits, over the trained
    ones'. Both are None while they are not known.
    """

    seen: int
    published: int
    waiting_since: float | None
    reached_at: float
    refused: int = 0
    last_refusal: str = ""
    problem: str = ""
    drift: float | None = None
    error_ratio: float | None = None

    def lag_s(self, now: float) -> float:
        """For how long what is served may have been older than the store.

        Since the oldest commit that waits, or since the store was last read: nobody knows what came after.
        """
        since = self.reached_at if self.waiting_since is None else min(self.reached_at, self.waiting_since)
        return max(0.0, now - since)

    def save(self, root: Path) -> None:
        """Replace the status in the published folder, in one piece."""
        unfinished = root / f"{STATUS}.new"
        unfinished.write_text(json.dumps(asdict(self)) + "\n")
        unfinished.rename(root / STATUS)

    @classmethod
    def load(cls, root: Path) -> Status:
        """Raises OSError if there is none."""
        return cls(**json.loads((root / STATUS).read_text()))
