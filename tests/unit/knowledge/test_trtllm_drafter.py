"""The drafter for TensorRT-LLM, on the test double: the texts are those of plain greedy decoding, in fewer steps."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.knowledge.pools import Pools
from genrec.knowledge.token_tree import EMPTY, TokenTree

VOCABULARY, PROMPT, NEW = 97, 5, 30


@dataclass
class Request:
    """What the drafter reads and writes of TensorRT-LLM's `LlmRequest`."""

    prompt: list[int]
    py_max_new_tokens: int = NEW
    written: list[int] = field(default_factory=list)
    py_draft_tokens: list[int] = field(default_factory=list)

    @property
    def py_orig_prompt_len(self) -> int:
        return len(self.prompt)

    def get_tokens(self, beam: int) -> list[int]:
        assert beam == 0
        return self.prompt + self.written


@dataclass
class ScheduledRequests:
    generation_requests: list[Request]
    context_requests: list[Request] = field(default_factory=list)


def following(tokens: list[int]) -> int:
    """A language model: the next token, by all those before."""
    return (31 * tokens[-1] + 7 * tokens[-2] + sum(tokens[:PROMPT]) % 3) % VOCABULARY


def plainly(prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + NEW:
        tokens.append(following(tokens))
    return tokens[len(prompt) :]


def run(drafter: Any, requests: list[Request]) -> int:
    """Decode as TensorRT-LLM does: the first token with the prompt, then steps that verify one draft each; how many."""
    for request in requests:
        request.written.append(following(request.prompt))
    steps = 0
    while running := [request for request in requests if len(request.written) < request.py_max_new_tokens]:
        batch = ScheduledRequests(running)
        drafter.prepare_draft_tokens(batch, None)
        for request in running:
            room = request.py_max_new_tokens - len(request.written)
            assert len(request.py_draft_tokens) < max(room, 1)
        drafter.pad_draft_tokens_for_cuda_graph(batch)
        for request in running:
            for drafted in [*request.py_draft_tokens, None]:
                request.written.append(following(request.get_tokens(0)))
                if drafted != request.written[-1]:
                    break
            del request.written[request.py_max_new_tokens :]
        steps += 1
    return steps


@pytest.fixture
def prompts() -> list[list[int]]:
    return np.random.default_rng(0).integers(0, VOCABULARY, (6, PROMPT)).tolist()


@pytest.fixture
def folder(prompts: list[list[int]], tmp_path: Path) -> Path:
    """Pools in which the groups of the first three know their texts, and group `wrong` says something else."""
    pools = Pools(VOCABULARY)
    texts = [np.array(plainly(prompt)) for prompt in prompts]
    pools.add(texts[:3], ["a", "b", "c"])
    pools.add([(texts[3] + 1) % VOCABULARY], ["wrong"])
    pools.save(tmp_path / "pools")
    return tmp_path / "pools"


@pytest.fixture
def made(stand_in: Any) -> Callable[..., Any]:
    from genrec.knowledge.tensorrt_llm import RetrievalDrafter

    return RetrievalDrafter


def groups_of(prompts: list[list[int]]) -> dict[bytes, str]:
    names = zip(prompts, ["a", "b", "c", "wrong"], strict=False)
    return {np.array(prompt, np.int32).tobytes(): group for prompt, group in names}


@pytest.mark.parametrize("length", [1, 4, 12])
def test_texts_are_those_of_plain_decoding_in_fewer_steps(
    made: Callable[..., Any], folder: Path, prompts: list[list[int]], length: int
) -> None:
    drafter = made(folder, groups_of(prompts), length)
    requests = [Request(prompt) for prompt in prompts]
    run(drafter, requests)
    assert [request.written for request in requests] == [plainly(prompt) for prompt in prompts]
    known = [Request(prompt) for prompt in prompts[:3]]
    assert run(drafter, known) == -(-(NEW - 1) // (length + 1))
    unknown = [Request(prompt) for prompt in prompts[3:]]
    assert run(drafter, unknown) <= NEW - 1


def test_prompts_without_a_group_draft_from_all_texts(
    made: Callable[..., Any], folder: Path, prompts: list[list[int]]
) -> None:
    requests = [Request(prompts[0])]
    assert run(made(folder), requests) < (NEW - 1) // 3
    assert requests[0].written == plainly(prompts[0])


def test_no_more_is_drafted_than_there_is_room_for(
    made: Callable[..., Any], folder: Path, prompts: list[list[int]]
) -> None:
    drafter, text = made(folder, groups_of(prompts)), plainly(prompts[0])
    for left, drafted in ((1, 0), (2, 1), (5, 4), (20, 12)):
        request = Request(prompts[0], written=text[: NEW - left], py_draft_tokens=[1, 2, 3])
        drafter.prepare_draft_tokens(ScheduledRequests([request]))
        assert request.py_draft_tokens == text[NEW - left :][:drafted]
    drafter.prepare_draft_tokens(ScheduledRequests([]))


def test_a_worker_process_gets_a_copy_that_drafts_the_same(
    made: Callable[..., Any], folder: Path, prompts: list[list[int]]
) -> None:
    copy = pickle.loads(pickle.dumps(made(folder, groups_of(prompts), 7)))
    assert copy.max_draft_len == copy.max_total_draft_tokens == 7
    assert run(copy, [Request(prompt) for prompt in prompts[:3]]) == -(-(NEW - 1) // 8)


def test_bad_arguments_are_refused(made: Callable[..., Any], folder: Path) -> None:
    with pytest.raises(ValueError, match="max_draft_len is 25; it must be 1 to 24"):
        made(folder, max_draft_len=25)
    with pytest.raises(ValueError, match="cannot be read as an index of retrieval pools"):
        made(folder / "none")


def test_the_best_branch_is_where_most_tokens_are_expected() -> None:
    #        10 (0.9)   11 (0.1)
    #    12 (0.5) 13 (0.4)
    #             14 (0.4)
    parents = np.array([-1, -1, 0, 0, 3], np.int32)
    tree = TokenTree(np.arange(10, 15, dtype=np.int32), parents, np.array([0.9, 0.1, 0.5, 0.4, 0.4], np.float32))
    assert tree.best_branch().tolist() == [10, 13, 14]
    assert EMPTY.best_branch().tolist() == []
