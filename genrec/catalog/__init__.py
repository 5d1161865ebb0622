"""The catalogue: items, their semantic IDs, and the sets that drafts are looked up in. Numpy only."""

from genrec.catalog.base import CatalogBase
from genrec.catalog.columns import Column, Columns
from genrec.catalog.hash_table import HashTable
from genrec.catalog.item_index import ItemIndex
from genrec.catalog.items import MAX_ID_BYTES, Catalog
from genrec.catalog.kinds import KINDS, NO_TIME, Kinds
from genrec.catalog.prefix_table import PrefixTable, TableFull
from genrec.catalog.prefix_trie import PrefixTrie
from genrec.catalog.quantizer import Fit, QuantizerError, ResidualQuantizer
from genrec.catalog.rule_masks import RuleMasks
from genrec.catalog.semantic_id import SemanticIdSpace
from genrec.catalog.version import CatalogVersion, Delta
from genrec.catalog.views import BucketView, CatalogView

__all__ = [
    "KINDS",
    "MAX_ID_BYTES",
    "NO_TIME",
    "BucketView",
    "Catalog",
    "CatalogBase",
    "CatalogVersion",
    "CatalogView",
    "Column",
    "Columns",
    "Delta",
    "Fit",
    "HashTable",
    "ItemIndex",
    "Kinds",
    "PrefixTable",
    "PrefixTrie",
    "QuantizerError",
    "ResidualQuantizer",
    "RuleMasks",
    "SemanticIdSpace",
    "TableFull",
]
