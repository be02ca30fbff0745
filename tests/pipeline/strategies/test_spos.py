from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from latency_tables.levels import cost_levels
from latency_tables.sampler import make_sampler
from pipeline.strategies import STRATEGIES, load_strategy
from pipeline.strategies.spos import SPOS
from pipeline.training.config import TrainConfig
from pipeline.training.step import Step, Update
from tests.pipeline.training.toys import toy_config, toy_space, toy_supernet, toy_train


class Recording(SPOS):
    """Remembers which path each loss belongs to."""

    def __init__(self, space: object) -> None:
        super().__init__(space)  # type: ignore[arg-type]
        self.paths: list[Arch] = []

    def updates(self, step: Step) -> Iterator[Update]:
        for update in super().updates(step):
            assert len(update.losses) == 1
            self.paths.append(update.losses[0].args[0])  # type: ignore[attr-defined]
            yield update


def test_each_step_trains_one_path_and_paths_differ_between_steps(tmp_path: Path) -> None:
    space = toy_space()
    strategy = Recording(space)
    toy_train(tmp_path, space=space, strategy=strategy, config=toy_config(steps=12))
    assert len(strategy.paths) == 12
    assert len(set(strategy.paths)) >= 10  # 6,561 paths: a repetition is rare


def test_every_strategy_can_be_loaded_by_name() -> None:
    space = toy_space()
    for name in STRATEGIES:
        strategy = load_strategy(name, space=space, supernet=toy_supernet(space))
        assert "weights" in strategy.optimizers()


def test_the_default_strategy_exists() -> None:
    assert TrainConfig().strategy in STRATEGIES


def test_an_unknown_strategy_is_answered_with_the_nearest_name() -> None:
    space = toy_space()
    with pytest.raises(UsageError, match='strategy = "spos"'):
        load_strategy("spo", space=space, supernet=toy_supernet(space))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": 2}, "paths: .*'spos' has the options macs_range, macs_bins"),
        ({"macs_range": [1]}, "macs_range"),
        ({"macs_range": [2e6, 1e6]}, "is empty"),
        ({"macs_range": [0, 10]}, "no path has between 0 and 1 MACs; paths of this space have"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    space = toy_space()
    with pytest.raises(UsageError, match=message):
        load_strategy("spos", space=space, supernet=toy_supernet(space), options=options)


def test_the_bins_of_macs_are_drawn_equally_often_and_never_missed() -> None:
    space = toy_space()
    macs = space.cost_table()
    low, high = macs.minimum("macs")[0], macs.maximum("macs")[0]
    edges = np.linspace(low + 0.3 * (high - low), low + 0.7 * (high - low), 5)
    options = {"macs_range": [float(edges[0]), float(edges[-1])], "macs_bins": 4}
    strategy = load_strategy("spos", space=space, supernet=toy_supernet(space), options=options)
    assert isinstance(strategy, SPOS)
    rng = np.random.default_rng(0)
    drawn = [macs.cost(strategy.sample(rng), "macs") for _ in range(400)]
    counts, _ = np.histogram(drawn, edges)
    assert counts.sum() == 400
    assert counts.min() > 70  # 100 expected, standard deviation 8.7


def test_levels_between_the_tails_of_the_space_are_drawn_equally_often() -> None:
    space = toy_space()
    options = {"macs_range": "auto", "macs_bins": 5}
    strategy = load_strategy("spos", space=space, supernet=toy_supernet(space), options=options)
    assert isinstance(strategy, SPOS)
    levels = cost_levels(make_sampler(space.cost_table(), "macs"), 5)
    rng = np.random.default_rng(0)
    macs = [space.cost_table().cost(strategy.sample(rng), "macs") for _ in range(1_000)]
    assert levels[0].low <= min(macs)
    assert max(macs) <= levels[-1].high
    counts = np.histogram(macs, bins=[*(level.low for level in levels), levels[-1].high])[0]
    assert ((counts - 200) ** 2 / 200).sum() < 18.5  # chi-squared, 4 degrees, 0.1 %
