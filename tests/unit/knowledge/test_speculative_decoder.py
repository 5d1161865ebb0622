"""Speculative decoding: equal to plain greedy decoding, whatever is drafted; rules, limits and slots."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from genrec.errors import InvalidRequest
from genrec.knowledge import decoder as decoder_module
from genrec.knowledge.decoder import SpeculativeDecoder
from genrec.knowledge.drafter import PoolDrafter, PromptLookupDrafter, RunningText
from genrec.knowledge.packed import PackedCache
from genrec.knowledge.packed_model import PackedModel
from genrec.knowledge.packed_trees import PackedTrees
from genrec.knowledge.pools import Pools
from genrec.knowledge.texts import Generated, TextRequest, Verification
from genrec.knowledge.token_tree import EMPTY, TokenTree, TokenTrees

VOCABULARY = 50
NEW = 16
CLOSE = 1e-4  # what different kernels may turn around, with room to spare
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
}


def tiny(family: str, kv_heads: int, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**TINY, "num_key_value_heads": kv_heads, **options})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # random weights of the usual size hardly look at the context
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
        model.get_output_embeddings().weight.mul_(6)  # for some confidence
    return model.eval()


def prompts(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)  # with which the models below are never close to a tie
    return [rng.integers(0, VOCABULARY, rng.integers(1, 20)) for _ in range(count)]


@pytest.fixture(scope="module", params=[("qwen3", 2), ("qwen3", 4), ("llama", 1)], ids=str)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(*request.param)


@pytest.fixture(scope="module")
def plain(model: PreTrainedModel) -> list[list[int]]:
    """What plain greedy decoding writes behind six prompts."""
    return [greedy(model, prompt) for prompt in prompts(6)]


@pytest.fixture(scope="module")
def qwen() -> PreTrainedModel:
    return tiny("qwen3", 2)


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: np.ndarray, new: int = NEW) -> list[int]:
    """Plain greedy decoding without a cache. Fails where the choice is too close for a fair comparison."""
    tokens = torch.from_numpy(prompt)[None].long()
    for _ in range(new):
        logits = model(tokens).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        assert first - second > CLOSE
        tokens = torch.cat([tokens, logits.argmax()[None, None]], 1)
    return tokens[0, prompt.size :].tolist()


class Scripted:
    """Drafts what a function of the entity (its group is its number) and the text so far says."""

    def __init__(self, tree: Callable[[int, np.ndarray], TokenTree]) -> None:
        self.tree = tree
        self.added: list[tuple[list[int], str]] = []

    def draft(self, texts: Sequence[RunningText]) -> TokenTrees:
        return TokenTrees.of([self.tree(int(text.group), text.tokens[text.start :]) for text in texts])

    def add(self, texts: Sequence[np.ndarray], groups: Sequence[str]) -> None:
        self.added += [(text.tolist(), group) for text, group in zip(texts, groups, strict=True)]


def tree_of(*nodes: tuple[int, int]) -> TokenTree:
    """(token, parent) per node."""
    tokens, parents = zip(*nodes, strict=True)
    return TokenTree(np.array(tokens, np.int32), np.array(parents, np.int32), np.ones(len(nodes), np.float32))


def random_tree(rng: np.random.Generator, largest: int = 20) -> TokenTree:
    size = int(rng.integers(0, largest))
    parents = [int(rng.integers(-1, node)) if node else -1 for node in range(size)]
    return TokenTree(
        rng.integers(0, VOCABULARY, size).astype(np.int32), np.array(parents, np.int32), np.ones(size, np.float32)
    )


def generate(decoder: SpeculativeDecoder, requests: Sequence[TextRequest]) -> list[Generated]:
    texts = sorted(decoder.generate(requests), key=lambda text: text.index)
    assert [text.index for text in texts] == list(range(len(requests)))
    return texts


@pytest.mark.parametrize("batch_size", [1, 8])
def test_greedy_verification_gives_plain_greedy_decoding(
    model: PreTrainedModel, plain: list[list[int]], batch_size: int
) -> None:
    count = 6 if batch_size > 1 else 2
    asked, expected = prompts(6)[:count], plain[:count]
    rng = np.random.default_rng(1)

    def right(number: int, text: np.ndarray) -> TokenTree:  # behind a wrong sibling at every level
        nodes = []
        for depth, token in enumerate(expected[number][text.size : text.size + 6]):
            nodes += [((token + 1) % VOCABULARY, 2 * depth - 1), (token, 2 * depth - 1)]
        return tree_of(*nodes) if nodes else EMPTY

    def wrong(number: int, text: np.ndarray) -> TokenTree:
        follows = (np.array(expected[number][text.size : text.size + 6]) + 1) % VOCABULARY
        return TokenTree.chain(follows)

    def mixed(number: int, text: np.ndarray) -> TokenTree:  # right for two tokens, with random branches around
        noise = random_tree(rng)
        good = expected[number][text.size : text.size + 2]
        tokens = np.append(noise.tokens, good).astype(np.int32)
        parents = np.append(noise.parents, [-1, noise.size][: len(good)]).astype(np.int32)
        return TokenTree(tokens, parents, np.ones(tokens.size, np.float32))

    pools = Pools(VOCABULARY)
    pools.add([np.array(text) for text in expected[::2]], [str(number) for number in range(0, count, 2)])
    requests = [TextRequest(prompt, str(number), NEW) for number, prompt in enumerate(asked)]
    drafters: dict[str, Any] = {
        "none": None,
        "empty": Scripted(lambda number, text: EMPTY),
        "wrong": Scripted(wrong),
        "right": Scripted(right),
        "random": Scripted(lambda number, text: random_tree(rng)),
        "mixed": Scripted(mixed),
        "prompt lookup": PromptLookupDrafter(),
        "pools": PoolDrafter(pools, max_nodes=64, min_share=0.0),
        "global pool": PoolDrafter(pools, group_weight=0, own_weight=0),
    }
    steps = {}
    for name, drafter in drafters.items():
        # However much of the drafts is verified.
        decoder = SpeculativeDecoder(model, drafter, batch_size=batch_size, grow=True)
        assert [text.tokens.tolist() for text in generate(decoder, requests)] == expected, name
        texts = generate(SpeculativeDecoder(model, drafter, batch_size=batch_size, grow=True, fixed=True), requests)
        assert [text.tokens.tolist() for text in texts] == expected, name
        assert not any(text.stopped for text in texts)
        # A token comes with the prompt; at the limit a step may have no room for the model's own.
        assert all(text.steps + text.accepted + 1 - text.tokens.size in (0, 1) for text in texts), name
        steps[name] = sum(text.steps for text in texts)
    assert steps["none"] == steps["empty"] == steps["wrong"] == count * (NEW - 1)
    assert steps["right"] == count * 3  # a token of the prompt's, then 7, 7 and the last one
    assert steps["pools"] < steps["none"] * 3 // 4
    assert count * 3 < steps["mixed"] < steps["none"] // 2


def test_tree_attention_equals_a_separate_pass_per_branch(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits behind every node, of several texts at once, as if its branch stood behind its text alone."""
    rng = np.random.default_rng(2)
    asked = prompts(5)
    trees = [random_tree(rng, 30) for _ in asked]
    seen: list[tuple[PackedTrees, torch.Tensor]] = []
    decoder = SpeculativeDecoder(model, Scripted(lambda number, text: trees[number]), batch_size=5, fixed=True)
    session = decoder.session()
    judged = decoder_module.judged
    monkeypatch.setattr(
        decoder_module,
        "judged",
        lambda logits, packed, rule: (seen.append((packed, logits.clone())), judged(logits, packed, rule))[1],
    )
    for number, prompt in enumerate(asked):
        session.submit(TextRequest(prompt, str(number), 40))
    session.step()
    packed, logits = seen[0]
    assert logits.shape[0] == sum(tree.size + 1 for tree in trees)
    with torch.inference_mode():
        for place in range(packed.tokens.size):
            branch, above = [], place
            while packed.node[above]:
                branch.append(packed.tokens[above])
                above = packed.parents[above]
            whole = [*asked[packed.owner[place]], packed.tokens[above], *branch[::-1]]
            alone = model(torch.tensor([whole])).logits[0, -1]
            torch.testing.assert_close(logits[place], alone, atol=2e-4, rtol=1e-4)


def accepted_by_hand(
    model: PreTrainedModel, text: list[int], tree: TokenTree, rule: Verification
) -> tuple[list[int], list[tuple[int, float]]]:
    """Tokens that a step should write, slowly: one pass per node; and (depth, log-probability) of all accepted ends.

    Fails where a choice is too close for a fair comparison.
    """

    def scores(tokens: list[int]) -> torch.Tensor:
        found = model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
        best = found.topk(rule.top_k + 1).values
        assert min(best[0] - best[1], best[-2] - best[-1]) > CLOSE
        return found

    paths: list[list[int]] = []
    joint: list[float] = []
    whole: list[bool] = []
    best, ends = ([], 0.0), [(0, 0.0)]
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        above = paths[parent] if parent >= 0 else []
        after = scores(text + above)
        assert abs(after[token].exp().item() - rule.threshold) > CLOSE or not rule.threshold
        among = token in after.topk(rule.top_k).indices.tolist() and after[token].exp().item() > rule.threshold
        fits = among or token == int(after.argmax())
        whole.append(fits and (parent < 0 or whole[parent]))
        paths.append([*above, token])
        joint.append((joint[parent] if parent >= 0 else 0.0) + after[token].item())
        if whole[-1]:
            ends.append((len(paths[-1]), joint[-1]))
            if (len(paths[-1]), joint[-1]) > (len(best[0]), best[1] if best[0] else -np.inf):
                best = (paths[-1], joint[-1])
    assert sum(depth == len(best[0]) and score > best[1] - CLOSE for depth, score in ends) <= 1
    return [*best[0], int(scores(text + best[0]).argmax())], ends


@pytest.mark.parametrize(("top_k", "threshold"), [(1, 0.0), (2, 0.1), (3, 0.02)])
@torch.inference_mode()
def test_verification_accepts_what_the_rule_says(qwen: PreTrainedModel, top_k: int, threshold: float) -> None:
    rule = Verification(top_k, threshold)
    rng = np.random.default_rng(20 + top_k)
    texts = [prompt.tolist() for prompt in prompts(8)]
    trees = []
    for text in texts:  # drafts that the model finds likely, so that the rules have something to decide
        nodes: list[tuple[int, int]] = []
        tails: list[list[int]] = []
        first = int(qwen(torch.tensor([text])).logits[0, -1].argmax())
        for node in range(10):  # wide, so that branches end at the same depth
            parent = int(rng.integers(-1, min(node, 3))) if node else -1
            tail = tails[parent] if parent >= 0 else []
            likely = qwen(torch.tensor([[*text, first, *tail]])).logits[0, -1].topk(5).indices.tolist()
            taken = [token for token, above in nodes if above == parent]
            token = next((t for t in likely[int(rng.integers(0, 3)) :] if t not in taken), likely[4])
            nodes.append((token, parent))
            tails.append([*tail, token])
        trees.append(tree_of(*nodes))
    decoder = SpeculativeDecoder(
        qwen, Scripted(lambda number, text: trees[number]), verification=rule, batch_size=len(texts), fixed=True
    )
    session = decoder.session()
    for number, text in enumerate(texts):
        session.submit(TextRequest(np.array(text), str(number), 40))
    relaxed = ties = 0
    for progress in session.step():
        text = texts[progress.index]
        first = int(progress.tokens[0])
        expected, ends = accepted_by_hand(qwen, [*text, first], trees[progress.index], rule)
        assert progress.tokens.tolist() == [first, *expected]
        relaxed += expected != accepted_by_hand(qwen, [*text, first], trees[progress.index], Verification())[0]
        ties += sum(depth == len(expected) - 1 for depth, _ in ends) > 1
    assert (relaxed > 0) == (top_k > 1)
    assert (ties > 0) == (top_k > 1)  # several branches of the same length were there to choose from


def test_among_branches_of_one_length_the_more_probable_wins() -> None:
    #           0          the root, then two branches of two tokens and one of three that breaks off
    #        1     2
    #        3     4  5 6  5 hangs below 2, and 6 below 5
    trees = [tree_of((10, -1), (11, -1), (12, 0), (13, 1), (14, 1), (15, 4)), EMPTY]
    packed = PackedTrees.of(TokenTrees.of(trees), np.array([1, 2]))
    accepted = np.array([True] * 6 + [False, True])
    scores = np.array([0, -0.5, -0.4, -0.1, -0.3, -0.1, 0, 0])

    def branches() -> list[list[int]]:
        path, length = packed.longest(accepted, scores)
        return [part.tolist() for part in np.split(packed.tokens[path], np.cumsum(length)[:-1])]

    assert branches() == [[1, 11, 14], [2]]
    accepted[6] = True
    assert branches() == [[1, 11, 14, 15], [2]]
    accepted[2] = False  # nothing below a refused token counts
    assert branches() == [[1, 10, 12], [2]]


@cache
def lone() -> tuple[PreTrainedModel, list[list[int]]]:
    """A model and what it writes, for hypothesis, which must not be given fixtures that tests could change."""
    model = tiny("qwen3", 2)
    return model, [greedy(model, prompt) for prompt in prompts(8)]


@given(st.lists(st.integers(1, NEW), min_size=1, max_size=8), st.integers(1, 4), st.data())
@settings(max_examples=10)
def test_slots_limits_and_cancellation_do_not_change_other_texts(
    limits: list[int], batch_size: int, data: st.DataObject
) -> None:
    model, expected = lone()
    asked = prompts(8)
    rng = np.random.default_rng(0)
    decoder = SpeculativeDecoder(
        model, Scripted(lambda number, text: random_tree(rng)), batch_size=batch_size, fixed=True
    )
    session = decoder.session()
    for number, limit in enumerate(limits):
        assert session.submit(TextRequest(asked[number], str(number), limit)) == number
    written: list[list[int]] = [[] for _ in limits]
    dropped, finished = set(), set()
    while session.pending:
        assert len(session._running) <= batch_size
        for progress in session.step():
            assert progress.index not in dropped | finished
            assert progress.tokens.size
            written[progress.index] += progress.tokens.tolist()
            if progress.finished:
                finished.add(progress.index)
                assert progress.finished.tokens.tolist() == written[progress.index]
        drop = data.draw(st.integers(-1, len(limits)))
        alive = 0 <= drop < len(limits) and drop not in dropped | finished
        assert session.cancel(drop) == alive
        if alive:
            dropped.add(drop)
    assert dropped | finished == set(range(len(limits)))
    for number, limit in enumerate(limits):
        assert written[number] == expected[number][: len(written[number])]
        assert len(written[number]) == limit or number in dropped
    assert session.statistics.texts == len(finished)
    assert session.statistics.tokens == sum(map(len, written))


def test_a_text_ends_with_its_stop_token(qwen: PreTrainedModel) -> None:
    asked = prompts(8)
    plain = [greedy(qwen, prompt) for prompt in asked]
    stops = {plain[0][5], plain[1][0]}
    expected = [text[: next((place + 1 for place, token in enumerate(text) if token in stops), NEW)] for text in plain]
    for drafter in (None, Scripted(lambda number, text: TokenTree.chain(np.array(plain[number][text.size :][:9])))):
        decoder = SpeculativeDecoder(qwen, drafter, stop_tokens=stops, batch_size=3, fixed=True)
        texts = generate(decoder, [TextRequest(prompt, str(n), NEW) for n, prompt in enumerate(asked)])
        assert [text.tokens.tolist() for text in texts] == expected
        assert [text.stopped for text in texts] == [text[-1] in stops for text in expected]


def test_finished_texts_go_to_the_drafter_only_if_it_is_to_grow(qwen: PreTrainedModel) -> None:
    requests = [TextRequest(prompt, str(n), 3 + n % 3) for n, prompt in enumerate(prompts(7))]
    for grow in (False, True):
        drafter = Scripted(lambda number, text: EMPTY)
        texts = list(SpeculativeDecoder(qwen, drafter, batch_size=3, grow=grow, fixed=True).generate(requests))
        assert drafter.added == ([(text.tokens.tolist(), str(text.index)) for text in texts] if grow else [])
    # With pools, the second time around the texts are known.
    pools = Pools(VOCABULARY)
    decoder = SpeculativeDecoder(qwen, PoolDrafter(pools), batch_size=3, grow=True, fixed=True)
    requests = [TextRequest(prompt, "a", NEW) for prompt in prompts(5)]
    first, second = (sum(text.steps for text in generate(decoder, requests)) for _ in range(2))
    assert second < first // 3
    assert pools.by_group["a"].tokens == 2 * 5 * (NEW + 1)


def test_statistics_count_by_depth(qwen: PreTrainedModel) -> None:
    asked = prompts(4)
    plain = [greedy(qwen, prompt) for prompt in asked]
    # Right for one token, then wrong.
    drafter = Scripted(
        lambda n, text: TokenTree.chain((np.array(plain[n][text.size :][:2]) + [0, 1][: NEW - text.size]) % 50)
    )
    session = SpeculativeDecoder(qwen, drafter, batch_size=2, fixed=True).session()
    for number, prompt in enumerate(asked):
        session.submit(TextRequest(prompt, str(number), 9))
    while session.pending:
        session.step()
    found = session.statistics
    assert (found.texts, found.tokens, found.text_steps, found.steps) == (4, 36, 16, 8)
    assert found.tokens_per_step == 2.0
    assert found.drafted_by_depth == {1: 16, 2: 16}
    assert found.accepted_by_depth == {1: 16, 2: 0}
    assert 0 < found.llm_s < found.total_s
    assert found.other_s > 0
    assert found.draft_s > 0


def test_prompt_lookup_copies_what_followed_the_first_occurrence() -> None:
    def drafted(tokens: list[int], depth: int = 12, **options: int) -> list[int]:
        (tree,) = PromptLookupDrafter(**options).draft([RunningText(np.array(tokens, np.int32), 1, "", depth)]).split()
        return tree.tokens.tolist()

    assert drafted([1, 2, 3, 4, 1, 2]) == [3, 4, 1, 2]
    assert drafted([5, 2, 9, 1, 2, 3, 1, 2], max_tokens=2) == [3, 1]
    assert drafted([5, 2, 9, 1, 2, 3, 1, 2], max_ngram=1, max_tokens=2) == [9, 1]
    assert drafted([7, 2, 9, 8, 2]) == [9, 8, 2]  # no pair in common: one token
    assert drafted([1, 2, 3, 4, 1, 2], depth=1) == [3]
    assert drafted([1, 2, 3]) == []
    assert drafted([1]) == []
    assert drafted([3, 3, 3]) == [3]


def test_requests_that_cannot_be_served_are_refused(qwen: PreTrainedModel) -> None:
    session = SpeculativeDecoder(qwen, max_length=64).session()
    for prompt, limit, message in (
        ([], 5, "at least one token"),
        ([[1, 2]], 5, "shape"),
        ([1.5], 5, "token numbers"),
        ([1, 50], 5, "token 50; the model knows 0 to 49"),
        ([1, -2], 5, "token -2"),
        ([1], 0, "max_new_tokens is 0; it must be at least 1"),
        ([1] * 60, 5, "prompt has 60 tokens and max_new_tokens is 5; at most 64 together"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            session.submit(TextRequest(np.array(prompt), max_new_tokens=limit))
    assert session.pending == 0
    assert session.step() == []
    assert session.submit(TextRequest(np.array([1] * 59), max_new_tokens=5)) == 0


def test_settings_out_of_range_are_refused(qwen: PreTrainedModel) -> None:
    for options, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 129}, "max_length is 129; it must be 2 to the model's 128"),
        ({"stop_tokens": [50]}, "stop token 50 is outside"),
        ({"verification": Verification(51)}, "top_k is 51"),
    ):
        with pytest.raises(ValueError, match=message):
            SpeculativeDecoder(qwen, **options)
    for rule, message in (((0, 0.0), "top_k is 0"), ((2, 1.0), "threshold is 1"), ((2, -0.1), "threshold is -0")):
        with pytest.raises(ValueError, match=message):
            Verification(*rule)
    pools = Pools(VOCABULARY)
    for options, message in (
        ({"max_nodes": 65}, "max_nodes is 65; it must be 1 to 64"),
        ({"max_depth": 0}, "max_depth is 0; it must be 1 to 24"),
        ({"min_share": 1.1}, "min_share is 1.1"),
        ({"discount": -1}, "discount is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            PoolDrafter(pools, **options)
    with pytest.raises(ValueError, match="max_ngram is 0"):
        PromptLookupDrafter(max_ngram=0)


def test_models_that_cannot_be_packed_are_refused() -> None:
    for family, options, message in (
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "sliding_attention"),
        ("granite", {"logits_scaling": 8.0}, "'granite' gives logits that differ by"),
        ("bloom", {"n_head": 4}, "'bloom'"),
    ):
        with pytest.raises(ValueError, match=message):
            PackedModel(tiny(family, 2, **options))


def test_the_model_stays_usable_for_others(qwen: PreTrainedModel) -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        before = qwen(tokens).logits
        generate(SpeculativeDecoder(qwen), [TextRequest(np.array([1, 2]), max_new_tokens=4)])
        torch.testing.assert_close(qwen(tokens).logits, before)
        padded = qwen(tokens, attention_mask=torch.tensor([[0, 1, 1, 1]])).logits[:, 1:]
        alone = qwen(tokens[:, 1:], position_ids=torch.tensor([[1, 2, 3]])).logits
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=1e-4)


def test_a_cache_that_grows_keeps_what_it_holds() -> None:
    cache = PackedCache(layers=1, rows=2, heads=2, size=4, dtype=torch.float32)
    cache.reserve(10)
    cache._states.normal_()
    before, capacity = cache._states.clone(), cache.capacity
    cache.reserve(capacity)
    assert cache.capacity == capacity
    cache.reserve(capacity + 1)
    assert cache.capacity > capacity
    torch.testing.assert_close(cache._states[:, :, :, :capacity], before)
    assert not cache._states[:, :, :, capacity:].any()
