"""The catalogue: items, their semantic IDs, and the sets that drafts are looked up in. Numpy only."""

from genrec.catalog.hash_table import HashTable
from genrec.catalog.item_index import ItemIndex
from genrec.catalog.items import MAX_ID_BYTES, Catalog
from genrec.catalog.prefix_table import PrefixTable, TableFull
from genrec.catalog.prefix_trie import PrefixTrie
from genrec.catalog.quantizer import QuantizerError, ResidualQuantizer
from genrec.catalog.semantic_id import SemanticIdSpace

__all__ = [
    "MAX_ID_BYTES",
    "Catalog",
    "HashTable",
    "ItemIndex",
    "PrefixTable",
    "PrefixTrie",
    "QuantizerError",
    "ResidualQuantizer",
    "SemanticIdSpace",
    "TableFull",
]
