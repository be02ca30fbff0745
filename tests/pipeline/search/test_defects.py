"""Defects of public NAS code that concern search and scoring: a test for each, by its number.

The numbers are those of the defects that hilnas set out to avoid. Each test names the program that
has the defect; the tests beside the modules go into detail.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.errors import (
    DeviceError,
    HilnasError,
    MeasurementError,
    MissingLatencyError,
    SplitError,
)
from pipeline.data.batches import EvalBatches
from pipeline.data.config import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.data.splits import Splits
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.front import choose_winner
from pipeline.search.generation import OneByOne
from pipeline.search.journal import Journal, read_journal
from pipeline.search.limits import Limit
from pipeline.search.measuring import LiveMeasurer
from pipeline.search.operators import archs_of, crossover, genes_of, mutate, sizes_of
from pipeline.search.run_search import make_searcher, search
from pipeline.search.shifting import Shifting
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.spaces import load_space
from pipeline.supernet import scoring
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.shifting import Shifter
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet

SMALL = SearchConfig(population=10, parents=4, crossover=4, mutation=4, generations=4)
TIGHT = Limit(metric="latency_ms", bound=2.0, device="board")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Noted:
    """Batches that note the numbers of the images that were taken from them."""

    def __init__(self, batches):
        self.batches, self.ids = batches, []

    def __iter__(self):
        for batch in self.batches:
            self.ids.extend(batch.ids.tolist())
            yield batch


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(name="digits"))


def test_1_every_candidate_is_scored_on_the_same_images_to_the_same_bits(digits, tmp_path):
    """SPOS scores each candidate on the next images of an endless iterator."""
    space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    splits = digits.splits(DataConfig(name="digits"), seed=0)
    batches = {
        name: EvalBatches(digits, splits.cut(name, 40), batch_size=20)
        for name in ("calibration", "search-validation")
    }
    noted = {name: Noted(b) for name, b in batches.items()}
    scorer = Scorer(space, toy_supernet(space), noted["calibration"], noted["search-validation"])
    rng = np.random.default_rng(0)
    first, *others = (space.sample(rng) for _ in range(3))
    scores, seen = [], []
    for arch in (first, *others, first):
        for batch in noted.values():
            batch.ids.clear()
        scores.append(scorer.score(arch))
        seen.append({name: list(batch.ids) for name, batch in noted.items()})
    assert scores[0] == scores[-1]
    assert all(ids == seen[0] for ids in seen)
    assert all(len(set(ids)) == 40 for ids in seen[0].values())
    # and a journal says which images: one of other images is not continued
    identity = {"images": {name: b.ids_sha256 for name, b in batches.items()}}
    Journal.open(tmp_path / "search.jsonl", identity).close()
    line = json.loads((tmp_path / "search.jsonl").read_text().splitlines()[0])
    assert line["record"]["identity"] == identity
    other = EvalBatches(digits, splits.cut("other", 40), batch_size=20).ids_sha256
    with pytest.raises(HilnasError, match="different: images"):
        Journal.open(tmp_path / "search.jsonl", {"images": {"search-validation": other}})


@pytest.mark.parametrize("n", [7, 40, 61])
def test_2_every_class_is_in_the_subset_equally_often(n):
    """Supernet Shifting scores on the first images of a folder sorted by class."""
    labels = np.repeat(np.arange(10), 50)  # sorted by class
    pool = np.arange(500)
    splits = Splits(labels=labels, pool=pool[:-1], test=pool[-1:], heldout=0.3)
    counts = np.bincount(labels[splits.cut("search-validation", 70)[:n]], minlength=10)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == n


def test_3_nothing_that_scores_was_trained_on_or_is_tested_on(digits):
    """SPOS, Supernet Shifting and AutoFormer search on the validation or test set."""
    splits = digits.splits(DataConfig(name="digits"), seed=0)
    sets = [splits.cut(name, 60) for name in ("calibration", "search-validation")]
    sets += [splits.train, splits.test()]
    everything = np.concatenate(sets)
    assert len(np.unique(everything)) == len(everything)
    labels = np.arange(40) % 4
    with pytest.raises(SplitError, match="is in the splits"):  # at the start, before any work
        Splits(labels=labels, pool=np.arange(30), test=np.arange(20, 40))


class Order:
    """Stands for the weights: notes what is done with which candidate."""

    def __init__(self):
        self.events, self.steps = [], 0

    def learn(self, arch, first):
        self.events.append(("learn", arch))

    def step(self):
        self.events.append(("step", None))
        self.steps += 1

    def forget(self):
        pass

    def save(self, path, state):
        pass


def shifted(world, path, weights, score, config):
    """A search that shifts; gives its result."""
    evaluator = world.evaluator(score=score)
    searcher = make_searcher(config, evaluator, seed=0, repeat=True)
    with Journal.open(path, {}) as journal:
        around = Shifting(
            OneByOne(evaluator), evaluator, weights, journal, config.shifting,
            path=path.with_name("state"), identity={},
        )  # fmt: skip
        return search(searcher, evaluator, journal, scoring=around, reassess=around.reassess)


SHIFTED = SMALL.model_copy(update={"shifting": ShiftingConfig(batches=1, keep=6)})


def test_4_a_candidate_is_scored_before_it_is_trained(world, journal_path):
    """Supernet Shifting's code trains every candidate for 20 steps and then scores it."""
    weights = Order()

    def score(arch):
        weights.events.append(("score", arch))
        return Score(accuracy=world.accuracy(arch), loss=0.0)

    shifted(world, journal_path, weights, score, SHIFTED)
    learnt = [i for i, (what, _) in enumerate(weights.events) if what == "learn"]
    assert len(learnt) == SMALL.generations * SMALL.population  # all but the first population
    for i in learnt:
        since = weights.events[:i]
        last_step = max((j for j, e in enumerate(since) if e[0] == "step"), default=-1)
        arch = weights.events[i][1]
        assert ("score", arch) in since[last_step + 1 :]  # by the weights that it is to move


PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
from tests.pipeline.search.test_defects import real_shifted
torch.set_num_threads(1)
real_shifted(Path(sys.argv[1]), dies_at=int(sys.argv[2]))
"""


def real_shifted(folder, dies_at=-1):
    """Shift the weights of a toy; kill this process before the score number ``dies_at``."""
    space = toy_space()
    supernet = toy_supernet(space)
    images = [ToyStream(batch_size=16, seed=2).batch(i) for i in range(2)]
    scorer = Scorer(space, supernet, images[:1], images[1:])
    n_scored = 0

    def score(arch):
        nonlocal n_scored
        if n_scored == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        n_scored += 1
        return scorer.score(arch)

    config = SearchConfig(
        population=3, parents=2, crossover=1, mutation=1, generations=2,
        shifting=ShiftingConfig(batches=1, images_per_batch=16, keep=3, lr=0.05),
    )  # fmt: skip
    evaluator = Evaluator(space=space, cost_table=space.cost_table(), score=score)
    searcher = make_searcher(config, evaluator, seed=0, repeat=True)
    shifter = Shifter(space, supernet, ToyStream(batch_size=16), config.shifting, seed=0)
    folder.mkdir(exist_ok=True)
    with Journal.open(folder / "search.jsonl", {}) as journal:
        around = Shifting(
            OneByOne(evaluator), evaluator, shifter, journal, config.shifting,
            path=folder / "state", identity={},
        )  # fmt: skip
        found = search(searcher, evaluator, journal, scoring=around, reassess=around.reassess)
    shifter.write_supernet(folder / "shifted.safetensors", {})
    return found.archive


def test_5_shifted_weights_are_saved_and_a_killed_search_ends_alike(tmp_path):
    """Supernet Shifting's code never saves the shifted weights and cannot resume."""
    expected = real_shifted(tmp_path / "whole")
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "killed"), "7", str(root)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    n_kept = sum(map(len, read_journal(tmp_path / "killed/search.jsonl").scores))
    assert 7 <= n_kept < 9  # in the last generation, after the first step
    assert not (tmp_path / "killed/shifted.safetensors").exists()
    assert real_shifted(tmp_path / "killed") == expected
    weights = [tmp_path / name / "shifted.safetensors" for name in ("whole", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("method", ["evolution", "random", "nsga2"])
def test_6_the_best_of_all_that_was_evaluated_can_win(world, journal_path, method):
    """Their last population never enters the archive, and what broke a limit counts as visited."""
    seen = {}

    def rising(arch):  # the last population is the best
        seen[arch] = Score(accuracy=len(seen) / 1000, loss=0.0)
        return seen[arch]

    evaluator = world.evaluator(TIGHT, score=rising)
    config = SMALL.model_copy(update={"method": method})
    searcher = make_searcher(config, evaluator, seed=0)
    with Journal.open(journal_path, {}) as journal:
        archive = search(searcher, evaluator, journal).archive
        measurer = LiveMeasurer(sources={"board": world.latencies}, journal=journal)
        front = choose_winner(archive, [TIGHT], measurer)
    assert {e.arch: e.score for e in archive} == seen
    assert front.winner.arch == list(seen)[-1]
    # a candidate that broke the limit when it was drawn may come again under another verdict
    broken = next(c.arch for c in evaluator.screened if not c.feasible)
    searcher.violations = lambda archs: [0.0 if arch == broken else 1.0 for arch in archs]
    taken = {}
    searcher._admit([broken], taken, 1)
    assert list(taken.values()) == [broken]


def test_7_the_winner_is_chosen_by_scores_of_the_final_weights(world, journal_path):
    """Supernet Shifting's code lets scores of early weights compete with those of late ones."""
    weights = Order()

    def fading(arch):  # early weights flatter everything
        return Score(accuracy=world.accuracy(arch) - weights.steps / 10, loss=0.0)

    result = shifted(world, journal_path, weights, fading, SHIFTED)
    assert weights.steps == SMALL.generations
    assert len(result.archive) == 6
    for evaluation in result.archive:
        assert evaluation.score.shift == weights.steps
        assert evaluation.accuracy == fading(evaluation.arch).accuracy
    scores = [s for generation in read_journal(journal_path).scores for s in generation]
    assert max(s.accuracy for s in scores) > result.archive[0].accuracy  # a stale one


def test_8_scoring_computes_no_gradient_and_keeps_nothing(monkeypatch):
    """Supernet Shifting's code validates with gradients switched on."""
    space = toy_space()
    supernet = toy_supernet(space)
    images = [ToyStream(batch_size=4, seed=1).batch(0)]
    logits = []
    original = scoring.F.cross_entropy

    def watched(found, *given, **more):
        logits.append((found.requires_grad, found.is_inference(), torch.is_grad_enabled()))
        return original(found, *given, **more)

    monkeypatch.setattr(scoring.F, "cross_entropy", watched)
    scorer = Scorer(space, supernet, images, images)
    rng = np.random.default_rng(0)
    for _ in range(30):
        scorer.score(space.sample(rng))
    assert set(logits) == {(False, True, False)}
    assert all(p.grad is None for p in supernet.parameters())
    assert not scorer._statistics  # flat memory over hundreds: tests of the scorer


ELASTIC = [
    load_space("autoformer", preset="tiny", input_shape=(3, 32, 32), n_classes=10),
    load_space("bignas", preset="tiny", input_shape=(3, 32, 32), n_classes=10),
]


@pytest.mark.parametrize("space", ELASTIC, ids=lambda s: s.name)
@given(seed=st.integers(0, 2**32 - 1), rate=st.floats(0, 1))
def test_11_children_of_parents_of_unequal_depth_are_in_the_space(space, seed, rate):
    """AutoFormer's crossover of unequal depths makes genomes that fit no network."""
    rng = np.random.default_rng(seed)
    parents = genes_of(space.decisions, [space.sample(rng) for _ in range(6)])
    children = crossover(rng, parents[:3], parents[3:])
    children = mutate(rng, children, sizes_of(space.decisions), rate)
    for arch in archs_of(space.decisions, children):
        space.validate(arch)
        assert space.canonical(space.canonical(arch)) == space.canonical(arch)


@pytest.mark.parametrize("space", ELASTIC, ids=lambda s: s.name)
def test_11_every_child_makes_a_network_that_runs(space):
    rng = np.random.default_rng(1)
    depths = [d for d in space.decisions if "depth" in d.label]
    assert depths  # or this test shows nothing
    low, high = (
        genes_of(space.decisions, [space.sample(rng).replace(**dict(ends))])
        for ends in (
            [(d.label, d.choices[0]) for d in depths],
            [(d.label, d.choices[-1]) for d in depths],
        )
    )
    (arch,) = archs_of(space.decisions, crossover(rng, low, high))
    with torch.device("meta"):
        logits = space.network(arch).eval()(torch.zeros(1, *space.input_shape_of(arch)))
    assert logits.shape == (1, 10)


def test_14_a_latency_that_nobody_measured_is_an_error_and_never_zero(world, journal_path):
    """mmrazor's latency constraint is silently 0 where its source has no answer."""
    with pytest.raises(MissingLatencyError, match="never guessed"):
        world.evaluator(TIGHT, latency={})
    unknown = MeasurementError("NO_TABLE", "nothing was measured", blames="board")
    silent = world.evaluator(TIGHT, latency={"board": lambda archs: [unknown] * len(archs)})
    with pytest.raises(DeviceError, match="nothing was measured"):
        silent.screen(world.everything()[:1])
    found = world.run(journal_path, SMALL, TIGHT).archive
    with (
        Journal.open(journal_path.with_name("front"), {}) as journal,
        pytest.raises(MissingLatencyError, match="nothing measures on 'board'"),
    ):
        choose_winner(found, [TIGHT], LiveMeasurer(sources={}, journal=journal))


def test_15_macs_are_computed_at_once_and_no_table_is_read(monkeypatch):
    """SPOS downloads a pickle with the costs of its blocks."""

    def refused(*given, **more):
        raise AssertionError("a pickle was read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    monkeypatch.setattr("builtins.open", refused)
    space = load_space("shufflenetv2", preset="tiny", input_shape=(3, 32, 32), n_classes=10)
    table = space.cost_table()
    rng, seconds = np.random.default_rng(0), []
    for _ in range(20):
        arch = space.sample(rng)
        started = time.perf_counter()
        macs = table.cost(arch, "macs")
        seconds.append(time.perf_counter() - started)
        assert macs > 0
    assert min(seconds) < 0.01
