"""Learning rates: pure functions of the step.

Step s of T with w warm-up steps:  s < w: lr · (s + 1) / (w + 1);  then p = (s − w) / (T − w) and
linear: final + (lr − final)(1 − p);  cosine: final + (lr − final)(1 + cos πp) / 2.
Step w has exactly ``lr``; the step after the last one would have exactly ``final``.
"""

from __future__ import annotations

import math

from pipeline.training.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, lr: float, step: int, total_steps: int) -> float:
    """Learning rate of ``step`` (from 0) of ``total_steps``.

    >>> linear = ScheduleConfig(kind="linear")
    >>> [learning_rate(linear, 0.5, step, 4) for step in range(5)]
    [0.5, 0.375, 0.25, 0.125, 0.0]
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return lr
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final_lr + (lr - schedule.final_lr) * left
