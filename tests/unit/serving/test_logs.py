"""Lines of logs as JSON, and what is written of single requests."""

from __future__ import annotations

import io
import json
import threading

import pytest

from genrec.serving import request_log
from genrec.serving.request_log import RequestLog
from genrec.serving.triton.log import JsonLines, json_line


@pytest.mark.parametrize(
    ("line", "level", "source", "message"),
    [
        (
            'I1130 01:21:25.758477 15994 grpc_server.cc:2558] "Started \\"x\\"\\nat 1"',
            "info",
            "triton",
            'Started "x"\nat 1',
        ),
        ("E1130 01:21:25.758477 15994 model.py:5] broken", "error", "triton", "broken"),
        ("[WARNING]  (1234) : config : no", "warning", "front", "config : no"),
        ("error: no such bundle", "error", "genrec", "error: no such bundle"),
        ("catalogue: stays at version 3", "info", "genrec", "catalogue: stays at version 3"),
    ],
)
def test_a_line_is_an_object_with_its_level_and_source(line: str, level: str, source: str, message: str) -> None:
    told = json.loads(json_line(line))
    assert (told["level"], told["source"], told["message"]) == (level, source, message)
    assert told["time"].endswith("+00:00")


def test_pieces_of_lines_are_put_together_and_threads_are_not_mixed() -> None:
    out = io.StringIO()
    stream = JsonLines(out)
    stream.write("warning: a")
    stream.write("b\n\nnext\nunfinished")
    writers = [threading.Thread(target=lambda: [stream.write("line\n") for _ in range(200)]) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    told = [json.loads(line)["message"] for line in out.getvalue().splitlines()]
    assert told[:2] == ["warning: ab", "next"] and len(told) == 2 + 800


@pytest.mark.parametrize(
    ("wanted", "messages", "written"),
    [
        ("off", True, []),
        ("refused", False, ["refused"]),
        ("refused", True, ["refused"]),
        ("all", False, ["refused", "answered"]),
    ],
)
def test_single_requests_are_written_as_far_as_wanted(
    capfd: pytest.CaptureFixture[str], wanted: str, messages: bool, written: list[str]
) -> None:
    log = RequestLog("preprocessing", wanted, messages)
    log.refused("id-1", "INVALID_ARGUMENT", "invalid", "query: 'a secret wish' has no place here")
    if log.answers:
        log.answered(["id-2"], 0, 3_000_000)
    out = capfd.readouterr().out
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["outcome"] for line in lines] == written
    assert ("secret" in out) == (messages and bool(written))
    if lines:
        assert (lines[0]["request_id"], lines[0]["input"], lines[0]["level"]) == ("id-1", "query", "warning")


def test_a_record_stays_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    RequestLog("verifier", "all", False).answered(["id"], 0, 1)
    line = capfd.readouterr().out.rstrip("\n")
    assert json_line(line) == line


def test_a_line_that_cannot_be_written_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(request_log, "_STANDARD_OUTPUT", full.fileno())
        log = RequestLog("backbone", "all", False)
        log.refused("id-1", "UNAVAILABLE", "late", "too late")
        log.answered(["id-2"], 0, 3_000_000)
