"""Passes in which gradients reach the choices: sliced, dense, and the networks they stand for."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latency_tables.arch import Arch
from latency_tables.errors import SpaceError
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.policy import Policy, straight_through
from pipeline.spaces.resampled import resampled
from pipeline.strategies.passes import without_dropout
from pipeline.supernet.resolution import resized
from pipeline.training.compiling import compiled
from tests.pipeline.spaces.policies import (
    archs_of,
    every_space,
    gradients,
    images,
    is_choice,
    lively,
    scalar,
    small,
    state_of,
    watched,
    wholly,
)

torch.set_num_threads(1)


def some_archs(space: Space, n: int) -> list[Arch]:
    return [wholly(space, 0), wholly(space, -1), *archs_of(space, n - 2, seed=1)]


@every_space
def test_sliced_dense_path_and_cut_out_network_are_one_function(name: str) -> None:
    space = small(name)
    supernet, x = lively(space), images(space)
    for arch in some_archs(space, 20):
        policy = watched(space, arch)
        network = space.network(arch).eval()
        space.inherit(network, arch, supernet)
        with torch.no_grad():
            path = supernet(x, arch)
            alone = network(resized(x, space.input_shape_of(arch)[1:]))
            sliced = supernet.policy_forward(x, policy)
            dense = supernet.policy_forward(x, policy, dense=True)
        assert torch.equal(sliced, path)
        tolerance = 1e-5 * max(1.0, path.abs().max().item())
        torch.testing.assert_close(dense, path, atol=tolerance, rtol=0)
        torch.testing.assert_close(alone, path, atol=tolerance, rtol=0)


@every_space
def test_while_training_values_and_running_statistics_are_those_of_the_path(name: str) -> None:
    space = small(name)
    by_path, x = lively(space).train(), images(space)
    by_slices, by_masks = copy.deepcopy(by_path), copy.deepcopy(by_path)
    with without_dropout(by_path), without_dropout(by_slices), without_dropout(by_masks):
        for arch in some_archs(space, 5):
            policy = watched(space, arch)
            path = by_path(x, arch).detach()
            assert torch.equal(by_slices.policy_forward(x, policy), path)
            dense = by_masks.policy_forward(x, policy, dense=True)
            tolerance = 1e-5 * max(1.0, path.abs().max().item())
            torch.testing.assert_close(dense, path, atol=tolerance, rtol=0)
    wanted = state_of(by_path)
    assert all(torch.equal(t, wanted[k]) for k, t in state_of(by_slices).items())
    torch.testing.assert_close(dict(state_of(by_masks)), dict(wanted), atol=1e-5, rtol=1e-5)


@every_space
def test_weights_get_the_gradients_of_the_path(name: str) -> None:
    space = small(name)
    supernet, x = lively(space), images(space)
    for arch in some_archs(space, 4):
        found = []
        for logits in (supernet(x, arch), supernet.policy_forward(x, watched(space, arch))):
            supernet.zero_grad(set_to_none=True)
            scalar(logits).backward()
            found.append({n: p.grad for n, p in supernet.named_parameters() if p.grad is not None})
        by_path, by_slices = found
        assert by_slices.keys() == by_path.keys()
        torch.testing.assert_close(by_slices, by_path, atol=1e-5, rtol=1e-4)


@every_space
def test_the_dense_gradient_is_the_slope_of_the_dense_pass(name: str) -> None:
    """As a function of real numbers: central differences of one decision after the other."""
    space = small(name)
    supernet, x = lively(space).double(), images(space, torch.float64)
    generator, step = torch.Generator().manual_seed(0), 1e-7
    n_decisions = len(space.decisions)
    with without_dropout(supernet, track=False):
        for arch in archs_of(space, 2, seed=2):
            policy = watched(space, arch, torch.float64)
            gradient = gradients(supernet, x, policy, dense=True)
            for decision in space.decisions[:: max(1, n_decisions // 8)]:
                direction = torch.randn(
                    len(decision.choices), generator=generator, dtype=torch.float64
                )
                up, down = (
                    slope_sample(supernet, x, policy, decision.label, sign * step * direction)
                    for sign in (1, -1)
                )
                numeric = (up - down) / (2 * step)
                wanted = float(gradient[decision.label] @ direction)
                assert numeric == pytest.approx(wanted, rel=1e-4, abs=1e-6), decision.label


def slope_sample(
    supernet: Supernet, x: torch.Tensor, policy: Policy, label: str, shift: torch.Tensor
) -> float:
    moved = dict(policy.one_hot) | {label: policy.one_hot[label] + shift}
    with torch.no_grad():
        shifted = Policy(decisions=policy.decisions, one_hot=moved)
        return float(scalar(supernet.policy_forward(x, shifted, dense=True)))


@every_space
def test_sliced_gradients_are_the_dense_ones_of_what_is_active_and_nothing_else(name: str) -> None:
    space = small(name)
    supernet, x = lively(space).double(), images(space, torch.float64)
    with without_dropout(supernet, track=False):
        for arch in some_archs(space, 4):
            policy = watched(space, arch, torch.float64)
            sliced = gradients(supernet, x, policy, dense=False)
            dense = gradients(supernet, x, policy, dense=True)
            for decision in space.decisions:
                mine, all_of = sliced[decision.label], dense[decision.label]
                k = decision.choices.index(arch[decision.label])
                if is_choice(decision):
                    others = [j for j in range(len(mine)) if j != k]
                    assert not mine[others].any()
                    torch.testing.assert_close(mine[k], all_of[k], atol=1e-9, rtol=1e-7)
                else:  # ∂L/∂p_j is the sum over the groups up to j: no inactive group adds to it
                    torch.testing.assert_close(mine[: k + 1], all_of[: k + 1], atol=1e-9, rtol=1e-7)
                    assert torch.equal(mine[k:], mine[k].expand(len(mine) - k))


@every_space
def test_units_that_are_off_have_a_gradient_in_the_dense_pass_only(name: str) -> None:
    space = small(name)
    supernet, x = lively(space).double(), images(space, torch.float64)
    arch = wholly(space, 0) if name != "nasbench201" else wholly(space, 2)
    policy = watched(space, arch, torch.float64)
    with without_dropout(supernet, track=False):
        dense = gradients(supernet, x, policy, dense=True)
    absent = set(space.canonical(arch)) - set(present(space, arch))
    for decision in space.decisions:
        if decision.label == "resolution" or decision.label in absent:
            continue
        gained = dense[decision.label][1:]
        if not is_choice(decision):
            gained = gained - dense[decision.label][:1]
        if name == "mobilenetv2_widths":
            gained = gained[-1:]  # two coefficients may mean the same channels
        assert gained.abs().min() > 1e-8, decision.label


def present(space: Space, arch: Arch) -> set[str]:
    """Decisions that the network of ``arch`` depends on, and those that add to it."""
    own = {label for segment in space.segments(arch) for label in segment.labels}
    return own | {d.label for d in space.decisions if d.label.endswith("depth")}


@every_space
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_under_autocast_values_are_those_of_the_path_and_choices_keep_fp32(
    name: str, layout: torch.memory_format
) -> None:
    space = small(name)
    supernet = lively(space).to(memory_format=layout)
    x = images(space).contiguous(memory_format=layout)
    for arch in archs_of(space, 3, seed=1):
        policy = watched(space, arch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            path, sliced = supernet(x, arch), supernet.policy_forward(x, policy)
            dense = supernet.policy_forward(x, policy, dense=True)
        assert sliced.dtype == dense.dtype == path.dtype
        assert torch.equal(sliced, path)
        scalar(sliced).backward()
        got = [v.grad for v in policy.one_hot.values() if v.grad is not None]
        assert any(g.any() for g in got)
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in got)


def test_gradients_of_choices_pass_the_straight_through_estimator() -> None:
    space = small("autoformer")
    supernet, x, arch = lively(space), images(space), wholly(space, -1)
    hard = Policy.of(arch, space.decisions).one_hot
    logits = {label: torch.zeros(len(h), requires_grad=True) for label, h in hard.items()}
    one_hot = {k: straight_through(h, logits[k].softmax(0)) for k, h in hard.items()}
    policy = Policy(decisions=space.decisions, one_hot=one_hot)
    scalar(supernet.policy_forward(x, policy)).backward()
    for label, vector in logits.items():
        assert vector.grad is not None, label
        assert vector.grad.abs().max() > 1e-6, label
        assert float(vector.grad.sum()) == pytest.approx(0, abs=1e-5), label


@pytest.mark.long
@pytest.mark.parametrize("name", ["autoformer", "bignas", "shufflenetv2", "shufflenetv2_scales"])
def test_compiled_regions_take_part(name: str) -> None:
    space = small(name)
    supernet, x, arch = lively(space), images(space), wholly(space, 0)
    eager = gradients(supernet, x, watched(space, arch), dense=False)
    with compiled(supernet, torch.device("cpu"), backend="eager"):
        supernet(x, arch)
        graphs = gradients(supernet, x, watched(space, arch), dense=False)
    torch.testing.assert_close(graphs, eager, atol=1e-5, rtol=1e-4)


def test_a_learned_resize_in_front_stays_in_front() -> None:
    inner = load_space("nasbench_macro", preset="tiny", input_shape=(3, 8, 8), n_classes=10)
    space = resampled(inner, (12, 12))
    supernet, x = lively(space), images(space)
    arch = archs_of(space, 1)[0]
    assert torch.equal(supernet.policy_forward(x, watched(space, arch)), supernet(x, arch))


def test_a_supernet_without_the_pass_names_the_spaces_that_have_it() -> None:
    class Plain(Supernet):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

    space = small("bignas")
    policy = Policy.of(wholly(space, 0), space.decisions)
    with pytest.raises(SpaceError, match=r"Plain has no pass .* autoformer, attentivenas, bignas"):
        Plain().policy_forward(images(space), policy)


def test_the_example_of_the_guide_runs() -> None:
    guide = Path(__file__).parents[3] / "docs" / "spaces.md"
    (code,) = re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)
    known: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(code, known)
    assert any(vector.grad.any() for vector in known["logits"].values())
