"""Learning rates: pure functions of the step.

Step s of T with w warm-up steps:  s < w: lr · (s + 1) / (w + 1);  then p = (s − w) / (T − w) and
linear: final + (lr − final)(1 − p);  cosine: final + (lr − final)(1 + cos πp) / 2;
exponential, with d = decay_steps: lr · max(floor, rate^⌊(s − w) / d⌋), without ⌊⌋ if not staircase.
Step w has exactly ``lr``; for linear and cosine the step after the last one would have ``final``.

Exponential is the recipe of the MobileNet family, "×0.97 every 2.4 epochs". TensorFlow's public
code counts those epochs from the first step, under the warm-up; here they begin where it ends, as
the K-shot paper words it ("increased ... for 5 epochs and then decays"). With ``floor = 0.05`` it
is BigNAS's exponential decay with a constant ending (Yu et al., 2020, section 3.3).
"""

from __future__ import annotations

import math

from latency_tables.errors import UsageError
from pipeline.training.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, lr: float, step: int, total_steps: int) -> float:
    """Learning rate of ``step`` (from 0) of ``total_steps``; the schedule's lengths are in steps.

    >>> linear = ScheduleConfig(kind="linear")
    >>> [learning_rate(linear, 0.5, step, 4) for step in range(5)]
    [0.5, 0.375, 0.25, 0.125, 0.0]
    >>> halved = ScheduleConfig(kind="exponential", decay_rate=0.5, decay_steps=2, floor=0.2)
    >>> [learning_rate(halved, 1.0, step, 8) for step in range(8)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]

    Raises:
        UsageError: a length is in epochs: ``schedule.in_steps`` comes first.
    """
    if schedule.warmup_epochs is not None or schedule.decay_epochs is not None:
        raise UsageError("the schedule's lengths are in epochs; schedule.in_steps(...) comes first")
    warmup = schedule.warmup_steps
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return lr
    if schedule.kind == "exponential":
        decays = (step - warmup) / (schedule.decay_steps or 1.0)
        decays = math.floor(decays) if schedule.staircase else decays
        return lr * max(schedule.floor, schedule.decay_rate**decays)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final_lr + (lr - schedule.final_lr) * left
