from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.search.operators import all_genes, sizes_of
from pipeline.spaces.base import Space
from pipeline.strategies.attentivenas import N_BINS, AttentiveNAS
from pipeline.strategies.attentivenas import attentivenas as make_attentivenas
from pipeline.training.step import Step
from tests.pipeline.strategies.steps import (
    assert_a_killed_run_ends_with_the_same_bits,
    generator,
    hand_step,
    plain,
    run,
    twin,
)
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet


def attentive(space: Space, **options: Any) -> AttentiveNAS:
    return make_attentivenas(space=space, supernet=toy_supernet(space), seed=0, options=options)


def students(strategy: AttentiveNAS, step: Step) -> list[Arch]:
    (update,) = strategy.updates(step)
    return [loss.args[0] for loss in update.losses[1:]]  # type: ignore[attr-defined]


def test_every_subnet_lies_in_exactly_one_bin() -> None:
    space = toy_space()
    strategy, table = attentive(space), space.cost_table()
    macs = table.column("macs", all_genes(sizes_of(space.decisions)))
    low, high = macs.min(), macs.max()
    edges = [low + i * strategy.macs_step for i in range(N_BINS + 1)]
    assert edges[-2] <= high <= edges[-1]
    counted = sum(
        strategy.sampler.count(a, math.nextafter(a + strategy.macs_step, a)) for a in edges
    )
    assert counted == table.n_archs


def test_bins_of_subnets_follow_their_shares_of_the_space() -> None:
    space = toy_space()
    table, rng = space.cost_table(), generator("prior")
    width = (table.maximum("macs")[0] - table.minimum("macs")[0]) / 4
    strategy = attentive(space, macs_step=width)
    drawn = [strategy.bin_of(strategy.propose(rng)[0]) for _ in range(1500)]
    for low, high in set(drawn):
        share = strategy.sampler.count(low, high) / table.n_archs
        assert drawn.count((low, high)) / 1500 == pytest.approx(share, abs=0.045)


def test_candidates_of_one_pick_lie_in_one_bin_and_none_is_missed() -> None:
    space = toy_space("shufflenetv2")
    strategy, rng = attentive(space, candidates=5), generator("bin")
    for _ in range(20):
        archs = strategy.propose(rng)
        assert len(archs) == 5
        assert len({strategy.bin_of(arch) for arch in archs}) == 1


def test_candidates_are_uniform_within_their_bin() -> None:
    space = toy_space()
    strategy, rng = attentive(space), generator("uniform")
    target = space.sample(rng)
    low, high = strategy.bin_of(target)
    n = int(strategy.sampler.count(low, high))
    drawn = strategy.sampler.sample_archs(rng, low, high, 60 * n)
    counts = np.unique([a.to_json() for a in drawn], return_counts=True)[1]
    assert len(counts) == n
    chi_squared = ((counts - 60) ** 2 / 60).sum()
    assert chi_squared < n + 5 * math.sqrt(2 * n)


@pytest.mark.parametrize(("pick", "best"), [("best", min), ("worst", max)])
def test_the_best_or_the_worst_candidate_on_the_batch_is_trained(pick: str, best: Any) -> None:
    space = toy_space()
    supernet, strategy = twin(space), attentive(space, pick=pick)
    found = students(strategy, hand_step(supernet))
    step = hand_step(supernet)

    def loss(arch: Arch) -> float:
        with torch.no_grad():
            return float(step.loss(arch, ToyStream().batch(0)))

    expected = [best(strategy.propose(step.rng), key=loss) for _ in range(2)]
    assert found == [*expected, strategy.smallest]


def test_best_and_worst_pick_different_subnets_from_the_same_candidates() -> None:
    space = toy_space()
    supernet = twin(space)
    best, worst = (
        students(attentive(space, pick=p), hand_step(supernet))[:2] for p in ("best", "worst")
    )
    assert all(a != b for a, b in zip(best, worst, strict=True))


def test_scoring_candidates_leaves_no_trace_in_the_supernet() -> None:
    space = toy_space("shufflenetv2")
    supernet = toy_supernet(space).train()
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    random_state = torch.get_rng_state()
    students(attentive(space), hand_step(supernet))  # the losses are not computed
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_step_clips_every_element_of_the_summed_gradient(tmp_path: Path) -> None:
    space = toy_space()
    supernet, before = toy_supernet(space), toy_supernet(space)
    strategy = attentive(space, clip=1e-3)
    run(tmp_path, strategy, space=space, supernet=supernet, config=plain(1))
    moves = [
        (p - before.get_parameter(k)).abs().max().item() for k, p in supernet.named_parameters()
    ]
    assert max(moves) == pytest.approx(0.05 * 1e-3, rel=1e-2)  # lr · clip
    (update,) = attentive(space).updates(hand_step(supernet))
    assert update.clip_value == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "pool.txt"}, "'attentivenas' has the options divergence, .*pick"),
        ({"pick": "middle"}, "pick: .*'best' or 'worst'"),
        ({"macs_step": 0}, "macs_step: .*greater than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attentive(toy_space(), **options)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert_a_killed_run_ends_with_the_same_bits(tmp_path, lambda space, net: attentive(space))
