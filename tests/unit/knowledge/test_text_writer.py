"""The serving thread: pieces make up the whole text, and nobody's trouble is anybody else's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from genrec.knowledge import sender
from genrec.knowledge import writer as texts
from genrec.knowledge.decoder import Session, SpeculativeDecoder
from genrec.knowledge.sender import Outgoing, TextSender
from genrec.knowledge.texts import TextRequest
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


def decode_in_step(monkeypatch: pytest.MonkeyPatch, first_only: bool = False) -> None:
    """Decoding waits until its tokens are taken to be sent (or a text's first ones), however busy the machine is."""
    add = TextSender.add

    def added(sender: TextSender, written: Iterable[tuple[Outgoing, np.ndarray, bool]]) -> None:
        add(sender, written)
        with sender._changed:
            assert sender._changed.wait_for(
                lambda: not any(text.waits and not (first_only and text.sent) for text in sender._texts), 10
            )

    monkeypatch.setattr(TextSender, "add", added)


def test_the_pieces_are_the_text_that_the_decoder_gives(
    model: LlamaForCausalLM, decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_in_step(monkeypatch)
    requests = [TextRequest(np.arange(1, 3 + number), max_new_tokens=10 + number) for number in range(5)]
    whole = {text.index: text.tokens.tolist() for text in decoder.generate(requests)}
    # What is batched together is up to chance, so no choice may nearly tie. The logits are small, and so is rounding.
    for number, tokens in whole.items():
        prompt = requests[number].prompt.tolist()
        assert narrowest_choice(model, prompt + tokens, len(prompt)) > NEAR
    expected = {number: as_text(np.array(tokens)) for number, tokens in whole.items()}
    writer, streams = TextWriter(lambda: decoder, as_text, print), [Recorder() for _ in requests]
    for request, stream in zip(requests, streams, strict=True):
        writer.submit(request, stream)
    writer.close()
    for number, stream in enumerate(streams):
        assert "".join(text for text, _ in stream.pieces) == expected[number]
        assert [tokens for _, tokens in stream.pieces] == sorted(tokens for _, tokens in stream.pieces)
        assert stream.pieces[-1][1] == 10 + number and len(stream.pieces) > 1 and stream.error is None


def test_a_text_comes_whole_for_those_who_want_it_so(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_in_step(monkeypatch)
    writer, pieces, whole = TextWriter(lambda: decoder, as_text, print), Recorder(), Recorder()
    writer.submit(TextRequest(np.arange(3), max_new_tokens=60), pieces)
    writer.submit(TextRequest(np.arange(3), max_new_tokens=60), whole, whole=True)
    writer.close()
    assert len(pieces.pieces) > 1
    assert whole.pieces == [("".join(text for text, _ in pieces.pieces), 60)]


def test_a_requester_that_gives_up_ends_its_text_and_no_other(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_in_step(monkeypatch)
    monkeypatch.setattr(sender, "_ASK_S", 0.0)
    writer, gone, stays = TextWriter(lambda: decoder, as_text, print), Recorder(patience=2), Recorder()
    for stream in (gone, stays):
        writer.submit(TextRequest(np.arange(3), max_new_tokens=100), stream)
    writer.close()
    assert gone.error == ("cancelled", "cancelled") and 2 <= len(gone.pieces) and gone.pieces[-1][1] < 100
    assert stays.pieces[-1][1] == 100


def test_who_has_given_up_while_waiting_is_not_written_for(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the decoder is busy with others somebody asks who still waits."""
    entered, asked, go_on = threading.Event(), threading.Event(), threading.Event()
    logits = decoder.model.logits

    def slow(*args: Any) -> torch.Tensor:
        entered.set()
        assert go_on.wait(10)
        return logits(*args)

    class Gone(Recorder):
        def cancelled(self) -> bool:
            asked.set()
            return True

    monkeypatch.setattr(decoder.model, "logits", slow)
    writer, first, gone = TextWriter(lambda: decoder, as_text, print), Recorder(), Gone()
    writer.submit(TextRequest(np.arange(3), max_new_tokens=4), first)
    assert entered.wait(10)
    writer.submit(TextRequest(np.arange(3), max_new_tokens=4), gone)
    assert asked.wait(10)
    time.sleep(0.05)
    go_on.set()
    writer.close()
    assert gone.error == ("cancelled", "cancelled") and not gone.pieces
    assert first.pieces[-1][1] == 4


def test_the_slower_sending_is_the_larger_are_the_pieces(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding does not wait, and neither does the first piece."""
    decode_in_step(monkeypatch, first_only=True)

    class Slow(Recorder):
        def write(self, text: str, tokens: int, last: bool) -> None:
            time.sleep(0.02)
            super().write(text, tokens, last)

    writer, stream = TextWriter(lambda: decoder, as_text, print), Slow()
    writer.submit(TextRequest(np.arange(3), max_new_tokens=100), stream)
    writer.close()
    assert stream.pieces[0][1] < 20 and stream.pieces[-1][1] == 100 and len(stream.pieces) < 50


def test_what_cannot_be_sent_is_kept_within_limits(decoder: SpeculativeDecoder) -> None:
    """While nothing can be sent, no more texts are begun than have room; later all arrive whole."""
    stalled, go_on = threading.Event(), threading.Event()

    class Stalled(Recorder):
        def write(self, text: str, tokens: int, last: bool) -> None:
            stalled.set()
            assert go_on.wait(10)
            super().write(text, tokens, last)

    begun, start = [], Session.submit

    def counted(session: Session, request: TextRequest) -> int:
        begun.append(request)
        return start(session, request)

    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(Session, "submit", counted)
        writer, first = TextWriter(lambda: decoder, as_text, print), Stalled()
        writer.submit(TextRequest(np.arange(3), max_new_tokens=2), first)
        assert stalled.wait(10)
        others = [Recorder() for _ in range(20)]
        for stream in others:
            writer.submit(TextRequest(np.arange(3), max_new_tokens=2), stream)
        time.sleep(0.2)
        most = len(begun)
        go_on.set()
        writer.close()
    assert most <= 2 * decoder.batch_size + 1
    assert len(begun) == 21 and all(stream.pieces[-1][1] == 2 for stream in (first, *others))


def test_an_answer_that_cannot_be_sent_ends_its_text_and_no_other(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_in_step(monkeypatch)

    class Broken(Recorder):
        def write(self, text: str, tokens: int, last: bool) -> None:
            raise OSError("the requester is gone")

    log: list[str] = []
    writer, broken, stays = TextWriter(lambda: decoder, as_text, log.append), Broken(), Recorder()
    for stream in (broken, stays):
        writer.submit(TextRequest(np.arange(3), max_new_tokens=100), stream)
    writer.close()
    assert "the requester is gone" in log[0] and len(log) == 1 and broken.error == ("cancelled", "cancelled")
    assert stays.pieces[-1][1] == 100 and stays.error is None


def test_a_refused_request_hears_why(decoder: SpeculativeDecoder) -> None:
    writer, refused, stays = TextWriter(lambda: decoder, as_text, print), Recorder(), Recorder()
    writer.submit(TextRequest(np.arange(3), max_new_tokens=500), refused)
    writer.submit(TextRequest(np.arange(3), max_new_tokens=4), stays)
    writer.close()
    assert refused.error is not None and refused.error[1] == "refused" and "at most 128 together" in refused.error[0]
    assert stays.pieces[-1][1] == 4


def test_too_many_waiting_are_refused_at_once(decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_WAITING", 1)
    entered, go_on = threading.Event(), threading.Event()
    logits = decoder.model.logits

    def slow(*args: Any) -> torch.Tensor:
        entered.set()
        assert go_on.wait(10)
        return logits(*args)

    monkeypatch.setattr(decoder.model, "logits", slow)
    writer, streams = TextWriter(lambda: decoder, as_text, print), [Recorder() for _ in range(3)]
    writer.submit(TextRequest(np.arange(3), max_new_tokens=2), streams[0])
    assert entered.wait(10)
    for stream in streams[1:]:
        writer.submit(TextRequest(np.arange(3), max_new_tokens=2), stream)
    assert streams[2].done.wait(10)
    assert streams[2].error is not None and streams[2].error[1] == "overloaded"
    go_on.set()
    writer.close()
    assert all(stream.pieces[-1][1] == 2 for stream in streams[:2])


def test_after_a_defect_the_next_texts_are_written(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    writer, first, second = TextWriter(lambda: decoder, as_text, log.append), Recorder(), Recorder()
    with monkeypatch.context() as broken:
        broken.setattr(decoder.model, "logits", lambda *_: 1 / 0)
        writer.submit(TextRequest(np.arange(3), max_new_tokens=3), first)
        assert first.done.wait(10)
    writer.submit(TextRequest(np.arange(3), max_new_tokens=3), second)
    writer.close()
    assert first.error == ("internal error, see the server's log", "failed") and "ZeroDivisionError" in log[0]
    assert second.pieces[-1][1] == 3


def test_what_is_wrong_with_the_decoder_is_told_who_asked_for_it() -> None:
    with pytest.raises(ZeroDivisionError):
        TextWriter(lambda: 1 / 0, as_text, print)  # type: ignore[arg-type, return-value]


def test_only_one_thread_computes(model: LlamaForCausalLM) -> None:
    """Two would share the processors' threads: see `TextWriter`."""
    computed: set[str] = set()

    def made() -> SpeculativeDecoder:
        made = SpeculativeDecoder(model, batch_size=2)
        logits = made.model.logits

        def noted(*args: Any) -> torch.Tensor:
            computed.add(threading.current_thread().name)
            return logits(*args)

        computed.add(threading.current_thread().name)
        made.model.logits = noted  # type: ignore[method-assign]
        return made

    writer, stream = TextWriter(made, as_text, print), Recorder()
    writer.submit(TextRequest(np.arange(3), max_new_tokens=3), stream)
    writer.close()
    assert stream.pieces[-1][1] == 3 and computed == {"text-writer"}
