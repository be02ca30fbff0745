"""Strategies: which subnets a training step sees. This file stays free of torch.

>>> sorted(STRATEGIES)
['attentivenas', 'fairnas', 'fewshot', 'greedynas', 'one_shot', 'sandwich', 'spos', 'sumnas']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pipeline.named import load_factory, require_known

if TYPE_CHECKING:
    from pipeline.spaces.base import Space, Supernet
    from pipeline.training.step import Strategy

# name → module:factory; imported on use, because torch takes a second
STRATEGIES = {
    "attentivenas": "pipeline.strategies.attentivenas:attentivenas",
    "fairnas": "pipeline.strategies.fairnas:fairnas",
    "fewshot": "pipeline.strategies.fewshot:fewshot",
    "greedynas": "pipeline.strategies.greedynas:greedynas",
    "one_shot": "pipeline.strategies.one_shot:one_shot",
    "sandwich": "pipeline.strategies.sandwich:sandwich",
    "spos": "pipeline.strategies.spos:spos",
    "sumnas": "pipeline.strategies.sumnas:sumnas",
}


def require_strategy(name: str) -> None:
    """Raise UsageError, naming those that exist, unless there is a strategy of this name."""
    require_known(name, STRATEGIES, what="strategy", key="strategy")


def load_strategy(
    name: str,
    *,
    space: Space,
    supernet: Supernet,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Strategy:
    """Make a strategy.

    Args:
        name: a key of ``STRATEGIES``.
        supernet: the one that will be trained, already on its device.
        seed: root seed of the run, for strategies that keep a generator of their own.
        options: the table ``[train.options]``.

    Raises:
        UsageError: unknown name or option; the message lists what exists.
    """
    require_strategy(name)
    make = load_factory(STRATEGIES[name])
    return cast(
        "Strategy", make(space=space, supernet=supernet, seed=seed, options=dict(options or {}))
    )
