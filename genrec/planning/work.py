"""What one batch costs to draft: floating-point operations, bytes and operators of either decoder. Arithmetic only.

Counted is what an engine executes of `genrec/model/`; tests compare the operations with PyTorch's own counter and the
operators with the exported graph.

- FLOPs are those of the matrix products, 2 r i o for [r, i] by [i, o]. A prefill's attention is the full square: the
  engines mask it, they do not skip it. What goes element by element (norms, rotary positions, softmax, gates) counts by
  its bytes. The draft head's `U_l e_l + b_l` is a constant of the exported graph: no FLOPs, but its rows are read.
- Bytes: a product's weights once per batch, its rows in and out; keys and values once per request and step, whatever
  the number of beams; every element-wise pass reads and writes. Caches are ignored: an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from genrec.bundle.checkpoint_shapes import (
    BEAM_SEARCH,
    DRAFT_HEAD,
    HeadShape,
    decoder_of,
    head_arguments,
    require_attention_heads,
)

PREFILL, DECODE = "prefill", "decode"
_SCORE = 4  # bytes of a logit and a score: the beams are float32 whatever the precision
# How often `Beams.step` touches each of the W * T_l scores: logits written; log-softmax and the two additions read and
# write; the mask written and read; top-K reads.
_SCORE_ACCESSES = 10


@dataclass(frozen=True)
class Engine:
    """What an engine makes of the same model.

    hidden_passes .. score_passes: element-wise passes of a layer, each a read and a write: over hidden states (norms,
    residuals), over the feed-forward's inner values (SiLU, gate), over queries and keys (norm, rotary positions,
    transposition), and over attention scores (mask, softmax, handing them from product to product) where one operator
    does not do it all: a prefill's, if no key-value head is shared. prefill_operators, layer_operators,
    grouped_operators: operators of the prefill, of each of its layers, and more of these with shared key-value heads.
    first_operators: of the first level's scores; level_operators: of every further level of the draft head, and more
    if it reads the history: history_operators once, reading_operators for every further level;
    step_operators, step_layer_operators: of every further step of beam search outside its layers and in each,
    carried_operators: in each from the second on, which carries the beams' codes over.
    """

    name: str
    hidden_passes: int
    inner_passes: int
    head_passes: int
    score_passes: int
    prefill_operators: int
    layer_operators: int
    grouped_operators: int
    first_operators: int
    level_operators: int
    history_operators: int
    reading_operators: int
    step_operators: int
    step_layer_operators: int
    carried_operators: int


ENGINES = {
    engine.name: engine
    for engine in (
        # The exported graphs after ONNX Runtime's optimisation; operators are counted, a test holds them.
        Engine("onnx", 4, 2, 4, 4, 50, 22, 14, 38, 52, 11, 18, 43, 47, 12),
        # Assumed of an engine that compiles for a GPU: attention scores stay on the chip, a norm takes its residual
        # along, and about ten kernels do a layer.
        Engine("fused", 2, 2, 2, 0, 5, 10, 0, 6, 14, 2, 5, 8, 11, 1),
    )
}


@dataclass(frozen=True)
class Precision:
    """Bytes of a weight, and of a value: hidden states, keys, code tables."""

    name: str
    weight: int
    value: int


PRECISIONS = {
    precision.name: precision
    for precision in (Precision("float32", 4, 4), Precision("bf16", 2, 2), Precision("int8", 1, 2))
}


@dataclass(frozen=True)
class Shape:
    """A Qwen3 or Llama backbone with its decoder; sizes as in `config.json`, `head_dim` e, `heads` H, `kv_heads` G.

    levels: codes per SID level, T_0 .. T_{L-1}. state_size, transition_size, attention_heads: see `DraftHead`; not read
    for beam search.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    levels: tuple[int, ...]
    state_size: int
    transition_size: int
    attention_heads: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("levels", "attention_heads") and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        require_attention_heads(self.attention_heads, self.state_size)
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels {self.levels} must be one or more sizes of at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv heads {self.kv_heads}: change one of them")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Shape:
        """Of a checkpoint's `config.json`, with the usual head for one without. Raises LookupError, ValueError."""
        settings = config[decoder := decoder_of(dict(config))]
        head = head_arguments(settings) if decoder == DRAFT_HEAD else asdict(HeadShape())
        heads = config["num_attention_heads"]
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            **(head | {"levels": tuple(settings["levels"])}),
        )

    def beams(self, beam_width: int) -> tuple[int, ...]:
        """Beams that each level's logits are computed for: 1, then min(K, T_0 * .. * T_{l-1})."""
        return tuple(min(beam_width, math.prod(self.levels[:level])) for level in range(len(self.levels)))

    def parameters(self, decoder: str) -> int:
        """Weights, without those of norms and biases."""
        d, e, state = self.hidden_size, self.head_dim, self.state_size
        layer = 2 * d * self.heads * e + 2 * d * self.kv_heads * e + 3 * d * self.intermediate_size
        backbone = self.layers * layer + self.vocabulary * d
        if decoder == BEAM_SEARCH:
            return backbone
        transition = 5 * state * self.transition_size
        steps = sum(size * state + transition for size in self.levels[:-1])
        if self.attention_heads:
            steps += 2 * d * state + 2 * state * state * (len(self.levels) - 1)
        return backbone + d * state + sum(self.levels) * (d + state) + steps


@dataclass(frozen=True)
class Work:
    """Floating-point operations of matrix products, bytes read and written, operators started."""

    flops: int = 0
    bytes: int = 0
    operators: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.operators + other.operators)

    def __mul__(self, times: int) -> Work:
        return Work(self.flops * times, self.bytes * times, self.operators * times)


@dataclass(frozen=True)
class Part:
    """One named piece of the work of a batch; `stage` is PREFILL or DECODE."""

    stage: str
    name: str
    work: Work


@dataclass(frozen=True)
class Batch:
    """What is drafted at once: `size` prompts of `tokens` tokens each, placeholders not counted, `beam_width` K."""

    tokens: int
    beam_width: int
    size: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name.replace('_', ' ')} {value} must be at least 1")


def work_of(shape: Shape, decoder: str, batch: Batch, precision: Precision, engine: Engine) -> tuple[Part, ...]:
    """The work of one batch, part by part. decoder: of `DECODERS`; raises ValueError for others."""
    counter = _Counter(shape, batch, precision, engine)
    if decoder == DRAFT_HEAD:
        return counter.draft_head()
    if decoder == BEAM_SEARCH:
        return counter.beam_search()
    raise ValueError(f"decoder {decoder!r} is unknown; use {DRAFT_HEAD} or {BEAM_SEARCH}")


def total(parts: tuple[Part, ...]) -> Work:
    """Their sum."""
    return sum((part.work for part in parts), Work())


def token_bound(levels: int, tokens: int, beam_width: int) -> float:
    """Speed-up over beam search if a token through the backbone is all that costs: (P + (L-1) K) / (P + L + 1).

    Beam search passes the P tokens of the prompt and L - 1 rounds of K; NEZHA the prompt and L placeholders, the draft
    head taken as one token more.
    """
    return (tokens + (levels - 1) * beam_width) / (tokens + levels + 1)


@dataclass(frozen=True)
class _Counter:
    shape: Shape
    batch: Batch
    precision: Precision
    engine: Engine

    def draft_head(self) -> tuple[Part, ...]:
        """NEZHA: `NezhaModel.draft`."""
        shape, size, engine = self.shape, self.batch.size, self.engine
        projections = self._linear(size, shape.hidden_size, shape.state_size)
        transitions, reading = Work(), Work()
        steps, rows = len(shape.levels) - 1, self.batch.tokens + len(shape.levels)
        operators = engine.first_operators + engine.level_operators * steps
        if shape.attention_heads:
            operators += engine.history_operators + engine.reading_operators * steps
            reading += self._linear(size * self.batch.tokens, shape.hidden_size, 2 * shape.state_size)
        for level, (codes, width) in enumerate(zip(shape.levels, self.widths, strict=True)):
            projections += self._linear(size, shape.hidden_size, codes)
            projections += self._linear(size * width, shape.state_size, codes)
            if level:
                transitions += self._transition(size * width, size * self.widths[level - 1])
                if shape.attention_heads:
                    reading += self._reading(width, self.batch.tokens)
        return (
            *self._prefill(rows, len(shape.levels) + 1),
            Part(DECODE, "projections", projections),
            Part(DECODE, "transitions", transitions),
            Part(DECODE, "history", reading),
            Part(DECODE, "top-K", self._top_k()),
            Part(DECODE, "operators", Work(operators=operators)),
        )

    def beam_search(self) -> tuple[Part, ...]:
        """The baseline: `AutoregressiveModel.draft`."""
        shape, batch, layers, engine = self.shape, self.batch, self.shape.layers, self.engine
        projections, attention, passes = Work(), Work(), Work()
        logits, operators = self._linear(batch.size, shape.hidden_size, shape.levels[0]), engine.first_operators
        for level, width in enumerate(self.widths[1:], 1):
            projections += self._embedded(width) + (self._queries_on(width) + self._keys_values(width)) * layers
            attention += (self._attention(width, batch.tokens) + self._own_attention(width, level)) * layers
            carried = self._gathered(batch.size * width * (level - 1), 2 * shape.kv_heads * shape.head_dim)
            passes += (self._passes(width, batch.tokens + level) + carried) * layers
            logits += self._linear(batch.size * width, shape.hidden_size, shape.levels[level])
            in_layer = engine.step_layer_operators + engine.carried_operators * (level > 1)
            operators += engine.step_operators + in_layer * layers
        return (
            *self._prefill(batch.tokens, 1),
            Part(DECODE, "projections", projections),
            Part(DECODE, "attention", attention),
            Part(DECODE, "element-wise", passes),
            Part(DECODE, "logits", logits),
            Part(DECODE, "top-K", self._top_k()),
            Part(DECODE, "operators", Work(operators=operators)),
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Beams per request that each level's logits are computed for."""
        return self.shape.beams(self.batch.beam_width)

    def _prefill(self, rows: int, last: int) -> tuple[Part, ...]:
        """`rows` tokens of each request, of which the last layer takes only the `last` ones behind its keys."""
        layers, engine, grouped = self.shape.layers, self.engine, self.shape.kv_heads < self.shape.heads
        operators = engine.prefill_operators + (engine.layer_operators + engine.grouped_operators * grouped) * layers
        full = self._passes(rows, rows if grouped else 0)
        projections = self._embedded(rows) + self._keys_values(rows) * layers
        projections += self._queries_on(rows) * (layers - 1) + self._queries_on(last)
        return (
            Part(PREFILL, "projections", projections),
            Part(PREFILL, "attention", self._attention(rows, rows) * (layers - 1) + self._attention(last, rows)),
            Part(PREFILL, "element-wise", full * (layers - 1) + self._passes(last, rows)),
            Part(PREFILL, "operators", Work(operators=operators)),
        )

    def _linear(self, rows: int, inputs: int, outputs: int) -> Work:
        """A product of [rows, inputs] with weights, all requests' rows together."""
        moved = self.precision.weight * inputs * outputs + self.precision.value * rows * (inputs + outputs)
        return Work(2 * rows * inputs * outputs, moved)

    def _queries_on(self, rows: int) -> Work:
        """A layer's products behind its keys and values: queries, output, feed-forward; rows of each request."""
        shape, rows = self.shape, rows * self.batch.size
        d, inner, mixed = shape.hidden_size, shape.intermediate_size, shape.heads * shape.head_dim
        attention = self._linear(rows, d, mixed) + self._linear(rows, mixed, d)
        return attention + self._linear(rows, d, 2 * inner) + self._linear(rows, inner, d)

    def _keys_values(self, rows: int) -> Work:
        """A layer's keys and values for `rows` of each request."""
        shape = self.shape
        return self._linear(rows * self.batch.size, shape.hidden_size, 2 * shape.kv_heads * shape.head_dim)

    def _attention(self, queries: int, keys: int) -> Work:
        """A layer's two products of attention: `queries` rows of each request with the same `keys`."""
        shape, size = self.shape, self.batch.size
        values = 2 * shape.head_dim * (keys * shape.kv_heads + queries * shape.heads)
        return Work(4 * size * queries * keys * shape.heads * shape.head_dim, size * self.precision.value * values)

    def _own_attention(self, beams: int, codes: int) -> Work:
        """A layer's attention of each beam to the `codes` that it alone has."""
        shape, rows = self.shape, beams * self.batch.size
        values = 2 * codes * shape.kv_heads * shape.head_dim
        return Work(4 * rows * codes * shape.heads * shape.head_dim, self.precision.value * rows * values)

    def _passes(self, rows: int, keys: int) -> Work:
        """A layer's element-wise passes over `rows` of each request, with their scores for `keys`."""
        shape, engine = self.shape, self.engine
        values = engine.hidden_passes * shape.hidden_size + engine.inner_passes * shape.intermediate_size
        values += engine.head_passes * (shape.heads + shape.kv_heads) * shape.head_dim
        values += engine.score_passes * shape.heads * keys
        return self._gathered(rows * self.batch.size, values)

    def _transition(self, rows: int, parents: int) -> Work:
        """From one level's states to the next: a row of the code table, the parent's state, and the gated block.

        Where `parents` are few, their states are multiplied, and the products copied to each child.
        """
        state, wide = self.shape.state_size, self.shape.transition_size
        copied = self._gathered(rows, 2 * wide) + self._gathered(rows, state)
        multiplied = rows
        if parents == self.batch.size or 2 * parents <= rows:
            multiplied, copied = parents, copied + self._gathered(rows, 2 * wide)
        return copied + self._linear(multiplied, state, 2 * wide) + self._linear(rows, wide, state)

    def _reading(self, beams: int, keys: int) -> Work:
        """What a transition's attention to the history adds: queries of each request's `beams` to the same `keys`."""
        shape, size, state = self.shape, self.batch.size, self.shape.state_size
        products = self._linear(size * beams, state, state) * 2
        products += Work(4 * size * beams * keys * state, size * self.precision.value * 2 * state * (keys + beams))
        scores = self.engine.score_passes * shape.attention_heads * keys
        return products + self._gathered(size * beams, 2 * state + scores)  # and the norm and the residual

    def _embedded(self, rows: int) -> Work:
        """Token embeddings of `rows` of each request."""
        return self._gathered(rows * self.batch.size, self.shape.hidden_size)

    def _gathered(self, rows: int, width: int) -> Work:
        """Rows of `width` values, read and written."""
        return Work(0, 2 * rows * width * self.precision.value)

    def _top_k(self) -> Work:
        """Every level's prefix bits, scores and top-K."""
        widths = zip(self.shape.beams(self.batch.beam_width), self.shape.levels, strict=True)
        moved = sum(width * (codes * _SCORE * _SCORE_ACCESSES + -(-codes // 8)) for width, codes in widths)
        return Work(0, self.batch.size * moved)
