"""The client of the `knowledge` model: texts about users and items, as they are written."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import grpc
from tritonclient.grpc import service_pb2_grpc

from genrec_client import wire
from genrec_client.arguments import ItemId, require_metadata, require_name, require_seconds
from genrec_client.channel import ChannelOpener, TlsOptions, split_urls
from genrec_client.retry import classify, error_of

# Triton 2.51 can end a stream by the status of what failed (`triton_grpc_error`), but then ends itself now and then. So
# the model's messages begin with their status.
_STATUSES = ("INVALID_ARGUMENT", "UNAVAILABLE", "CANCELLED", "INTERNAL")


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of a text, and how many tokens the text has with it."""

    text: str
    tokens: int


class KnowledgeWriter:
    """Asks one server for texts. Thread-safe: many texts may be written at the same time, and the server batches them.

    url: address of the server's gRPC port, "host:8001". model: name of the model. timeout_s: seconds that a text may
    take. tls: True for TLS with the system's certificates, or the files to use. token: sent as `authorization: Bearer`;
    use TLS with it. metadata: gRPC metadata (headers) sent with every request, keys in lower case. channel_options:
    gRPC channel arguments.

    Raises ValueError for an argument that cannot be used, and OSError for a TLS file that cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "knowledge",
        timeout_s: float = 60.0,
        tls: bool | TlsOptions = False,
        token: str | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        channel_options: Sequence[tuple[str, object]] = (),
    ) -> None:
        require_name("model", model)
        require_seconds("timeout_s", timeout_s)
        addresses = split_urls(url, tls=bool(tls))
        if len(addresses) > 1:
            raise ValueError(f"{url!r} is more than one address; a KnowledgeWriter asks one server")
        self._url, self._model, self._timeout_s = addresses[0], model, timeout_s
        self._metadata = require_metadata(metadata, token)
        self._channel = ChannelOpener(tls, channel_options).open(self._url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> KnowledgeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; texts that are being written end in RecommendError with code CANCELLED."""
        self._channel.close()

    def user(
        self, history: Iterable[ItemId], *, max_new_tokens: int | None = None, stream: bool = True
    ) -> Iterator[TextPiece]:
        """The text of a user. Closing the iterator (`break`, `close()`) stops the server's work on it.

        history: item ids, oldest first. max_new_tokens: tokens at most, the server's limit if None. stream: False for
        one piece, the whole text: that costs both sides less. As the pieces are asked for it raises RecommendError;
        InvalidRequest says what is wrong with the request.
        """
        return self._pieces(wire.build_text_request(self._model, history, None, max_new_tokens, stream))

    def item(self, item: ItemId, *, max_new_tokens: int | None = None, stream: bool = True) -> Iterator[TextPiece]:
        """The text of an item of the catalogue; otherwise as `user`."""
        return self._pieces(wire.build_text_request(self._model, None, item, max_new_tokens, stream))

    def _pieces(self, message: wire.InferRequest) -> Iterator[TextPiece]:
        call = self._stub.ModelStreamInfer(iter([message]), timeout=self._timeout_s, metadata=self._metadata)
        try:
            for response in call:
                if response.error_message:
                    code, details = _told(response.error_message)
                    raise error_of(classify(code, details), details, code, 1, self._url, "")
                text, tokens = wire.parse_text_piece(response.infer_response)
                yield TextPiece(text, tokens)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            raise error_of(classify(code, details), details, code, 1, self._url, "") from None
        finally:
            call.cancel()


def _told(message: str) -> tuple[str, str]:
    """The name of the status, and what else an error's message in a stream says."""
    code, _, details = message.partition(": ")
    if code in _STATUSES and details:
        return code, details
    # Triton's own.
    return "UNAVAILABLE" if "no available versions" in message else "INVALID_ARGUMENT", message
