"""Strategies: which subnets a training step sees. This file stays free of torch.

>>> sorted(STRATEGIES)  # doctest: +NORMALIZE_WHITESPACE
['attentivenas', 'fairnas', 'fewshot', 'greedynas', 'kshot', 'one_shot', 'sandwich', 'shiftnas',
 'spos', 'sumnas']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pipeline.named import load_factory, require_known

if TYPE_CHECKING:
    from latency_tables.cost_table import CostTable
    from pipeline.spaces.base import Space, Supernet
    from pipeline.training.step import Strategy

# name → module:factory; imported on use, because torch takes a second
STRATEGIES = {
    "attentivenas": "pipeline.strategies.attentivenas:attentivenas",
    "fairnas": "pipeline.strategies.fairnas:fairnas",
    "fewshot": "pipeline.strategies.fewshot:fewshot",
    "greedynas": "pipeline.strategies.greedynas:greedynas",
    "kshot": "pipeline.strategies.kshot:kshot",
    "one_shot": "pipeline.strategies.one_shot:one_shot",
    "sandwich": "pipeline.strategies.sandwich:sandwich",
    "shiftnas": "pipeline.strategies.shiftnas:shiftnas",
    "spos": "pipeline.strategies.spos:spos",
    "sumnas": "pipeline.strategies.sumnas:sumnas",
}


def require_strategy(name: str) -> None:
    """Raise UsageError, naming those that exist, unless there is a strategy of this name."""
    require_known(name, STRATEGIES, what="strategy", key="strategy")


def latency_device(options: Mapping[str, Any]) -> str | None:
    """The device whose latencies a strategy needs: that of ``cost = "latency:DEVICE"``.

    >>> latency_device({"cost": "latency:board"}), latency_device({"cost": "macs"})
    ('board', None)
    """
    kind, _, device = str(options.get("cost", "")).partition(":")
    return device if kind == "latency" else None


def load_strategy(
    name: str,
    *,
    space: Space,
    supernet: Supernet,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    latency: CostTable | None = None,
) -> Strategy:
    """Make a strategy.

    Args:
        name: a key of ``STRATEGIES``.
        supernet: the one that will be trained, already on its device.
        seed: root seed of the run, for strategies that keep a generator of their own.
        options: the table ``[train.options]``.
        latency: the space's costs with the latencies of :func:`latency_device`, where it is one.

    Raises:
        UsageError: unknown name or option; the message lists what exists.
    """
    require_strategy(name)
    make = load_factory(STRATEGIES[name])
    more = {} if latency is None else {"latency": latency}
    return cast(
        "Strategy",
        make(space=space, supernet=supernet, seed=seed, options=dict(options or {}), **more),
    )
