"""How a run scores its candidates: images, format, and what is said about it."""

import json

import numpy as np
import pytest

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.run import scoring
from pipeline.run.scoring import (
    PRECISION_FILE,
    choose_precision,
    image_hashes,
    make_scorer,
    require_scoring,
    say_scoring,
    scored_how,
    time_share,
    validation_batches,
)
from pipeline.run.stages.search import SEARCH
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Candidate, Score
from pipeline.search.journal import Journal, read_journal
from pipeline.supernet.number_format import FormatTrial
from pipeline.supernet.scoring import Scorer


@pytest.fixture
def in_context(open_run):
    """Calls a function with the context of a run with these settings of the search."""

    def call(function, **search):
        given = {k: v for k, v in search.items() if v is not None}
        job = open_run(*(f"search.{k}={json.dumps(v)}" for k, v in given.items()))
        job.folder.path.mkdir(exist_ok=True)
        with job.context() as context:
            return function(context)

    return call


FAST = FormatTrial(
    n_subnets=9, n_images=60, fp32_seconds=1.0, bf16_seconds=0.5, change=0.1, tau=1.0
)


def ids_of(batches):
    return np.concatenate([batch.ids.numpy() for batch in batches]).tolist()


@pytest.mark.parametrize("n", [23, 60, 119])
def test_every_class_scores_equally_often_in_a_subset(in_context, n):
    def histogram(context):
        return np.bincount(context.dataset.labels[ids_of(validation_batches(context))])

    counts = in_context(histogram, images=n)
    assert counts.sum() == n
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1


def test_a_subset_is_the_same_whenever_it_is_asked_for_and_another_one_for_another_seed(open_run):
    def ids(seed):
        with open_run(f"seed={seed}", "search.images=60").context() as context:
            return ids_of(validation_batches(context)), image_hashes(context)

    assert ids(0) == ids(0)
    first, other = ids(0), ids(1)
    assert set(first[0]) != set(other[0])
    assert first[1]["search-validation"] != other[1]["search-validation"]


def test_more_images_than_there_are_mean_all(in_context):
    def held(context):
        return len(context.splits.indices("search-validation")), validation_batches(context)

    n, batches = in_context(held, images=10_000)
    assert batches.n_images == n < 10_000
    assert in_context(image_hashes) == in_context(image_hashes, images=10_000)


def test_rungs_double_what_was_seen_and_every_rung_is_balanced(in_context):
    def rungs(context):
        scorer = make_scorer(context, context.space.supernet())
        labels = context.dataset.labels
        return [labels[ids_of(rung)].numpy() for rung in scorer.rungs]

    found = in_context(rungs, images=96, halving=3)
    assert [len(labels) for labels in found] == [24, 24, 48]
    for upto in (1, 2, 3):
        counts = np.bincount(np.concatenate(found[:upto]), minlength=10)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("halving", "share"), [(None, 1.0), (3, (25 + 0.5 * 60) / (25 + 60))])
def test_a_plan_counts_what_halving_spares(in_context, halving, share):
    def planned(context):
        scorer = make_scorer(context, context.space.supernet())
        scorer.score(context.space.sample(np.random.default_rng(0)))
        return time_share(context, scorer)

    found = in_context(planned, images=60, bn_images=20, halving=halving)
    assert found == pytest.approx(share)


def test_too_few_images_for_so_many_rungs_are_refused(in_context):
    with pytest.raises(UsageError, match="3 batches of images cannot be cut into 4 rungs"):
        in_context(require_scoring, images=3, halving=4)
    in_context(require_scoring, images=96, halving=4)


def test_the_stage_keeps_the_decision_with_its_journal():
    assert PRECISION_FILE in SEARCH.working
    assert SEARCH.on_all_ranks


def test_auto_is_measured_once_and_kept(in_context, monkeypatch):
    tried = []

    def try_formats(make, archs):
        tried.append(archs)
        assert [make(name).precision.dtype for name in ("fp32", "bf16")] == ["fp32", "bf16"]
        return FAST

    monkeypatch.setattr(scoring, "supports_bf16", lambda device: True)
    monkeypatch.setattr(scoring, "try_formats", try_formats)

    def choose(context):
        return choose_precision(context, context.space.supernet())

    assert in_context(choose, precision="auto") == "bf16"
    monkeypatch.setattr(scoring, "try_formats", None)  # must not be asked again
    assert in_context(choose, precision="auto") == "bf16"
    assert len(tried) == 1
    assert len(set(tried[0])) > 4


def test_a_damaged_decision_is_made_again(in_context, monkeypatch):
    monkeypatch.setattr(scoring, "supports_bf16", lambda device: False)

    def choose(context):
        context.folder.file(PRECISION_FILE).write_text('{"choice": "fp8"}')
        found = choose_precision(context, None)
        return found, json.loads(context.folder.file(PRECISION_FILE).read_text())

    found, kept = in_context(choose, precision="auto")
    assert found == kept["choice"] == "fp32"
    assert "does not compute in bf16" in kept["why"]


def test_bf16_on_a_machine_without_it_is_refused(in_context, monkeypatch):
    monkeypatch.setattr(scoring, "supports_bf16", lambda device: False)
    with pytest.raises(UsageError, match="does not compute in bf16"):
        in_context(require_scoring, precision="bf16")
    in_context(require_scoring, precision="auto")


def test_another_format_or_subset_makes_other_scores():
    keys = {
        SearchConfig().score_key(),
        SearchConfig().score_key("bf16"),
        SearchConfig(images=5).score_key(),
        SearchConfig(bn_images=5).score_key(),
        SearchConfig(halving=2).score_key(),
    }
    assert len(keys) == 5


def test_what_scoring_took_is_said_per_candidate(in_context, said):
    class Cached:
        n_cached = 2

    def score(context):
        scorer = make_scorer(context, context.space.supernet())
        rng = np.random.default_rng(0)
        for _ in range(3):
            scorer.score(context.space.sample(rng))
        say_scoring(context, scorer, [Cached()])

    in_context(score, images=40, bn_images=20)
    text = said.getvalue()
    assert "scoring: 3 candidates, 2 more from the cache" in text
    assert "40 to validate, 20 to calibrate" in text
    assert "s per candidate" in text
    assert "images/s (fp32)" in text


def test_the_front_says_how_candidates_were_scored(tmp_path):
    with Journal.open(tmp_path / "search.jsonl", {}) as journal:
        journal.asked(0, [Candidate(arch=Arch({"b": str(i)}), costs={}) for i in range(2)])
        journal.scored(0, 0, Score(accuracy=0.5, n_images=60, n_calibration_images=30))
        journal.scored(
            0, 1, Score(accuracy=0.5, n_images=20, n_calibration_images=30, complete=False)
        )
        assert scored_how(journal, "recalibrate, 60 images, 3 rungs") == {
            "policy": "recalibrate, 60 images, 3 rungs",
            "candidates": 2,
            "on_all_images": 1,
            "images_per_candidate": 40.0,
            "calibration_images_per_candidate": 30.0,
        }


HALVED = (
    "train.epochs=0.2",
    "latency.remeasure=2",
    "search={population = 8, parents = 3, crossover = 3, mutation = 3, generations = 2, "
    "images = 80, halving = 3, bn_images = 40}",
)


def test_a_killed_run_that_halves_ends_with_the_same_front_and_counts_nothing_twice(
    open_run, said, monkeypatch
):
    whole = open_run(*HALVED, out="whole")
    whole.run(until="search")
    front = json.loads((whole.folder.path / "front.json").read_text())
    assert all("complete" not in point["score"] for point in front["points"])
    assert front["scoring"]["candidates"] == 24
    assert front["scoring"]["on_all_images"] == 6
    assert front["scoring"]["images_per_candidate"] == 80 * 4 / 8
    assert front["scoring"]["calibration_images_per_candidate"] == 40
    assert "40 to validate, 40 to calibrate" in " ".join(said.getvalue().split())
    original, counted = Scorer.tally, []

    def dying(scorer, arch, rung=None, before=None):
        if len(counted) == 20:  # among the rungs of the second generation
            raise KeyboardInterrupt
        counted.append((arch, rung))
        return original(scorer, arch, rung, before)

    monkeypatch.setattr(Scorer, "tally", dying)
    killed = open_run(*HALVED, out="killed")
    with pytest.raises(KeyboardInterrupt):
        killed.run(until="search")
    counted.append(None)  # does not die again
    open_run(*HALVED, out="killed").run(until="search")
    again = json.loads((killed.folder.path / "front.json").read_text())
    assert again["scoring"] == front["scoring"]
    archives = [read_journal(job.folder.path / "search.jsonl") for job in (whole, killed)]
    assert archives[0].scores == archives[1].scores
    assert archives[0].rungs == archives[1].rungs
    done = [c for c in counted if c is not None]
    assert len(done) == len(set(done)) == 3 * (8 + 4 + 2)
