"""What the tests of passes with policies share: supernets that are not neutral, and policies."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latency_tables.arch import Arch, Decision
from pipeline.spaces import SPACES, load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.policy import Policy

PRESETS = {name: "tiny" for name in SPACES} | {"autoformer": "micro"}
N_IMAGES = 4
SLOW = {"mobilenetv2", "mobilenetv2_widths", "proxyless", "shufflenetv2", "shufflenetv2_scales"}
"""Dense passes over many choices, or many widths: tested with the long tests."""
every_space = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in SPACES]
)


def small(name: str) -> Space:
    return load_space(name, preset=PRESETS[name], input_shape=(3, 8, 8), n_classes=10)


def lively(space: Space) -> Supernet:
    """Weights and statistics that are not neutral, so that a unit too many or too few shows."""
    if space.space_id not in _MADE:
        _MADE[space.space_id] = _lively(space)
    return copy.deepcopy(_MADE[space.space_id])


_MADE: dict[str, Supernet] = {}


def _lively(space: Space) -> Supernet:
    torch.manual_seed(0)
    supernet = space.supernet().train()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, module.in_features**-0.5)
    with torch.no_grad():
        for arch in archs_of(space, 10):  # statistics that fit keep the range of values
            supernet(torch.randn(8, *space.input_shape), arch)
    return supernet.eval()


def archs_of(space: Space, n: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(n)]


def wholly(space: Space, index: int) -> Arch:
    """All decisions at their first (0) or last (-1) choice."""
    return Arch({d.label: d.choices[index] for d in space.decisions})


def images(space: Space, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(N_IMAGES, *space.input_shape, dtype=dtype)


def watched(space: Space, arch: Arch, dtype: torch.dtype = torch.float32) -> Policy:
    """A policy whose vectors are leaves."""
    policy = Policy.of(arch, space.decisions)
    leaves = {k: v.to(dtype).requires_grad_() for k, v in policy.one_hot.items()}
    return Policy(decisions=policy.decisions, one_hot=leaves)


def scalar(logits: Tensor) -> Tensor:
    """A loss that no symmetry of the logits hides anything from."""
    weights = torch.linspace(-1.0, 2.0, logits.numel(), dtype=torch.float64).reshape(logits.shape)
    return (logits.double() * weights).sum() + logits.double().square().mean()


def gradients(supernet: Supernet, x: Tensor, policy: Policy, *, dense: bool) -> dict[str, Tensor]:
    """∂L/∂one_hot of every decision; zeros where nothing depends on it."""
    loss = scalar(supernet.policy_forward(x, policy, dense=dense))
    found = torch.autograd.grad(loss, list(policy.one_hot.values()), allow_unused=True)
    return {
        label: torch.zeros_like(vector) if gradient is None else gradient
        for (label, vector), gradient in zip(policy.one_hot.items(), found, strict=True)
    }


def is_choice(decision: Decision) -> bool:
    """Whether exactly one candidate runs; otherwise a larger candidate holds the smaller ones."""
    return isinstance(decision.choices[0], str) or decision.label == "resolution"


def state_of(module: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
