"""The rules of a shop: which items may be answered, how many alike, and in which order."""

from genrec.rules.applied import Applied, Ruled
from genrec.rules.book import RuleBook
from genrec.rules.bound import BoundRules, Filter, bind
from genrec.rules.form import Rules, parse, schema

__all__ = ["Applied", "BoundRules", "Filter", "RuleBook", "Ruled", "Rules", "bind", "parse", "schema"]
