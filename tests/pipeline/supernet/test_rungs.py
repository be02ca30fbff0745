"""Scoring a subnet in parts, and what scoring many subnets leaves behind."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latency_tables.arch import Arch
from pipeline.search.evaluation import Candidate
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import OneWorker
from pipeline.search.halving import Halving
from pipeline.search.journal import Journal
from pipeline.spaces.base import Space
from pipeline.supernet import scoring
from pipeline.supernet.policies import BN_POLICIES
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.tally import Tally
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet

CALIBRATION = [ToyStream(batch_size=32, seed=1).batch(i) for i in range(3)]
VALIDATION = [ToyStream(batch_size=16, seed=2).batch(i) for i in range(4)]
RUNGS = [VALIDATION[:1], VALIDATION[1:2], VALIDATION[2:]]


@pytest.fixture(scope="module")
def space() -> Space:
    return toy_space()


def scorer(space: Space, **more: Any) -> Scorer:
    rungs = more.pop("rungs", RUNGS)
    return Scorer(space, toy_supernet(space), CALIBRATION, VALIDATION, rungs=rungs, **more)


def archs(space: Space, n: int) -> list[Arch]:
    rng = np.random.default_rng(3)
    return [space.sample(rng) for _ in range(n)]


def climb(made: Scorer, arch: Arch, upto: int = 2) -> Tally:
    found = made.tally(arch, 0)
    for rung in range(1, upto + 1):
        found = made.tally(arch, rung, found)
    return found


@pytest.mark.parametrize("policy", BN_POLICIES)
def test_all_rungs_together_give_the_score_to_the_last_bit(space: Space, policy: Any) -> None:
    made = scorer(space, policy=policy)
    for arch in archs(space, 4):
        tally, score = climb(made, arch), scorer(space, policy=policy).score(arch)
        assert (tally.accuracy, tally.loss) == (score.accuracy, score.loss)
        assert tally.n_images == score.n_images == 64
        assert tally.n_calibration_images == score.n_calibration_images
        assert tally.bn_policy == policy


def test_statistics_are_calibrated_once_per_subnet_and_not_once_per_rung(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[nn.Module] = []
    original = scoring.recalibrate

    def counted(network: nn.Module, batches: Any) -> int:
        calls.append(network)
        return original(network, batches)

    monkeypatch.setattr(scoring, "recalibrate", counted)
    made, several = scorer(space), archs(space, 5)
    first = [made.tally(arch, 0) for arch in several]  # pieces are shared, so each spoils others'
    second = [made.tally(arch, 1, t) for arch, t in zip(several, first, strict=True)]
    third = [made.tally(arch, 2, t) for arch, t in zip(several, second, strict=True)]
    assert len(calls) == 5
    assert third == [climb(scorer(space), arch) for arch in several]
    assert made.n_calibration_images == 5 * 96
    assert made.n_images == 5 * (96 + 64)
    assert made.n_scored == 5


def test_statistics_that_were_not_kept_are_calibrated_to_the_same_bits(space: Space) -> None:
    arch = archs(space, 1)[0]
    made = scorer(space)
    before = made.tally(arch, 0)
    expected = made.tally(arch, 1, before)
    made.forget()
    assert made.tally(arch, 1, before) == expected
    assert scorer(space).tally(arch, 1, before) == expected  # another process
    assert scorer(space).tally(arch, 1) == expected  # counts from the first image on


def test_nothing_is_kept_behind_the_last_rung(space: Space) -> None:
    made = scorer(space, rungs=[VALIDATION])
    for arch in archs(space, 3):
        made.tally(arch)
    assert not made._statistics


def test_halving_keeps_the_winner_of_a_real_supernet_for_fewer_images(
    space: Space, tmp_path: Any
) -> None:
    """On a trained toy: the best of 16 by all images is among those that reach the last rung."""
    supernet = trained(space)
    images = [ToyStream(batch_size=48, seed=7).batch(i) for i in range(4)]
    rungs = [images[:1], images[1:2], images[2:]]
    several = list(dict.fromkeys(archs(space, 16)))
    full = Scorer(space, supernet, CALIBRATION, images)
    expected = {arch: full.score(arch).accuracy for arch in several}
    made = Scorer(space, supernet, CALIBRATION, images, rungs=rungs)
    evaluator = Evaluator(space=space, cost_table=space.cost_table(), score=made.score)
    candidates = [Candidate(arch=arch, costs={}) for arch in several]
    with Journal.open(tmp_path / "search.jsonl", {}) as journal:
        journal.asked(0, candidates)
        halving = Halving(evaluator, OneWorker(made), journal, n_rungs=3)
        scores = list(halving.scores(0, candidates, []))
        halving.end(0)
    complete = {a: s.accuracy for a, s in zip(several, scores, strict=True) if s.complete}
    assert complete == {arch: expected[arch] for arch in complete}
    assert max(complete.values()) == max(expected.values())
    assert len(set(expected.values())) > 5  # they do differ
    n_validated = made.n_images - made.n_calibration_images
    assert n_validated <= 0.51 * 192 * len(several)
    assert not made._statistics


def trained(space: Space) -> Any:
    """A supernet after 30 steps on random paths of the toy set."""
    supernet = toy_supernet(space).train()
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)
    rng, stream = np.random.default_rng(0), ToyStream(batch_size=32)
    for number in range(30):
        batch = stream.batch(number)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            supernet(batch.images, space.sample(rng)), batch.labels
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return supernet


def alive() -> Counter[type]:
    """Objects that Python tracks: tensors, and the rest."""
    gc.collect()
    return Counter(
        torch.Tensor if issubclass(type(o), torch.Tensor) else object for o in gc.get_objects()
    )


@pytest.mark.parametrize("n", [100, pytest.param(500, marks=pytest.mark.long)])
def test_memory_is_flat_however_many_candidates_are_scored(space: Space, n: int) -> None:
    """Nothing is kept of a candidate but pieces that others share, and these are cut once."""
    tiny = [ToyStream(batch_size=2, seed=5).batch(0)]
    made = Scorer(space, toy_supernet(space), tiny, tiny)
    rng = np.random.default_rng(0)

    def score(n: int) -> None:
        for _ in range(n):
            made.score(space.sample(rng))

    score(n // 2)
    before, pieces = alive(), len(made._cut)
    score(n - n // 2)
    after = alive()
    assert len(made._cut) == pieces
    assert after[torch.Tensor] <= before[torch.Tensor]
    assert after.total() <= before.total() + n // 4  # half an object per candidate
    assert made.n_scored == n
