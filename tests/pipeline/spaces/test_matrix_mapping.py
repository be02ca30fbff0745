"""The map from one-hot choices to masks: its backward pass, the units of a group, pairs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from latency_tables.arch import Arch, Decision
from pipeline.spaces.matrix_mapping import Gates, Masked, run_aside
from pipeline.spaces.policy import Policy

KERNEL_AND_WIDTH = (
    Decision(label="width", choices=(2, 3, 5)),
    Decision(label="ratio", choices=(2, 4)),
)


def gates_of(arch: dict[str, Any], decisions: tuple[Decision, ...] = KERNEL_AND_WIDTH) -> Gates:
    return Gates(Policy.of(arch, decisions), like=torch.zeros(1))


def watched_gates(arch: dict[str, Any]) -> tuple[Gates, dict[str, Tensor]]:
    plain = Policy.of(arch, KERNEL_AND_WIDTH)
    leaves = {k: v.requires_grad_() for k, v in plain.one_hot.items()}
    policy = Policy(decisions=KERNEL_AND_WIDTH, one_hot=leaves)
    return Gates(policy, like=torch.zeros(1)), leaves


HEADS = (Decision(label="heads", choices=(1, 2, 3)),)


def test_heads_one_two_three_have_the_masks_of_the_paper() -> None:
    masks = [gates_of({"heads": n}, HEADS).mask(3, (1, 2, 3), "heads").tolist() for n in (1, 2, 3)]
    assert masks == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_a_candidates_gradient_is_the_sum_over_the_groups_up_to_it(chosen: int) -> None:
    one_hot = Policy.of({"heads": chosen}, HEADS).one_hot["heads"].requires_grad_()
    gates = Gates(Policy(decisions=HEADS, one_hot={"heads": one_hot}), like=torch.zeros(1))
    gates.mask(3, (1, 2, 3), "heads").backward(torch.tensor([2.0, 30.0, 400.0]))
    assert one_hot.grad is not None
    assert one_hot.grad.tolist() == [2, 32, 432]


def test_units_get_the_entry_of_their_group() -> None:
    gates, leaves = watched_gates({"width": 3, "ratio": 2})
    mask = gates.mask(5, (2, 3, 5), "width")
    assert mask.tolist() == [1, 1, 1, 0, 0]
    units = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])  # ∂L/∂mask; groups: 1 + 2, 4, 8 + 16
    (mask * units).sum().backward()
    assert leaves["width"].grad is not None
    assert leaves["width"].grad.tolist() == [3, 7, 31]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True), st.data())
def test_a_mask_is_the_groups_of_the_cumulative_matrix_unit_by_unit(
    sizes: list[int], data: st.DataObject
) -> None:
    sizes = sorted(sizes)
    decision = Decision(label="n", choices=tuple(sizes))
    chosen = data.draw(st.sampled_from(sizes))
    policy = Policy.of({"n": chosen}, (decision,))
    mask = Gates(policy, like=torch.zeros(1)).mask(sizes[-1], tuple(sizes), "n")
    cumulative = torch.ones(len(sizes), len(sizes)).triu()  # M
    groups = cumulative @ policy.one_hot["n"]
    lengths = torch.tensor([b - a for a, b in itertools.pairwise([0, *sizes])])
    assert torch.equal(mask, groups.repeat_interleave(lengths))
    assert int(mask.sum()) == chosen


def test_a_size_that_two_decisions_set_has_the_groups_of_the_other_ones_choice() -> None:
    gates, leaves = watched_gates({"width": 3, "ratio": 2})
    hidden = ((4, 8), (6, 12), (10, 20))  # width · ratio
    mask = gates.mask(20, hidden, "width", "ratio")
    assert mask.tolist() == [1] * 6 + [0] * 14
    mask.sum().backward()
    assert leaves["ratio"].grad is not None
    assert leaves["width"].grad is not None
    assert leaves["ratio"].grad.tolist() == [6, 12]  # at width 3
    assert leaves["width"].grad.tolist() == [4, 6, 10]  # at ratio 2


def test_what_is_not_searched_is_certain() -> None:
    gates = gates_of({"width": 5, "ratio": 4})
    assert gates.mask(7, (4,), "kernel").tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert gates.mask(4, ((1, 2), (2, 3), (3, 4)), "width", "ratio").tolist() == [1, 1, 1, 1]
    assert not gates.searches("kernel")


def test_units_may_have_places_of_their_own() -> None:
    gates = gates_of({"width": 3, "ratio": 2})
    rings = gates.mask((4, 2, 0, 2, 4), (1, 3, 5), "width")  # taps of a row, kernel 3 of 1, 3, 5
    assert rings.tolist() == [0, 1, 1, 1, 0]


def test_the_chosen_entry_is_one_and_has_a_gradient() -> None:
    gates, leaves = watched_gates({"width": 5, "ratio": 2})
    gate = gates.chosen("width")
    assert gate.item() == 1
    gate.backward()
    assert leaves["width"].grad is not None
    assert leaves["width"].grad.tolist() == [0, 0, 1]


def test_masks_follow_the_number_format_of_the_weights() -> None:
    policy = Policy.of({"width": 5, "ratio": 2}, KERNEL_AND_WIDTH)
    gates = Gates(policy, like=torch.zeros(1, dtype=torch.float64))
    assert gates.mask(5, (2, 3, 5), "width").dtype == torch.float64


def test_masks_made_in_a_scoring_pass_can_be_trained_with_afterwards() -> None:
    sizes = (2, 3, 4321)  # of no other test: the first use makes the table
    with torch.inference_mode():
        gates_of({"width": 3, "ratio": 2}).mask(4321, sizes, "width")
    gates, leaves = watched_gates({"width": 3, "ratio": 2})
    gates.mask(4321, sizes, "width").sum().backward()
    assert leaves["width"].grad is not None
    assert leaves["width"].grad.tolist() == [2, 3, 4321]


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_multiplied_along_an_axis_and_the_module_keeps_its_own(axis: int) -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    masked = Masked(layer)
    mask = torch.tensor([2.0, 0.0, 1.0])[: before.shape[axis]]
    masked.multiply("weight", mask, axis=axis)
    masked.multiply("weight", torch.tensor(3.0))
    wanted = 3 * before * (mask[:, None] if axis == 0 else mask)
    torch.testing.assert_close(masked.weights["weight"], wanted)
    assert torch.equal(layer.weight, before)


class Doubled(nn.Linear):
    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        return 2 * super().forward(x)


def test_a_supernet_runs_with_the_masked_weights() -> None:
    layer = Doubled(3, 2)
    masked = Masked(layer)
    masked.multiply("weight", torch.tensor([0.0, 0.0, 0.0]), axis=1)
    logits = masked.run(torch.ones(1, 3), Arch({"width": 2}))
    torch.testing.assert_close(logits, 2 * layer.bias[None])


@pytest.mark.parametrize("training", [True, False])
def test_only_a_part_of_the_running_statistics_moves_and_only_while_training(
    training: bool,
) -> None:
    norm, smaller = nn.BatchNorm1d(4).train(training), nn.BatchNorm1d(3)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]])
    run_aside(norm, (x,), weights={}, statistics_of=dict(smaller.named_buffers()))
    moved = [0.15, 0.3, 0.45, 0.0] if training else [0.0] * 4
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    torch.testing.assert_close(norm.running_mean, torch.tensor(moved))
    assert norm.num_batches_tracked.item() == int(training)


def test_masks_of_decisions_with_equal_candidates_are_made_together() -> None:
    decisions = (
        Decision(label="width", choices=(2, 3)),
        Decision(label="a", choices=(1, 2)),
        Decision(label="b", choices=(1, 2)),
    )
    gates = gates_of({"width": 3, "a": 1, "b": 2}, decisions)
    assert gates.masks(2, (1, 2), each=["b", "a"]).tolist() == [[1, 1], [1, 0]]
    hidden = ((2, 4), (3, 6))  # width · ratio
    pairs = gates.masks(6, hidden, "width", each=["a", "b"])
    assert pairs[0].equal(gates.mask(6, hidden, "width", "a"))
    assert pairs[1].equal(gates.mask(6, hidden, "width", "b"))
    assert pairs.sum(dim=1).tolist() == [3, 6]


def test_vectors_are_multiplied_together_by_one_mask_or_by_one_each() -> None:
    norm = nn.LayerNorm(3)
    nn.init.constant_(norm.bias, 5.0)
    masked = Masked(norm)
    masked.multiply_vectors(["weight", "bias"], torch.tensor([1.0, 2.0, 0.0]))
    assert masked.weights["weight"].tolist() == [1, 2, 0]
    assert masked.weights["bias"].tolist() == [5, 10, 0]
    masked.multiply_vectors(["weight", "bias"], torch.tensor([[2.0], [0.0]]))
    assert masked.weights["weight"].tolist() == [2, 2, 2]
    assert masked.weights["bias"].tolist() == [0, 0, 0]
