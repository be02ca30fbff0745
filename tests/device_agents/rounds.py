"""Rounds as an agent would report them, made up for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from device_agents.measuring.replies import NetRound


def make_round(blocks: Sequence[Sequence[int]], **changes: Any) -> NetRound:
    """One round with the given samples per block; keywords change its other fields."""
    fields: dict[str, Any] = {
        "block_medians_ns": tuple(int(np.median(b)) for b in blocks),
        "block_counts": tuple(len(b) for b in blocks),
        "samples_ns": tuple(tuple(int(v) for v in b) for b in blocks),
        "min_ns": int(min(min(b) for b in blocks)),
        "load_ns": 5000,
        "first_ns": 900,
        "warmup_runs": 3,
        "steady": True,
        "calls_per_sample": 1,
        "involuntary_switches": 0,
        "n_threads": 1,
        "masks_outside": (),
        "finite": True,
        "golden_right": None,
        "golden_error": None,
        "child": 0,
        "position": 0,
    }
    return NetRound(**{**fields, **changes})
