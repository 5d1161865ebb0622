"""The forward pass of a Qwen3- or Llama-like model over packed tokens, in as few operations as it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm
from transformers import PreTrainedModel

from genrec.knowledge.packed import PackedCache, Packing

Precision = Literal["float32", "bfloat16"]


def require_precision(precision: str) -> None:
    """Raises ValueError for one that is not known, or too slow on this processor to be of use."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
    # avx512_bf16 came before AMX: every processor with AMX has it.
    if precision == "bfloat16" and not (torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()):
        raise ValueError("precision is 'bfloat16', and this processor has no avx512_bf16 to speed it up; use float32")


class _Norm(NamedTuple):
    weight: Tensor
    epsilon: float

    def __call__(self, states: Tensor) -> Tensor:
        return rms_norm(states, self.weight.shape, self.weight, self.epsilon)


class _Product(NamedTuple):
    """weight: [in, out], which is faster than [out, in] for few tokens. bias: [out]"""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, states: Tensor) -> Tensor:
        return states @ self.weight if self.bias is None else torch.addmm(self.bias, states, self.weight)

    def add_to(self, residual: Tensor, states: Tensor) -> Tensor:
        return torch.addmm(residual if self.bias is None else residual + self.bias, states, self.weight)


class _Bfloat16Product(NamedTuple):
    """A product of a CPU that has bfloat16, by oneDNN: takes 1.2 (one token) to 8 times less time than in float32.

    weight: [out, in], in the order in which oneDNN reads it. Ordering it anew in every product, as `linear` does, would
    cost what is gained with few tokens.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, states: Tensor) -> Tensor:
        """In bfloat16, as it is summed in float32."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states.bfloat16(), self.weight, self.bias, "none", [], "")
        return product

    def add_to(self, residual: Tensor, states: Tensor) -> Tensor:
        return residual + self(states)


class _Layer(NamedTuple):
    """heads_norm: weights of the norms of queries and keys, [heads, size], and their epsilon; None without such."""

    before_attention: _Norm
    heads: _Product | _Bfloat16Product
    heads_norm: tuple[Tensor, float] | None
    attended: _Product | _Bfloat16Product
    before_mlp: _Norm
    gate_up: _Product | _Bfloat16Product
    activation: Callable[[Tensor], Tensor]
    down: _Product | _Bfloat16Product


class PackedModel:
    """A causal language model of transformers that runs packed tokens.

    Uses the weights of `model`, which stays as it is: its parameters become views of the same memory, but for queries,
    keys and tied embeddings, which are copied.

    precision: of products and of the cache, if the model is in float32 on a CPU; otherwise all is in the model's.

    Raises ValueError for a precision that this processor lacks, and for a model that is not of the Qwen3 or Llama
    family: one whose parts have other names, that attends to a window, or whose logits differ when that is tried out.
    """

    def __init__(self, model: PreTrainedModel, precision: Precision = "float32") -> None:
        require_precision(precision)
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"model {config.model_type!r} has layers of {sorted(kinds)}; only full attention is supported"
            )
        self.device, self.dtype = model.device, model.dtype
        self._packed = precision == "bfloat16" and (self.device.type, self.dtype) == ("cpu", torch.float32)
        self.vocabulary_size: int = model.get_input_embeddings().num_embeddings
        self.max_length: int = config.max_position_embeddings
        try:
            with torch.inference_mode():
                self._read(model.eval())
                self._check(model)
        except (TypeError, IndexError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"model {config.model_type!r} cannot be run packed: {error}; use one of the Qwen3 or Llama family"
            ) from error

    def cache(self, rows: int) -> PackedCache:
        """An empty cache of so many texts."""
        dtype = torch.bfloat16 if self._packed else self.dtype
        return PackedCache(len(self._layers), rows, self._key_heads, self._size, dtype, self.device)

    def logits(self, packing: Packing, cache: PackedCache, wanted: Tensor | None = None) -> Tensor:
        """Logits [S, vocabulary] of packed tokens, or only of `wanted`, int64 [w]; keys and values go to `cache`."""
        states = embedding(packing.tokens, self._embeddings)
        turns = self._turns[packing.positions]
        queries, keys = self._query_heads, self._query_heads + self._key_heads
        for number, layer in enumerate(self._layers):
            heads = layer.heads(layer.before_attention(states)).unflatten(-1, (-1, self._size))
            turned = heads[:, :keys]
            if layer.heads_norm is not None:
                weight, epsilon = layer.heads_norm
                turned = rms_norm(turned, (self._size,), None, epsilon).mul_(weight)
            turned = _turn(turned, turns)
            cache.write(number, packing, turned[:, queries:], heads[:, keys:])
            attended = cache.attend(number, packing, turned[:, :queries], self._scaling)
            if wanted is not None and number == len(self._layers) - 1:  # others are not seen by anything from here on
                states, attended = states.index_select(0, wanted), attended.index_select(0, wanted)
            states = layer.attended.add_to(states, attended)
            gate, up = layer.gate_up(layer.before_mlp(states)).chunk(2, -1)
            states = layer.down.add_to(states, layer.activation(gate).mul_(up))
        return self._head(self._norm(states))

    def _read(self, model: Any) -> None:
        body, config = model.base_model, model.config
        attention = body.layers[0].self_attn
        self._size: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._query_heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
        kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if kind not in ("default", "linear", "yarn", "llama3"):
            raise AttributeError(f"its rotary embedding {kind!r} depends on the length of a text")
        positions = torch.arange(self.max_length, device=self.device)
        cos, sin = (part[0, :, None, : self._size // 2].float() for part in _rotary(body, positions))
        self._turns = torch.complex(cos, sin)  # [positions, 1, size / 2]
        self._layers = [self._layer(layer) for layer in body.layers]
        self._norm = _Norm(body.norm.weight, body.norm.variance_epsilon)
        self._embeddings = model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        if head.weight is self._embeddings:  # where a token is read as a row, which a transposed weight makes slow
            self._head = self._product(head.weight, head.bias)
        else:
            self._head = self._linear(head)

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        queries, keys, values = attention.q_proj, attention.k_proj, attention.v_proj
        bias = None
        if queries.bias is not None:
            bias = torch.cat([self._paired(queries.bias), self._paired(keys.bias), values.bias])
        norm = None
        if hasattr(attention, "q_norm"):
            of_heads = zip((attention.q_norm, attention.k_norm), (self._query_heads, self._key_heads), strict=True)
            weights = torch.cat([self._paired(part.weight).expand(heads, -1) for part, heads in of_heads])
            norm = weights, attention.q_norm.variance_epsilon
        return _Layer(
            before_attention=_Norm(layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon),
            heads=self._product(
                torch.cat([self._paired(queries.weight), self._paired(keys.weight), values.weight]), bias
            ),
            heads_norm=norm,
            attended=self._linear(attention.o_proj),
            before_mlp=_Norm(layer.post_attention_layernorm.weight, layer.post_attention_layernorm.variance_epsilon),
            gate_up=self._linear(mlp.gate_proj, mlp.up_proj),
            activation=mlp.act_fn,
            down=self._linear(mlp.down_proj),
        )

    def _paired(self, weight: Tensor) -> Tensor:
        """Rows of heads, reordered so that the two numbers that are turned together are neighbours.

        transformers turns numbers i and i + size / 2 together. A turn then is one product of complex numbers; queries
        times keys do not depend on the order.
        """
        return weight.unflatten(0, (-1, 2, self._size // 2)).transpose(1, 2).flatten(0, 2)

    def _linear(self, *parts: nn.Linear) -> _Product | _Bfloat16Product:
        """One product for linear layers of the same input."""
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        product = self._product(torch.cat([part.weight for part in parts]), bias)
        if isinstance(product, _Product):  # no weight is held twice
            for part, own in zip(parts, product.weight.t().split([part.out_features for part in parts]), strict=True):
                part.weight.data = own
        return product

    def _product(self, weight: Tensor, bias: Tensor | None) -> _Product | _Bfloat16Product:
        """weight: [out, in]"""
        if not self._packed:
            return _Product(weight.t().contiguous(), bias)
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous())
        return _Bfloat16Product(ordered, None if bias is None else bias.bfloat16())

    def _check(self, model: PreTrainedModel) -> None:
        """Two texts, packed, against the model itself."""
        sizes = [3, 2]
        tokens = np.arange(sum(sizes)) % self.vocabulary_size
        cache = self.cache(2)
        cache.reserve(max(sizes))
        packed = self.logits(Packing.of_prompts(np.split(tokens, [sizes[0]]), 0, cache), cache)
        apart = torch.cat([model(part[None]).logits[0] for part in cache.tensor(tokens).split(sizes)])
        difference = float((packed - apart).abs().max() / apart.abs().max().clamp_min(1e-6))
        if not difference < 0.02:  # rounding of bfloat16 stays below
            raise ValueError(
                f"model {model.config.model_type!r} gives logits that differ by {difference:.2g} of the largest when "
                "its tokens are packed; use a model of the Qwen3 or Llama family"
            )


def _rotary(body: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = body.rotary_emb(torch.zeros((), device=positions.device), positions[None])
    return found


def _turn(states: Tensor, turns: Tensor) -> Tensor:
    """Rotary embedding of [S, heads, size], in pairs, by complex [S, 1, size / 2]."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(states.dtype)
