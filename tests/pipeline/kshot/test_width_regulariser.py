"""The width regulariser: published numbers, who counts, paths that have near ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.kshot.width_regulariser import WidthPaths, width_regulariser
from pipeline.spaces import load_space

SPACE = load_space("mobilenetv2_widths", preset="tiny", input_shape=(3, 8, 8), n_classes=4)
CODES = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
FAR = 9.0


def distances(pairs: dict[tuple[int, int], float], n: int = 3) -> torch.Tensor:
    found = torch.full((n, n), FAR).fill_diagonal_(0)
    for (i, k), value in pairs.items():
        found[i, k] = found[k, i] = value
    return found


@pytest.mark.parametrize(
    ("denominator", "likelihood"), [("literal", 0.491238), ("corrected", 0.965555)]
)
def test_both_denominators_give_the_numbers_of_the_worked_example(
    denominator: str, likelihood: float
) -> None:
    found = width_regulariser(
        CODES,
        distances({(0, 1): 0.2}),
        threshold=1,
        denominator=denominator,  # type: ignore[arg-type]
    )
    assert math.exp(-found.item()) == pytest.approx(likelihood, abs=1e-6)


def test_the_corrected_denominator_leaves_other_similar_widths_out() -> None:
    codes = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.5, 0.5], [0.1, 0.9]])
    near = distances({(0, 1): 0.2, (0, 2): 0.2, (1, 2): 0.2}, n=4)
    similarity = (codes @ codes.T / 0.3).exp()
    losses = [
        -math.log(similarity[i, k] / (similarity[i, k] + similarity[i, 3]))
        for i in range(3)
        for k in range(3)
        if i != k
    ]
    found = width_regulariser(codes, near, threshold=1)
    assert found.item() == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_other_architectures_are_neither_similar_nor_different() -> None:
    apart = torch.full((6, 6), math.inf)
    apart[:3, :3] = apart[3:, 3:] = distances({(0, 1): 0.2})
    one = width_regulariser(CODES, apart[:3, :3], threshold=1)
    two = width_regulariser(CODES.repeat(2, 1), apart, threshold=1)
    torch.testing.assert_close(one, two)


def test_without_similar_widths_there_is_nothing_to_regularise() -> None:
    codes = CODES.clone().requires_grad_()
    found = width_regulariser(codes, distances({}), threshold=1)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == 0
    assert codes.grad is not None
    assert not codes.grad.any()


def test_a_descent_pulls_similar_codes_together_and_different_ones_apart() -> None:
    logits = torch.zeros(3, 2, requires_grad=True)
    with torch.no_grad():
        logits += 0.01 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        width_regulariser(logits.softmax(1), distances({(0, 1): 0.2}), threshold=1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    codes = logits.softmax(1)
    assert codes[0] @ codes[1] > 0.9
    assert codes[0] @ codes[2] < 0.1


def test_groups_of_four_share_their_operators_and_hold_a_near_copy() -> None:
    paths = WidthPaths(SPACE, share=0.25)
    n_similar = 0
    for seed in range(20):
        archs = paths.sample(np.random.default_rng(seed), 10)
        assert len(archs) == 10
        for arch in archs:
            SPACE.validate(arch)
        apart = paths.distances(archs)
        operators = [d.label for d in SPACE.decisions if not d.label.endswith("_width")]
        for start in (0, 4):
            group = archs[start : start + 4]
            assert len({tuple(a[label] for label in operators) for a in group}) == 1
            assert apart[start : start + 4, start : start + 4].isfinite().all()
            changed = sum(group[0][d.label] != group[1][d.label] for d in SPACE.decisions)
            assert 1 <= changed <= 3
            n_similar += bool(apart[start, start + 1] < paths.threshold)
        assert apart[0, 4].isinf()
    assert n_similar >= 35  # of 40


def test_distances_do_not_count_widths_that_mean_nothing() -> None:
    paths = WidthPaths(SPACE, share=0.25)
    arch = SPACE.sample(np.random.default_rng(0)).replace(
        layer02="identity", layer02_width=0.2, layer01="mb3_k3", layer01_width=0.4
    )
    other = arch.replace(layer02_width=1.0, layer01_width=1.0)
    assert paths.distances([arch, other])[0, 1].item() == pytest.approx(0.6)
