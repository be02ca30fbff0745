"""Simplex-net: inputs, branches, where it starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.kshot.simplex_net import SimplexNet
from pipeline.spaces import load_space


@pytest.mark.parametrize(
    ("space", "inputs"),
    [
        ("mobilenetv2_widths", {"architecture": 273, "sizes": 120}),
        ("nasbench201", {"architecture": 30}),
        ("nasbench_macro", {"architecture": 24}),
        ("shufflenetv2_scales", {"architecture": 80, "sizes": 160}),
    ],
)
def test_each_branch_sees_the_one_hots_that_the_paper_counts(
    space: str, inputs: dict[str, int]
) -> None:
    size = 224 if space.startswith(("mobile", "shuffle")) else 32
    made = load_space(space, preset="paper", input_shape=(3, size, size), n_classes=10)
    net = SimplexNet(made.decisions, 8)
    found = {name: branch.first.in_features for name, branch in net.branches.items()}  # type: ignore[union-attr]
    assert found == inputs


def test_one_hots_have_a_one_for_the_choice_of_each_decision() -> None:
    space = load_space("mobilenetv2_widths", preset="tiny", input_shape=(3, 8, 8), n_classes=4)
    net = SimplexNet(space.decisions, 2)
    archs = [space.sample(np.random.default_rng(i)) for i in range(3)]
    for branch in net.branches.values():
        found = branch._one_hots(archs)  # type: ignore[operator]
        genes = np.array([arch.genes(branch.decisions) for arch in archs])  # type: ignore[arg-type]
        widths = [len(d.choices) for d in branch.decisions]  # type: ignore[union-attr]
        starts = np.cumsum([0, *widths[:-1]])
        expected = torch.zeros(3, sum(widths))
        for row, places in enumerate(genes + starts):
            expected[row, places] = 1
        assert found.equal(expected)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_training_starts_from_equal_codes(k: int) -> None:
    space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=4)
    rng = np.random.default_rng(0)
    codes = SimplexNet(space.decisions, k)([space.sample(rng) for _ in range(5)])
    torch.testing.assert_close(codes, torch.full((5, k), 1 / k))
    assert len(codes.unique()) == 1


def test_a_descent_on_codes_moves_them_apart() -> None:
    space = load_space("mobilenetv2_widths", preset="tiny", input_shape=(3, 8, 8), n_classes=4)
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(4)]
    torch.manual_seed(0)
    net = SimplexNet(space.decisions, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (-net(archs).diagonal().log().sum()).backward()
        optimizer.step()
    assert net(archs).argmax(1).tolist() == [0, 1, 2, 3]
