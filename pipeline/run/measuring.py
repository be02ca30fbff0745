"""``hilnas measure``: one ONNX file on one device, looked at in several ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from device_agents.devices import DeviceSpec
from device_agents.files.advice import trouble
from device_agents.files.budget import Judgement, Limit, judge, outcome, require
from device_agents.files.file_runs import sustain_file, sweep_file
from device_agents.files.given_inputs import Arrays, read_inputs
from device_agents.files.measure_file import FileMeasurement, measure_file
from device_agents.files.onnx_files import describe, read_model
from device_agents.measuring.measurer import Progress
from device_agents.measuring.sustained import Period, Sustained
from device_agents.measuring.sweeps import SweepRow
from latency_tables.errors import MeasurementError
from latency_tables.records import NS_PER_MS
from pipeline.run.progress import Reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureWish:
    """What to measure of one file. ``threads`` empty: as the device says; several: a sweep."""

    model: Path
    profile: str = "screening"
    threads: tuple[int, ...] = ()
    provider: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Path | None = None
    limits: tuple[Limit, ...] = ()
    check_outputs: bool = True
    per_op: bool = False
    minutes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureReport:
    """What came out. ``sweep`` chose the threads of ``best``, which was measured after it."""

    best: FileMeasurement
    sweep: tuple[SweepRow, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    sustained: Sustained | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of ``hilnas measure``; docs/measuring.md describes it."""
        budget = {
            "outcome": outcome(self.judgements),
            "limits": [one.to_dict() for one in self.judgements],
        }
        return {
            **self.best.to_dict(),
            "budget": budget if self.judgements else None,
            "sweep": [_row(row) for row in self.sweep] or None,
            "sustained": None if self.sustained is None else self.sustained.to_dict(),
        }

    def require(self) -> None:
        """Raise unless the outputs are right and every limit is kept.

        Raises:
            BudgetMissedError: a limit is broken.
            InconclusiveError: a limit lies inside an interval.
            MeasurementError: WRONG_ANSWER.
        """
        require(self.judgements)
        check = self.best.outputs
        if check.right is False:
            wrong = [one.name for one in check.outputs if not one.right] or ["of the rounds"]
            raise MeasurementError(
                "WRONG_ANSWER",
                f"the outputs on {self.best.measurement.device_name} differ from this machine's: "
                f"{', '.join(wrong)}",
                hint="hilnas measure ... --no-check-outputs measures all the same",
            )


def measure_model(wish: MeasureWish, device: DeviceSpec) -> MeasureReport:
    """Measure one ONNX file as wished.

    Raises:
        UsageError: the file, a shape, an input or the number of threads does not fit.
        MeasurementError: the network failed on the device; says why.
        DeviceError: the device failed.
    """
    spec = replace(device, provider=wish.provider or device.provider)
    spec = replace(spec, threads=wish.threads[0]) if wish.threads else spec
    about = Asked(profile=wish.profile, shapes=wish.shapes, inputs=_inputs(wish))
    sweep: tuple[SweepRow, ...] = ()
    if len(wish.threads) > 1:
        with _bar("threads") as show:
            sweep = sweep_file(wish.model, spec, wish.threads, **about, on_progress=show)
        chosen = next((row.label for row in sweep if row.best), str(spec.threads))
        spec = replace(spec, threads=int(chosen))
    with _bar(f"on {spec.name}") as show:
        best = measure_file(
            wish.model,
            spec,
            **about,
            check_outputs=wish.check_outputs,
            per_op=wish.per_op,
            command="hilnas measure",
            on_progress=show,
        )
    _require_numbers(best)
    return MeasureReport(
        best=best,
        sweep=sweep,
        judgements=judge(wish.limits, best.measurement),
        sustained=_sustain(wish, spec, about),
    )


class Asked(TypedDict):
    """What every pass over the file is given."""

    profile: str
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Arrays | None


def _inputs(wish: MeasureWish) -> Arrays | None:
    if wish.inputs is None:
        return None
    model, files = read_model(wish.model)
    return read_inputs(wish.inputs, describe(wish.model.name, model, files))


def _sustain(wish: MeasureWish, spec: DeviceSpec, about: Asked) -> Sustained | None:
    if wish.minutes is None:
        return None
    seconds = round(60 * wish.minutes)
    with Reporter().bar("sustained, s") as advance:

        def show(period: Period) -> None:
            advance(round(period.end_s), seconds, f"{period.median_ns / NS_PER_MS:.4f} ms")

        return sustain_file(wish.model, spec, minutes=wish.minutes, **about, on_period=show)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[Progress], None]]:
    with Reporter().bar(title) as advance:
        yield lambda progress: advance(progress.done, progress.total, progress.note)


def _require_numbers(found: FileMeasurement) -> None:
    """Raise MeasurementError, saying why and what to try, where nothing was timed."""
    failure, name = found.measurement.error, found.measurement.device_name
    if failure is None:
        return
    why = trouble(failure, found.model, name)
    raise MeasurementError(
        failure["code"],
        f"{found.model.name} could not be measured on {name}: {failure['code']}, {why.reason}",
        blames=failure["blames"],
        hint=why.hint,
    )


def _row(row: SweepRow) -> dict[str, Any]:
    return {
        "threads": int(row.label),
        "best": row.best,
        "tied": row.tied,
        "statistics": None if row.statistics is None else row.statistics.to_dict(),
        "verdicts": [verdict.to_dict() for verdict in row.result.verdicts],
        "error": row.result.failure,
    }
