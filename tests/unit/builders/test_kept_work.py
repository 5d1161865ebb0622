"""What is kept between runs is used for the same work alone: other data, settings or code are refused by name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from genrec.bundle import Bundle, seal_bundle
from genrec.catalog import Catalog
from genrec.cli.main import app
from genrec.evaluation.results import RECORD
from genrec.knowledge.offline import GenerationOptions, generate
from genrec.reporting.progress import Task, Track
from genrec_builders import demo
from genrec_builders.build import build_bundle, export_bundle, write_catalog
from genrec_builders.config import BackboneShape, BuildConfig, TrainingConfig
from genrec_builders.data import Dataset, ItemTable, read_dataset, write_dataset
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_builders.fingerprint import build_fingerprint
from genrec_builders.knowledge.folder import is_built, knowledge_fingerprint
from genrec_builders.training.loop import train
from perf.quality.ablations import Ablation
from perf.speed import bench, cells

ROOT = Path(__file__).parents[3]


class Interrupted(Exception):
    pass


class Stages:
    """A progress bar that shows nothing: it notes the steps of training, and ends at a stage."""

    def __init__(self, ends_at: str = "") -> None:
        self.ends_at, self.steps = ends_at, list[int]()

    @contextmanager
    def __call__(self, title: str) -> Iterator[Task]:
        if title == self.ends_at:
            raise Interrupted
        yield lambda done, total, note: self.steps.append(done) if title == "train" else None


@pytest.fixture(scope="module")
def shop() -> Dataset:
    """A small shop with semantic IDs of its own, and queries."""
    made = make_demo_shop(n_items=120, n_users=60, seed=0)
    codes = np.random.default_rng(0).permutation(8**3)[:120]
    sids = np.stack(np.unravel_index(codes, (8, 8, 8)), 1).astype(np.int32)
    return replace(made, items=replace(made.items, sids=sids, levels=(8, 8, 8), embeddings=None))


@pytest.fixture(scope="module")
def config(tiny_build: tuple[BuildConfig, Track]) -> BuildConfig:
    return replace(tiny_build[0], training=TrainingConfig(epochs=1, tokens_per_batch=1024), evaluate_users=5)


@pytest.fixture(scope="module")
def interrupted(shop: Dataset, config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a build that ended when it was trained. Read-only."""
    out = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.raises(Interrupted):
        build_bundle(shop, out, config, Stages("export ONNX"))
    assert not out.exists()
    return out.with_name("out.work")


def with_items(dataset: Dataset, **changes: Any) -> Dataset:
    return replace(dataset, items=replace(dataset.items, **changes))


def with_interactions(dataset: Dataset, **changes: Any) -> Dataset:
    return replace(dataset, interactions=replace(dataset.interactions, **changes))


# What is changed of the data, and what differs then, in words.
OTHER_DATA: dict[str, tuple[Callable[[Dataset], Dataset], str]] = {
    "semantic IDs": (lambda d: with_items(d, sids=d.items.sids[::-1].copy()), "semantic IDs"),
    "items": (
        lambda d: with_items(d, item_ids=[f"{name}x" for name in d.items.item_ids]),
        r"items 120 \(\w+\), now 120",
    ),
    "titles": (lambda d: with_items(d, attributes={"title": ["x"] * 120}), "attributes of the items"),
    "interactions": (
        lambda d: with_interactions(d, rows=d.interactions.rows[::-1].copy()),
        r"interactions [\d,]+ of 60",
    ),
    "queries": (lambda d: with_interactions(d, queries=None), r"queries \w+, now none"),
}
OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"training": TrainingConfig(epochs=2, tokens_per_batch=1024)}, "epochs 1, now 2"),
    "decoder": ({"decoder": "beam_search"}, "decoder draft_head, now beam_search"),
    "history": ({"max_history": 9}, "max history 20, now 9"),
    "beams": ({"beam_width": 70}, "beam width 64, now 70"),
}


@pytest.mark.training
@pytest.mark.parametrize("name", [*OTHER_DATA, *OTHER_SETTINGS])
def test_a_build_does_not_go_on_from_other_work(
    name: str, shop: Dataset, config: BuildConfig, interrupted: Path, tmp_path: Path
) -> None:
    """The example of the issue: the items' semantic IDs change, and the old data's weights were used for them."""
    work = tmp_path / "out.work"
    shutil.copytree(interrupted, work)
    changes, says = OTHER_DATA.get(name) or OTHER_SETTINGS[name]
    dataset = changes(shop) if callable(changes) else shop
    asked = config if callable(changes) else replace(config, **changes)
    kept = (work / "training.pt").read_bytes()
    with pytest.raises(ValueError, match=says) as refusal:
        build_bundle(dataset, tmp_path / "out", asked, Stages("semantic IDs"))
    said = str(refusal.value)
    assert said.startswith(f"{work}: ") and f"remove {work} " in said and "name another folder" in said
    assert "\n" not in said and (work / "training.pt").read_bytes() == kept
    assert not (tmp_path / "out").exists()


@pytest.mark.training
def test_a_build_goes_on_with_the_same_work(
    shop: Dataset, config: BuildConfig, interrupted: Path, tmp_path: Path
) -> None:
    """How many users are evaluated changes nothing of it."""
    shutil.copytree(interrupted, tmp_path / "out.work")
    stages = Stages()
    manifest = build_bundle(shop, tmp_path / "out", replace(config, evaluate_users=6), stages)
    assert stages.steps == [] and manifest is not None and manifest.training["quality"]["users"] == 6
    assert manifest.training["fingerprint"] == build_fingerprint(shop, config)
    assert not (tmp_path / "out.work").exists()


@pytest.mark.training
def test_work_of_other_code_is_refused(
    shop: Dataset, config: BuildConfig, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(interrupted, tmp_path / "out.work")
    monkeypatch.setattr("genrec_builders.fingerprint.BUILD_FORMAT", "99")
    with pytest.raises(ValueError, match="code format 1, now 99"):
        build_bundle(shop, tmp_path / "out", config, Stages())


@pytest.mark.training
def test_work_that_cannot_be_judged_is_refused(
    shop: Dataset, config: BuildConfig, interrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(interrupted, tmp_path / "out.work")
    state = tmp_path / "out.work" / "training.pt"
    kept = torch.load(state, weights_only=True)
    torch.save(kept | {"fingerprint": {"config": {"epochs": 1}, "steps": 3, "shapes": {}}}, state)  # as it once was
    with pytest.raises(ValueError, match=r"out\.work: an older genrec .* remove .*out\.work to start anew"):
        build_bundle(shop, tmp_path / "out", config, Stages())
    for content in (b"", b"PK\3\4", state.read_bytes()[:2000]):
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"training\.pt: cannot be read as the state of a training"):
            build_bundle(shop, tmp_path / "out", config, Stages())


def other(value: Any) -> Any:
    """A value that a setting may have instead of `value`."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return 2 * value or 1
    if isinstance(value, str):
        return f"{value}x"
    return (9, 9) if isinstance(value, tuple) else 7


def changed_settings(settings: Any) -> Iterator[tuple[str, Any]]:
    """(name, `settings` with that one changed) of every field, nested ones too."""
    names = [field.name for field in fields(settings)] if is_dataclass(settings) else list(type(settings).model_fields)
    for name in names:
        value = getattr(settings, name)
        nested = is_dataclass(value) or hasattr(type(value), "model_fields")
        for leaf, new in changed_settings(value) if nested else [("", other(value))]:
            if is_dataclass(settings):
                yield f"{name} {leaf}".strip(), replace(settings, **{name: new})  # type: ignore[type-var]
            else:
                yield name, settings.model_copy(update={name: new})


def test_a_fingerprint_tells_every_setting(shop: Dataset, tmp_path: Path) -> None:
    """A new field of `BuildConfig` has its part in it, unless it is named here."""
    base = replace(BuildConfig(), training=replace(TrainingConfig(), dropout=0.3))
    bare = with_items(shop, sids=None, levels=None, embeddings=np.ones((120, 4), np.float32))
    seen = []
    for name, config in changed_settings(base):
        if name in ("checkpoint", "adapter", "sids_of"):
            continue  # by their content, below
        seen.append(name)
        same = build_fingerprint(bare, config) == build_fingerprint(bare, base)
        assert same == (name in ("evaluate_users", "sid_tokens", "split_at")), name  # below, and in test_split_at.py
    assert len(seen) > 30 and "head state_size" in seen and "limits top_k" in seen and "training seed" in seen
    # Semantic IDs of one's own have levels of their own.
    assert build_fingerprint(shop, base) == build_fingerprint(shop, replace(base, levels=(4, 4)))


def test_a_fingerprint_tells_a_checkpoint_by_its_content(shop: Dataset, bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.path / "checkpoint", tmp_path / "one"))
    moved = Path(shutil.copytree(folder, tmp_path / "two"))

    def found(path: Path, **changes: Any) -> dict[str, str]:
        return dict(build_fingerprint(shop, replace(BuildConfig(), checkpoint=path, **changes)))

    before = found(folder)
    assert found(moved) == before and found(moved, sid_tokens=("<a_{}>",)) != before
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # neither its size nor its header
    (moved / "model.safetensors").write_bytes(weights)
    assert found(moved)["checkpoint"] != before["checkpoint"]
    assert found(bundle.path)["checkpoint"] != before["checkpoint"]
    assert found(folder, adapter=moved)["adapter"] == found(moved)["checkpoint"]
    assert found(folder, sids_of=bundle.path)["semantic IDs of"] == found(bundle.path)["checkpoint"]


def test_data_in_another_form_is_the_same_data(shop: Dataset, tmp_path: Path) -> None:
    write_dataset(shop, tmp_path / "shop")
    assert build_fingerprint(read_dataset(tmp_path / "shop"), BuildConfig()) == build_fingerprint(shop, BuildConfig())


# --- the demo


@pytest.fixture
def run_demo(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`genrec demo` up to where its server would start; returns what it printed."""

    @contextmanager
    def serve(*args: Any, **options: Any) -> Iterator[Any]:
        raise Interrupted
        yield

    monkeypatch.setattr(demo, "serve_bundle", serve)
    monkeypatch.setattr(demo, "find_triton", lambda: None, raising=False)
    monkeypatch.setattr(demo, "DATA_BUILD", config)
    monkeypatch.setattr(demo, "SHOP_BUILD", config)
    monkeypatch.setattr(demo, "SHOP", (120, 60, 0), raising=False)

    def run(data: Path | None, work: Path, epochs: int | None = None) -> str:
        console = Console(width=400, record=True)
        with pytest.raises(Interrupted):
            demo.run_demo(data, work, console, epochs)
        return console.export_text()

    return run


@pytest.mark.training
def test_the_demo_uses_what_is_built_of_the_same_alone(
    shop: Dataset, tmp_path: Path, run_demo: Callable[..., str]
) -> None:
    write_dataset(shop, tmp_path / "data" / "mine")
    work = tmp_path / "work"
    run_demo(tmp_path / "data" / "mine", work)
    built = (work / "mine-bundle" / "manifest.json").read_bytes()
    assert "older genrec" not in run_demo(tmp_path / "data" / "mine", work)
    write_dataset(with_items(shop, sids=shop.items.sids[::-1].copy()), tmp_path / "else" / "mine")
    for data, epochs, says in (("data", 3, "epochs 1, now 3"), ("else", None, "semantic IDs")):
        with pytest.raises(ValueError, match=rf"mine-bundle: .*{says}.*remove .* or name another folder"):
            run_demo(tmp_path / data / "mine", work, epochs)
    assert (work / "mine-bundle" / "manifest.json").read_bytes() == built


@pytest.mark.training
def test_the_demo_uses_a_bundle_of_before_and_says_so(
    shop: Dataset, config: BuildConfig, tmp_path: Path, run_demo: Callable[..., str]
) -> None:
    write_dataset(shop, tmp_path / "mine")
    path = tmp_path / "work" / "mine-bundle"
    build_bundle(shop, path, config, Stages())
    made = Bundle(path).manifest.model_dump(exclude={"format_version", "files"})
    del made["training"]["fingerprint"]
    seal_bundle(path, **made)
    before = (path / "manifest.json").read_bytes()
    assert f"{path}: an older genrec built it" in run_demo(tmp_path / "mine", tmp_path / "work", 5)
    assert (path / "manifest.json").read_bytes() == before


@pytest.mark.training
def test_the_demo_tells_its_shop_from_another(tmp_path: Path, run_demo: Callable[..., str], shop: Dataset) -> None:
    run_demo(None, tmp_path)
    assert "not noted" not in run_demo(None, tmp_path)
    shutil.rmtree(tmp_path / "shop-bundle")
    write_dataset(shop, tmp_path / "shop")  # of unknown making
    assert f"{tmp_path / 'shop'}: it is not noted what made this data" in run_demo(None, tmp_path)
    words = ["demo-shop", str(tmp_path / "shop"), "--items", "130", "--users", "60"]
    assert CliRunner().invoke(app, words).exit_code == 0
    with pytest.raises(ValueError, match=r"shop: .*demo shop 130 items.*, now 120 items.*--work"):
        run_demo(None, tmp_path)


# --- genrec build --keep, and the bundles of benchmarks


@pytest.mark.training
def test_build_keeps_a_bundle_of_the_same_alone(shop: Dataset, tmp_path: Path, run_genrec: Callable[..., Any]) -> None:
    write_dataset(shop, tmp_path / "shop")
    words = ["build", tmp_path / "shop", tmp_path / "out", "--keep", "--hidden-size", "16", "--layers", "1"]
    words += ["--heads", "2", "--levels", "8,8", "--epochs", "0"]
    assert run_genrec(*words)[0] == 0
    built = (tmp_path / "out" / "manifest.json").read_bytes()
    assert run_genrec(*words)[0] == 0
    status, stderr = run_genrec(*words, "--seed", "7")
    assert (status, stderr.count("\nerror: ")) == (1, 1)
    assert f"{tmp_path}/out: was made with other input or settings (seed 0, now 7); remove {tmp_path}/out to" in stderr
    write_dataset(with_items(shop, attributes={}), tmp_path / "shop")
    status, stderr = run_genrec(*words)
    assert status == 1 and f"{tmp_path}/out: was made with other input" in stderr and "attributes of the" in stderr
    assert (tmp_path / "out" / "manifest.json").read_bytes() == built
    assert run_genrec(*[word for word in words if word != "--keep"])[0] == 0
    assert (tmp_path / "out" / "manifest.json").read_bytes() != built


def test_make_quality_leaves_it_to_the_build_what_is_kept(tmp_path: Path) -> None:
    """By the name alone, a bundle of other data was compared."""
    folders = [tmp_path / f"{decoder}-s0" for decoder in ("draft_head", "beam_search")]
    for folder in folders:
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    words = ["make", "-n", "-o", ".venv/.installed", "quality", "DATA=mine", f"QUALITY={tmp_path}", "VENV=.venv"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    for folder in folders:
        assert f"genrec build mine {folder} --keep " in done.stdout


@pytest.mark.training
def test_a_benchmark_uses_bundles_of_the_same_cell_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = BackboneShape(hidden_size=16, intermediate_size=32, layers=1, heads=2, kv_heads=2)
    monkeypatch.setitem(cells.SHAPES, "3M", shape)
    cell = cells.Cell("3M", 5, 3, 8)
    built = cells.cell_bundle(cell, "NEZHA", tmp_path, 50).manifest.created
    monkeypatch.setattr(cells, "build_bundle", lambda *arguments: pytest.fail("built again"))
    assert cells.cell_bundle(cell, "NEZHA", tmp_path, 50).manifest.created == built
    monkeypatch.setitem(cells.SHAPES, "3M", replace(shape, layers=2))
    with pytest.raises(ValueError, match=r"K8-draft_head-50-items: .*layers 1, now 2.*remove .* to build anew"):
        cells.cell_bundle(cell, "NEZHA", tmp_path, 50)


def test_a_benchmark_keeps_results_of_the_same_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(cell: cells.Cell, *settings: Any) -> dict[str, Any]:
        measured.append(cell.name)
        return {"name": cell.name}

    monkeypatch.setattr(bench, "measure", measure)
    name, path = cells.NAMED[0].name, tmp_path / bench.RESULTS
    bench.main(tmp_path, cells=name)
    bench.main(tmp_path, cells=name)
    assert measured == [name]
    with pytest.raises(ValueError, match=rf"cells\.json: .*rounds 3, now 5.*it is of {name}: remove .*cells\.json to"):
        bench.main(tmp_path, cells=name, rounds=5)
    monkeypatch.setitem(cells.SHAPES, "3M", replace(cells.SHAPES["3M"], layers=5))
    with pytest.raises(ValueError, match=r"cells\.json: .*layers 4, now 5"):
        bench.main(tmp_path, cells=name)
    path.write_text(json.dumps({"cells": [{"name": name}]}))  # of before
    bench.main(tmp_path, cells=name)
    assert measured == [name]


# --- knowledge


def test_the_knowledge_demo_uses_a_folder_of_the_same_alone(
    knowledge_folder: Path, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(knowledge_folder, tmp_path / "knowledge"))
    made = json.loads((folder / "made_of.json").read_text())
    assert is_built(folder, made) and not is_built(tmp_path / "missing", made) and not caplog.records
    with pytest.raises(ValueError, match=r"knowledge: .*texts 300, now 1500.*remove .*knowledge to make it anew"):
        is_built(folder, knowledge_fingerprint(dataset))
    titles = [*dataset.items.attributes["title"][:-1], "another"]
    retitled = with_items(dataset, attributes=dataset.items.attributes | {"title": titles})
    assert knowledge_fingerprint(retitled) != knowledge_fingerprint(dataset)
    (folder / "made_of.json").unlink()
    assert is_built(folder, knowledge_fingerprint(dataset))
    assert f"{folder}: was made by an older genrec" in caplog.text
    (folder / "knowledge.json").unlink()
    with pytest.raises(ValueError, match=r"knowledge\.json: is missing; give the folder that"):
        is_built(folder, made)


def test_texts_of_other_code_are_not_gone_on_with(
    knowledge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_build: Any
) -> None:
    (tmp_path / "users.csv").write_text("user_id,history\nu,nothing\n")
    words = knowledge_folder, tmp_path / "users.csv", tmp_path / "texts", GenerationOptions(), tiny_build[1]
    generate(*words)
    generate(*words)
    monkeypatch.setattr("genrec.knowledge.offline._CODE_FORMAT", "99")
    with pytest.raises(ValueError, match=r"texts: .*code format 1, now 99.* name another output"):
        generate(*words)


# --- comparisons


@pytest.fixture
def data(dataset: Dataset, tmp_path: Path) -> Path:
    write_dataset(dataset, tmp_path / "shop")
    return tmp_path / "shop"


def compare(data: Path, out: Path, *models: str) -> tuple[int, str]:
    options = ["--users", "20", "--beam-widths", "20", "--masks", "on", "--engine", "torch"]
    words = [word for model in models for word in ("--model", model)]
    done = CliRunner().invoke(app, ["compare", str(data), "--out", str(out), *options, *words])
    return done.exit_code, str(done.exception)


def with_catalog(bundle: Bundle, path: Path, available: np.ndarray | None, order: slice) -> Path:
    """A copy with other available items, or with the semantic IDs in another order: the weights are the same."""
    shutil.copytree(bundle.path, path)
    ours = bundle.catalog
    ids = [item_id.decode() for item_id in ours.item_ids]
    catalog = Catalog.build(ids, ours.sids[order].copy(), ours.popularity, available)
    write_catalog(path, bundle.space, bundle.layout, catalog, bundle.manifest.beam_width, ours.popular_rows[:5])
    made = bundle.manifest.model_dump(exclude={"format_version", "files", "catalog"})
    alive = int(catalog.available.sum())
    seal_bundle(path, **made, catalog={"version": 2, "items": len(ours), "available": alive})
    return path


def test_rankings_are_kept_of_the_same_bundle_alone(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compare(data, out, f"a={bundle.path}")[0] == 0
    before = (out / RECORD).read_bytes()
    swapped = with_catalog(bundle, tmp_path / "swapped", None, slice(None, None, -1))
    status, said = compare(data, out, f"a={swapped}")
    assert status == 1 and re.search(r"out: .*catalog \w+, now \w+.*model a.*remove .*out.* another folder", said), said
    # The same weights of a bundle of another width are the same model.
    export_bundle(bundle.path, tmp_path / "wide", 80)
    assert compare(data, out, f"a={tmp_path / 'wide'}")[0] == 0
    assert (out / RECORD).read_bytes() == before


def test_models_of_other_available_items_do_not_mix(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """In one call they were refused; in two, one after the other, they were compared."""
    out = tmp_path / "out"
    assert compare(data, out, f"a={bundle.path}")[0] == 0
    without_one = np.arange(len(bundle.catalog)) != bundle.catalog.popular_rows[-1]
    fewer = with_catalog(bundle, tmp_path / "fewer", without_one, slice(None))
    status, said = compare(data, out, f"b={fewer}")
    assert status == 1 and "ranks other available items than what is asked for now" in said, said


def test_rankings_of_before_are_kept_and_it_is_said(
    bundle: Bundle, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert compare(data, out, f"a={bundle.path}")[0] == 0 and not caplog.records
    record = json.loads((out / RECORD).read_text())
    del record["data"]["available"], record["models"][0]["contents"]
    (out / RECORD).write_text(json.dumps(record))
    assert compare(data, out, f"a={bundle.path}")[0] == 0
    assert f"{out}: its rankings of a are of before" in caplog.text


# --- ablations, and the loop that all of them train in


@pytest.mark.training
def test_results_of_ablations_are_of_the_same_data(
    shop: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(shop, tmp_path / "data")
    write_dataset(with_items(shop, sids=shop.items.sids[::-1].copy()), tmp_path / "other")

    def ablation(data: str) -> Ablation:
        return Ablation(tmp_path / data, tmp_path / "out", TrainingConfig(epochs=1, dropout=0.0), 20, 5)

    first = ablation("data").run("no auxiliary loss")
    assert ablation("data").run("no auxiliary loss") == first
    path = tmp_path / "out" / "no-auxiliary-loss.json"
    with pytest.raises(ValueError, match=rf"{path}: .*semantic IDs .*remove it .* use another folder"):
        ablation("other").run("no auxiliary loss")
    path.write_text(json.dumps({name: value for name, value in first.items() if name != "made_of"}))
    assert ablation("other").run("no auxiliary loss") and f"{path}: it was not noted what data" in caplog.text


def test_the_state_of_another_run_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec_builders.training.loop.add_dropout", lambda *_: lambda: None)  # it needs a backbone

    class Words(torch.nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.model = torch.nn.Linear(size, 1)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.model(batch).square().mean()

    class Ones:
        def __init__(self, size: int, batches: int) -> None:
            self.size, self.batches = size, batches

        def plan(self, seed: int, epoch: int, tokens_per_batch: int) -> list[np.ndarray]:
            return [np.arange(2)] * self.batches

        def batch(self, examples: np.ndarray, seed: int, epoch: int) -> torch.Tensor:
            return torch.ones(2, self.size)

    def run(size: int = 3, batches: int = 2, **more: Any) -> None:
        config = TrainingConfig(epochs=more.pop("epochs", 1), dropout=0.0)
        train(Words(size), [Ones(size, batches)], config, None, tmp_path / "state.pt", **more)  # type: ignore[list-item, arg-type]

    run()
    before = (tmp_path / "state.pt").read_bytes()
    for changes, says in (
        ({"epochs": 2}, "epochs 1, now 2"),
        ({"batches": 3}, "training steps 2 on 1 process, now 3 on 1 process"),
        ({"size": 4}, r"tensors \w+, now \w+"),
        ({"made_of": {"variant": "other"}}, "variant none, now other"),
    ):
        with pytest.raises(ValueError, match=rf"state\.pt: .*{says}.*remove .*state\.pt"):
            run(**changes)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_arrow_types_of_the_data_do_not_matter(shop: Dataset) -> None:
    """The fingerprint is of what the data says."""
    queries = shop.interactions.queries
    assert queries is not None
    sliced = pa.concat_arrays([pa.array(["x"], pa.large_string()), queries]).slice(1)
    again = with_interactions(shop, queries=sliced, offsets=shop.interactions.offsets.astype(np.int64))
    assert build_fingerprint(again, BuildConfig()) == build_fingerprint(shop, BuildConfig())
    assert isinstance(again.items, ItemTable)
