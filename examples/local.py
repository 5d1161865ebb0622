"""Recommends from a bundle in this process: no server.

python examples/local.py build/shop-bundle cam-0323 cam-0329
"""

import sys

from genrec.pipeline import Pipeline

bundle, *history = sys.argv[1:]
answer = Pipeline.open(bundle).recommend([history], top_k=5)[0]
for item_id, score in zip(answer.item_ids, answer.scores, strict=True):
    print(f"{item_id}  {score:.3f}")
