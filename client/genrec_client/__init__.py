"""Client of the `recommend` model: one user's history in, a ranked list of items out.

It shares only the wire contract with the server, so it installs alone. `Recommender` is the way in, and
`AsyncRecommender` for asyncio.
"""

from importlib.metadata import version

from genrec_client.arguments import ItemId
from genrec_client.async_recommender import AsyncRecommender
from genrec_client.base import Readiness
from genrec_client.channel import TlsOptions
from genrec_client.errors import DeadlineExceeded, InvalidRequest, Overloaded, RecommendError, Unavailable
from genrec_client.knowledge import KnowledgeWriter, TextPiece
from genrec_client.recommendations import Recommendations, RecommendedItem, Source
from genrec_client.recommender import Recommender
from genrec_client.request import RecommendRequest
from genrec_client.retry import RetryPolicy
from genrec_client.rules import Attribute, Boost, BucketOrder, Condition, Rules, attribute
from genrec_client.statistics import Statistics

__version__ = version("genrec-client")

__all__ = [
    "AsyncRecommender",
    "Attribute",
    "Boost",
    "BucketOrder",
    "Condition",
    "DeadlineExceeded",
    "InvalidRequest",
    "ItemId",
    "KnowledgeWriter",
    "Overloaded",
    "Readiness",
    "RecommendError",
    "RecommendRequest",
    "Recommendations",
    "RecommendedItem",
    "Recommender",
    "RetryPolicy",
    "Rules",
    "Source",
    "Statistics",
    "TextPiece",
    "TlsOptions",
    "Unavailable",
    "attribute",
]
