"""Bundles that must not be served are refused with what and where; servers that break or are stopped end cleanly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genrec.bundle import FORMAT_VERSION, GOLDEN, MANIFEST, Bundle, BundleError, seal_bundle
from genrec.serving import serve as serve_module
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import STUB_NAME, TritonStartError
from genrec_client import Recommender, RecommendError, RecommendRequest

# One of each kind.
FILES = (
    "attributes.parquet",
    "catalog/item_ids.npy",
    "catalog/popular_rows.npy",
    "checkpoint/config.json",
    "checkpoint/model.safetensors",
    "engines/onnx/model.onnx",
    "golden.npz",
    "index/rows.npy",
    "index/prefixes/bits_1.npy",
    "quantizer/codebook_0.npy",
    "quantizer/quantizer.json",
)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def seal_again(folder: Path, **changed: Any) -> None:
    """Make checksums hold again after a change."""
    fields = json.loads((folder / MANIFEST).read_text())
    del fields["files"], fields["format_version"]
    (folder / MANIFEST).unlink()
    seal_bundle(folder, **(fields | changed))


def edit_json(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_golden(folder: Path, **changed: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / GOLDEN) as arrays:
        golden = dict(arrays)
    for name, change in changed.items():
        golden[name] = change(golden[name].copy())
    np.savez(folder / GOLDEN, **golden)
    seal_again(folder)


def refusal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message with which the bundle is refused, by the check as by serving, before any server is started."""

    def must_not_start(*args: Any, **options: Any) -> None:
        pytest.fail("a server was about to be started")

    monkeypatch.setattr(serve_module, "TritonServer", must_not_start)
    messages = []

    def check() -> None:
        Bundle(folder).check()

    def serve() -> None:
        with serve_bundle(folder):
            pytest.fail("the bundle is served")

    for attempt in (check, serve):
        with pytest.raises(BundleError) as caught:
            attempt()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "says"),
    [(flip_a_byte, "is damaged: sha256"), (cut_short, "bytes, the manifest says"), (Path.unlink, "is missing")],
)
def test_a_damaged_file_is_named(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None], says: str
) -> None:
    damage(bundle_copy / name)
    message = refusal(bundle_copy, monkeypatch)
    assert str(bundle_copy) in message
    (line,) = [line for line in message.splitlines() if line.startswith("  - ")]
    assert line.startswith(f"  - {name}: ") and says in line


def test_all_damaged_files_are_named_at_once(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_a_byte(bundle_copy / FILES[0])
    cut_short(bundle_copy / FILES[4])
    (bundle_copy / FILES[7]).unlink()
    message = refusal(bundle_copy, monkeypatch)
    assert message.count("\n  - ") == 3
    assert all(f"  - {FILES[number]}: " in message for number in (0, 4, 7))


@pytest.mark.parametrize(
    "name",
    [
        "catalog/id_rows.npy",
        "index/offsets.npy",
        "index/prefixes/first_child_0.npy",
        "golden.npz",
        "engines/onnx/model.onnx",
        "checkpoint/model.safetensors",
        "checkpoint/config.json",
    ],
)
def test_a_file_that_was_never_there_is_named(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (bundle_copy / name).unlink()
    seal_again(bundle_copy)
    assert name in refusal(bundle_copy, monkeypatch)


# The manifest


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is missing; a bundle is the folder that `genrec build` writes"),
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe\x00", "not readable as JSON"),
        (b"[1, 2]", "has no format_version"),
        (b"{}", "has no format_version"),
        (b'{"format_version": "1"}', "has no format_version"),
        (b'{"format_version": %d}' % FORMAT_VERSION, "bundle_version: Field required"),
    ],
)
def test_a_malformed_manifest(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, says: str
) -> None:
    manifest = bundle_copy / MANIFEST
    manifest.unlink() if content is None else manifest.write_bytes(content)
    message = refusal(bundle_copy, monkeypatch)
    assert message.startswith(f"{manifest}: ") and says in message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format_version": FORMAT_VERSION + 1}, f"this genrec reads {FORMAT_VERSION}; upgrade genrec"),
        ({"format_version": FORMAT_VERSION - 1}, f"this genrec reads {FORMAT_VERSION}; rebuild the bundle"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted, got red"),
        ({"beam_width": "wide"}, "beam_width: Input should be a valid integer"),
        ({"beam_width": 1}, "beam_width: Input should be greater than or equal to 2"),
        ({"bundle_version": "../../etc"}, "bundle_version: String should match pattern"),
        ({"levels": [16, 0, 16]}, "levels.1: Input should be greater than or equal to 1, got 0"),
        ({"files": {"a": {"bytes": 1}}}, "files.a.sha256: Field required"),
    ],
)
def test_a_manifest_field_that_is_wrong(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, says: str
) -> None:
    edit_json(bundle_copy / MANIFEST, lambda manifest: manifest.update(changed))
    message = refusal(bundle_copy, monkeypatch)
    assert message.startswith(f"{bundle_copy / MANIFEST}: ") and says in message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"beam_width": 59}, "beam_width 59 is below twice limits.top_k, 60"),
        ({"limits": {"top_k": 33}}, "beam_width 64 is below twice limits.top_k, 66"),
        ({"limits": {"top_k": 30, "default_top_k": 31}}, "limits.default_top_k is above limits.top_k"),
        ({"catalog": {"version": 1, "items": 399, "available": 399}}, "catalog: has 400 items, the manifest says 399"),
        ({"levels": [16, 16]}, "a layout of 2 levels needs as many placeholders and token maps, got 3 and 3"),
        ({"levels": [16, 16, 17]}, "level 2 has 17 codes but its token map covers 16"),
    ],
)
def test_a_manifest_that_contradicts_itself_or_its_files(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, says: str
) -> None:
    seal_again(bundle_copy, **changed)
    assert says in refusal(bundle_copy, monkeypatch)


# The checkpoint, with checksums that hold


def test_a_checkpoint_of_another_shape_than_its_config_says(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_json(bundle_copy / "checkpoint/config.json", lambda config: config.update(intermediate_size=64))
    seal_again(bundle_copy)
    message = refusal(bundle_copy, monkeypatch)
    name = "checkpoint/model.safetensors: tensor model.layers.1.mlp.down_proj.weight"
    assert f"{name} has shape [32, 96], config.json says [32, 64]" in message


def test_tensors_reshaped_missing_and_too_many(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bundle_copy / "checkpoint/model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].reshape(2, 16)
    tensors["model.norm.bias"] = tensors.pop("draft_head.projections.2.weight")
    save_file(tensors, file)
    seal_again(bundle_copy)
    message = refusal(bundle_copy, monkeypatch)
    assert message.count("\n  - checkpoint/model.safetensors: tensor ") == 3
    assert "model.norm.weight has shape [2, 16], config.json says [32]" in message
    assert "draft_head.projections.2.weight is missing" in message
    assert "model.norm.bias does not belong" in message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"vocab_size": 30}, "vocab_size 30 is below the layout's 53 token ids"),
        ({"max_position_embeddings": 60}, "max_position_embeddings 60 is below the longest prompt"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is neither qwen3 nor llama"),
    ],
)
def test_a_config_that_cannot_serve(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, says: str
) -> None:
    edit_json(bundle_copy / "checkpoint/config.json", lambda config: config.update(changed))
    seal_again(bundle_copy)
    message = refusal(bundle_copy, monkeypatch)
    assert "  - checkpoint/config.json: " in message and says in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"[]"),
        (
            "config.json",
            b'{"model_type": "llama", "hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 0, '
            b'"num_key_value_heads": 1}',
        ),
        ("model.safetensors", b"\3\0\0\0\0\0\0\0[1]"),
        ("model.safetensors", b'\x13\0\0\0\0\0\0\0{"a":{"shape":[1]}}'),
    ],
    ids=["config of another kind", "config without heads", "header of another kind", "header without offsets"],
)
def test_a_checkpoint_of_nonsense(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    (bundle_copy / "checkpoint" / name).write_bytes(content)
    seal_again(bundle_copy)
    assert f"  - checkpoint/{name}: " in refusal(bundle_copy, monkeypatch)


# An index that does not belong to the catalogue


def test_an_index_with_items_that_are_not_available(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = np.load(bundle_copy / "catalog/available.npy")
    available[:100] = False
    np.save(bundle_copy / "catalog/available.npy", available)
    seal_again(bundle_copy, catalog={"version": 2, "items": 400, "available": 300})
    assert "index" in refusal(bundle_copy, monkeypatch)


# The golden request


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt": lambda prompt: prompt[::-1]}, "golden history gave prompt"),
        ({"scores": lambda scores: scores - 0.01}, "the engine's scores differ from the build's by 0.01"),
        ({"codes": lambda codes: (codes + 1) % 4096}, "the build did not"),
        ({"items": lambda items: items[::-1]}, "golden drafts gave items"),
    ],
    ids=["prompt", "scores", "codes", "items"],
)
def test_a_step_that_computes_something_else_does_not_come_up(
    bundle_copy: Path, deployment: Deployment, tmp_path: Path, changed: dict, says: str
) -> None:
    edit_golden(bundle_copy, **changed)
    Bundle(bundle_copy).check()
    with pytest.raises(TritonStartError) as caught:
        with serve_bundle(bundle_copy, deployment, log_path=tmp_path / "log"):
            pytest.fail("the bundle is served")
    assert "GoldenMismatch" in str(caught.value) and re.search(says, str(caught.value))


def test_a_beam_width_that_the_graph_does_not_have(bundle_copy: Path, deployment: Deployment, tmp_path: Path) -> None:
    seal_again(bundle_copy, beam_width=100)
    with pytest.raises((BundleError, TritonStartError), match="64"):
        with serve_bundle(bundle_copy, deployment, log_path=tmp_path / "log"):
            pytest.fail("the bundle is served")


# Beside a running server


def test_a_good_server_goes_on_while_bad_bundles_are_refused(
    bundle_copy: Path, recommender: Recommender, shop: Any, wire: Any, deployment: Deployment, tmp_path: Path
) -> None:
    asked = [RecommendRequest(user, top_k=20) for user in shop.users[:300]]
    before = recommender.recommend_many(asked, concurrency=8, return_exceptions=False)
    edit_golden(bundle_copy, scores=lambda scores: scores + 1)

    def requests_during_refusals() -> Iterator[RecommendRequest]:
        for number, request in enumerate(asked):
            if number == 100:  # with the earlier ones under way
                with pytest.raises(TritonStartError, match="GoldenMismatch"):
                    serve_bundle(bundle_copy, deployment, log_path=tmp_path / "log").__enter__()
            if number == 200:
                flip_a_byte(bundle_copy / "engines/onnx/model.onnx")
                with pytest.raises(BundleError, match=r"model\.onnx: is damaged"):
                    serve_bundle(bundle_copy).__enter__()
            yield request

    during = recommender.recommend_many(requests_during_refusals(), concurrency=8, return_exceptions=False)
    assert wire.all_ready()
    same = sum(one.item_ids == other.item_ids for one, other in zip(before, during, strict=True))
    assert same >= 295, "more than near ties changed"


# The command line


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "genrec.cli", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    # Wide, so that no message is folded.
    return os.environ | {"COLUMNS": "500", "PYTHONUNBUFFERED": "1"} | variables


def test_check_and_serve_refuse_with_status_1(bundle_copy: Path) -> None:
    good = subprocess.run(command("check", bundle_copy), env=environment(), capture_output=True, text=True, timeout=60)
    assert good.returncode == 0 and good.stdout.startswith("ok: bundle "), good.stderr
    flip_a_byte(bundle_copy / "index/rows.npy")
    for name, ports in (("check", []), ("serve", ["--grpc-port=0", "--http-port=0", "--metrics-port=0"])):
        done = subprocess.run(
            command(name, bundle_copy, *ports), env=environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1, done.stdout
        assert f"error: bundle {bundle_copy} cannot be served:" in done.stderr
        assert "  - index/rows.npy: is damaged: sha256" in done.stderr
        assert "Traceback" not in done.stderr and "tritonserver" not in done.stderr


def processes() -> dict[int, tuple[int, str]]:
    """All processes: id -> (parent's id, command line)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        found[int(folder.name)] = parent, line
    return found


def descendants(pid: int) -> dict[int, str]:
    """Command lines of the processes below `pid`, by id."""
    everyone = processes()
    below: dict[int, str] = {}
    fresh = {pid}
    while fresh:
        fresh = {child for child, (parent, _) in everyone.items() if parent in fresh}
        below |= {child: everyone[child][1] for child in fresh}
    return below


@contextmanager
def serving(bundle: Bundle, scratch: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`genrec serve` as a process of its own, and its gRPC address once it is ready."""
    (scratch / "tmp").mkdir()
    ports = ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
    with (scratch / "stderr").open("w") as errors:
        process = subprocess.Popen(
            command("serve", bundle.path, *ports, "--threads=1", "--timeout-ms=30000"),
            env=environment(TMPDIR=str(scratch / "tmp")),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            ready = re.search(r"ready: gRPC ([\w.:]+), HTTP", process.stdout.readline())
            assert ready, (scratch / "stderr").read_text()
            yield process, ready[1]
        finally:
            process.kill()
            process.wait()


def shared_memory(family: dict[int, str]) -> list[str]:
    """Files in shared memory of the server that the family is."""
    prefixes = {found[0] for line in family.values() if (found := re.search(r"genrec-[0-9a-f]{12}-", line))}
    assert len(prefixes) == 1, prefixes
    return [file.name for file in Path("/dev/shm").glob(f"{prefixes.pop()}*")]


def assert_nothing_left(family: dict[int, str], scratch: Path) -> None:
    """No process of the family, none of its shared memory, none of its temporary files."""
    deadline = time.monotonic() + 5
    while True:
        now = processes()
        left = {line for pid, line in family.items() if pid in now and now[pid][1] == line}
        left |= {*shared_memory(family), *os.listdir(scratch / "tmp")}
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_sigterm_ends_serve_with_0_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle, tmp_path) as (process, url):
        family = descendants(process.pid)
        assert len([line for line in family.values() if STUB_NAME in line.split(" ")[0]]) == 3
        assert shared_memory(family) and os.listdir(tmp_path / "tmp"), "the search for leftovers would find nothing"
        with Recommender(url, timeout_s=30.0) as client:
            assert len(client.recommend([]).items) == 10
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "stderr").read_text()
        assert_nothing_left(family, tmp_path)


def test_a_killed_backbone_ends_serve_with_1(bundle: Bundle, shop: Any, tmp_path: Path) -> None:
    with serving(bundle, tmp_path) as (process, url):
        family = descendants(process.pid)
        (stub,) = [pid for pid, line in family.items() if STUB_NAME in line.split(" ")[0] and "/backbone/" in line]
        with Recommender(url, timeout_s=30.0) as client:
            assert client.recommend(shop.users[0]).drafted == 64
            os.kill(stub, signal.SIGKILL)
            with pytest.raises(RecommendError):
                client.recommend(shop.users[0], timeout_s=10.0)
        assert process.wait(20) == 1
        errors = (tmp_path / "stderr").read_text()
        assert f"a Python model's process crashed (pid {stub}): ending the server" in errors
        assert_nothing_left(family, tmp_path)
