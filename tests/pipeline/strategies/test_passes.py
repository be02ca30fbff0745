"""Passes without dropout and probing passes, in every space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.spaces import SPACES
from pipeline.strategies.passes import probing, without_dropout
from tests.pipeline.spaces.test_one_function import lively_supernet, small

every_space = pytest.mark.parametrize("name", SPACES)


def statistics(supernet: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in supernet.named_buffers()}


@every_space
def test_a_pass_without_dropout_normalises_by_its_batch(name: str) -> None:
    """Statistics of the supernet fit no subnet, so they may not be read while it trains."""
    space = small(name)
    supernet, arch = lively_supernet(space).train(), space.sample(np.random.default_rng(0))
    x = torch.randn(6, *space.input_shape)
    with torch.no_grad(), without_dropout(supernet):
        first = supernet(x, arch)
        for buffer in supernet.buffers():
            if buffer.is_floating_point():
                buffer.mul_(3).add_(1)
        torch.testing.assert_close(supernet(x, arch), first)


@every_space
def test_probing_leaves_no_trace(name: str) -> None:
    space = small(name)
    supernet, arch = lively_supernet(space).train(), space.sample(np.random.default_rng(0))
    before = statistics(supernet)
    with probing(supernet):
        supernet(torch.randn(6, *space.input_shape), arch)
    assert all(before[k].equal(v) for k, v in supernet.named_buffers())
    supernet(torch.randn(6, *space.input_shape), arch)
    has_norms = any("running" in k for k in before)
    moved = not all(before[k].equal(v) for k, v in supernet.named_buffers())
    assert moved == has_norms
