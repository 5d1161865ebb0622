"""Serves a bundle where shared memory runs out while it serves. Seen by this process alone: see `tests.namespaces`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec_client import InvalidRequest, Recommendations, Recommender, RecommendRequest

SHARED = Path("/dev/shm")


def main(bundle: Path, log: Path) -> None:
    deployment = Deployment(threads=1, timeout_ms=30_000)
    with (
        serve_bundle(bundle, deployment, log_path=log) as server,
        Recommender(server.grpc_url, timeout_s=30.0) as client,
    ):
        before = client.recommend([])
        free = shutil.disk_usage(SHARED).free
        (SHARED / "filler").write_bytes(b"x" * free)
        small = client.recommend_many([RecommendRequest([])] * 50, concurrency=8)
        assert all(isinstance(one, Recommendations) and one.item_ids == before.item_ids for one in small), small
        # What does not fit is refused, in words; never answered with something else.
        large = client.recommend_many([RecommendRequest([], exclude=["y" * 250] * 6000)] * 8, concurrency=8)
        said = [str(one) for one in large if not isinstance(one, InvalidRequest)]
        assert said and all("Failed to increase the shared memory pool size" in one for one in said), large
        (SHARED / "filler").unlink()
        after = client.recommend_many([RecommendRequest([])] * 50, concurrency=8)
        assert all(isinstance(one, Recommendations) and one.item_ids == before.item_ids for one in after), after


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
