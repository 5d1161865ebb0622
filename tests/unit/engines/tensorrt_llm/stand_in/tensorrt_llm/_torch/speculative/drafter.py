"""TEST DOUBLE: the base class of drafters, which fills drafts up to one length."""

from abc import ABC, abstractmethod


class Drafter(ABC):
    def __init__(self, max_draft_len=None, max_total_draft_tokens=None, max_concurrency=None, draft_len_schedule=None):
        self.max_draft_len, self.max_total_draft_tokens = max_draft_len, max_total_draft_tokens

    @abstractmethod
    def prepare_draft_tokens(self, scheduled_requests, resource_manager=None): ...

    def pad_draft_tokens_for_cuda_graph(self, scheduled_requests):
        for request in scheduled_requests.generation_requests:
            missing = self.max_total_draft_tokens - len(request.py_draft_tokens)
            assert missing >= 0, "a draft is longer than what the KV cache has room for"
            request.py_draft_tokens.extend([0] * missing)
