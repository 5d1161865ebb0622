"""The prompt: its layout, text queries as tokens, and how a request becomes one."""

from genrec.prompt.layout import PromptLayout, runs_of
from genrec.prompt.limits import Limits
from genrec.prompt.preprocessor import Prepared, Preprocessor, Request
from genrec.prompt.query import QueryTokenizer, QueryTokenizerError, text_vocabulary

__all__ = [
    "Limits",
    "Prepared",
    "Preprocessor",
    "PromptLayout",
    "QueryTokenizer",
    "QueryTokenizerError",
    "Request",
    "runs_of",
    "text_vocabulary",
]
