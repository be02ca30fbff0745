"""``hilnas transfer`` from settings to a searched network, on a board that answers by formula."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from device_agents.inventory import read_inventory
from latency_tables.errors import CheckpointError, ConfigError, RunError, UsageError
from latency_tables.files import sha256_file
from pipeline.run import priors
from pipeline.run.job import Job
from pipeline.run.priors import find_priors
from pipeline.run.profile import space_for
from pipeline.run.progress import Reporter
from pipeline.run.source import read_source
from pipeline.run.stage import run_stages
from pipeline.run.stages import stages_of
from pipeline.run.table_records import usable_records
from pipeline.run.transfer import read_transfer
from pipeline.supernet.transfer import classifier_of

SMALL = (
    "latency.samples=16",
    "latency.remeasure=2",
    "search.population=6",
    "search.parents=3",
    "search.crossover=2",
    "search.mutation=2",
    "search.generations=1",
    "train.threads=1",
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the source run is kept, trained once for all tests."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def world(tmp_path, script, monkeypatch, kept):
    """A source run, trained on digits; images of five classes in colour, 12 pixels wide."""
    monkeypatch.setattr("pipeline.run.context.space_for", space_for)
    digits = load_digits()
    grey = np.round(digits.images * 255 / 16).astype(np.uint8)
    wide = np.pad(grey, ((0, 0), (2, 2), (2, 2)))
    np.savez(
        tmp_path / "halves.npz",
        images=np.stack([wide] * 3, axis=-1),
        labels=(digits.target // 2).astype(np.int64),
    )
    (tmp_path / "halves.toml").write_text(
        '[data]\nname = "npz"\npath = "halves.npz"\nheldout = 0.35\n'
        '[[device]]\nname = "local"\nlimits = { latency = "60%" }\n'
    )
    if not (kept / "source").exists():
        source = make_job(tmp_path, read_source("digits", [*SMALL, "train.epochs=1"]), "source")
        source.run(until="train")
        shutil.copytree(tmp_path / "source", kept / "source")
        shutil.copy(tmp_path / "tables.sqlite", kept)
    shutil.copytree(kept / "source", tmp_path / "source", dirs_exist_ok=True)
    shutil.copy(kept / "tables.sqlite", tmp_path)
    return tmp_path


def make_job(home: Path, found, out: str) -> Job:
    return Job.of(
        found,
        out=home / out,
        table_path=home / "tables.sqlite",
        inventory=read_inventory(work_dir=home / "work"),
        reporter=Reporter(Console(file=io.StringIO())),
    )


def transfer(home: Path, *more: str, out: str = "moved") -> Job:
    learn = ("search.shifting.batches=2", "search.shifting.lr=0.01")
    found = read_transfer(home / "source", str(home / "halves.toml"), [*SMALL, *learn, *more])
    return make_job(home, found, out)


def differing(first: dict, second: dict) -> set[str]:
    return {k for k in first if not torch.equal(first[k], second[k])}


def parameters(job: Job) -> set[str]:
    with job.context() as context:
        return {k for k, _ in context.space.supernet().named_parameters()}


def test_a_transfer_searches_the_sources_space_with_its_weights_and_a_new_classifier(world) -> None:
    job = transfer(world)
    job.run(until="search")
    with job.context() as context:
        assert (context.space.n_classes, context.space.input_shape) == (5, (1, 8, 8))
        classifier = set(classifier_of(context.space))
    source = load_file(world / "source/supernet.safetensors")
    taken = load_file(world / "moved/supernet.safetensors")
    assert {k for k in taken if taken[k].shape != source[k].shape} == classifier
    same = {k: v for k, v in taken.items() if k not in classifier}
    assert differing(same, source) == set()
    shifted = load_file(world / "moved/shifted.safetensors")
    assert differing(taken, shifted) > classifier
    front = json.loads((world / "moved/front.json").read_text())
    assert front["weights"]["sha256"] == sha256_file(world / "moved/shifted.safetensors")
    assert (world / "moved/train.jsonl").read_text() == ""


def test_a_stopped_transfer_goes_on_without_its_source_and_ends_the_same(world) -> None:
    transfer(world).run(until="train")
    shutil.copytree(world / "moved", world / "stopped")  # the same table, too
    shutil.copy(world / "tables.sqlite", world / "kept.sqlite")
    make_job(world, read_source(str(world / "moved")), "moved").run(until="search")
    shutil.copy(world / "kept.sqlite", world / "tables.sqlite")
    shutil.rmtree(world / "source")
    make_job(world, read_source(str(world / "stopped")), "stopped").run(until="search")
    fronts = [json.loads((world / f / "front.json").read_text()) for f in ("moved", "stopped")]
    assert fronts[0]["weights"] == fronts[1]["weights"]
    assert [p["arch"] for p in fronts[0]["points"]] == [p["arch"] for p in fronts[1]["points"]]


def test_the_search_may_move_the_classifier_alone_after_a_warm_up_of_it(world) -> None:
    job = transfer(world, "transfer.head_only=true", "transfer.head_steps=3")
    job.run(until="search")
    with job.context() as context:
        classifier = set(classifier_of(context.space))
        names = {k for k, _ in context.space.supernet().named_parameters()}
    source = load_file(world / "source/supernet.safetensors")
    warm = load_file(world / "moved/supernet.safetensors")
    kept = {k: v for k, v in warm.items() if k in names - classifier}
    assert differing(kept, source) == set()
    assert differing(warm, load_file(world / "moved/shifted.safetensors")) == classifier
    lines = (world / "moved/train.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 3


def test_shifted_weights_of_the_source_are_taken_unless_the_trained_ones_are_asked_for(
    world,
) -> None:
    shifted = (*SMALL, "train.epochs=1", "search.shifting={batches=1, lr=0.01}")
    make_job(world, read_source("digits", shifted), "source").run(until="search")
    for weights, file in (("searched", "shifted"), ("trained", "supernet")):
        found = read_transfer(
            world / "source", str(world / "halves.toml"), [f"transfer.weights={weights}"]
        )
        assert found.config.transfer.sha256 == sha256_file(world / f"source/{file}.safetensors")


def test_what_the_run_file_says_of_shifting_holds(world) -> None:
    def shifting(*more: str):
        return read_transfer(world / "source", "digits", more).config.search.shifting

    assert (shifting().mode, shifting().lr) == ("immediate", 0.01)
    assert shifting("search.shifting.mode=accumulate").mode == "accumulate"
    found = shifting("search.shifting.lr=1e-4")
    assert (found.mode, found.lr) == ("immediate", 1e-4)
    assert shifting("search.shifting=false") is None


def test_measurements_of_the_sources_space_are_a_prior_of_the_new_table(world, monkeypatch) -> None:
    monkeypatch.setattr(priors, "LEAST", 16)
    monkeypatch.setattr(priors, "operator_prior", lambda *_: None)
    job = transfer(world)
    job.run(until="table")
    with job.context() as context:
        (name,) = find_priors(context, context.devices[0], usable_records(context.devices[0]))
    assert name.startswith("local (onnxruntime")


def test_a_file_that_changed_since_the_transfer_began_is_refused(world) -> None:
    job = transfer(world)
    job.run(until="table")
    more = (*SMALL, "train.epochs=2")
    make_job(world, read_source("digits", more), "source").run(until="train")
    with pytest.raises(CheckpointError, match="is not what it was when this transfer began"):
        job.run(until="train")


def test_damaged_weights_are_refused(world) -> None:
    path = world / "source/supernet.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        transfer(world)


def test_a_source_that_is_no_run_or_has_not_trained_is_refused(world) -> None:
    with pytest.raises(UsageError, match="is no run folder"):
        read_transfer(world / "work", "digits")
    job = make_job(world, read_source("digits", SMALL), "untrained")
    with job.working() as context:
        run_stages(stages_of(context.config), context, until="profile")
    with pytest.raises(RunError, match="no trained supernet yet") as told:
        read_transfer(world / "untrained", "digits")
    assert told.value.hint == f"hilnas run {world / 'untrained'}"


def test_a_source_of_ones_own_model_is_refused(world) -> None:
    path = world / "source/profile.json"
    profile = json.loads(path.read_text())
    profile["space"]["name"] = "my_model"
    path.write_text(json.dumps(profile))
    with pytest.raises(UsageError, match="a model of your own"):
        read_transfer(world / "source", "digits")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.name=mobilenetv2", "the space of a transfer is the source's"),
        ("train.warm_start=x.pth", "train.warm_start is for training"),
        ("transfer.head_step=3", "did you mean 'head_steps'"),
    ],
)
def test_settings_that_contradict_a_transfer_are_refused(world, override, message) -> None:
    with pytest.raises(ConfigError, match=message):
        read_transfer(world / "source", "digits", [override])


def test_a_run_folder_is_not_a_target(world) -> None:
    with pytest.raises(UsageError, match="is a run folder") as told:
        read_transfer(world / "source", str(world / "source"))
    assert told.value.hint.startswith("hilnas run ")


def test_a_run_file_with_a_transfer_is_only_run_by_transfer(world) -> None:
    found = read_source("digits", [*SMALL, 'transfer.source="source"'])
    with pytest.raises(UsageError, match="no run of its own") as told:
        make_job(world, found, "plain").run()
    assert told.value.hint == "hilnas transfer source FILE"


def test_images_of_their_own_size_and_colours_keep_them_where_that_is_asked_for(world) -> None:
    job = transfer(world, "data.image_size=12", "data.channels=3")
    job.run(until="train")
    assert (world / "moved/supernet.safetensors").exists()
    with job.context() as context:
        assert context.space.input_shape == (3, 12, 12)


def test_learned_resampling_stands_before_the_sources_network_and_learns(world) -> None:
    job = transfer(world, 'transfer.resample="learned"', "transfer.head_only=true")
    job.run(until="search")
    with job.context() as context:
        assert context.space.input_shape == (1, 12, 12)
        classifier = set(classifier_of(context.space))
    source = load_file(world / "source/supernet.safetensors")
    taken = load_file(world / "moved/supernet.safetensors")
    layer = {"blocks.resample.fixed.rows", "blocks.resample.fixed.columns"}
    assert taken.keys() - source.keys() == layer
    kept = {k: v for k, v in taken.items() if k not in layer | classifier}
    assert differing(kept, source) == set()
    moved = differing(taken, load_file(world / "moved/shifted.safetensors"))
    assert moved == layer | classifier
