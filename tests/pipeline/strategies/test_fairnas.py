from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from latency_tables.arch import Arch, Decision
from latency_tables.errors import UsageError
from pipeline.strategies.fairnas import FairNAS, fairnas
from tests.pipeline.strategies.steps import (
    assert_a_killed_run_ends_with_the_same_bits,
    assert_equal_weights,
    generator,
    gradients,
    hand_step,
    move,
    path_gradients,
    plain,
    run,
    twin,
)
from tests.pipeline.training.toys import toy_space, toy_supernet


def trained(archs: list[Arch]) -> Counter[tuple[str, object]]:
    """How often each operator of each layer was trained."""
    return Counter(pair for arch in archs for pair in arch.items())


@pytest.mark.parametrize(("name", "m"), [("nasbench_macro", 3), ("shufflenetv2", 4)])
def test_every_operator_of_every_layer_is_updated_equally_often_after_k_steps(
    name: str, m: int
) -> None:
    space = toy_space(name)
    strategy, archs = FairNAS(space), []
    for k in range(1, 21):
        (update,) = strategy.updates(hand_step(toy_supernet(space), index=k))
        archs += [loss.args[0] for loss in update.losses]  # type: ignore[attr-defined]
        counts = trained(archs)
        assert len(counts) == m * len(space.decisions)
        assert set(counts.values()) == {k}


def test_within_a_step_the_counts_differ_by_at_most_one() -> None:
    space = toy_space()
    models = FairNAS(space).models(generator("order"))
    for s in range(1, len(models) + 1):
        assert set(trained(models[:s]).values()) == {1}


def test_a_hook_on_the_modules_counts_one_pass_per_operator_in_a_real_run(tmp_path: Path) -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    passes: Counter[str] = Counter()
    for position in supernet.chain:  # type: ignore[union-attr]
        for choice, block in supernet.blocks[position.name].items():  # type: ignore[index, union-attr, operator]
            key = f"{position.name}/{choice}/{position.searched}"
            block.register_forward_hook(lambda *_, key=key: passes.update([key]))
    run(tmp_path, FairNAS(space), space=space, supernet=supernet, config=plain(4))
    assert {n for key, n in passes.items() if key.endswith("True")} == {4}
    assert {n for key, n in passes.items() if key.endswith("False")} == {4 * 3}
    assert len(passes) == sum(len(p.choices) for p in supernet.chain)  # type: ignore[union-attr]


def test_layers_are_permuted_independently() -> None:
    space = toy_space()
    rng, strategy = generator("layers"), FairNAS(space)
    pairs: Counter[tuple[int, int]] = Counter()
    for _ in range(300):
        genes = strategy.models(rng)[0].genes(space.decisions)
        pairs[genes[0], genes[1]] += 1
    assert len(pairs) == 9
    assert min(pairs.values()) > 15  # 33 expected, standard deviation 5.4


def test_a_fair_update_is_the_sum_of_the_gradients_of_its_models(tmp_path: Path) -> None:
    space = toy_space()
    supernet, expected = toy_supernet(space), twin(space)
    run(tmp_path, FairNAS(space), space=space, supernet=supernet, config=plain(1))
    models = FairNAS(space).models(hand_step(expected).rng)
    total = path_gradients(expected, models[0], 0)
    for arch in models[1:]:
        for name, gradient in path_gradients(expected, arch, 0).items():
            total[name] = total[name] + gradient if name in total else gradient
    move(expected, total)
    assert_equal_weights(supernet, expected)


def test_every_weight_of_the_supernet_gets_a_gradient_in_one_step() -> None:
    space = toy_space()
    supernet = toy_supernet(space).train()
    (update,) = FairNAS(space).updates(hand_step(supernet))
    assert set(gradients(supernet, list(update.losses))) == {
        name for name, _ in supernet.named_parameters()
    }


def test_a_space_whose_layers_differ_is_refused_with_the_layers_named() -> None:
    space = toy_space()
    first = space.decisions[0]
    space.decisions = (
        Decision(label=first.label, choices=first.choices[:2]),
        *space.decisions[1:],
    )
    with pytest.raises(UsageError, match=f"'{first.label}' has 2, .* has 3"):
        FairNAS(space)


def test_it_has_no_options() -> None:
    space = toy_space()
    options: dict[str, Any] = {"models": 3}
    with pytest.raises(UsageError, match="'fairnas' has no options"):
        fairnas(space=space, supernet=toy_supernet(space), seed=0, options=options)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert_a_killed_run_ends_with_the_same_bits(
        tmp_path, lambda space, net: fairnas(space=space, supernet=net, seed=0, options={})
    )
