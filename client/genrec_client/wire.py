"""The wire contract: a request to the protobuf message and an answer back from it. Pure functions.

They write the tensors' bytes themselves: it takes a third of the time that `InferInput` and `InferResult` take with
their detour over numpy object arrays, and one message then serves all attempts of a call.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeAlias

from tritonclient.grpc import service_pb2

from genrec_client.arguments import ItemId, is_flag, whole_number
from genrec_client.errors import InvalidRequest, RecommendError
from genrec_client.recommendations import Recommendations, RecommendedItem, Source
from genrec_client.request import RecommendRequest
from genrec_client.rules import Rules

# The generated classes carry no types.
InferRequest: TypeAlias = Any
InferResponse: TypeAlias = Any

_SOURCES = tuple(Source)
_ID = re.compile(r"[!-~]{1,128}")


def build_request(request: RecommendRequest, model: str) -> InferRequest:
    """The `ModelInferRequest` of one user: a leading batch dimension of 1, and only the inputs that were given.

    Raises InvalidRequest for a value that cannot be put on the wire; limits are the server's to judge.
    """
    if not isinstance(request, RecommendRequest):
        raise TypeError(f"expected a RecommendRequest, got {type(request).__name__}")
    message = service_pb2.ModelInferRequest(model_name=model, id=_request_id(request.request_id))
    _add_ids(message, "history", request.history)
    if request.top_k is not None:
        _add_int(message, "top_k", request.top_k)
    if request.exclude is not None:
        _add_ids(message, "exclude", request.exclude)
    if request.allow_history is not None:
        _add_flag(message, "allow_history", request.allow_history)
    if request.query is not None:
        if not isinstance(request.query, str):
            raise _refuse("query", request.query, "give text, a str")
        _add(message, "query", "BYTES", 1, _pack_bytes([_encode_id("query", 0, request.query)]))
    if request.rules is not None:
        _add(message, "rules", "BYTES", 1, _pack_bytes([_encode_rules(request.rules)]))
    if request.sheddable is not None:
        if not is_flag(request.sheddable):
            raise _refuse("sheddable", request.sheddable, "give True or False")
        message.parameters["sheddable"].bool_param = bool(request.sheddable)
    return message


def build_text_request(
    model: str,
    history: Iterable[ItemId] | None,
    item: ItemId | None,
    max_new_tokens: int | None,
    stream: bool = True,
) -> InferRequest:
    """The `ModelInferRequest` for the text of a user, by `history`, or of an item: one of them is None.

    stream: whether it is to come in pieces, as it is written, or whole.

    Raises InvalidRequest for a value that cannot be put on the wire; limits are the server's to judge.
    """
    if history is None and item is None:
        raise _invalid("neither history nor item is given; an empty history is []")
    message = service_pb2.ModelInferRequest(model_name=model)
    if history is not None:
        _add_ids(message, "history", history)
    if item is not None:
        _add_ids(message, "item", [item])
    if max_new_tokens is not None:
        _add_int(message, "max_new_tokens", max_new_tokens)
    if stream is not True:  # the default is left out: an older server does not know this input
        _add_flag(message, "stream", stream)
    return message


def parse_text_piece(message: InferResponse) -> tuple[str, int]:
    """The text and the number of tokens so far of one streamed response.

    Raises RecommendError with code INTERNAL when the answer breaks the wire contract.
    """
    try:
        raw = {tensor.name: data for tensor, data in zip(message.outputs, message.raw_output_contents, strict=True)}
        (text,), (tokens,) = _unpack_text(raw["text"]), struct.unpack("<i", raw["tokens"])
    except (KeyError, ValueError, struct.error) as error:
        raise RecommendError(f"the answer does not follow the wire contract: {error}", "INTERNAL", 1) from error
    return text, tokens


def set_timeout(message: InferRequest, remaining_s: float) -> None:
    """Tell Triton's queue what remains of the call's time, in place.

    remaining_s: seconds; Triton's `timeout` parameter is in microseconds, and 0 would mean no limit there.
    """
    message.parameters["timeout"].int64_param = max(1, int(remaining_s * 1e6))


def parse_response(message: InferResponse, latency_ms: float, attempts: int) -> Recommendations:
    """The answer of a `ModelInferResponse`.

    latency_ms: milliseconds that the call took. attempts: requests that it took. Raises RecommendError with code
    INTERNAL when the answer breaks the wire contract.
    """
    try:
        raw = {tensor.name: data for tensor, data in zip(message.outputs, message.raw_output_contents, strict=True)}
        ids = _unpack_text(raw["item_ids"])
        scores = struct.unpack(f"<{len(ids)}f", raw["scores"])
        if not all(map(isfinite, scores)):
            raise ValueError("a score is no finite number")
        sources = [_SOURCES[value] for value in raw["source"]]
        items = tuple(map(RecommendedItem, ids, scores, sources))
        if len(items) != len(sources) or len(items) != len(ids):
            raise ValueError(f"{len(ids)} item_ids but {len(sources)} values of source")
        drafted, valid, unknown_history, filled = struct.unpack("<4i", raw["counts"])
        bundle_version, catalog_version = _unpack_text(raw["version"])
        explanation = _unpack_explanation(raw["explanation"]) if "explanation" in raw else None  # an older server
    except (KeyError, IndexError, ValueError, struct.error) as error:
        what = f"no output {error}" if isinstance(error, KeyError) else str(error)
        raise RecommendError(f"the answer does not follow the wire contract: {what}", "INTERNAL", attempts) from error
    return Recommendations(
        items,
        drafted,
        valid,
        unknown_history,
        filled,
        bundle_version,
        catalog_version,
        latency_ms,
        attempts,
        explanation,
        message.id,
    )


def _request_id(given: str | None) -> str:
    if given is None:
        return ""
    if not isinstance(given, str):
        raise _refuse("request_id", given, "give text")
    if not _ID.fullmatch(given):
        raise _invalid(
            f"request_id: {given[:200]!r} cannot be sent; give 1 to 128 printable ASCII characters without spaces"
        )
    return given


def _add(message: InferRequest, name: str, datatype: str, length: int, raw: bytes) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=(1, length))
    message.raw_input_contents.append(raw)


def _add_int(message: InferRequest, name: str, value: int) -> None:
    if (number := whole_number(value)) is None:
        raise _refuse(name, value, "give a whole number")
    try:
        raw = struct.pack("<i", number)
    except struct.error:
        raise _invalid(
            f"{name}: {_short(number)} is not a 32-bit integer; give one from -2147483648 to 2147483647"
        ) from None
    _add(message, name, "INT32", 1, raw)


def _add_flag(message: InferRequest, name: str, value: bool) -> None:
    if not is_flag(value):
        raise _refuse(name, value, "give True or False")
    _add(message, name, "BOOL", 1, b"\x01" if value else b"\x00")


def _add_ids(message: InferRequest, name: str, ids: Iterable[ItemId]) -> None:
    # A single id would otherwise be taken apart into its characters.
    if isinstance(ids, (str, bytes, bytearray)):
        raise _invalid(f"{name}: got one {type(ids).__name__}; give a sequence of item ids")
    if isinstance(ids, Mapping):  # its keys would be taken
        raise _invalid(f"{name}: got a {type(ids).__name__}; give a sequence of item ids")
    if isinstance(ids, (set, frozenset)) and name == "history":
        raise _invalid(f"{name}: a {type(ids).__name__} has no order; give a sequence of item ids, oldest first")
    try:
        values = [_encode_id(name, position, item) for position, item in enumerate(ids)]
    except TypeError:
        raise _invalid(f"{name}: {type(ids).__name__} is not a sequence of item ids") from None
    _add(message, name, "BYTES", len(values), _pack_bytes(values))


def _encode_id(name: str, position: int, item: ItemId) -> bytes:
    if isinstance(item, str):
        try:
            return item.encode()
        except UnicodeEncodeError as error:
            raise _invalid(f"{name}[{position}]: {_short(item)} cannot be encoded as UTF-8: {error.reason}") from None
    if isinstance(item, bytes):
        return item
    if type(item) is int:  # the usual one, at once
        return b"%d" % item
    if (number := whole_number(item)) is not None:
        return b"%d" % number
    raise _invalid(f"{name}[{position}]: {_short(item)} is a {type(item).__name__}; an item id is str, bytes or int")


def _encode_rules(rules: Any) -> bytes:
    """The JSON of rules. What is given as text goes as it is: the server judges it."""
    if isinstance(rules, Rules):
        return rules.to_json().encode()
    if isinstance(rules, str):
        return _encode_id("rules", 0, rules)
    if not isinstance(rules, Mapping):
        raise _refuse("rules", rules, "give Rules, a mapping, or JSON text")
    try:
        return json.dumps(dict(rules), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid(f"rules: cannot be written as JSON: {error}; use text, numbers, lists and mappings") from None


def _unpack_explanation(raw: bytes) -> Mapping[str, Any] | None:
    """The explanation, None for an empty one; ValueError for what is no JSON object."""
    (text,) = _unpack_text(raw)
    if not text:
        return None
    try:
        told = json.loads(text)
    except RecursionError:
        raise ValueError("the explanation is nested too deep") from None
    if not isinstance(told, dict):
        raise ValueError(f"the explanation is no JSON object: {text[:80]}")
    return told


def _pack_bytes(values: Sequence[bytes]) -> bytes:
    """A BYTES tensor: each element after its length as 4 little-endian bytes."""
    parts: list[bytes] = []
    for value in values:
        parts.append(len(value).to_bytes(4, "little"))
        parts.append(value)
    return b"".join(parts)


def _unpack_text(raw: bytes) -> list[str]:
    """The elements of a BYTES tensor that holds UTF-8 text; ValueError when it holds something else."""
    values: list[str] = []
    start, end = 0, len(raw)
    while start < end:
        stop = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if stop > end:
            raise ValueError(f"a BYTES output of {end} bytes breaks off inside element {len(values)}")
        values.append(raw[start + 4 : stop].decode())
        start = stop
    return values


def _short(value: object) -> str:
    """A value in a message: it may be of any size, and an integer that is too long cannot be written at all."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of integers that are too long, and what is nested too deep
        return "what cannot be written"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse(name: str, value: object, remedy: str) -> InvalidRequest:
    return _invalid(f"{name}: {_short(value)} is a {type(value).__name__}; {remedy}")


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, "INVALID_ARGUMENT")
