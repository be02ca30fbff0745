"""Strategies: which subnets a training step sees. This file stays free of torch.

>>> sorted(STRATEGIES)
['spos']
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from latency_tables.errors import UsageError

if TYPE_CHECKING:
    from pipeline.spaces.base import Space, Supernet
    from pipeline.training.step import Strategy

# name → module:factory; imported on use, because torch takes a second
STRATEGIES = {
    "spos": "pipeline.strategies.spos:spos",
}


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
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        raise UsageError(
            f"no strategy is called {name!r}; known: {', '.join(sorted(STRATEGIES))}",
            hint=f'strategy = "{near[0]}"' if near else None,
        )
    module, factory = STRATEGIES[name].split(":")
    make = getattr(importlib.import_module(module), factory)
    return cast(
        "Strategy", make(space=space, supernet=supernet, seed=seed, options=dict(options or {}))
    )
