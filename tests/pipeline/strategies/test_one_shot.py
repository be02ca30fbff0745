from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.chain import ChainSupernet
from pipeline.strategies.one_shot import OneShot, OneShotOptions, mixed_logits
from pipeline.strategies.one_shot import one_shot as make_one_shot
from tests.pipeline.strategies.steps import (
    assert_a_killed_run_ends_with_the_same_bits,
    generator,
    hand_step,
    plain,
    run,
)
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet


def one_shot(space: Space, supernet: Supernet | None = None, **options: Any) -> OneShot:
    supernet = supernet or toy_supernet(space)
    return make_one_shot(space=space, supernet=supernet, seed=0, options=options)


def chain_supernet(space: Space) -> ChainSupernet:
    supernet = toy_supernet(space).eval()
    assert isinstance(supernet, ChainSupernet)
    return supernet


@pytest.mark.parametrize("name", ["nasbench_macro", "shufflenetv2"])
def test_one_operator_per_layer_is_exactly_that_path_of_the_supernet(name: str) -> None:
    space = toy_space(name)
    supernet, images = chain_supernet(space), ToyStream().batch(0).images
    for i in range(3):
        arch = space.sample(generator("path", i))
        kept = {label: (str(choice),) for label, choice in arch.items()}
        assert torch.equal(mixed_logits(supernet, images, kept), supernet(images, arch))


def test_a_layer_is_the_mean_of_the_operators_that_remain() -> None:
    space = toy_space()
    supernet, images = chain_supernet(space), ToyStream().batch(0).images
    last = space.decisions[-1]
    arch = space.sample(generator("mean"))
    kept = {label: (str(choice),) for label, choice in arch.items()}
    kept[last.label] = tuple(map(str, last.choices[:2]))
    position = next(p for p in supernet.chain if p.name == last.label)
    after = supernet.chain[supernet.chain.index(position) + 1 :]

    x = images
    for p in supernet.chain[: supernet.chain.index(position)]:
        x = supernet.block(p, arch)(x)
    first, second = (supernet.block(position, Arch({last.label: c}))(x) for c in last.choices[:2])
    x = (first + second) / 2
    for p in after:
        x = supernet.block(p, arch)(x)
    torch.testing.assert_close(mixed_logits(supernet, images, kept), x)


@pytest.mark.parametrize("r", [0.05, 0.5])
def test_operators_are_dropped_as_often_as_the_rate_says(r: float) -> None:
    space = toy_space()
    strategy, rng = one_shot(space, all_dropped=r), generator("rate")
    n_layers, draws = len(space.decisions), 500
    kept = [strategy.keep(rng, 0) for _ in range(draws)]
    remain = np.mean([len(layer) for each in kept for layer in each.values()])
    # k (1 − r^(1/k)) remain, and one where all k were dropped
    assert remain == pytest.approx(3 * (1 - r ** (1 / 3)) + r, abs=0.05)
    assert all(len(each) == n_layers for each in kept)


def test_the_rate_starts_at_zero_and_ends_at_its_full_value() -> None:
    options = OneShotOptions(all_dropped=0.008, ramp=2 / 3)
    rates = [options.rate(3, step / 150) for step in range(150)]
    assert rates[0] == 0.0
    assert rates[50] == pytest.approx(0.1)
    assert rates[100:] == [pytest.approx(0.2)] * 50
    assert np.all(np.diff(rates[:101]) > 0)
    assert OneShotOptions(all_dropped=0.008).rate(3, 0) == pytest.approx(0.2)


def test_nothing_is_dropped_at_rate_zero_and_one_operator_is_left_at_rate_one() -> None:
    space = toy_space()
    everything = one_shot(space, all_dropped=0).keep(generator("all"), 0)
    assert everything == {d.label: d.choices for d in space.decisions}
    single, rng, paths = one_shot(space, all_dropped=1), generator("one"), []
    for _ in range(300):
        kept = single.keep(rng, 0)
        assert all(len(layer) == 1 for layer in kept.values())
        paths.append(kept[space.decisions[0].label][0])
    assert min(paths.count(str(c)) for c in space.decisions[0].choices) > 70  # 100 expected


def test_weights_of_dropped_operators_get_no_gradient() -> None:
    space = toy_space()
    supernet = toy_supernet(space).train()
    assert isinstance(supernet, ChainSupernet)
    strategy, step = one_shot(space, supernet, all_dropped=0.5), hand_step(supernet)
    kept = strategy.keep(hand_step(supernet).rng, 0)
    (update,) = strategy.updates(step)
    update.losses[0]().backward()  # type: ignore[no-untyped-call]
    dropped = 0
    for position in supernet.chain:
        for choice in position.choices:
            weights = list(supernet.block(position, Arch({position.name: choice})).parameters())
            stays = choice in kept.get(position.name, position.choices)
            assert all((p.grad is not None) == stays for p in weights)
            dropped += not stays
    assert dropped > 0


def test_training_all_paths_together_lowers_the_loss(tmp_path: Path) -> None:
    result = run(tmp_path, one_shot(toy_space()), config=plain(1))
    longer = run(tmp_path / "longer", one_shot(toy_space()), config=plain(20))
    assert result.final_loss is not None
    assert longer.final_loss is not None
    assert longer.final_loss < result.final_loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.5}, "'one_shot' has the options all_dropped, ramp"),
        ({"all_dropped": 1.5}, "all_dropped: .*less than or equal to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        one_shot(toy_space(), **options)


def test_a_supernet_that_is_no_chain_is_refused() -> None:
    with pytest.raises(UsageError, match="'nasbench_macro' is of another kind"):
        one_shot(toy_space(), Supernet())


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert_a_killed_run_ends_with_the_same_bits(
        tmp_path, lambda space, net: one_shot(space, net, ramp=0.5)
    )
