"""The methods of Supernet Shifting's table 4 train and search on both of its spaces."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

from latency_tables.files import sha256_file
from pipeline.run.profile import space_of
from pipeline.run.source import read_source
from pipeline.search.journal import read_journal
from pipeline.supernet.weights import load_supernet
from tests.pipeline.run.scripted_board import Script

# few paths per step: the cost of a step is not what is looked at
METHODS = {
    "spos": "",
    "fairnas": "",
    "greedynas": "drawn = 3, trained = 2, scoring_images = 40, pool_size = 10",
    "attentivenas": "candidates = 2, attentive = 1",
    "kshot": "k = 2, groups = 4, warmup_share = 0.3",
    "shiftnas": "levels = 3, update_every = 1, freeze = 0.0",
}
SHIFTING = "{batches = 1, images_per_batch = 8, keep = 4}"
SEARCH = "{population = 8, parents = 4, crossover = 3, mutation = 3, generations = 1}"


@cache
def space_named(name: str):
    return space_of(read_source("digits", [f"space.name={name}"]).config, None)


@pytest.fixture
def finished(open_run, monkeypatch):
    """The folder of a run that searched a space with a supernet of a strategy."""

    def run(space: str, strategy: str, *overrides: str):
        made = space_named(space)
        script = Script(costs=made.cost_table())
        monkeypatch.setattr("pipeline.run.devices.DeviceMeasurer", script.measurer)
        monkeypatch.setattr("pipeline.run.context.space_for", lambda dataset, config: made)
        job = open_run(
            f"space.name={space}",
            f"train.strategy={strategy}",
            f"train.options={{{METHODS.get(strategy, '')}}}",
            "train.epochs=0.1",
            f"search={SEARCH}",
            "latency.remeasure=2",
            *overrides,
        )
        job.run(until="search")
        return job.folder.path

    return run


@pytest.mark.parametrize("space", ["shufflenetv2", "mobilenetv2"])
@pytest.mark.parametrize("strategy", METHODS)
def test_a_method_trains_and_searches_under_a_latency_limit(finished, space, strategy) -> None:
    folder = finished(space, strategy)
    front = json.loads((folder / "front.json").read_text())
    winner = front["points"][front["winner"]]
    limits = json.loads((folder / "latency.json").read_text())["limits"]
    assert winner["measured"]["local"]["latency_ms"] <= limits[0]["bound"]
    assert json.loads((folder / "train.jsonl").read_text().splitlines()[-1])["step"] == 3


@pytest.mark.parametrize("space", ["shufflenetv2", "mobilenetv2"])
@pytest.mark.parametrize(
    "strategy",
    ["spos", *(pytest.param(name, marks=pytest.mark.long) for name in METHODS if name != "spos")],
)
def test_a_method_shifts_its_supernet_while_it_searches(finished, space, strategy) -> None:
    folder = finished(space, strategy, f"search.shifting={SHIFTING}")
    front = json.loads((folder / "front.json").read_text())
    winner = front["points"][front["winner"]]
    assert winner["score"]["shift"] == 1  # scored with the final weights
    shifted, trained = (
        load_supernet(space_named(space), folder / file).state_dict()
        for file in ("shifted.safetensors", "supernet.safetensors")
    )
    assert front["weights"]["sha256"] == sha256_file(folder / "shifted.safetensors")
    moved = {name for name, value in trained.items() if not torch.equal(value, shifted[name])}
    assert moved
    assert not any(name.endswith(("running_mean", "running_var")) for name in moved)


@pytest.mark.parametrize(
    ("settings", "policy", "n_images"),
    [("bn='recalibrate', bn_images=50", "recalibrate", 50), ("bn='batch'", "batch", 0)],
)
def test_scores_say_which_statistics_they_were_made_with(
    finished, settings, policy, n_images
) -> None:
    folder = finished(
        "nasbench_macro", "spos", f"search={SEARCH.replace('{', '{' + settings + ', ')}"
    )
    journal = read_journal(folder / "search.jsonl")
    scores = [score for generation in journal.scores for score in generation]
    found = {(score.bn_policy, score.n_calibration_images) for score in scores}
    assert found == {(policy, n_images)}
