"""What was wrong with a measurement: pure functions from evidence to findings to verdicts.

A *finding* says what happened and how much; its *severity* depends on the measuring profile
(:data:`device_agents.measuring.profiles.SEVERITY`). Findings of several rounds are merged into one
verdict per code. Modules: heat, clocks, load, numbers; the gates before a round
(:mod:`device_agents.measuring.gates`) add HOT, COLD and BUSY_BOARD.

================  ===============================================================================
THROTTLED         a cooling device acted, the clock limit fell, or a zone reached its trip point
FREQ_CHANGED      the clock of a timed core, or of memory or NPU, moved during the round
CLOCK_MISMATCH    counted cycles say another clock than the kernel
CLOCKS_REFUSED    a clock that was asked for was not taken
UNCONTROLLED_GOV  a governor may change the clock, or no clock can be read at all
UNCONTROLLED_DMC  the same for the memory's clock, on boards that show devfreq clocks
UNCONTROLLED_NPU  the same for the NPU's clock, where the NPU is timed
INTERFERENCE      others took the timed cores, tasks had to wait, or switches were forced
MIGRATED          a thread was allowed to run outside the chosen cores
HOT, COLD         a round started outside of the session's window of temperatures
BUSY_BOARD        a round started though the board was busy or short of memory
DRIFT             the reference network changed its own latency
TREND             block medians climb or fall within the rounds
BIMODAL           runs fall into two groups
NPU_FLUCTUATION   the NPU's own times scatter while the rest is steady
WRONG_ANSWER      the outputs differ from the expected ones
NOT_FINITE        an output holds NaN or an infinity
NOT_STEADY        the warm-up hit its time limit
BOARD_REBOOTED    rounds come from different boots
================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from device_agents.measuring.replies import ChildEvidence
from device_agents.measuring.verdicts.clocks import (
    FIXED_GOVERNORS,
    clock_changes,
    clock_mismatch,
    clocks_refused,
    devfreq_changes,
    uncontrolled_devfreq,
    uncontrolled_governors,
)
from device_agents.measuring.verdicts.finding import Finding, judge
from device_agents.measuring.verdicts.heat import throttling
from device_agents.measuring.verdicts.load import other_load, other_processes, pressure
from device_agents.measuring.verdicts.numbers import (
    bimodal,
    drift,
    net_findings,
    npu_fluctuation,
    to_quarantine,
    trend,
)

__all__ = [
    "FIXED_GOVERNORS",
    "Finding",
    "bimodal",
    "board_findings",
    "clocks_refused",
    "drift",
    "judge",
    "net_findings",
    "npu_fluctuation",
    "reboots",
    "throttling",
    "to_quarantine",
    "trend",
]


def board_findings(
    child: ChildEvidence,
    cores: Sequence[int],
    *,
    npu: bool = False,
    clocks: Mapping[str, int] | None = None,
) -> list[Finding]:
    """Everything that concerns all networks of one child.

    ``npu`` says whether the runtime uses the NPU, ``clocks`` which clocks were set, by policy in
    kHz.
    """
    return [
        *throttling(child.before, child.after),
        *clock_changes(child, cores, clocks or {}),
        *devfreq_changes(child, npu=npu),
        *clock_mismatch(child, cores),
        *uncontrolled_governors(child.after, cores),
        *uncontrolled_devfreq(child.after, npu=npu),
        *other_load(child, cores),
        *other_processes(child),
        *pressure(child),
    ]


def reboots(boot_ids: Iterable[str]) -> list[Finding]:
    """More than one boot among the rounds.

    >>> [finding.code for finding in reboots(["a", "b"])]
    ['BOARD_REBOOTED']
    """
    known = {boot for boot in boot_ids if boot}
    if len(known) < 2:
        return []
    return [Finding(code="BOARD_REBOOTED", evidence=f"rounds come from {len(known)} boots")]
