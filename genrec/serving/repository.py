"""Renders the model repository that serves one bundle: the checked-in one, with the bundle's numbers filled in."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from genrec.bundle import Bundle
from genrec.engines import DEPLOYED, require_precision
from genrec.engines.buckets import AUTO, Buckets
from genrec.reporting.outputs import Output, replaced, require_replaceable
from genrec.serving.request_log import OFF

MODEL = "recommend"
STEPS = ("preprocessing", "backbone", "verifier")
KNOWLEDGE = "knowledge"
# What is rendered, with what Python leaves there when it is served.
REPOSITORY = Output.of_patterns(
    "a model repository",
    [f"{MODEL}/config.pbtxt"],
    [
        f"{model}/{name}"
        for model in (*STEPS, KNOWLEDGE)
        for name in ("config.pbtxt", "1/model.py", "1/__pycache__/model.*.pyc")
    ],
)
_NOT_COPIED = shutil.ignore_patterns("__pycache__", ".gitkeep")


@dataclass(frozen=True)
class Deployment:
    """What a deployment decides. threads: of the engine, 0 for one per core. timeout_ms: for requests without one.

    instances: engines that take batches side by side, each a process with the weights and `threads` of its own.
    precision: "auto" or of `genrec.engines.COMPUTES`.
    device: of a torch engine, as torch names it; "" for a GPU if there is one. buckets: of one on a GPU, the shapes
    that it records, as of `Buckets.of`.
    knowledge: a knowledge folder, whose texts the model `knowledge` then writes, `texts_at_once` of them together;
    verification: of their drafts, "greedy" or "relaxed"; "none": no drafts, one token of a text at a time.
    catalog: the folder that a live catalogue is published in; None for the bundle's own catalogue.
    rules: that hold for every request, as JSON; "" for none. rules_memory_mb: MiB for the masks of rules, per engine.
    log_requests: which single requests the steps log, of `genrec.serving.request_log.LOGGED`. log_messages: also why
    they are refused, which may name values of the request.
    """

    engine: str = "onnx"
    threads: int = 0
    instances: int = 1
    masked: bool = True
    max_batch_size: int = 16
    timeout_ms: int = 1000
    knowledge: Path | None = None
    verification: str = "relaxed"
    texts_at_once: int = 8
    catalog: Path | None = None
    rules: str = ""
    rules_memory_mb: int = 256
    precision: str = "auto"
    log_requests: str = OFF
    log_messages: bool = False
    device: str = ""
    buckets: str = AUTO

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise ValueError(f"instances is {self.instances}; it must be at least 1")
        if self.engine not in DEPLOYED:
            raise ValueError(f"engine {self.engine!r} is unknown; use one of {', '.join(DEPLOYED)}")
        decided = DEPLOYED[self.engine]
        if self.instances > 1 and ("threads" not in decided or not self.threads):
            raise ValueError(
                f"instances is {self.instances} with engine {self.engine} and threads {self.threads}; only "
                f"{_taking('threads')} engines stand side by side, each with threads of its own: set threads, or "
                "instances to 1"
            )
        require_precision(self.engine, self.precision)
        for name, left in (("device", ""), ("buckets", AUTO)):
            if (value := getattr(self, name)) != left and name not in decided:
                raise ValueError(f"{name} is {value} with engine {self.engine}; only {_taking(name)} engines have one")

    @property
    def models(self) -> list[str]:
        """What the server loads; an ensemble's steps come with it."""
        return [MODEL] if self.knowledge is None else [MODEL, KNOWLEDGE]


def _taking(option: str) -> str:
    return " and ".join(kind for kind, decided in DEPLOYED.items() if option in decided)


def source_repository() -> Path:
    """The model repository that is rendered: the package's own, in a checkout a link to `model_repository`."""
    return Path(__file__).with_name("model_repository")


def render_repository(bundle: Bundle, out: Path, deployment: Deployment) -> Path:
    """Write the model repository for `bundle` to `out`; one that is there is replaced. Returns `out`.

    Raises FileExistsError if `out` holds anything but a model repository, and ValueError if it is, holds or lies in
    the bundle or the knowledge folder, for a path of theirs that is not UTF-8, and for buckets that do not hold all
    batches.
    """
    require_replaceable(out, REPOSITORY, (bundle.path, deployment.knowledge))
    Buckets.of(deployment.buckets, bundle.layout.max_tokens, deployment.max_batch_size)
    with replaced(out, REPOSITORY) as folder:
        _write(bundle, folder, deployment)
    return out


def _write(bundle: Bundle, folder: Path, deployment: Deployment) -> None:
    shutil.copytree(source_repository(), folder, ignore=_NOT_COPIED, dirs_exist_ok=True)
    (folder / MODEL / "1").mkdir(exist_ok=True)  # an ensemble has nothing in its version folder, but needs one
    for name in STEPS:
        path = folder / name / "config.pbtxt"
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        _fill(config, bundle, deployment)
        path.write_text(text_format.MessageToString(config))
    if deployment.knowledge is None:
        shutil.rmtree(folder / KNOWLEDGE)
    else:
        path = folder / KNOWLEDGE / "config.pbtxt"
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for name in config.parameters:
            value = getattr(deployment, name)
            config.parameters[name].string_value = _absolute(value) if isinstance(value, Path) else str(value)
        path.write_text(text_format.MessageToString(config))


def _fill(config: model_config_pb2.ModelConfig, bundle: Bundle, deployment: Deployment) -> None:
    config.max_batch_size = deployment.max_batch_size
    values = {
        "bundle": _absolute(bundle.path),
        "engine": deployment.engine,
        "threads": str(deployment.threads),
        "precision": deployment.precision,
        "device": deployment.device,
        "buckets": deployment.buckets,
        "masked": "true" if deployment.masked else "false",
        "timeout_ms": str(deployment.timeout_ms),
        "rules": deployment.rules,
        "rules_memory_mb": str(deployment.rules_memory_mb),
        "log_requests": deployment.log_requests,
        "log_messages": str(deployment.log_messages).lower(),
        "catalog": "" if deployment.catalog is None else _absolute(deployment.catalog),
    }
    if config.name == "backbone":
        config.instance_group[0].count = deployment.instances
    for name, parameter in config.parameters.items():
        parameter.string_value = values[name]
    width = bundle.space.beams(bundle.manifest.beam_width)
    widths = {"draft_codes": width + 3, "draft_scores": width}  # behind the codes: what rules left, and a time
    for tensor in (*config.input, *config.output):
        if tensor.name in widths:
            tensor.dims[:] = [widths[tensor.name]]


def _absolute(path: Path) -> str:
    """The absolute path as text. Raises ValueError if its bytes are not UTF-8."""
    text = str(path.resolve())
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{text!a}: this name is not UTF-8, and Triton's configuration takes nothing else; rename it"
        ) from None
    return text
