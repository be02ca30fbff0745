"""``hilnas generate``: an ONNX network for any limit from a trained run, at once.

The run gives the supernet, the generator and the latency tables; nothing is searched or trained.
Every network goes to a folder of its own with its manifest, as an exported winner does, and
``generated.json`` beside it says how it came about. A sweep makes a family of networks and one
report of them all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from latency_tables.errors import (
    HilnasError,
    LimitError,
    RunError,
    UsageError,
)
from latency_tables.files import write_json
from pipeline.run.generating.limits import folder_name, parse_sweep
from pipeline.run.generating.summary import summary_of, tell
from pipeline.run.source import write_lock
from pipeline.search.limits import Limit, Metric

if TYPE_CHECKING:
    from pipeline.generator.file import LoadedGenerator
    from pipeline.run.context import RunContext
    from pipeline.run.generating.latency import DeviceLatency
    from pipeline.run.generating.subnets import Subnets
    from pipeline.run.job import Job

FAMILY_SCHEMA = "hilnas.family/1"
SUMMARY, FAMILY, REPORT = "generated.json", "family.json", "report.html"
FOLDER = "generated"
"""Folder inside the run's for what is generated, unless another one is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """What is asked for. ``sweep`` is FROM:TO:STEP; ``check`` None: measure where possible."""

    latency_ms: float | None = None
    macs: float | None = None
    params: float | None = None
    device: str | None = None
    sweep: str | None = None
    out: Path | None = None
    tolerance: float = 0.05
    candidates: int = 1
    tries: int = 3
    check: bool | None = None


def generate(job: Job, request: GenerateRequest) -> dict[str, Any]:
    """Make the networks; gives what ``generated.json`` holds, or ``family.json`` for a sweep.

    Raises:
        RunError: the run is not trained yet, or has no generator.
        CheckpointError: the generator or the supernet is damaged, or of another space.
        ForeignTableError: a table is of another device or space.
        MissingLatencyError: the run has no latency table of the device.
        LimitError: no network keeps the limits; names the ranges.
        UsageError: no limit, no such device, a sweep that is none.
    """
    require_trained(job)
    if request.out is not None and (request.out / "stages.json").exists():
        raise UsageError(
            f"{request.out} is a run folder, whose network would be replaced",
            hint="another folder with --out, or none for RUN/generated",
        )
    limits = request_limits(request, [d.name for d in job.source.config.device])
    sweep = None if request.sweep is None else parse_sweep(request.sweep)
    with job.working() as context, opened_subnets(context, request, limits) as subnets:
        if sweep is None:
            to = request.out or job.folder.file(f"{FOLDER}/{folder_name(limits)}")
            return make_one(job, subnets, limits, to)
        swept = _swept(subnets.loaded, request, limits, sweep)
        to = request.out or job.folder.file(f"{FOLDER}/{_family_name(request, swept)}")
        return make_family(job, subnets, swept, limits, to)


# -- what there is -------------------------------------------------------------------------------


def require_trained(job: Job) -> None:
    """Raise RunError unless the run has a supernet and a generator; says how to get them."""
    from pipeline.generator.file import FILE_NAME

    folder, strategy = job.folder, job.source.config.train.strategy
    if not folder.path.is_dir():
        raise RunError(f"there is no run folder {folder.path}", hint="hilnas run FILE|STARTER")
    stamp = folder.stamps().get("train")
    if stamp is None or not stamp.done or not folder.file("supernet.safetensors").is_file():
        raise RunError(
            f"{folder.path} has no trained supernet yet", hint=f"hilnas train {folder.path}"
        )
    if folder.file(FILE_NAME).is_file():
        return
    if strategy == "shiftnas":
        raise RunError(
            f"{folder.path} has no architecture generator: it was trained on exact paths",
            hint="train one with 'hilnas run FILE --set train.options.paths=generator'",
        )
    raise RunError(
        f"{folder.path} has no architecture generator: its supernet was trained with strategy "
        f"{strategy!r}, which trains none",
        hint="train one with 'hilnas run FILE --set train.strategy=shiftnas', or begin with "
        "'hilnas init quick-shiftnas'",
    )


@contextmanager
def opened_subnets(
    context: RunContext, request: GenerateRequest, limits: Sequence[Limit]
) -> Iterator[Subnets]:
    """The generator with the tables that the request needs."""
    from pipeline.run.generating.latency import device_latency
    from pipeline.run.generating.subnets import Subnets

    loaded = load(context)
    name = _device(request, limits, loaded)

    def made(latency: DeviceLatency | None) -> Subnets:
        return Subnets(
            context, loaded, latency, tolerance=request.tolerance, candidates=request.candidates,
            tries=request.tries, check=request.check,
        )  # fmt: skip

    if name is None:
        yield made(None)
        return
    context.inventory.find(name)
    with device_latency(context, name) as latency:
        _require_same_table(context, loaded, latency)
        yield made(latency)


def load(context: RunContext) -> LoadedGenerator:
    """The generator of the run.

    Raises:
        CheckpointError: it is damaged, or of another space.
        ForeignTableError: it learned from other costs than the space has.
    """
    from pipeline.generator.file import FILE_NAME, load_generator

    path = context.folder.file(FILE_NAME)
    loaded = load_generator(path, context.space)
    if loaded.device is None:
        loaded = load_generator(path, context.space, table=context.cost_table)
    return loaded


def _require_same_table(
    context: RunContext, loaded: LoadedGenerator, latency: DeviceLatency
) -> None:
    """Say so where the generator's levels are milliseconds of an earlier table of the device."""
    from pipeline.generator.file import column_hash

    if loaded.device != latency.name:
        return
    if column_hash(latency.table, loaded.column) != loaded.column_hash:
        context.reporter.warn(
            f"the latency table of {latency.name} has changed since the generator was trained: "
            "its levels are those of the earlier table, repair goes by the present one"
        )


def _device(
    request: GenerateRequest, limits: Sequence[Limit], loaded: LoadedGenerator
) -> str | None:
    """The device whose latency counts; a sweep without one is over the generator's own cost."""
    if request.device is not None:
        return request.device
    named = next((limit.device for limit in limits if limit.device is not None), None)
    return named or (loaded.device if request.sweep is not None else None)


def request_limits(request: GenerateRequest, devices: Sequence[str]) -> list[Limit]:
    """The limits of a request, those of its sweep left out.

    Raises:
        UsageError: nothing is limited; a latency is, on no device.
    """
    limits = []
    if request.latency_ms is not None:
        device = request.device or (devices[0] if len(devices) == 1 else None)
        if device is None:
            raise UsageError(
                f"on which device may it take {request.latency_ms:g} ms? The run is for "
                f"{', '.join(devices)}",
                hint=f"--device {devices[0]}",
            )
        limits.append(Limit(metric="latency_ms", bound=request.latency_ms, device=device))
    if request.macs is not None:
        limits.append(Limit(metric="macs", bound=request.macs))
    if request.params is not None:
        limits.append(Limit(metric="params", bound=request.params))
    if not limits and request.sweep is None:
        raise UsageError(
            "what the network may cost is not given",
            hint="--limit-latency-ms 5 --device NAME, --limit-macs 300M, or --sweep 3:12:0.5",
        )
    return limits


def _swept(
    loaded: LoadedGenerator, request: GenerateRequest, limits: Sequence[Limit],
    bounds: Sequence[float],
) -> list[Limit]:  # fmt: skip
    """The limits of a sweep: milliseconds where a device is named, else the generator's cost."""
    device = _device(request, limits, loaded)
    metrics: dict[str, Metric] = {"macs": "macs", "params": "params"}
    metric = "latency_ms" if device is not None else metrics.get(loaded.column)
    if metric is None:
        raise UsageError(
            f"the generator was trained on {loaded.column}, which no sweep is over",
            hint="--device NAME sweeps over milliseconds",
        )
    if any(limit.metric == metric for limit in limits):
        raise UsageError(f"--sweep is over {metric} already; its limit cannot be given as well")
    return [Limit(metric=metric, bound=bound, device=device) for bound in bounds]


def _family_name(request: GenerateRequest, swept: Sequence[Limit]) -> str:
    what = swept[0].device if swept[0].metric == "latency_ms" else swept[0].metric
    return f"sweep-{str(request.sweep).replace(':', '-')}-{what}"


# -- making --------------------------------------------------------------------------------------


def make_one(job: Job, subnets: Subnets, limits: Sequence[Limit], to: Path) -> dict[str, Any]:
    """Make, export and check one network in folder ``to``; gives its ``generated.json``."""
    from pipeline.export.check import check_export
    from pipeline.run.stages.export import write_export
    from pipeline.search.targets import Target

    began, context = time.perf_counter(), subnets.context
    made = subnets.make(limits)
    tell(subnets, made)
    exporting = time.perf_counter()
    to.mkdir(parents=True, exist_ok=True)
    (to / SUMMARY).unlink(missing_ok=True)  # of an earlier network, should this one stop half-way
    name = None if subnets.latency is None else subnets.latency.name
    measured = {} if name is None or made.measured is None else {name: made.measured}
    records = {} if made.record is None else {(r.device_name, r.key): r for r in [made.record]}
    weights = context.folder.file("supernet.safetensors")
    manifest = write_export(
        context,
        made.network,
        made.chosen.arch,
        measured=measured,
        validation=made.accuracy,
        weights=weights,
        to=to,
        target=Target(device=None, devices=() if name is None else (name,), limits=tuple(limits)),
        records=records,
    )
    check_export(to)
    write_lock(to, job.source)  # so that 'hilnas check' finds the images
    ended = time.perf_counter()
    seconds = {**made.seconds, "export": ended - exporting, "all": ended - began}
    summary = summary_of(subnets, made, manifest.accuracy.model_dump(mode="json"), seconds)
    write_json(to / SUMMARY, summary)
    return {**summary, "folder": str(to)}


def make_family(
    job: Job, subnets: Subnets, swept: Sequence[Limit], further: Sequence[Limit], to: Path
) -> dict[str, Any]:
    """Make a network for every limit of a sweep, and the report of them all.

    Limits that no network keeps are told in the report; the others go on.

    Raises:
        LimitError: no network was made at all; says why.
    """
    from pipeline.report.family import write_family_report

    made: list[dict[str, Any]] = []
    refused: list[tuple[Limit, HilnasError]] = []
    reporter = subnets.context.reporter
    for limit in swept:
        reporter.say(f"[cyan]▸[/cyan] {escape(str(limit))}")
        try:
            folder = to / folder_name([limit])
            network = make_one(job, subnets, [limit, *further], folder)
            made.append({**network, "folder": folder.name})
        except LimitError as error:
            reporter.say(f"  no network: {escape(error.message)}")
            refused.append((limit, error))
    if not made:
        raise refused[0][1]
    family = {
        "schema": FAMILY_SCHEMA,
        "run": subnets.context.folder.path.name,
        "space": made[0]["space"],
        "swept": swept[0].metric,
        "device": swept[0].device,
        "generator": made[0]["generator"],
        "networks": made,
        "refused": [{"limit": limit.to_dict(), "why": e.message} for limit, e in refused],
    }
    write_json(to / FAMILY, family)
    write_family_report(to / REPORT, family)
    return {**family, "folder": str(to)}
