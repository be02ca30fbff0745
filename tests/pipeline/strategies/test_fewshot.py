"""Few-shot splitting: one supernet first, then one for each part of the space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.errors import CheckpointError, UsageError
from pipeline.spaces.base import Space
from pipeline.strategies.fewshot import FewShot, FewShotOptions
from pipeline.strategies.fewshot import fewshot as make_fewshot
from pipeline.supernet.scoring import Scorer, materialise
from pipeline.supernet.split import SplitSupernet, supernet_of_layout
from pipeline.supernet.weights import load_supernet
from tests.pipeline.strategies.steps import (
    assert_a_killed_run_ends_with_the_same_bits,
    assert_equal_weights,
    hand_step,
    move,
    path_gradients,
    plain,
    run,
    twin,
)
from tests.pipeline.training.toys import CLASSES, SHAPE, ToyStream, toy_space, toy_supernet


def fewshot(space: Space, **options: Any) -> FewShot:
    return make_fewshot(space=space, supernet=toy_supernet(space), seed=0, options=options)


def trained_paths(strategy: FewShot, n_steps: int) -> list[tuple[bool, Any]]:
    """Whether the space was divided, and the path, for every step of a run."""
    found = []
    for index in range(n_steps):
        step = hand_step(strategy.supernet, index=index, n_steps=n_steps)
        (update,) = strategy.updates(step)
        found.append((strategy.supernet.divided, update.losses[0].args[0]))  # type: ignore[attr-defined]
    return found


def test_the_one_shot_phase_equals_uniform_paths_by_hand(tmp_path: Path) -> None:
    space = toy_space()
    strategy, expected = fewshot(space, one_shot_share=0.5), twin(space)
    run(tmp_path, strategy, space=space, supernet=strategy.supernet, config=plain(3))
    for index in range(2):  # the third step is the first divided one
        arch = space.sample(hand_step(expected, index=index).rng)
        move(expected, path_gradients(expected, arch, index))
    untouched = strategy.supernet.parts[1]
    assert isinstance(untouched, type(expected))
    assert_equal_weights(untouched, expected)


def test_parts_take_turns_and_train_paths_of_their_own() -> None:
    space = toy_space()
    strategy = fewshot(space, one_shot_share=0.25, split=["layer2"])
    paths = trained_paths(strategy, 40)
    assert [divided for divided, _ in paths] == [False] * 10 + [True] * 30
    operators = space.decisions[1].choices
    assert [arch["layer2"] for _, arch in paths[10:]] == list(operators) * 10
    assert len({arch["layer3"] for _, arch in paths[10:]}) == 3


def test_a_step_after_the_split_moves_one_part_only() -> None:
    space = toy_space()
    strategy = fewshot(space, one_shot_share=0)
    supernet = strategy.supernet.train()
    (update,) = strategy.updates(hand_step(supernet, index=1, n_steps=10))
    update.losses[0]().backward()  # type: ignore[no-untyped-call]
    touched = {n.split(".")[1] for n, p in supernet.named_parameters() if p.grad is not None}
    assert touched == {"1"}


def test_every_part_starts_from_the_one_shot_weights_and_statistics() -> None:
    space = toy_space()
    strategy = fewshot(space, one_shot_share=0.5)
    supernet = strategy.supernet.train()
    with torch.no_grad():
        supernet.divided = False
        supernet(torch.randn(4, *SHAPE), space.sample(np.random.default_rng(0)))
        for parameter in supernet.parts[0].parameters():
            parameter += 1
    next(strategy.updates(hand_step(supernet, index=5, n_steps=10)))
    first, *others = (part.state_dict() for part in supernet.parts)
    assert others
    assert all(first[k].equal(other[k]) for other in others for k in first)


def test_splitting_by_two_decisions_makes_a_part_of_every_combination() -> None:
    space = toy_space()
    supernet = fewshot(space, split=["layer1", "layer3"]).supernet
    assert len(supernet.parts) == 9
    arch = space.sample(np.random.default_rng(3))
    index = supernet.combinations.index((arch["layer1"], arch["layer3"]))
    assert supernet.source_of(arch) is supernet.parts[index]


def different_parts(space: Space) -> SplitSupernet:
    """Parts whose weights differ by chance."""
    supernet = SplitSupernet(space, ["layer1"], toy_supernet(space))
    with torch.no_grad():
        for i, part in enumerate(supernet.parts):
            for parameter in part.parameters():
                parameter *= 1 + 0.1 * i
    return supernet.eval()


def test_subnets_are_cut_out_of_and_scored_with_their_own_part() -> None:
    space = toy_space()
    supernet = different_parts(space)
    stream = ToyStream()
    scorer = Scorer(space, supernet, [stream.batch(0)], [stream.batch(1)])
    x = torch.randn(4, *SHAPE)
    for seed in range(6):
        arch = space.sample(np.random.default_rng(seed))
        network = materialise(space, arch, supernet).eval()
        with torch.no_grad():
            torch.testing.assert_close(network(x), supernet(x, arch), atol=1e-5, rtol=1e-5)
        alone = Scorer(space, supernet.source_of(arch), [stream.batch(0)], [stream.batch(1)])
        assert scorer.score(arch) == alone.score(arch)


def test_a_trained_split_supernet_is_read_back_with_all_its_parts(tmp_path: Path) -> None:
    space = toy_space()
    strategy = fewshot(space, split=["layer2"])
    result = run(tmp_path, strategy, space=space, supernet=strategy.supernet, config=plain(8))
    read = load_supernet(space, result.weights_path)
    assert isinstance(read, SplitSupernet)
    assert read.labels == ("layer2",)
    assert read.divided
    assert_equal_weights(read, strategy.supernet)
    arch = space.sample(np.random.default_rng(0))
    assert read(torch.zeros(1, *SHAPE), arch).shape == (1, CLASSES)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert_a_killed_run_ends_with_the_same_bits(
        tmp_path,
        lambda space, supernet: FewShot(space, supernet, FewShotOptions(one_shot_share=0.5)),
    )


def test_a_layout_of_another_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'split' is known here"):
        supernet_of_layout(toy_space(), {"mixture": 8})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 3}, "'fewshot' has the options split, one_shot_share"),
        ({"split": ["edge9"]}, r"cannot be split by \['edge9'\]; its decisions are layer1"),
        ({"split": ["layer1", "layer2", "layer3", "layer4"]}, "makes 81 supernets; 64 are allowed"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fewshot(toy_space(), **options)
