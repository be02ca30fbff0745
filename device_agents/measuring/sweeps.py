"""Sweeps: which number of threads, or which NPU core mask, is fastest for a network here?

All settings are measured in one session, one round of each at a time in a new order every time, so
that a device that drifts makes no setting look better.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from device_agents.devices import DeviceSpec
from device_agents.measuring.batches import Batch, Net, NetResult
from device_agents.measuring.described import timed_cores
from device_agents.measuring.measurer import DeviceMeasurer
from latency_tables.errors import UsageError
from latency_tables.records import Statistics


class Rounds(Protocol):
    """Rounds of one setting, taken one by one."""

    def next_round(self) -> bool:
        """Take one more round; False when none is needed."""
        ...

    def result(self) -> NetResult:
        """What the rounds gave."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """One setting: its numbers, whether it is the fastest, and whether it may be as fast.

    ``tied``: its interval overlaps that of the fastest one, so the sweep does not decide between
    them; the fastest itself is tied if any other setting is.
    """

    label: str
    result: NetResult
    best: bool = False
    tied: bool = False

    @property
    def statistics(self) -> Statistics | None:
        """None where the network did not run in this setting."""
        return self.result.statistics


def sweep(settings: Mapping[str, Rounds], *, seed: int = 0) -> tuple[SweepRow, ...]:
    """Measure all settings in interleaved rounds; rows in the order of ``settings``."""
    order = random.Random(seed)
    waiting = list(settings)
    while waiting:
        turn = order.sample(waiting, len(waiting))
        needed = {label for label in turn if settings[label].next_round()}
        waiting = [label for label in waiting if label in needed]
    return judged({label: rounds.result() for label, rounds in settings.items()})


def judged(results: Mapping[str, NetResult]) -> tuple[SweepRow, ...]:
    """Mark the fastest setting and those that cannot be told from it.

    A setting whose result failed is never the fastest.
    """
    usable = {label: r.statistics for label, r in results.items() if _usable(r) and r.statistics}
    if not usable:
        return tuple(SweepRow(label=label, result=result) for label, result in results.items())
    best = min(usable, key=lambda label: usable[label].median_ns)
    rivals = {
        label
        for label, found in usable.items()
        if label != best and found.ci_low_ns <= usable[best].ci_high_ns
    }
    return tuple(
        SweepRow(
            label=label,
            result=result,
            best=label == best,
            tied=label in rivals or (label == best and bool(rivals)),
        )
        for label, result in results.items()
    )


def _usable(result: NetResult) -> bool:
    return result.failure is None and all(v.severity != "fail" for v in result.verdicts)


def thread_sweep(
    device: DeviceSpec,
    threads: Sequence[int],
    measure: Callable[[DeviceSpec], Rounds],
    *,
    seed: int = 0,
) -> tuple[SweepRow, ...]:
    """Sweep the number of threads; labels are the numbers.

    ``measure`` gives the rounds of a device with other settings (:func:`rounds_of`). Cores that
    the device lists are kept, so they must be enough. Raises UsageError for counts below one,
    repeated ones, or more threads than cores.
    """
    if not threads or len(set(threads)) != len(threads):
        raise UsageError(f"threads {list(threads)}: at least one number, each once")
    variants = {str(count): replace(device, threads=count) for count in threads}
    return sweep({label: measure(variant) for label, variant in variants.items()}, seed=seed)


def option_sweep(
    options: Mapping[str, Mapping[str, Any]],
    measure: Callable[[Mapping[str, Any]], Rounds],
    *,
    seed: int = 0,
) -> tuple[SweepRow, ...]:
    """Sweep options of the runtime by label, for example NPU core masks. Raises UsageError."""
    if not options:
        raise UsageError("a sweep needs at least one setting")
    return sweep({label: measure(values) for label, values in options.items()}, seed=seed)


class _BatchRounds:
    def __init__(self, measurer: DeviceMeasurer, batch: Batch, name: str) -> None:
        self.measurer, self.batch, self.name = measurer, batch, name

    def next_round(self) -> bool:
        return self.measurer.next_round(self.batch)

    def result(self) -> NetResult:
        return self.batch.result(self.name)


def rounds_of(
    measurer: DeviceMeasurer,
    net: Net,
    device: DeviceSpec | None = None,
    runtime_options: Mapping[str, Any] | None = None,
) -> Rounds:
    """Rounds of ``net`` in another setting of the measurer's device, which must be connected.

    Raises UsageError where the device has too few cores for it.
    """
    device = device or measurer.device
    batch = measurer.batch(
        [net],
        device=device,
        cores=timed_cores(measurer.probe(), device),
        runtime_options=runtime_options,
    )
    return _BatchRounds(measurer, batch, net.name)
