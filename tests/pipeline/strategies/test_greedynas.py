from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.randomness import numpy_generator
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.greedynas import CandidatePool, Genes, GreedyNAS, GreedyNASOptions
from pipeline.strategies.greedynas import greedynas as make_greedynas
from tests.pipeline.strategies.steps import (
    FixedStream,
    assert_a_killed_run_ends_with_the_same_bits,
    assert_equal_weights,
    generator,
    hand_step,
    move,
    path_gradients,
    plain,
    run,
    twin,
)
from tests.pipeline.training.toys import toy_space, toy_supernet

SMALL: dict[str, Any] = {"drawn": 4, "trained": 2, "epsilon_from": 0.25, "epsilon_until": 0.75}


def greedy(space: Space, **options: Any) -> GreedyNAS:
    return make_greedynas(
        space=space, supernet=toy_supernet(space), seed=0, options={**SMALL, **options}
    )


def genes_of(space: Space, arch: Arch) -> Genes:
    return arch.genes(space.decisions)


def scoring_loss(supernet: Supernet, arch: Arch) -> float:
    batch = FixedStream().kept
    images = batch.images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return float(F.cross_entropy(supernet(images, arch), batch.labels))


# -- one step ------------------------------------------------------------------------------


def test_a_step_trains_the_best_of_its_paths_each_on_a_batch_of_its_own(tmp_path: Path) -> None:
    space = toy_space()
    supernet, expected = toy_supernet(space), twin(space)
    run(tmp_path, greedy(space), space=space, supernet=supernet, config=plain(1))

    rng, drawn = numpy_generator(0, "training", "step", 0), []
    while len(drawn) < 4:
        arch = space.sample(rng)
        drawn += [arch] if arch not in drawn else []
    ranked = sorted(drawn, key=lambda arch: scoring_loss(expected, arch))
    for number, arch in enumerate(ranked[:2]):
        move(expected, path_gradients(expected, arch, number))
    assert_equal_weights(supernet, expected)


def test_scoring_leaves_no_trace_in_the_supernet() -> None:
    space = toy_space("shufflenetv2")  # has dropout before its classifier
    supernet, strategy = toy_supernet(space).train(), greedy(space)
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in supernet.modules()]
    strategy._score(hand_step(supernet), strategy._draw(generator("draw"), 0.0))
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())
    assert modes == [
        (m.training, getattr(m, "track_running_stats", None)) for m in supernet.modules()
    ]
    assert all(p.grad is None for p in supernet.parameters())


def test_a_path_scores_the_same_twice_although_the_network_has_dropout() -> None:
    space = toy_space("shufflenetv2")
    supernet, strategy = toy_supernet(space).train(), greedy(space)
    assert any(isinstance(m, nn.Dropout) and m.p > 0 for m in supernet.modules())
    paths = strategy._draw(generator("draw"), 0.0)
    assert strategy._score(hand_step(supernet), paths) == strategy._score(
        hand_step(supernet), paths
    )


def test_many_different_paths_are_trained_between_two_changes_of_the_pool() -> None:
    """Public code trained the first of its best list for ever."""
    space = toy_space()
    table = space.cost_table()

    class Settled(GreedyNAS):
        """Losses that never change, as at the end of training: the best stay the best."""

        def _score(self, step: Any, paths: list[Genes]) -> dict[Genes, float]:
            macs = table.column("macs", np.array(paths)).tolist()
            return {genes: 1e9 / n for genes, n in zip(paths, macs, strict=True)}

    strategy = Settled(space, GreedyNASOptions(epsilon_from=0, epsilon_until=0))
    supernet, trained = toy_supernet(space), []
    for index in range(100):
        paths = [
            genes_of(space, update.losses[0].args[0])  # type: ignore[attr-defined]
            for update in strategy.updates(hand_step(supernet, index=index))
        ]
        assert len(set(paths)) == 5  # of one refresh
        trained += paths
    assert len(set(trained)) > 100  # of 500; 0.8 of the draws came from the pool


def test_a_path_whose_loss_is_not_a_number_is_trained_last_and_kept_out_of_the_pool() -> None:
    space = toy_space()

    class Broken(GreedyNAS):
        def _score(self, step: Any, paths: list[Genes]) -> dict[Genes, float]:
            self.paths = paths
            return dict(zip(paths, [math.nan, 3.0, math.inf, 1.0], strict=True))

    strategy = Broken(space, GreedyNASOptions(**SMALL))
    updates = list(strategy.updates(hand_step(toy_supernet(space))))
    found = [genes_of(space, u.losses[0].args[0]) for u in updates]  # type: ignore[attr-defined]
    assert found == [strategy.paths[3], strategy.paths[1]] == list(strategy.pool.losses)


# -- the schedule --------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.8), (0.2, 0.8), (0.9, 0.1), (0.5, 0.5)])
def test_the_share_of_the_pool_starts_and_ends_where_it_was_told_to(
    start: float, end: float
) -> None:
    options = GreedyNASOptions(
        epsilon_start=start, epsilon_end=end, epsilon_from=0.25, epsilon_until=0.75
    )
    shares = [options.epsilon(t / 400) for t in range(400)]
    assert shares[:101] == [start] * 101
    assert shares[300:] == [end] * 100
    assert shares[200] == pytest.approx((start + end) / 2)
    changes = np.diff(shares[100:301])
    np.testing.assert_allclose(changes, (end - start) / 200, atol=1e-12)


def test_a_schedule_of_no_length_is_a_jump() -> None:
    options = GreedyNASOptions(epsilon_from=0.5, epsilon_until=0.5)
    assert [options.epsilon(progress) for progress in (0.49, 0.5)] == [0.0, 0.8]


def test_a_short_run_uses_its_pool_as_the_papers_run_does() -> None:
    options = GreedyNASOptions()
    assert options.epsilon(9_999 / 150_000) == 0.0
    assert options.epsilon(144_360 / 150_000) == 0.8
    assert options.epsilon(199 / 200) == 0.8


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.8])
def test_draws_come_from_the_pool_as_often_as_the_schedule_says(epsilon: float) -> None:
    space = toy_space()
    strategy, rng = greedy(space, drawn=10, trained=5), generator("pool")
    while len(strategy.pool.losses) < 60:
        strategy.pool.add({genes_of(space, space.sample(rng)): float(rng.random())})
    drawn = [genes for _ in range(200) for genes in strategy._draw(rng, epsilon)]
    share = np.mean([genes in strategy.pool.losses for genes in drawn])
    # uniform draws hit the pool with probability 60 / 6,561
    assert share == pytest.approx(epsilon, abs=0.045)


def test_a_pool_that_is_too_small_is_completed_by_other_paths() -> None:
    space = toy_space()
    strategy, rng = greedy(space, drawn=10, trained=5), generator("small")
    strategy.pool.add({(0,) * len(space.decisions): 1.0})
    drawn = strategy._draw(rng, 1.0)
    assert len(set(drawn)) == 10
    assert drawn[0] == (0,) * len(space.decisions)


# -- the pool ------------------------------------------------------------------------------


def test_the_pool_keeps_the_lowest_losses_and_replaces_old_ones() -> None:
    pool = CandidatePool(3)
    pool.add({(0,): 3.0, (1,): 1.0, (2,): 2.0})
    pool.add({(3,): 2.5, (1,): 2.75, (4,): 9.0})
    assert list(pool.losses.items()) == [((2,), 2.0), ((3,), 2.5), ((1,), 2.75)]
    pool.add({(2,): math.nan})
    assert list(pool.losses.items()) == [((3,), 2.5), ((1,), 2.75)]


def test_the_pool_is_the_best_of_all_paths_that_were_scored(tmp_path: Path) -> None:
    space = toy_space()
    scored: dict[Genes, float] = {}

    class Watching(GreedyNAS):
        def _score(self, step: Any, paths: list[Genes]) -> dict[Genes, float]:
            losses = super()._score(step, paths)
            scored.update(losses)
            return losses

    strategy = Watching(space, GreedyNASOptions(**{**SMALL, "pool_size": 1000}))
    run(tmp_path, strategy, space=space)
    assert strategy.pool.losses == scored
    assert [genes_of(space, a) for a in strategy.candidates()] == sorted(
        scored, key=scored.__getitem__
    )


def test_the_pool_admits_only_paths_within_the_limit(tmp_path: Path) -> None:
    space = toy_space()
    table = space.cost_table()
    limit = (table.minimum("macs")[0] + table.maximum("macs")[0]) / 2
    strategy = greedy(space, macs_limit=limit)
    run(tmp_path, strategy, space=space)
    candidates = strategy.candidates()
    assert 0 < len(candidates) < 32  # of 8 · 4 paths scored
    assert max(table.cost(arch, "macs") for arch in candidates) <= limit


def test_how_much_of_the_pool_changed_is_known() -> None:
    space = toy_space()
    strategy = greedy(space, pool_size=2)
    a, b, c = [(i,) + (0,) * (len(space.decisions) - 1) for i in range(3)]
    strategy._remember({a: 2.0, b: 3.0})
    assert strategy.pool_change == 1.0
    strategy._remember({c: 2.5})
    assert strategy.pool_change == 0.5
    strategy._remember({b: 9.0})
    assert strategy.pool_change == 0.0


def test_the_state_is_json_and_comes_back_in_order(tmp_path: Path) -> None:
    space = toy_space()
    strategy, other = greedy(space), greedy(space)
    run(tmp_path, strategy, space=space)
    other.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    assert list(other.pool.losses.items()) == list(strategy.pool.losses.items())
    assert other.candidates() == strategy.candidates()


# -- options, resume -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 3}, "'greedynas' has the options drawn, trained"),
        ({"drawn": 3, "trained": 4}, "trained = 4 is more than drawn = 3"),
        ({"epsilon_from": 0.9}, "epsilon_until = 0.75 comes before epsilon_from = 0.9"),
        ({"drawn": 7000}, "the space has 6561 different paths"),
        ({"macs_limit": 10}, "admits nothing: the smallest path has"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        greedy(toy_space(), **options)


def test_a_killed_run_ends_with_the_same_bits_and_the_same_pool(tmp_path: Path) -> None:
    assert_a_killed_run_ends_with_the_same_bits(tmp_path, lambda space, net: greedy(space))
