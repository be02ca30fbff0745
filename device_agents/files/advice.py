"""Self-critique of a measurement: what each verdict means for the number, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from device_agents.files.onnx_files import ModelFacts
from device_agents.files.passes import Phase
from latency_tables.records import Failure, Measurement, Statistics

WIDE = 0.02
"""Half-width of the interval, as a share of the median, from which it is worth a remark."""

HEAVY_COPIES = 0.2
"""Share of a run spent outside of computing from which copies deserve a remark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One remark; ``severity`` "note" has no influence on what the number may be used for."""

    code: str
    severity: Literal["fail", "warn", "note"]
    evidence: str
    meaning: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


_VERDICTS: dict[str, tuple[str, str]] = {
    "THROTTLED": (
        "heat or power limits lowered the clock, so this is not the speed of a cool board",
        "cool the board or lower its clock; hilnas devices doctor {device} shows the zones",
    ),
    "FREQ_CHANGED": (
        "the clock moved between or within rounds, so rounds are not comparable",
        "set the clocks of the device in devices.toml, or governor 'performance'",
    ),
    "UNCONTROLLED_GOV": (
        "nothing holds the clock still, so another day may give another number",
        "give the device clocks and power = 'sudo' in devices.toml, or accept it",
    ),
    "INTERFERENCE": (
        "something else used the timed cores; the true latency is rather lower",
        "stop other programs, choose quieter cores, or measure again",
    ),
    "MIGRATED": (
        "threads ran outside the chosen cores, perhaps on slower ones",
        "fewer threads, or a runtime that keeps its affinity",
    ),
    "DRIFT": (
        "the reference network changed its speed in the meantime, and so did this one, probably",
        "wait until the board is in a steady state and measure again",
    ),
    "TREND": (
        "runs became steadily slower or faster, so the number depends on when one looks",
        "--minutes 5 shows where it settles",
    ),
    "NOT_FINITE": (
        "an output holds NaN or infinity; such numbers may also run at another speed",
        "--inputs DIR with real data",
    ),
    "NOT_STEADY": (
        "the warm-up reached its time limit before the runs were steady",
        "measure again, or look at --minutes 5",
    ),
    "WRONG_ANSWER": (
        "the outputs differ from this machine's, so the speed is worth nothing",
        "compare the runtimes' versions and the precision; --no-check-outputs measures all the "
        "same",
    ),
    "BIMODAL": (
        "runs fall into two groups, of which the median picks one; another day may pick the other",
        "look for something that comes and goes (timers, neighbours); --measuring strict",
    ),
    "BUSY_BOARD": (
        "other work kept the board busy before the rounds began",
        "stop it, or measure when the board is idle",
    ),
    "CLOCKS_REFUSED": (
        "the board did not take the clocks of devices.toml",
        "hilnas devices doctor {device} says which clock and why",
    ),
    "CLOCK_MISMATCH": (
        "counted cycles disagree with the clock that the kernel names",
        "trust the milliseconds, not the clock; compare boards by ratio_to_reference",
    ),
    "HOT": (
        "rounds began warmer than the first ones of the session, so they may be slower",
        "let it cool down, or add cooling",
    ),
    "COLD": (
        "rounds began colder than the first ones of the session, so they may be faster",
        "measure again once its temperature is steady",
    ),
    "NPU_FLUCTUATION": (
        "the NPU's own times scatter while the rest is steady",
        "--measuring strict, and quote the range",
    ),
    "STUCK_THROTTLE": (
        "a limit of heat still holds though the board is cool",
        "restart the board; hilnas devices doctor {device} shows the cooling devices",
    ),
    "UNCONTROLLED_DMC": (
        "the clock of the memory cannot be held, and memory-bound networks follow it",
        "set it in devices.toml where the kernel offers it, or accept it",
    ),
    "UNCONTROLLED_NPU": (
        "the clock of the NPU cannot be held",
        "set it in devices.toml, or accept it",
    ),
    "BOARD_REBOOTED": ("rounds belong to different boots", "measure again"),
}
_UNKNOWN = ("the protocol found something unusual", "docs/measuring.md explains the codes")


def advise(measurement: Measurement, phases: Sequence[Phase] = ()) -> tuple[Advice, ...]:
    """Explain every verdict, then what else a careful reader would remark."""
    found = []
    for verdict in measurement.verdicts:
        meaning, remedy = _VERDICTS.get(verdict.code, _UNKNOWN)
        found.append(
            Advice(
                code=verdict.code,
                severity=verdict.severity,
                evidence=verdict.evidence,
                meaning=meaning,
                remedy=remedy.format(device=measurement.device_name),
            )
        )
    if measurement.statistics is not None:
        found += _about_statistics(measurement.statistics)
    return (*found, *_about_phases(phases))


def _about_statistics(found: Statistics) -> list[Advice]:
    remarks = []
    half = (found.ci_high_ns - found.ci_low_ns) / 2 / found.median_ns
    if not found.converged or half > WIDE:
        remarks.append(
            _note(
                "WIDE_INTERVAL",
                f"±{half:.1%} after {found.n_rounds} rounds",
                "two measurements may differ by this much",
                "--measuring strict takes more rounds until they agree",
            )
        )
    missing = [n for n in ("p90", "p95", "p99") if getattr(found, f"{n}_ns") is None]
    if missing:
        remarks.append(
            _note(
                "NO_PERCENTILE",
                f"{', '.join(missing)} of {found.n_samples} runs",
                "neighbouring runs resemble each other, or were timed in groups: too few "
                "independent ones for the tail",
                "--measuring strict",
            )
        )
    if found.first_ns > 10 * found.median_ns:
        remarks.append(
            _note(
                "SLOW_FIRST_RUN",
                f"{found.first_ns / found.median_ns:.0f} times the median",
                "the first run allocates and fills caches",
                "run the network once when the program starts",
            )
        )
    return remarks


def _about_phases(phases: Sequence[Phase]) -> list[Advice]:
    total = sum(phase.median_ns for phase in phases)
    copies = sum(phase.median_ns for phase in phases if phase.name != "run")
    if not total or copies <= HEAVY_COPIES * total:
        return []
    return [
        _note(
            "HEAVY_COPIES",
            f"{copies / total:.0%} of a run",
            "setting inputs and fetching outputs weighs in, so a faster network helps little",
            "keep tensors with the runtime (IO binding), or larger batches",
        )
    ]


_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_OPSET = re.compile(r"official support for domain (\S+) is till opset (\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a network was not measured, in one sentence, and what to try."""

    reason: str
    hint: str | None


def trouble(failure: Failure, model: ModelFacts, device_name: str) -> Trouble:
    """Explain a failure; a runtime's limit on IR or opset is named with the way around it.

    >>> said = "Unsupported model IR version: 13, max supported IR version: 9"
    >>> facts = ModelFacts(name="net.onnx", sha256="", size_bytes=1, external_bytes=0,
    ...     ir_version=13, opsets={"": 17}, producer="", n_nodes=1, inputs=(), outputs=())
    >>> found = trouble(Failure(code="LOAD_FAILED", message=said, blames="candidate"), facts, "a")
    >>> print(found.reason)
    net.onnx has IR version 13, the runtime of a reads at most 9
    >>> print(found.hint)
    set model.ir_version = 9 in Python's onnx, or bring a newer runtime: hilnas devices bootstrap a
    """
    message = " ".join(failure["message"].split())
    newer = f"or bring a newer runtime: hilnas devices bootstrap {device_name}"
    if found := _IR.search(message):
        return Trouble(
            reason=f"{model.name} has IR version {found[1]}, the runtime of {device_name} reads at "
            f"most {found[2]}",
            hint=f"set model.ir_version = {found[2]} in Python's onnx, {newer}",
        )
    if found := _OPSET.search(message):
        has = model.opsets.get("" if found[1] == "ai.onnx" else found[1], "?")
        return Trouble(
            reason=f"{model.name} has opset {has} of {found[1]}, the runtime of {device_name} "
            f"reads at most {found[2]}",
            hint=f"onnx.version_converter.convert_version(model, {found[2]}) in Python, {newer}",
        )
    hint = _FAILURES.get(failure["code"])
    if failure["code"] == "UNSUPPORTED_MODEL":
        hint = f"hilnas devices doctor {device_name} shows what its runtime can load, {newer}"
    return Trouble(reason=message, hint=hint)


_FAILURES = {
    "OOM": "a smaller input (--shape), or a larger memory_limit_bytes of the device",
    "RUN_TIMEOUT": "--measuring strict waits longer; fewer operators or a smaller --shape",
    "LOAD_FAILED": "onnx.checker.check_model(FILE) on this machine says what is wrong with it",
}


def _note(code: str, evidence: str, meaning: str, remedy: str) -> Advice:
    return Advice(code=code, severity="note", evidence=evidence, meaning=meaning, remedy=remedy)
