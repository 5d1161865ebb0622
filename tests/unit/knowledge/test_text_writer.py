"""The serving thread: pieces make up the whole text, and nobody's trouble is anybody else's."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from genrec.knowledge import writer as texts
from genrec.knowledge.decoder import SpeculativeDecoder, TextRequest
from genrec.knowledge.writer import TextWriter
from tests.near import NEAR, narrowest_choice


@dataclass
class Recorder:
    """A requester that notes what it hears, and gives up after `patience` pieces."""

    patience: int = 1000
    pieces: list[tuple[str, int]] = field(default_factory=list)
    error: tuple[str, str] | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def cancelled(self) -> bool:
        return len(self.pieces) >= self.patience

    def write(self, text: str, tokens: int, last: bool) -> None:
        self.pieces.append((text, tokens))
        if last:
            self.done.set()

    def fail(self, message: str, reason: str) -> None:
        self.error = message, reason
        self.done.set()


def as_text(tokens: np.ndarray) -> str:
    return "".join(f"<{token}>" for token in tokens.tolist())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def decoder(model: LlamaForCausalLM) -> SpeculativeDecoder:
    return SpeculativeDecoder(model, batch_size=2)


def test_the_pieces_are_the_text_that_the_decoder_gives(model: LlamaForCausalLM, decoder: SpeculativeDecoder) -> None:
    requests = [TextRequest(np.arange(1, 3 + number), max_new_tokens=10 + number) for number in range(5)]
    whole = {text.index: text.tokens.tolist() for text in decoder.generate(requests)}
    # What is batched together is up to chance, so no choice may nearly tie. The logits are small, and so is rounding.
    for number, tokens in whole.items():
        prompt = requests[number].prompt.tolist()
        assert narrowest_choice(model, prompt + tokens, len(prompt)) > NEAR
    expected = {number: as_text(np.array(tokens)) for number, tokens in whole.items()}
    writer, streams = TextWriter(decoder, as_text, print), [Recorder() for _ in requests]
    for request, stream in zip(requests, streams, strict=True):
        writer.submit(request, stream)
    writer.close()
    for number, stream in enumerate(streams):
        assert "".join(text for text, _ in stream.pieces) == expected[number]
        assert [tokens for _, tokens in stream.pieces] == sorted(tokens for _, tokens in stream.pieces)
        assert stream.pieces[-1][1] == 10 + number and len(stream.pieces) > 5 and stream.error is None


def test_a_requester_that_gives_up_ends_its_text_and_no_other(decoder: SpeculativeDecoder) -> None:
    writer, gone, stays = TextWriter(decoder, as_text, print), Recorder(patience=2), Recorder()
    for stream in (gone, stays):
        writer.submit(TextRequest(np.arange(3), max_new_tokens=60), stream)
    writer.close()
    assert gone.error == ("cancelled", "cancelled") and len(gone.pieces) == 2
    assert stays.pieces[-1][1] == 60


def test_a_refused_request_hears_why(decoder: SpeculativeDecoder) -> None:
    writer, refused, stays = TextWriter(decoder, as_text, print), Recorder(), Recorder()
    writer.submit(TextRequest(np.arange(3), max_new_tokens=500), refused)
    writer.submit(TextRequest(np.arange(3), max_new_tokens=4), stays)
    writer.close()
    assert refused.error is not None and refused.error[1] == "refused" and "at most 128 together" in refused.error[0]
    assert stays.pieces[-1][1] == 4


def test_too_many_waiting_are_refused_at_once(decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_WAITING", 1)
    entered, go_on = threading.Event(), threading.Event()

    def slow(tokens: np.ndarray) -> str:
        entered.set()
        assert go_on.wait(10)
        return as_text(tokens)

    writer, streams = TextWriter(decoder, slow, print), [Recorder() for _ in range(3)]
    writer.submit(TextRequest(np.arange(3), max_new_tokens=2), streams[0])
    assert entered.wait(10)
    for stream in streams[1:]:
        writer.submit(TextRequest(np.arange(3), max_new_tokens=2), stream)
    assert streams[2].error is not None and streams[2].error[1] == "overloaded"
    go_on.set()
    writer.close()
    assert all(stream.pieces[-1][1] == 2 for stream in streams[:2])


def test_after_a_defect_the_next_texts_are_written(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    writer, first, second = TextWriter(decoder, as_text, log.append), Recorder(), Recorder()
    with monkeypatch.context() as broken:
        broken.setattr(decoder.model, "logits", lambda *_: 1 / 0)
        writer.submit(TextRequest(np.arange(3), max_new_tokens=3), first)
        assert first.done.wait(10)
    writer.submit(TextRequest(np.arange(3), max_new_tokens=3), second)
    writer.close()
    assert first.error == ("internal error, see the server's log", "failed") and "ZeroDivisionError" in log[0]
    assert second.pieces[-1][1] == 3
