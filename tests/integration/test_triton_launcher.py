"""The launcher against a real Triton server, with models of a few lines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from genrec.serving.triton import (
    STUB_NAME,
    TritonError,
    TritonInstall,
    TritonServer,
    TritonStartError,
    find_triton,
    prepare_backends,
)
from genrec.serving.triton import install as triton_install
from tests.processes import descendants

CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "x" data_type: TYPE_INT32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_INT32 dims: [-1] }]
"""
DOUBLE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * values)]) for values in inputs]
"""
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        self.check(7, 8)

    def check(self, items, rows):
        raise ValueError(f"the bundle is broken: {items} items, {rows} rows")
"""
SLOW = (
    DOUBLE
    + """
    def initialize(self, args):
        import time

        time.sleep(60)
"""
)


@pytest.fixture(scope="module")
def install() -> TritonInstall:
    return find_triton()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name, code in {"double": DOUBLE, "broken": BROKEN, "slow": SLOW}.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(CONFIG)
        (root / name / "1" / "model.py").write_text(code)
    return root


@pytest.fixture(scope="module")
def server(
    install: TritonInstall, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with TritonServer(repository, ["double"], log_path=log, install=install) as running:
        yield running


def doubled(url: str, values: list[int]) -> list[int]:
    tensor = grpc.InferInput("x", [len(values)], "INT32")
    tensor.set_data_from_numpy(np.array(values, np.int32))
    with grpc.InferenceServerClient(url) as client:
        answer = client.infer("double", [tensor], client_timeout=10).as_numpy("y")
    return [int(value) for value in answer]


def processes(shm_prefix: str) -> list[tuple[int, str]]:
    """Process ids and command lines of the server with this prefix; all its processes have it in their arguments."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = cmdline.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
        if shm_prefix in arguments:
            found.append((int(cmdline.parent.name), arguments))
    return found


def leftovers(shm_prefix: str) -> list[str]:
    """Processes and shared memory of the server with this prefix."""
    files = [str(path) for path in Path("/dev/shm").glob(f"{shm_prefix}*")]
    return files + [arguments for _, arguments in processes(shm_prefix)]


def assert_nothing_left(shm_prefix: str, seconds: float) -> None:
    assert shm_prefix
    deadline = time.monotonic() + seconds
    while (found := leftovers(shm_prefix)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == []


def test_answers_on_every_endpoint(server: TritonServer) -> None:
    assert server.is_running and server.pid is not None
    assert doubled(server.grpc_url, [1, 2, 3]) == [2, 4, 6]
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/double/ready", timeout=10) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        assert b'nv_inference_request_success{model="double"' in answer.read()
    assert server.log_path is not None and "successfully loaded 'double'" in server.log_path.read_text()
    assert leftovers(server.shm_prefix), "the checks for leftovers below would find nothing at all"
    with pytest.raises(TritonError, match="already runs"):
        server.start()


def test_two_servers_side_by_side_and_nothing_left_after_stop(server: TritonServer, repository: Path) -> None:
    with TritonServer(repository, ["double"], http_port=None, metrics_port=None, install=server._install) as second:
        assert doubled(second.grpc_url, [5]) == [10]
        assert second.grpc_url != server.grpc_url and second.shm_prefix != server.shm_prefix
        with pytest.raises(TritonError, match="http endpoint is switched off"):
            _ = second.http_url
    assert second.pid is None and second.wait() == 0
    assert_nothing_left(second.shm_prefix, seconds=2)
    assert doubled(server.grpc_url, [7]) == [14]


def test_a_model_that_fails_shows_its_exception(install: TritonInstall, repository: Path, tmp_path: Path) -> None:
    failing = TritonServer(repository, ["broken"], log_path=tmp_path / "log", install=install)
    with pytest.raises(TritonStartError) as caught:
        failing.start(timeout=30)
    message = str(caught.value)
    assert "ValueError: the bundle is broken: 7 items, 8 rows" in message.splitlines()[0]
    assert "broken/1/model.py(7): check" in message
    assert len(message.splitlines()) < 12
    assert caught.value.returncode == 1 and not failing.is_running
    assert_nothing_left(failing.shm_prefix, seconds=2)


def test_an_unknown_model_is_named(install: TritonInstall, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(TritonStartError, match="absent"):
        TritonServer(repository, ["absent"], log_path=tmp_path / "log", install=install).start(timeout=30)


def test_a_start_that_takes_too_long_is_ended(install: TritonInstall, repository: Path, tmp_path: Path) -> None:
    slow = TritonServer(repository, ["slow"], log_path=tmp_path / "log", install=install)
    with pytest.raises(TritonStartError, match="not ready after 1 s: still waiting for the server"):
        slow.start(timeout=1)
    assert_nothing_left(slow.shm_prefix, seconds=2)


def test_a_port_in_use_is_named(install: TritonInstall, repository: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(TritonStartError, match=f"127.0.0.1:{port} for grpc: Address already in use"):
            TritonServer(repository, ["double"], grpc_port=port, install=install).start()


FOREGROUND = """
import sys
from genrec.serving.triton import TritonServer, run_in_foreground

server = TritonServer(sys.argv[1], ["double"], log_path=sys.argv[2], exit_timeout=5)
# Said from inside: a server that is killed between a start of its own and this would be started again.
ready = lambda: print(server.pid, server.shm_prefix, server.grpc_url, flush=True)
sys.exit(run_in_foreground(server, ready, restarts=int(sys.argv[3])))
"""
FOREGROUND_SLOW = """
import sys
from genrec.serving.triton import TritonServer, run_in_foreground

sys.exit(run_in_foreground(TritonServer(sys.argv[1], ["slow"], log_path=sys.argv[2])))
"""


def in_background(code: str, repository: Path, log: Path, restarts: int = 0) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(Path(triton_install.__file__).parents[3])}
    command = [sys.executable, "-c", code, str(repository), str(log), str(restarts)]
    with log.with_suffix(".said").open("w") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)


def in_foreground(repository: Path, log: Path, restarts: int = 0) -> tuple[subprocess.Popen[str], int, str, str]:
    process = in_background(FOREGROUND, repository, log, restarts)
    assert process.stdout is not None
    pid, shm_prefix, url = process.stdout.readline().split()
    return process, int(pid), shm_prefix, url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_foreground_passes_signals_on(
    install: TritonInstall, repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process, _, shm_prefix, url = in_foreground(repository, tmp_path / "log")
    assert doubled(url, [4]) == [8]
    process.send_signal(number)
    assert process.wait(60) == 0
    assert_nothing_left(shm_prefix, seconds=2)
    assert "All models are stopped" in (tmp_path / "log").read_text()


def test_a_signal_before_readiness_ends_the_start(install: TritonInstall, repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = in_background(FOREGROUND_SLOW, repository, log)
    deadline = time.monotonic() + 10
    while not (log.exists() and "loading: slow" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM


def test_the_server_does_not_outlive_a_killed_parent(install: TritonInstall, repository: Path, tmp_path: Path) -> None:
    process, _, shm_prefix, _ = in_foreground(repository, tmp_path / "log")
    process.kill()
    process.wait(5)
    assert_nothing_left(shm_prefix, seconds=8)


def test_a_server_that_was_killed_leaves_nothing(install: TritonInstall, repository: Path, tmp_path: Path) -> None:
    process, pid, shm_prefix, _ = in_foreground(repository, tmp_path / "log")
    os.kill(pid, signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL
    assert_nothing_left(shm_prefix, seconds=2)


def test_a_crashed_model_process_ends_the_foreground(install: TritonInstall, repository: Path, tmp_path: Path) -> None:
    process, _, shm_prefix, _ = in_foreground(repository, tmp_path / "log")
    stubs = [entry for entry in processes(shm_prefix) if STUB_NAME in entry[1].split()[0]]
    assert len(stubs) == 1
    os.kill(stubs[0][0], signal.SIGSEGV)
    assert process.wait(60) == 1
    assert_nothing_left(shm_prefix, seconds=2)


def test_what_dies_once_too_often_ends_the_foreground(install: TritonInstall, repository: Path, tmp_path: Path) -> None:
    process, pid, shm_prefix, url = in_foreground(repository, tmp_path / "log", restarts=1)
    os.kill(pid, signal.SIGKILL)
    said = tmp_path / "log.said"
    deadline = time.monotonic() + 30
    while "serving again after" not in said.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert doubled(url, [4]) == [8]  # at the same address
    assert_nothing_left(shm_prefix, seconds=2)
    (child,) = [one for one, line in descendants(process.pid).items() if "tritonserver" in line.split(" ")[0]]
    os.kill(child, signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL
    lines = said.read_text().splitlines()
    assert lines[0] == "the Triton server ended with status 137: starting it again, 1 of 1 times within 5 minutes"
    assert lines[-1] == "the Triton server ended with status 137, 1 times within 5 minutes: ending the server"


def test_backends_can_be_prepared_again(install: TritonInstall, tmp_path: Path) -> None:
    first = prepare_backends(install, tmp_path)
    assert prepare_backends(install, tmp_path) == first
    assert {"libtriton_python.so", STUB_NAME} <= {path.name for path in (first / "python").iterdir()}
