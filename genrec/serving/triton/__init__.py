"""Finds a Triton Inference Server and runs it as a child process.

An installed `tritonserver` (as in NVIDIA's container images) is used where there is one; otherwise the server inside
the `nvidia-pytriton` wheel, which is a complete `tritonserver` with the Python backend and needs no container:

    with TritonServer("served/model_repository", models=["recommend"]) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

Linux only, as Triton is.
"""

from genrec.serving.triton.errors import TritonError, TritonNotFoundError, TritonStartError
from genrec.serving.triton.flags import trace_flags
from genrec.serving.triton.foreground import run_in_foreground
from genrec.serving.triton.install import STUB_NAME, TritonInstall, find_triton, prepare_backends
from genrec.serving.triton.log import error_lines
from genrec.serving.triton.server import TritonServer
from genrec.serving.triton.tls import ServerTls

__all__ = [
    "STUB_NAME",
    "ServerTls",
    "TritonError",
    "TritonInstall",
    "TritonNotFoundError",
    "TritonServer",
    "TritonStartError",
    "error_lines",
    "find_triton",
    "prepare_backends",
    "run_in_foreground",
    "trace_flags",
]
