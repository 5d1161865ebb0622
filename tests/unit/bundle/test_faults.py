"""Bundles that must not be served are refused, by the check as by serving, with what is wrong and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genrec.bundle import FORMAT_VERSION, MANIFEST, TOKENIZER, Bundle, BundleError
from genrec.catalog import Columns
from genrec.cli.main import main
from genrec.golden import golden_query
from genrec.serving import serve as serve_module
from genrec.serving.serve import serve_bundle
from tests.unit.bundle.conftest import ITEMS, seal_again

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
    "index/masks/bits_1.npy",
    "quantizer/codebook_0.npy",
    "quantizer/quantizer.json",
)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def edit_json(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


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


def test_a_sound_bundle_passes(hollow: Bundle, hollow_text: Bundle) -> None:
    hollow.check()
    hollow_text.check()
    assert hollow.query_tokenizer is None and hollow_text.query_tokenizer is not None
    assert TOKENIZER in hollow_text.manifest.files and hollow_text.layout.max_query == 8


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "says"),
    [(flip_a_byte, "is damaged: sha256"), (cut_short, "bytes, the manifest says"), (Path.unlink, "is missing")],
)
def test_a_damaged_file_is_named(
    hollow_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None], says: str
) -> None:
    damage(hollow_copy / name)
    message = refusal(hollow_copy, monkeypatch)
    assert str(hollow_copy) in message
    (line,) = [line for line in message.splitlines() if line.startswith("  - ")]
    assert line.startswith(f"  - {name}: ") and says in line


def test_all_damaged_files_are_named_at_once(hollow_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_a_byte(hollow_copy / FILES[0])
    cut_short(hollow_copy / FILES[4])
    (hollow_copy / FILES[7]).unlink()
    message = refusal(hollow_copy, monkeypatch)
    assert message.count("\n  - ") == 3
    assert all(f"  - {FILES[number]}: " in message for number in (0, 4, 7))


@pytest.mark.parametrize(
    "name",
    [
        "catalog/id_rows.npy",
        "index/offsets.npy",
        "index/masks/keys_1.npy",
        "golden.npz",
        "engines/onnx/model.onnx",
        "checkpoint/model.safetensors",
        "checkpoint/config.json",
    ],
)
def test_a_file_that_was_never_there_is_named(hollow_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (hollow_copy / name).unlink()
    seal_again(hollow_copy)
    assert name in refusal(hollow_copy, monkeypatch)


# What it was trained on


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({}, ""),
        ({"config": {"epochs": 2}, "curves": {"losses": [1.5, 1.25]}}, ""),
        ({"config": {"epochs": 0}, "curves": {"losses": []}}, "0 epochs"),
        ({"config": {"epochs": 2}, "curves": {"losses": [None, None]}}, "2 epochs without a training step"),
        ({"config": {"epochs": 2}, "curves": {"losses": [None, 1.5]}}, ""),
    ],
)
def test_check_says_of_a_bundle_that_it_was_trained_on_nothing(
    hollow_copy: Path, capsys: pytest.CaptureFixture[str], training: Any, says: str
) -> None:
    edit_json(hollow_copy / MANIFEST, lambda manifest: manifest.update(training=training))
    assert main(["check", str(hollow_copy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok: bundle ") and len(lines) == (2 if says else 1)
    assert not says or lines[1].startswith(f"warning: trained on nothing ({says}): its weights are ")


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
    hollow_copy: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, says: str
) -> None:
    manifest = hollow_copy / MANIFEST
    manifest.unlink() if content is None else manifest.write_bytes(content)
    message = refusal(hollow_copy, monkeypatch)
    assert message.startswith(f"{manifest}: ") and says in message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format_version": FORMAT_VERSION + 1}, f"this genrec reads 2 to {FORMAT_VERSION}; upgrade genrec"),
        ({"format_version": 1}, f"this genrec reads 2 to {FORMAT_VERSION}; rebuild the bundle"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted, got red"),
        ({"beam_width": "wide"}, "beam_width: Input should be a valid integer"),
        ({"beam_width": 1}, "beam_width: Input should be greater than or equal to 2"),
        ({"bundle_version": "../../etc"}, "bundle_version: String should match pattern"),
        ({"levels": [16, 0, 16]}, "levels.1: Input should be greater than or equal to 1, got 0"),
        ({"files": {"a": {"bytes": 1}}}, "files.a.sha256: Field required"),
    ],
)
def test_a_manifest_field_that_is_wrong(
    hollow_copy: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, says: str
) -> None:
    edit_json(hollow_copy / MANIFEST, lambda manifest: manifest.update(changed))
    message = refusal(hollow_copy, monkeypatch)
    assert message.startswith(f"{hollow_copy / MANIFEST}: ") and says in message


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
    hollow_copy: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, says: str
) -> None:
    seal_again(hollow_copy, **changed)
    assert says in refusal(hollow_copy, monkeypatch)


# The checkpoint, with checksums that hold


def test_a_checkpoint_of_another_shape_than_its_config_says(hollow_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_json(hollow_copy / "checkpoint/config.json", lambda config: config.update(intermediate_size=64))
    seal_again(hollow_copy)
    message = refusal(hollow_copy, monkeypatch)
    name = "checkpoint/model.safetensors: tensor model.layers.1.mlp.down_proj.weight"
    assert f"{name} has shape [32, 96], config.json says [32, 64]" in message


def test_tensors_reshaped_missing_and_too_many(hollow_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = hollow_copy / "checkpoint/model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].reshape(2, 16)
    tensors["model.norm.bias"] = tensors.pop("draft_head.projections.2.weight")
    save_file(tensors, file)
    seal_again(hollow_copy)
    message = refusal(hollow_copy, monkeypatch)
    assert message.count("\n  - checkpoint/model.safetensors: tensor ") == 3
    assert "model.norm.weight has shape [2, 16], config.json says [32]" in message
    assert "draft_head.projections.2.weight is missing" in message
    assert "model.norm.bias does not belong" in message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"vocab_size": 30}, "vocab_size 30 is below the layout's 53 token ids"),
        ({"max_position_embeddings": 60}, "max_position_embeddings 60 is below the longest prompt"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is none of qwen3, llama, qwen2, mistral"),
    ],
)
def test_a_config_that_cannot_serve(
    hollow_copy: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, says: str
) -> None:
    edit_json(hollow_copy / "checkpoint/config.json", lambda config: config.update(changed))
    seal_again(hollow_copy)
    message = refusal(hollow_copy, monkeypatch)
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
    hollow_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    (hollow_copy / "checkpoint" / name).write_bytes(content)
    seal_again(hollow_copy)
    assert f"  - checkpoint/{name}: " in refusal(hollow_copy, monkeypatch)


# An index that does not belong to the catalogue


def test_an_index_with_items_that_are_not_available(hollow_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = np.load(hollow_copy / "catalog/available.npy")
    available[:100] = False
    np.save(hollow_copy / "catalog/available.npy", available)
    seal_again(hollow_copy, catalog={"version": 2, "items": 400, "available": 300})
    assert "index" in refusal(hollow_copy, monkeypatch)


# Text queries


def test_a_manifest_from_before_there_were_queries(hollow: Bundle, hollow_copy: Path) -> None:
    manifest = json.loads((hollow_copy / MANIFEST).read_text())
    for name in ("max_query", "text_offset", "text_tokens"):
        assert manifest["prompt"].pop(name) == 0
    (hollow_copy / MANIFEST).write_text(json.dumps(manifest))
    old = Bundle(hollow_copy)
    old.check()
    assert old.layout == hollow.layout and old.query_tokenizer is None
    assert golden_query(old.golden) == golden_query({}) == b""


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, f"{TOKENIZER}: is not in the manifest"),
        (lambda file: file.write_text("{}"), f"{TOKENIZER}: is no tokenizer"),
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), f"{TOKENIZER}: is no tokenizer"),
    ],
    ids=["missing", "another kind", "cut short"],
)
def test_a_tokenizer_that_cannot_be_used(text_copy: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(text_copy / TOKENIZER)
    seal_again(text_copy)
    with pytest.raises(BundleError) as caught:
        Bundle(text_copy).check()
    assert says in str(caught.value)


def test_a_damaged_tokenizer_fails_its_checksum(text_copy: Path) -> None:
    (text_copy / TOKENIZER).write_bytes((text_copy / TOKENIZER).read_bytes()[:-1] + b" ")
    with pytest.raises(BundleError, match=r"tokenizer\.json: is damaged"):
        Bundle(text_copy).check()


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({"text_tokens": 256}, "the layout has room for 256"),
        ({"text_tokens": 10**6}, "is below the layout's"),
        ({"text_tokens": 10**12}, "is above 2147483647"),
        ({"text_offset": 3}, "are also used as SID, prefix, placeholder or marker tokens"),
        ({"max_query": 0}, "must both be positive, or both 0"),
        ({"max_query": 10**12}, "is below the longest prompt's"),
    ],
)
def test_a_manifest_that_contradicts_the_rest(text_copy: Path, prompt: dict, says: str) -> None:
    seal_again(text_copy, prompt)
    with pytest.raises(BundleError) as caught:
        Bundle(text_copy).check()
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("max_query", -1), ("max_query", "many"), ("text_tokens", 1.5), ("text_offset", None)]
)
def test_a_manifest_field_of_queries_that_is_wrong(text_copy: Path, name: str, value: Any) -> None:
    manifest = json.loads((text_copy / MANIFEST).read_text())
    manifest["prompt"][name] = value
    (text_copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"prompt.{name}: Input should be"):
        Bundle(text_copy)


def test_a_bundle_without_attributes_loads_as_before(hollow: Bundle) -> None:
    assert not hollow.catalog.columns and hollow.catalog.kinds == {}
    manifest = json.loads((hollow.path / MANIFEST).read_text())
    assert not (hollow.path / "catalog" / "attributes").exists() and manifest["catalog"]["attributes"] == {}


def test_attributes_that_the_manifest_does_not_say_are_refused(hollow_copy: Path) -> None:
    columns = Columns.empty({"price": "number"}, ITEMS)
    columns.save(hollow_copy / "catalog" / "attributes")
    seal_again(hollow_copy)
    with pytest.raises(BundleError, match=r"has the attributes {'price': 'number'}, the manifest says {}"):
        Bundle(hollow_copy).check()
