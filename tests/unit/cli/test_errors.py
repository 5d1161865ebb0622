"""How commands end on wrong values: every command and every option of the app, with wrong values of its type.

Status 2 for a value that is wrong whatever it meets, 1 for what a command meets, and one line that names the option
or path and the value. A traceback is for defects alone.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from genrec.bundle import Bundle
from genrec.cli.commands import COMMANDS, build_app
from genrec.cli.main import GROUP, app
from genrec.serving.triton.errors import TritonStartError
from genrec.serving.triton.ports import choose_ports

Run = Callable[..., tuple[int, str]]
# What a command cannot do without, and is neither a path nor a number: a right value.
RIGHT = {("compare", "model"): "model={blocked}", ("plan", "device"): "l4"}
LIVE = ("init", "apply", "log", "rollback", "compact", "inspect")
RIGHT |= {(f"catalog.{name}", "location"): "{blocked}" for name in LIVE}
RIGHT[("serve", "catalog")] = "{blocked}"
# Text that may be anything, as far as the command line can tell. All other text options judge theirs.
ANY_TEXT = {("serve", "host"), ("serve", "catalog"), ("catalog.apply", "message"), ("catalog.rollback", "message")}
# Text that is right or wrong by the data.
ANY_TEXT |= {("build", "split_at"), ("data.check", "split_at")}
# Text that may name any place; where there is nothing to be found, it is told by that name.
ANY_PLACE = {key for key in RIGHT if key[1] in ("location", "catalog")} | {("doctor", "store")}
WRONG_TEXTS = ["no such value", "8,8,x", "<{code}>", "-1", "nan", "a="]
WRONG_NUMBERS = ["x", "1e", "nan", "inf", "-inf", "-1", "0", "1000000000000000", "1e300"]


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command. names: as it is typed. kind: int, float, str, bool or Path."""

    command: str
    name: str
    names: tuple[str, ...]
    kind: type
    required: bool
    least: float | None

    @property
    def is_argument(self) -> bool:
        return not self.names[0].startswith("-")

    def words(self, value: str) -> list[str]:
        if self.is_argument:
            return ["--", value] if value.startswith("-") else [value]
        return [f"{self.names[0]}={value}"]


@cache
def parameters_of(command: str) -> list[Parameter]:
    """All that a command takes, from the app itself."""
    found: Any = typer.main.get_command(app)
    for word in command.split("."):
        found = found.commands[word]
    hints = get_type_hints(INSTALLED[command].load(), include_extras=True)
    parameters = []
    for parameter in found.params:
        if parameter.name == "help":
            continue
        kind, info = get_args(hints[parameter.name])[:2]
        while (inner := get_args(kind)) != ():  # Optional, list
            kind = next(one for one in inner if one is not type(None))
        opts = (*parameter.opts, *parameter.secondary_opts)
        parameters.append(Parameter(command, parameter.name, opts, kind, parameter.required, info.min))
    return parameters


INSTALLED = {entry.name: entry for entry in entry_points(group=GROUP)}
PARAMETERS = [parameter for command in COMMANDS for parameter in parameters_of(command)]


once = cache(typer.main.get_command)


@pytest.fixture(autouse=True)
def commands_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not anew for each of a thousand calls, which would take a minute."""
    monkeypatch.setattr("typer.main.get_command", once)


@dataclass(frozen=True)
class Places:
    """Paths of each kind. blocked: one below a file, so that nothing can be read from there, nor written to."""

    missing: Path
    file: Path
    folder: Path
    blocked: Path


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "file.txt").write_text("a file of somebody else\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work\n")
    return Places(
        tmp_path / "missing", tmp_path / "file.txt", tmp_path / "folder", tmp_path / "file.txt" / "below a file"
    )


def words_with(parameter: Parameter, value: str, places: Places) -> list[str]:
    """The command with this value, and every other path one that cannot be used: no command gets to work."""
    options, arguments = [], []
    for other in parameters_of(parameter.command):
        if other.name == parameter.name:
            chosen = value
        elif other.kind is Path:
            chosen = str(places.blocked)
        elif (other.command, other.name) in RIGHT:
            chosen = RIGHT[other.command, other.name].format(blocked=places.blocked)
        elif other.required:
            chosen = str(max(1, other.least or 0))
        else:
            continue
        (arguments if other.is_argument else options).extend(other.words(chosen))
    return [*parameter.command.split("."), *options, *arguments]


def wrong_values(parameter: Parameter, places: Places) -> Iterator[tuple[str, bool | None]]:
    """Values, and whether each is wrong in itself; None if only the command knows."""
    if parameter.kind is Path:
        yield from [("", True), (str(places.file), None), (str(places.folder), None)]
        if parameter.name != "out":  # a folder that is not there is made
            yield str(places.missing), None
    elif parameter.kind is bool:
        yield "yes", True
    elif parameter.kind is str:
        judged = (parameter.command, parameter.name) not in ANY_TEXT | ANY_PLACE
        yield from [("", True), *((text, judged or None) for text in WRONG_TEXTS)]
    else:
        yield "", True
        for text in WRONG_NUMBERS:
            try:
                number = parameter.kind(text)
            except ValueError:
                yield text, True
            else:
                below = number < 0 or (parameter.least is not None and number < parameter.least)
                yield text, True if below or not math.isfinite(number) or number > 1e12 else None


def plain(text: str) -> str:
    """Names are compared as words: --beam-width, beam_width and beam width are one."""
    return re.sub(r"[-_ ]+", " ", text.lower())


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: f"{parameter.command} {parameter.name}")
def test_wrong_values_end_in_one_line_that_names_them(parameter: Parameter, places: Places, run_genrec: Run) -> None:
    paths = [str(path) for path in vars(places).values()]
    problems = []
    for value, is_wrong in wrong_values(parameter, places):
        words = words_with(parameter, value, places)
        try:
            status, stderr = run_genrec(*words)
        except Exception as error:
            problems.append((words, repr(error)))
            continue
        said = [line for line in stderr.splitlines() if line.strip()]
        if len(said) != 1 or not said[0].startswith("error: "):
            problems.append((words, status, "not one line", stderr))
            continue
        named = any(plain(name).strip() in plain(said[0]) for name in (*parameter.names, parameter.name))
        if status == 2:
            good = named and (value in said[0] or (parameter.kind is bool and is_wrong))
        else:
            place = [value] if (parameter.command, parameter.name) in ANY_PLACE else []
            good = status == 1 and not is_wrong and any(path in said[0] for path in [*paths, *place])
        if not good:
            problems.append((words, status, said[0]))
    assert not problems, "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("build D OUT --levels 8,8,x", "--levels '8,8,x': 'x' is no number; write whole numbers with commas between"),
        ("build D OUT --levels 8,0", "--levels '8,0': 0 is not between 1 and"),
        ("build D OUT --levels 1000000,1000000,1000000,1000000", "more than the"),
        ("build D OUT --head-scales 1,1", "--head-scales '1,1': write 3 numbers with commas between them"),
        ("build D OUT --head-scales 1,1,inf", "--head-scales '1,1,inf': inf is not between 0"),
        ("build D OUT --heads 3 --hidden-size 100", "--hidden-size 100 must be a multiple of 6, twice --heads 3"),
        ("build D OUT --attention-heads 5", "attention heads 5 must divide the state size 128"),
        ("build D OUT --sid-tokens <{code}> --checkpoint C", "--sid-tokens '<{code}>'"),
        ("build D OUT --sid-tokens <a_{}>", "--sid-tokens '<a_{}>': belongs to a checkpoint, so give --checkpoint too"),
        ("build D OUT --adapter A", "--adapter 'A': belongs to a checkpoint, so give --checkpoint too"),
        ("build D OUT --item-markers <b> --checkpoint C", "--item-markers '<b>': write two different tokens"),
        ("build D OUT --freeze-backbone", "--freeze-backbone needs a trained backbone: give --checkpoint too"),
        (
            "build D OUT --decoder beam_search --head-dropout 0.1",
            "--head-dropout 0.1 would change nothing: --decoder",
        ),
        (
            "build D OUT --checkpoint C --layers 2",
            "--layers 2 would change nothing: the backbone of --checkpoint C has",
        ),
        (
            "build D OUT --sids-of B --levels 8,8",
            "--levels 8,8 would change nothing: --sids-of B says what semantic IDs",
        ),
        ("build D OUT --patience 3", "--patience 3 would change nothing: without --validation-users"),
        ("build D OUT --freeze-backbone --decoder beam_search --checkpoint C", "--decoder beam_search has none"),
        ("build D OUT --decoder greedy", "--decoder 'greedy': use one of draft_head, beam_search"),
        ("build D OUT --precision fp64", "--precision 'fp64': use one of no, bf16, fp16"),
        ("evaluate B D --users 0", "--users '0': input should be greater than or equal to 1"),
        ("evaluate B D --engine magic", "--engine 'magic': use one of onnx, openvino, torch, tensorrt_llm"),
        ("evaluate B D --server http://x:8000", "--server 'http://x:8000': 'http://x:8000' is a URL with a scheme"),
        ("serve B --grpc-port -1", "--grpc-port '-1': input should be greater than or equal to 0"),
        ("serve B --http-port 65536", "--http-port '65536': input should be less than or equal to 65535"),
        ("serve B --grpc-port 9000 --metrics-port 9000", "--grpc-port 9000: another endpoint has this port too"),
        ("serve B --tls-cert C", "--tls-key"),
        ("serve B --instances 2", "instances is 2 with engine onnx and threads 0"),
        ("serve B --precision fp8", "--precision 'fp8': use one of auto, f32, bf16, int8"),
        (
            "serve B --precision bf16",
            "precision 'bf16' with engine onnx, which computes in f32 or int8: leave it at auto",
        ),
        ("serve B --exit-timeout-s inf", "--exit-timeout-s 'inf'"),
        ("export-tensorrt-llm B OUT --kv-cache-fraction 1", "--kv-cache-fraction '1'"),
        ("check", "Missing argument 'bundle_path'"),
        ("check B C", "Got unexpected extra argument(s) (C)"),
        ("check --magic B", "No such option: --magic"),
        ("chek B", "No such command 'chek'"),
    ],
)
def test_usage_that_can_be_judged_without_data_ends_in_status_2(words: str, message: str, run_genrec: Run) -> None:
    status, stderr = run_genrec(*words.split())
    assert status == 2, stderr
    assert stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 1


def test_a_host_that_is_none_is_named(run_genrec: Run) -> None:
    with pytest.raises(TritonStartError, match=r"no\.such\.host\.invalid"):
        choose_ports("no.such.host.invalid", {"grpc": 0})
    with pytest.raises(TritonStartError, match=r"no\.such\.host\.invalid:8001"):
        choose_ports("no.such.host.invalid", {"grpc": 8001})


def test_what_is_needed_at_the_end_is_asked_for_at_the_start(
    bundle: Bundle, places: Places, run_genrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, stderr = run_genrec("serve", bundle.path, "--knowledge", places.missing)
    assert (status, stderr.count("\n")) == (1, 1) and f"{places.missing}/knowledge.json: is missing; give" in stderr
    monkeypatch.setattr("genrec_builders.knowledge.demo.run_knowledge_demo", lambda *arguments: pytest.fail("trains"))
    status, stderr = run_genrec("knowledge", "demo", places.folder, places.missing, places.missing)
    assert (status, stderr.count("\n")) == (1, 1) and f"{places.missing}/manifest.json: is missing" in stderr
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    words = ["compare", places.blocked, "--model", f"a={bundle.path}", "--out", places.missing, "--engine", "torch"]
    status, stderr = run_genrec(*words, "--device", "cuda:1")
    assert (status, stderr.count("\n")) == (1, 1) and "--device cuda:1: PyTorch sees 1 GPUs here" in stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is missing"),
        ("{", "Expecting property name"),
        ("[]", "is no JSON object"),
        ("{}", "has no 'format'"),
        ('{"format": 1}', "has no 'max_new_tokens'"),
        ('{"format": 99}', "has format 99, this version reads 1"),
        (
            '{"format": 1, "max_new_tokens": 9, "limits": {"history": 0}}',
            "history is 0; it must be a whole number of 1 to 1048576",
        ),
        ('{"format": 1, "max_new_tokens": 9, "limits": {"colour": 1}}', "unexpected keyword argument 'colour'"),
        (..., "Is a directory"),
    ],
)
def test_a_knowledge_folder_that_is_none_is_told_in_words(
    text: Any, says: str, tmp_path: Path, run_genrec: Run
) -> None:
    """Without the name of an exception's class, and before a server starts."""
    if text is ...:
        (tmp_path / "knowledge.json").mkdir()
    elif text is not None:
        (tmp_path / "knowledge.json").write_text(text)
    status, stderr = run_genrec("serve", tmp_path / "bundle", "--knowledge", tmp_path)
    assert (status, stderr.count("\n")) == (1, 1)
    assert stderr.startswith(f"error: {tmp_path}/knowledge.json: ") and says in stderr
    assert "; give the folder that `genrec knowledge build` writes" in stderr and "Error" not in stderr


def test_a_full_folder_is_not_rendered_over(bundle: Bundle, places: Places, run_genrec: Run) -> None:
    status, stderr = run_genrec("render", bundle.path, places.folder)
    assert status == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert str(places.folder) in stderr
    assert (places.folder / "thesis.txt").exists()


# --- what is expected, and what is a defect ---


def ending_in(source: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `genrec command` run `source` as code of `module`."""
    scope: dict[str, Any] = {"__name__": module}
    exec(f"def command():\n    {source}", scope)
    command_line = sys.modules["genrec.cli.main"]
    monkeypatch.setattr(command_line, "app", build_app({"command": lambda: scope["command"]}))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('items 0: give more')", "error: items 0: give more"),
        ("raise __import__('genrec.errors').errors.DataError('a.csv: is cut')", "error: a.csv: is cut"),
        ("open('/no/such/file')", "error: /no/such/file: No such file or directory"),
        ("raise FileExistsError('x holds something else')", "error: x holds something else"),
        ("raise ConnectionError('--server a:1: is down')", "error: --server a:1: is down"),
        ("import a_package_that_is_not_there", "error: the package a_package_that_is_not_there is not installed"),
        (
            "raise MemoryError('Unable to allocate 9 TiB')",
            "error: not enough memory for this: Unable to",
        ),
        ("raise KeyboardInterrupt", ""),
    ],
)
def test_what_is_expected_is_one_line(
    source: str, message: str, run_genrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending_in(source, "genrec.somewhere", monkeypatch)
    status, stderr = run_genrec("command")
    assert (status, stderr.count("\n")) == ((1, 1) if message else (130, 0))
    assert stderr.startswith(message)


@pytest.mark.parametrize(
    ("source", "module", "kind"),
    [
        ("[][0]", "genrec.somewhere", IndexError),
        ("{}['x']", "genrec.somewhere", KeyError),
        ("raise RuntimeError('torch is unwell')", "genrec.somewhere", RuntimeError),
        ("first, second = [1]", "genrec.somewhere", ValueError),
        ("int('x')", "genrec.somewhere", ValueError),
        ("__import__('numpy').argmax([])", "genrec.somewhere", ValueError),
        ("raise ValueError('operands could not be broadcast')", "numpy.somewhere", ValueError),
        ("import genrec.no_such_module", "genrec.somewhere", ModuleNotFoundError),
        ("from genrec import no_such_name", "genrec.somewhere", ImportError),
    ],
)
def test_a_defect_keeps_its_traceback(
    source: str, module: str, kind: type[Exception], run_genrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending_in(source, module, monkeypatch)
    with pytest.raises(kind):
        run_genrec("command")


def test_help_and_no_words_at_all(run_genrec: Run) -> None:
    assert run_genrec("--help") == (0, "")
    assert run_genrec("plan", "--help") == (0, "")
    assert run_genrec()[0] == 2
