"""`genrec checkpoint check`: what it prints, how it ends, and that it does without torch; who else asks the same."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, expected_shapes
from genrec.cli.main import main
from genrec_builders.training.checkpoint_facts import require_language_model

CONFIG: dict[str, Any] = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 12, "hidden_size": 32, "head_dim": 8,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": None, "torch_dtype": "bfloat16", "rope_theta": 1000000,
    "rope_scaling": None, "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None,
}  # fmt: skip
WORDS = ["<unk>", "<s>", *(f"<a_{code}>" for code in range(4)), *(f"<b_{code}>" for code in range(6))]


def saved(folder: Path, words: list[str] = WORDS, **fields: Any) -> Path:
    """A checkpoint's files, written without torch; the weights are zeros."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | fields))
    shapes = expected_shapes(CONFIG | {BEAM_SEARCH: {}}, ())
    header, end = {}, 0
    for name, shape in (shapes | {"lm_head.weight": [12, 32]}).items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_prints_what_a_build_would_use_and_drop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "check", str(saved(tmp_path)), "--sid-tokens", "<a_{}>,<b_{}>"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "use: qwen3: 2 layers, 32 wide, 12 rows in the embedding, 512 positions, weights in model.safetensors",
        "use: no bos_token_id: prompts start with the first item",
        "use: lm_head.weight, an output head of its own: beam search scores codes with its rows, and a draft head "
        "replaces it",
        "use: level 0, '<a_{}>': all 4 SID tokens found",
        "use: level 1, '<b_{}>': all 6 SID tokens found",
    ]
    assert err == ""


def test_prints_every_refusal_and_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(
        tmp_path, num_hidden_layers=3, rope_scaling={"type": "longrope"}, quantization_config={"quant_method": "awq"}
    )
    assert main(["checkpoint", "check", str(folder), "--sid-tokens", "<a_{}>,<B_{}>"]) == 1
    out, err = capsys.readouterr()
    refused = [line for line in out.splitlines() if line.startswith("refuse: ")]
    assert [line.split(":")[1].strip() for line in refused] == ["config.json"] * 2 + [
        "model.safetensors",
        "tokenizer.json",
    ]
    assert "use: level 0, '<a_{}>': all 4 SID tokens found" in out
    assert err.count("\n") == 1 and err.startswith(f"error: {folder}/config.json: quantization_config 'awq'")
    assert "(and 3 more: `genrec checkpoint check " in err


def test_the_sizes_of_the_levels_tell_which_tokens_are_lacking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(saved(tmp_path, words=[word for word in WORDS if word != "<a_1>"]))
    assert main(["checkpoint", "check", folder, "--sid-tokens", "<a_{}>,<b_{}>"]) == 0
    assert "warning: level 0, '<a_{}>': 3 of 4 SID tokens found; new and random: <a_1>\n" in capsys.readouterr().out
    assert main(["checkpoint", "check", folder, "--sid-tokens", "<a_{}>,<b_{}>,", "--levels", "6,6,8"]) == 0
    out = capsys.readouterr().out
    assert "warning: level 0, '<a_{}>': 3 of 6 SID tokens found; new and random: <a_1>, <a_4>, <a_5>\n" in out
    assert "new: level 2, no pattern: 8 new tokens with random embeddings\n" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sid-tokens", "<{code}>"], "--sid-tokens '<{code}>'"),
        (["--sid-tokens", "<a>"], "--sid-tokens '<a>'"),
        (["--sid-tokens", "<a_{}>,<a_{}>"], "levels 0 and 1 have the same SID token pattern '<a_{}>'"),
        (["--sid-tokens", "<a_{}>", "--levels", "4,6"], "sid_tokens has 1 patterns, the semantic IDs have 2 levels"),
        (["--levels", "4,x"], "--levels '4,x'"),
    ],
)
def test_values_that_cannot_be_meant_are_usage(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "check", str(tmp_path / "is not looked at"), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: is missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "is a bundle, which knows the tokens"),
    ],
    ids=["config", "tokenizer", "weights", "bundle"],
)
def test_what_is_missing_is_one_line(
    change: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(saved(tmp_path))
    assert main(["checkpoint", "check", str(tmp_path), "--sid-tokens", "<a_{}>,<b_{}>"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path}") and says in err and err.count("\n") == 1


def test_without_patterns_every_code_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "check", str(saved(tmp_path))]) == 0
    assert "new: no --sid-tokens: every code gets a new token with a random embedding\n" in capsys.readouterr().out


def test_does_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from genrec.cli.main import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    words = ["checkpoint", "check", str(saved(tmp_path)), "--sid-tokens", "<a_{}>,<b_{}>"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "all 6 SID tokens found" in done.stdout


# `genrec knowledge build --checkpoint` asks the same


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def adapter_alone(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/base"}')


def without_head(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"lm_head.weight", b"pooler.weight_"))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "typo": (lambda folder: shutil.move(folder, folder.with_name("other")), "there is no such folder; give one on"),
    "file": (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "is a file; give the folder that"),
    "pointer": (write("model.safetensors", "version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
    "tokenizer's pointer": (write("tokenizer.json", "version https://git-lfs.github.com/spec/v1"), "is a Git LFS po"),
    "cut": (cut, "model.safetensors: cannot be read: "),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    "GPTQ": (lambda folder: saved(folder, quantization_config={"quant_method": "gptq"}), "quantization_config 'gptq'"),
    "T5": (lambda folder: saved(folder, model_type="t5"), "model_type 't5' is not supported; give a checkpoint of the"),
    "a layer is missing": (lambda folder: saved(folder, num_hidden_layers=3), "tensor model.layers.2"),
    "LoRA alone": (adapter_alone, "is of a LoRA adapter of a/base, which would not be used; merge it"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "is missing, but texts are written with it"),
    "tokens without rows": (lambda folder: saved(folder, [*WORDS, "<c>", "<d>"]), "2 of the tokenizer's 14 tokens hav"),
    "no output head": (without_head, "tensor lm_head.weight is missing, and config.json does not tie it"),
    "bundle": (write("manifest.json", "{}"), "is a bundle, whose model writes no texts; give a causal language model"),
    "a bundle's": (lambda folder: saved(folder, draft_head={}), "has 'draft_head', so it recommends and writes no te"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_knowledge_build_refuses_a_checkpoint_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it reads the data, which is not there."""
    folder = saved(tmp_path / "model")
    REFUSED[name][0](folder)
    words = ["knowledge", "build", str(tmp_path / "data"), str(tmp_path / "out"), "--checkpoint", str(folder)]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {folder}") and REFUSED[name][1] in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_knowledge_build_refuses_a_checkpoint_before_torch_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; from genrec.cli.main import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    words = ["knowledge", "build", "data", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "typo")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "there is no such folder" in done.stderr


def test_what_a_language_model_may_lack(tmp_path: Path) -> None:
    """No start token, tied heads."""
    require_language_model(saved(tmp_path / "plain"))
    tied = saved(tmp_path / "tied", tie_word_embeddings=True)
    without_head(tied)
    require_language_model(tied)
