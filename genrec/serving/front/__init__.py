"""The front: an HAProxy between clients and Triton that passes only what clients need.

Triton 2.51 has calls that end the whole server or change it, and no switch for them. So it listens on Unix sockets, and
the front on the ports:

    with Front(["recommend"]) as front, TritonServer(repository, ["recommend"], sockets=front.sockets):
        client = tritonclient.grpc.InferenceServerClient(front.grpc_url)

`config.py` has the calls that pass, `inspect.lua` looks into their messages.
"""

from genrec.serving.front.config import MAX_REQUEST_BYTES
from genrec.serving.front.front import Front
from genrec.serving.front.haproxy import FrontError, find_haproxy

__all__ = ["MAX_REQUEST_BYTES", "Front", "FrontError", "find_haproxy"]
