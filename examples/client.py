"""Asks a running server (`genrec serve build/shop-bundle`), one user and then many.

python examples/client.py 127.0.0.1:8001 cam-0323 cam-0329
"""

import sys

from genrec_client import Recommender, RecommendRequest

address, *history = sys.argv[1:]
with Recommender(address, timeout_s=1.0) as recommender:
    answer = recommender.recommend(history, top_k=5)
    for item in answer.items:
        print(f"{item.item_id}  {item.score:.3f}  {item.source.name.lower()}")
    print(f"bundle {answer.bundle_version}, catalogue {answer.catalog_version}")

    # Many users at once: the server forms the batches.
    users = [RecommendRequest(history[: size + 1], top_k=5) for size in range(len(history))]
    answers = recommender.recommend_many(users, concurrency=8, return_exceptions=False)
    print(f"{len(answers)} users answered")
