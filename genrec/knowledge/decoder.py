"""Speculative decoding of many texts at once: token trees from a drafter, verified in one forward pass of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from time import perf_counter

import numpy as np
import torch
from transformers import PreTrainedModel

from genrec.errors import InvalidRequest
from genrec.knowledge.budget import VerificationBudget
from genrec.knowledge.drafter import Drafter, RunningText
from genrec.knowledge.judging import judged, most_probable
from genrec.knowledge.packed import Packing
from genrec.knowledge.packed_model import PackedModel, Precision
from genrec.knowledge.packed_trees import PackedTrees
from genrec.knowledge.pass_cost import PassCost
from genrec.knowledge.texts import GREEDY, DecodingStatistics, Generated, TextProgress, TextRequest, Verification
from genrec.knowledge.timed_passes import timed_passes
from genrec.knowledge.token_tree import TokenTrees


class SpeculativeDecoder:
    """Writes texts with a causal language model of transformers of the Qwen3 or Llama family.

    Greedy verification gives the tokens of plain greedy decoding. In floating point that holds up to ties: a pass over
    many tokens adds in another order than one over a single token, and two tokens whose logits differ by less than that
    rounding (1e-4 in float32, far more in bfloat16) may change places.

    model: put in evaluation mode, its weights used as `PackedModel` says. drafter: None to decode one token per step.
    stop_tokens: end a text. batch_size: texts at once. max_length: of prompt and text, the model's own limit by
    default. grow: whether finished texts go to the drafter, in the order in which they finish. precision: as in
    `PackedModel`. fixed: whether all that is drafted is verified, which is for comparisons; otherwise a
    `VerificationBudget` says how much, for which passes of different sizes are timed here, in about a second.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        drafter: Drafter | None = None,
        *,
        verification: Verification = GREEDY,
        stop_tokens: Iterable[int] = (),
        batch_size: int = 8,
        max_length: int | None = None,
        grow: bool = False,
        precision: Precision = "float32",
        fixed: bool = False,
    ) -> None:
        self.model, self.drafter = PackedModel(model, precision), drafter
        self.verification, self.grow = verification, grow
        if verification.top_k > self.model.vocabulary_size:
            raise ValueError(f"top_k is {verification.top_k}; the vocabulary has {self.model.vocabulary_size} tokens")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.batch_size = batch_size
        self.max_length = self.model.max_length if max_length is None else max_length
        if not 2 <= self.max_length <= self.model.max_length:
            raise ValueError(f"max_length is {max_length}; it must be 2 to the model's {self.model.max_length}")
        self.stops = np.zeros(self.model.vocabulary_size, bool)
        for token in map(int, stop_tokens):
            if not 0 <= token < self.stops.size:
                raise ValueError(f"stop token {token} is outside the vocabulary of {self.stops.size}")
            self.stops[token] = True
        self.budget: VerificationBudget | None = None
        if drafter is not None and not fixed:
            self.budget = VerificationBudget(PassCost(timed_passes(self)))

    def session(self) -> Session:
        """A new session: submit requests, and step."""
        return Session(self)

    def generate(self, requests: Iterable[TextRequest]) -> Iterator[Generated]:
        """Texts of `requests` as they finish. Requests are taken as they are needed. Raises InvalidRequest."""
        session, waiting = self.session(), iter(requests)
        while True:
            for request in islice(waiting, self.batch_size - session.pending):
                session.submit(request)
            if not session.pending:
                return
            for progress in session.step():
                if progress.finished:
                    yield progress.finished


@dataclass
class _Text:
    """A text that is being written.

    tokens: int32 [limit], of which `size` are there; the last one is not in the cache yet. start: size of the prompt.
    told: how many of them were reported. stopped: whether the last one is a stop token.
    """

    index: int
    group: str
    tokens: np.ndarray
    start: int
    size: int
    told: int
    stopped: bool = False
    steps: int = 0
    accepted: int = 0


class Session:
    """Texts in progress: continuous batching, a new text takes the place of one that has finished.

    Row i of the cache belongs to the i-th running text. Not safe for use by several threads at once.
    """

    def __init__(self, decoder: SpeculativeDecoder) -> None:
        self.statistics = DecodingStatistics()
        self._decoder, self._model = decoder, decoder.model
        self._cache = decoder.model.cache(decoder.batch_size)
        self._submitted = 0
        self._waiting: deque[_Text] = deque()
        self._running: list[_Text] = []

    @property
    def pending(self) -> int:
        """Texts that are neither finished nor cancelled."""
        return len(self._waiting) + len(self._running)

    def submit(self, request: TextRequest) -> int:
        """Queue `request`; its index. Raises InvalidRequest that names what is wrong with it."""
        prompt, limit = np.asarray(request.prompt), self._decoder.max_length
        if prompt.ndim != 1 or not prompt.size:
            raise InvalidRequest(f"prompt has shape {prompt.shape}; it must be a list of at least one token")
        if prompt.dtype.kind not in "iu":
            raise InvalidRequest(f"prompt is {prompt.dtype}; it must hold token numbers, so encode the text first")
        if prompt.min() < 0 or prompt.max() >= self._model.vocabulary_size:
            wrong = prompt.max() if prompt.min() >= 0 else prompt.min()
            raise InvalidRequest(
                f"prompt holds token {wrong}; the model knows 0 to {self._model.vocabulary_size - 1}, "
                "so encode the text with the model's tokenizer"
            )
        if request.max_new_tokens < 1:
            raise InvalidRequest(f"max_new_tokens is {request.max_new_tokens}; it must be at least 1")
        if prompt.size + request.max_new_tokens > limit:
            raise InvalidRequest(
                f"prompt has {prompt.size} tokens and max_new_tokens is {request.max_new_tokens}; "
                f"at most {limit} together are accepted, shorten the prompt or ask for fewer tokens"
            )
        tokens = np.empty(prompt.size + request.max_new_tokens, np.int32)
        tokens[: prompt.size] = prompt
        self._waiting.append(_Text(self._submitted, request.group, tokens, *3 * (prompt.size,)))
        self._submitted += 1
        return self._submitted - 1

    @torch.inference_mode()
    def cancel(self, index: int) -> bool:
        """Drop the text of request `index` before the next step; whether there was one to drop."""
        for number, text in enumerate(self._running):
            if text.index == index:
                self._release(number)
                return True
        for text in self._waiting:
            if text.index == index:
                self._waiting.remove(text)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[TextProgress]:
        """Start waiting texts where there is room, then take every running one further by at least a token."""
        began = perf_counter()
        self._start()
        finished = self._finish()
        if self._running:
            self._advance()
            finished += self._finish()
        done = {text.index: self._generated(text) for text in finished}
        progress = [self._progress(text, done) for text in sorted(self._running + finished, key=attrgetter("index"))]
        if finished and self._decoder.grow and self._decoder.drafter is not None:
            growing = perf_counter()
            self._decoder.drafter.add([done[text.index].tokens for text in finished], [text.group for text in finished])
            self.statistics.draft_s += perf_counter() - growing
        self.statistics.total_s += perf_counter() - began
        return progress

    def _start(self) -> None:
        """Prefill the prompts of as many waiting texts as there is room for, and write their first tokens."""
        first = len(self._running)
        while self._waiting and len(self._running) < self._decoder.batch_size:
            self._running.append(self._waiting.popleft())
        started = self._running[first:]
        if not started:
            return
        # All that the texts may come to: a cache that grows is copied, and its memory taken, again.
        self._cache.reserve(max(text.tokens.size for text in started))
        packing = Packing.of_prompts([text.tokens[: text.start] for text in started], first, self._cache)
        ends = np.cumsum([text.start for text in started]) - 1
        began = perf_counter()
        logits = self._model.logits(packing, self._cache, self._cache.tensor(ends))
        chosen = most_probable(logits)
        self.statistics.llm_s += perf_counter() - began
        self._write(started, chosen, np.ones(len(started), np.int64))

    def _advance(self) -> None:
        """Draft, as far as it pays, and verify."""
        budget, began = self._decoder.budget, perf_counter()
        if budget is None:
            trees = self._draft()
        elif asked := budget.asks():
            trees = budget.cut(self._draft())
        else:
            trees = TokenTrees.empty(len(self._running))
        drafted = perf_counter()
        accepted = self._extend(trees)
        if budget is not None:
            seconds = perf_counter() - drafted
            if asked:
                budget.learn(accepted, seconds, drafted - began)
            else:
                budget.learn_plain(trees.sizes.size, seconds)
        self.statistics.draft_s += drafted - began

    def _draft(self) -> TokenTrees:
        drafter, budget, running = self._decoder.drafter, self._decoder.budget, len(self._running)
        min_share = 0.0 if budget is None else budget.min_share
        asked, texts = [], []
        for at, text in enumerate(self._running if drafter else ()):
            # Besides what is drafted the model writes a token of its own.
            if (room := text.tokens.size - text.size) > 1:
                asked.append(at)
                texts.append(RunningText(text.tokens[: text.size], text.start, text.group, room - 1, min_share))
        if drafter is None or not texts:
            return TokenTrees.empty(running)
        trees = drafter.draft(texts)
        if len(texts) == running:
            return trees
        sizes = np.zeros(running, np.int64)
        sizes[asked] = trees.sizes
        return trees._replace(sizes=sizes)

    def _extend(self, trees: TokenTrees) -> np.ndarray:
        """Verify `trees`, of the running texts, in one pass; write what is accepted and the model's own next tokens.

        Gives bool [n], of the nodes of all trees, those that were written.
        """
        packed = PackedTrees.of(trees, np.array([text.tokens[text.size - 1] for text in self._running]))
        cached = np.array([text.size - 1 for text in self._running])
        self._cache.reserve(int((cached + packed.sizes).max()))  # a tree may have more nodes than its text has room
        packing = Packing.of_trees(packed, cached, self._cache)
        began = perf_counter()
        own, accepted, probability = judged(
            self._model.logits(packing, self._cache), packed, self._decoder.verification
        )
        self.statistics.llm_s += perf_counter() - began
        path, length = packed.longest(accepted, probability)
        self._count(packed, length)
        ends = np.cumsum(length)
        # The cache keeps the accepted tokens, next to each other.
        owner, node = packed.owner[path], packed.node[path]
        place = np.arange(path.size) - (ends - length)[owner]
        if (moved := node != place).any():
            row = (owner * self._cache.capacity + cached[owner])[moved]
            self._cache.move(self._cache.tensor(row + node[moved]), self._cache.tensor(row + place[moved]))
        # Behind a branch stands the model's own next token; the root was there before.
        written = np.append(packed.tokens[path[1:]], 0)
        written[ends - 1] = own[path[ends - 1]]
        for text, drafted, size in zip(
            self._running, (length - 1).tolist(), self._write(self._running, written, length), strict=True
        ):
            text.steps += 1
            text.accepted += min(drafted, size)
        used = np.zeros(packed.tokens.size, bool)
        used[path] = True
        return used[packed.node > 0]

    def _write(self, texts: list[_Text], tokens: np.ndarray, sizes: np.ndarray) -> list[int]:
        """Append to each text its part of `tokens`, up to its limit and its first stop token; how many of each."""
        ends = np.cumsum(sizes)
        starts = ends - sizes
        stops = np.where(self._decoder.stops[tokens], np.arange(tokens.size), tokens.size)
        written = []
        for text, start, end, stop in zip(
            texts, starts.tolist(), ends.tolist(), np.minimum.reduceat(stops, starts).tolist(), strict=True
        ):
            size = min(end - start, text.tokens.size - text.size)
            if stop < start + size:
                size, text.stopped = stop + 1 - start, True
            text.tokens[text.size : text.size + size] = tokens[start : start + size]
            text.size += size
            written.append(size)
        self.statistics.tokens += sum(written)
        return written

    def _finish(self) -> list[_Text]:
        """Take the texts that are whole out of the running ones, in order of their rows."""
        whole = [text for text in self._running if text.size == text.tokens.size or text.stopped]
        for text in whole:
            self._release(next(number for number, other in enumerate(self._running) if other is text))
        self.statistics.texts += len(whole)
        return whole

    def _release(self, number: int) -> None:
        """Free row `number`; the last row moves there, so that running texts stay neighbours."""
        last = self._running.pop()
        if number < len(self._running):
            self._cache.move_row(len(self._running), number, last.size)
            self._running[number] = last

    def _progress(self, text: _Text, done: dict[int, Generated]) -> TextProgress:
        new, text.told = text.tokens[text.told : text.size].copy(), text.size
        return TextProgress(text.index, new, done.get(text.index))

    def _generated(self, text: _Text) -> Generated:
        tokens = text.tokens[text.start : text.size].copy()
        return Generated(text.index, tokens, text.stopped, text.steps, text.accepted)

    def _count(self, packed: PackedTrees, length: np.ndarray) -> None:
        statistics = self.statistics
        statistics.steps += 1
        statistics.text_steps += len(self._running)
        if packed.width == 1:
            return
        drafted = np.bincount(packed.depths)[1:]
        deep = np.bincount(length - 1, minlength=drafted.size + 1)[::-1].cumsum()[::-1][1:]  # accepted, of each depth
        for depth, (one, other) in enumerate(zip(drafted.tolist(), deep.tolist(), strict=True), 1):
            statistics.drafted_by_depth[depth] = statistics.drafted_by_depth.get(depth, 0) + one
            statistics.accepted_by_depth[depth] = statistics.accepted_by_depth.get(depth, 0) + other
