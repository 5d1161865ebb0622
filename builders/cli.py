"""`genrec`: builds, checks, evaluates and serves bundles."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builders.config import DROPOUTS, BackboneShape, BuildConfig, HeadShape, TrainingConfig
from builders.knowledge.cli import app as knowledge_app
from builders.plan.cli import plan

# Heavy imports (torch, pyarrow) stay inside the commands that need them: serving runs without them.

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(knowledge_app, name="knowledge")
app.command()(plan)
console = Console()

BundlePath = Annotated[Path, typer.Argument(help="A bundle: the folder that `genrec build` writes.")]
DataPath = Annotated[Path, typer.Argument(help="A dataset folder: inter.json + index.json, or interactions and items.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def _option(panel: str, text: str, **limits: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **limits)


_backbone = partial(_option, "Backbone")
_training = partial(_option, "Training")
_DEFAULT = TrainingConfig()


def _by_decoder(text: str, place: int) -> str:
    return f"{text}; by default " + ", ".join(f"{each[place]} for {name}" for name, each in DROPOUTS.items()) + "."


def main() -> None:
    """Run the command line; expected errors become one line and exit status 1."""
    from genrec.bundle import BundleError
    from genrec.serving.triton import TritonError

    try:
        app()
    except (BundleError, TritonError, ValueError, FileNotFoundError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from error


@app.command("demo-shop")
def demo_shop(
    out: Annotated[Path, typer.Argument(help="Folder to write the dataset to.")],
    items: Annotated[int, typer.Option(min=100)] = 5000,
    users: Annotated[int, typer.Option(min=10)] = 12000,
    seed: Seed = 0,
) -> None:
    """Make a synthetic shop: a catalogue with titles and embeddings, and shopping histories."""
    from builders.dataset import write_dataset
    from builders.demo_shop import make_demo_shop

    write_dataset(make_demo_shop(items, users, seed), out)
    typer.echo(f"{items} items and {users} users in {out}")


@app.command()
def build(
    data: DataPath,
    out: Annotated[Path, typer.Argument(help="Where the bundle goes; replaced if it is there.")],
    levels: Annotated[str, typer.Option(help="Codes per level, for a catalogue without semantic IDs.")] = "128,128,128",
    beam_width: Annotated[int, typer.Option(min=2, help="Beams drafted; at least twice the largest top_k.")] = 128,
    max_top_k: Annotated[int, typer.Option(min=1, help="The largest top_k that a request may ask for.")] = 50,
    max_history: Annotated[int, typer.Option(min=1, help="Most recent items kept in a prompt.")] = 20,
    max_query: Annotated[int, typer.Option(min=0, help="Tokens kept of a text query; 0 trains without queries.")] = 0,
    decoder: Annotated[str, typer.Option(help="draft_head, or beam_search over the backbone, the baseline.")] = (
        "draft_head"
    ),
    evaluate_users: Annotated[Optional[int], typer.Option(help="Test users to evaluate; all by default.")] = None,
    seed: Seed = 0,
    family: Annotated[str, _backbone("Family to train from scratch: qwen3 or llama.")] = "qwen3",
    hidden_size: Annotated[int, _backbone("", min=16)] = 128,
    layers: Annotated[int, _backbone("", min=1)] = 4,
    heads: Annotated[int, _backbone("", min=1)] = 4,
    state_size: Annotated[int, _backbone("Of a beam's state in the draft head.", min=1)] = HeadShape.state_size,
    transition_size: Annotated[int, _backbone("Of the draft head's transitions.", min=1)] = HeadShape.transition_size,
    attention_heads: Annotated[
        int, _backbone("With which these read the history; 0 for transitions that do not.", min=0)
    ] = HeadShape.attention_heads,
    checkpoint: Annotated[
        Optional[Path], _backbone("Start from this Hugging Face folder of the Qwen3 or Llama family, or from a bundle.")
    ] = None,
    sid_tokens: Annotated[
        Optional[str], _backbone("Its tokenizer's SID tokens per level, e.g. '<a_{}>,<b_{}>,<c_{}>'.")
    ] = None,
    epochs: Annotated[int, _training("0 leaves the weights random, to measure speed.", min=0)] = _DEFAULT.epochs,
    learning_rate: Annotated[float, _training("The backbone's.", min=1e-7)] = _DEFAULT.learning_rate,
    head_scales: Annotated[
        str, _training("The draft head's learning rates as factors on it: code embeddings, transitions, projections.")
    ] = "1,1,1",
    dropout: Annotated[Optional[float], _training(_by_decoder("In the backbone", 0), min=0, max=0.9)] = None,
    head_dropout: Annotated[Optional[float], _training(_by_decoder("Within the draft head", 1), min=0, max=0.9)] = None,
    tokens_per_batch: Annotated[int, _training("Packed tokens of a batch.", min=1)] = _DEFAULT.tokens_per_batch,
    auxiliary_weight: Annotated[
        float, _training("Weight of the next-token loss on the history.", min=0)
    ] = _DEFAULT.auxiliary_weight,
    validation_users: Annotated[
        int, _training("Users whose validation items choose the best epoch; 0 keeps the last one.", min=0)
    ] = 0,
    patience: Annotated[int, _training("Stop after so many epochs without a better one; 0 for never.", min=0)] = 0,
    freeze_backbone: Annotated[bool, _training("Train the draft head and the placeholders alone.")] = False,
    precision: Annotated[str, _training("no, bf16 or fp16.")] = _DEFAULT.precision,
) -> None:
    """Make a bundle: semantic IDs, training, ONNX export, evaluation. Goes on where it was interrupted.

    On N GPUs: `torchrun --nproc-per-node N --no-python genrec build ...`.
    """
    from builders.build import build_bundle
    from builders.dataset import read_dataset
    from builders.progress import track
    from genrec.bundle import Limits

    usual = DROPOUTS.get(decoder, (0.0, 0.0))  # an unknown decoder is refused further on
    code_embeddings, transitions, projections = (float(scale) for scale in head_scales.split(","))
    training = TrainingConfig(
        epochs=epochs,
        learning_rate=learning_rate,
        code_embedding_scale=code_embeddings,
        transition_scale=transitions,
        projection_scale=projections,
        dropout=usual[0] if dropout is None else dropout,
        head_dropout=usual[1] if head_dropout is None else head_dropout,
        tokens_per_batch=tokens_per_batch,
        auxiliary_weight=auxiliary_weight,
        patience=patience,
        freeze_backbone=freeze_backbone,
        precision=precision,
        seed=seed,
    )
    config = BuildConfig(
        levels=tuple(int(size) for size in levels.split(",")),
        max_history=max_history,
        max_query=max_query,
        beam_width=beam_width,
        decoder=decoder,
        head=HeadShape(state_size, transition_size, attention_heads),
        limits=Limits(top_k=max_top_k, default_top_k=min(10, max_top_k)),
        shape=BackboneShape(family, hidden_size, 3 * hidden_size, layers, heads, heads),
        checkpoint=checkpoint,
        sid_tokens=tuple(sid_tokens.split(",")) if sid_tokens else None,
        training=training,
        validation_users=validation_users,
        evaluate_users=evaluate_users,
    )
    manifest = build_bundle(read_dataset(data), out, config, track)
    if manifest is None:  # not the main process under torchrun
        return
    typer.echo(f"bundle {manifest.bundle_version} in {out}")
    _print_quality(manifest.training["quality"])


@app.command()
def evaluate(
    bundle_path: BundlePath,
    data: DataPath,
    users: Annotated[Optional[int], typer.Option(help="Test users, drawn at random; all by default.")] = None,
    engine: Annotated[str, typer.Option(help="onnx, torch or tensorrt_llm.")] = "onnx",
    masked: Annotated[bool, typer.Option(help="Draft only prefixes that exist.")] = True,
    exclude_history: Annotated[bool, typer.Option(help="Leave the history's items out, as serving does.")] = False,
    server: Annotated[Optional[str], typer.Option(help="Also rank through this server (host:port, gRPC).")] = None,
    seed: Seed = 0,
) -> None:
    """Hit@K and NDCG@K on the test split (last item of each user), offline and through a server."""
    from builders.dataset import read_dataset, split_leave_one_out
    from builders.evaluate import metrics, rank_offline, rank_served, require_catalog, sample_users
    from builders.progress import track
    from genrec.bundle import Bundle
    from genrec.engines import open_engine
    from genrec.verifier import Verifier

    bundle = Bundle(bundle_path)
    dataset = read_dataset(data)
    require_catalog(bundle, dataset)
    histories, targets = sample_users(split_leave_one_out(dataset.interactions).test, users, seed)
    with track("rank") as task:
        offline = rank_offline(
            open_engine(bundle, engine),
            Verifier(bundle.catalog, bundle.index),
            bundle.catalog,
            bundle.layout,
            histories,
            masked=masked,
            exclude_history=exclude_history,
            progress=lambda done: task(done, len(histories), ""),
        )
    rows = {"offline": metrics(offline.rows, targets) | {"valid_drafts": offline.valid_share}}
    if server:
        served = rank_served(server, bundle.catalog, histories, exclude_history=exclude_history)
        rows["served"] = metrics(served, targets)
        typer.echo(f"same ranked list offline and served: {(served == offline.rows).all(1).mean():.2%} of users")
    _print_quality({"users": len(histories), **rows})


@app.command()
def compare(
    data: DataPath,
    model: Annotated[
        list[str], typer.Option(help="NAME=BUNDLE[,BUNDLE...], a bundle per seed; the first is compared.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results; what it holds already is not ranked again.")],
    beam_widths: Annotated[str, typer.Option(help="At least 20 each.")] = "20,50,128,512",
    masks: Annotated[str, typer.Option(help="Prefix masks: on, off or on,off.")] = "on,off",
    users: Annotated[Optional[int], typer.Option(min=1, help="Test users, drawn at random; all by default.")] = None,
    engine: Annotated[str, typer.Option(help="onnx, torch or tensorrt_llm.")] = "onnx",
    batch_size: Annotated[int, typer.Option(min=1, help="Users drafted at a time.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 for one per core.")] = 0,
    device: Annotated[str, typer.Option(help="Of the torch engine: cpu or cuda.")] = "cpu",
    reference: Annotated[
        Optional[list[str]], typer.Option(help="NAME=HIT,NDCG: a published Hit@10 and NDCG@10 to print beside.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Compare models on the test split: quality, valid drafts, time, and intervals of the differences.

    Every bundle ranks at every beam width, with prefix masks and without, history excluded and not.
    """
    from builders.comparison import Plan, models_of, reference_of
    from builders.comparison import compare as compare_models
    from builders.progress import track
    from builders.report import write_report

    switches = {"on": True, "off": False}
    if unknown := [word for word in masks.split(",") if word not in switches]:
        raise ValueError(f"masks {masks!r}: {unknown[0]!r} is neither on nor off")
    plan = Plan(
        beam_widths=_numbers("beam widths", beam_widths),
        masks=tuple(switches[word] for word in masks.split(",")),
        users=users,
        seed=seed,
        engine=engine,
        batch=batch_size,
        threads=threads,
        device=device,
    )
    references = [reference_of(text) for text in reference or []]
    results = compare_models(data, models_of(model), out, plan, track, references)
    typer.echo(f"{len(results.record.cells)} rankings; report in {write_report(results, out)}")


@app.command("compare-report")
def compare_report(
    out: Annotated[Path, typer.Argument(help="Folder of the merged results and their report.")],
    folders: Annotated[list[Path], typer.Argument(help="Folders that `genrec compare` wrote, of the same users.")],
    reference: Annotated[
        Optional[list[str]], typer.Option(help="NAME=HIT,NDCG: a published Hit@10 and NDCG@10 to print beside.")
    ] = None,
) -> None:
    """Merge results of several runs, such as seeds trained on different days, into one report. Needs no bundle."""
    from builders.comparison import reference_of
    from builders.report import write_report
    from builders.results import merge

    results = merge(folders, [reference_of(text) for text in reference or []])
    results.save(out)
    typer.echo(f"{len(results.record.cells)} rankings; report in {write_report(results, out)}")


@app.command()
def check(bundle_path: BundlePath) -> None:
    """Verify every file of a bundle; lists what is wrong with it."""
    from genrec.bundle import Bundle

    bundle = Bundle(bundle_path)
    bundle.check()
    manifest = bundle.manifest
    typer.echo(
        f"ok: bundle {manifest.bundle_version}, catalogue {manifest.catalog.version} with "
        f"{manifest.catalog.available} of {manifest.catalog.items} items available, beam width {manifest.beam_width}"
    )


@app.command()
def export(
    bundle_path: BundlePath,
    out: Annotated[Path, typer.Argument(help="Where the new bundle goes.")],
    beam_width: Annotated[int, typer.Option(min=2)],
) -> None:
    """Copy a bundle with another beam width: exports its checkpoint again."""
    from builders.build import export_bundle

    manifest = export_bundle(bundle_path, out, beam_width)
    typer.echo(f"bundle {manifest.bundle_version} in {out}, beam width {manifest.beam_width}")


@app.command("export-tensorrt-llm")
def export_tensorrt_llm(
    bundle_path: BundlePath,
    out: Annotated[Path, typer.Argument(help="Where the new bundle goes.")],
    dtype: Annotated[str, typer.Option(help="Of the backbone: bfloat16, float16, or float32 to compare.")] = "bfloat16",
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests of one step.")] = 64,
    max_num_tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens of one step.")] = 8192,
    kv_cache_fraction: Annotated[float, typer.Option(help="Of the GPU memory that is left free.")] = 0.5,
    reuse: Annotated[bool, typer.Option(help="Keep the KV cache of prompts for later ones that start alike.")] = False,
    cuda_graphs: Annotated[bool, typer.Option(help="Capture batches without prompts; NEZHA has none.")] = False,
    drop_block: Annotated[
        Optional[int], typer.Option(min=1, help="Items that a long history loses together; the bundle's by default.")
    ] = None,
) -> None:
    """Copy a bundle with what TensorRT-LLM serves it with: `genrec serve OUT --engine tensorrt_llm`."""
    from builders.tensorrt_llm.export import TensorRtLlmConfig, export_tensorrt_llm

    config = TensorRtLlmConfig(dtype, max_batch_size, max_num_tokens, kv_cache_fraction, reuse, cuda_graphs)
    manifest = export_tensorrt_llm(bundle_path, out, config, drop_block)
    typer.echo(f"bundle {manifest.bundle_version} in {out}, for TensorRT-LLM in {dtype}")


@app.command()
def render(
    bundle_path: BundlePath,
    out: Annotated[Path, typer.Argument(help="Folder of the served copy; replaced if it is there.")],
) -> None:
    """Write the model repository that serves a bundle."""
    from genrec.bundle import Bundle
    from genrec.serving.repository import Deployment, render_repository

    render_repository(Bundle(bundle_path), out, Deployment())
    typer.echo(f"model repository in {out}")


@app.command()
def serve(
    bundle_path: BundlePath,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="0 picks a free port.")] = 8001,
    http_port: Annotated[int, typer.Option(help="0 picks a free port.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="0 picks a free port.")] = 8002,
    engine: Annotated[str, typer.Option(help="onnx, or torch where it is installed.")] = "onnx",
    masked: Annotated[bool, typer.Option(help="Draft only prefixes that exist.")] = True,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the ONNX engine; 0 for one per core.")] = 0,
    instances: Annotated[
        int,
        typer.Option(min=1, help="ONNX engines side by side, of --threads each: more throughput, less speed alone."),
    ] = 1,
    max_batch_size: Annotated[int, typer.Option(min=1)] = 16,
    timeout_ms: Annotated[
        int, typer.Option(min=1, help="Deadline of requests that bring none; late ones are refused.")
    ] = 1000,
    knowledge: Annotated[
        Optional[Path], typer.Option(help="Also write texts, by this folder of `genrec knowledge build`; needs torch.")
    ] = None,
    verification: Annotated[str, typer.Option(help="Of the texts' drafts: relaxed or greedy.")] = "relaxed",
    texts_at_once: Annotated[int, typer.Option(min=1, help="Texts that are written together.")] = 8,
    exit_timeout_s: Annotated[
        float, typer.Option(min=1, help="Seconds that requests in flight get to finish after SIGTERM.")
    ] = 10.0,
    tls_cert: Annotated[
        Optional[Path], typer.Option(help="PEM certificate chain: gRPC over TLS. HTTP has none.")
    ] = None,
    tls_key: Annotated[Optional[Path], typer.Option(help="PEM private key of the certificate.")] = None,
    tls_client_ca: Annotated[
        Optional[Path], typer.Option(help="PEM: refuse clients without a certificate that it signed.")
    ] = None,
) -> None:
    """Serve a bundle with Triton, in the foreground. SIGTERM and Ctrl-C let requests in flight finish."""
    from genrec.serving.repository import Deployment
    from genrec.serving.serve import prepare_server
    from genrec.serving.triton import ServerTls

    if (tls_cert is None) != (tls_key is None) or (tls_client_ca and tls_cert is None):
        raise ValueError("TLS takes both --tls-cert and --tls-key; --tls-client-ca goes with them")
    tls = ServerTls(tls_cert, tls_key, tls_client_ca) if tls_cert and tls_key else None
    deployment = Deployment(
        engine, threads, instances, masked, max_batch_size, timeout_ms, knowledge, verification, texts_at_once
    )
    ports = {"grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port}
    options = {"tls": tls, "exit_timeout": exit_timeout_s}
    with prepare_server(bundle_path, deployment, host=host, **ports, **options) as server:

        def announce() -> None:
            urls = f"gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}"
            typer.echo(f"ready: {urls}")

        code = server.run_forever(on_ready=announce)
    raise typer.Exit(code)


@app.command()
def demo(
    data: Annotated[Optional[Path], typer.Option(help="Dataset folder; the demo shop by default.")] = None,
    work: Annotated[Path, typer.Option(help="Where data and bundle are kept between runs.")] = Path("build"),
    epochs: Annotated[Optional[int], typer.Option(min=1, help="Train for so many epochs instead.")] = None,
) -> None:
    """From data to ten recommendations through a real server: build what is missing, serve, ask."""
    from builders.demo import run_demo

    run_demo(data, work, console, epochs)


def _numbers(what: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{what} {text!r}: write whole numbers with commas between them") from None


def _print_quality(quality: dict) -> None:
    table = Table(title=f"test split, {quality['users']} users")
    rankings = {name: values for name, values in quality.items() if isinstance(values, dict)}
    columns = list(dict.fromkeys(column for values in rankings.values() for column in values))
    for column in ["", *columns]:
        table.add_column(column.replace("_", " "), justify="right" if column else "left")  # wraps at the spaces
    for name, values in rankings.items():
        table.add_row(name.replace("_", " "), *(f"{values[c]:.4f}" if c in values else "" for c in columns))
    console.print(table)


if __name__ == "__main__":
    main()
