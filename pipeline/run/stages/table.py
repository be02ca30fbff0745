"""Stage ``table``: measure networks on every device, fit the latency model, fix the limits.

The live table keeps every measurement, whatever becomes of the run; networks that it knows
already are not measured again, and what else it holds of the space, the device and its setting is
used as well. ``table.jsonl`` is a copy of the records that this run used,
``latency.json`` says how good the model is and what the limits are in numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from latency_tables import gates
from latency_tables.cost_table import CostTable
from latency_tables.estimate import Estimate
from latency_tables.files import canonical_json, write_json
from latency_tables.interchange import write_table
from latency_tables.macs_rank import macs_rank
from latency_tables.pooling import by_key, pool
from latency_tables.predictor import LatencyModel
from latency_tables.records import Measurement
from latency_tables.remarks import MEASURED, Kind, Remark
from latency_tables.store import Device
from pipeline.run.context import RunContext
from pipeline.run.devices import RunDevice, table_header
from pipeline.run.priors import find_priors
from pipeline.run.stage import Stage
from pipeline.run.table_plan import Planner
from pipeline.run.table_records import TableRecords, chosen_records, measure_missing
from pipeline.search.limits import Limit, check_possible, resolve_limits

SCHEMA = 1


def run_table(context: RunContext) -> None:
    """Measure what is missing, on every device; then fit, check and freeze.

    Raises:
        LimitBelowFastestError: a latency limit is below the fastest network.
        GateError: the measurements do not make a table.
        DeviceError: a device failed; what was measured is kept.
    """
    archs = Planner(context).first(context.config.latency.samples)
    measure_missing(context, {device.name: archs for device in context.devices})
    records = {device.name: chosen_records(device, archs) for device in context.devices}
    models = {}
    for device in context.devices:
        found = records[device.name].all
        models[device.name] = fit_model(
            context, device, found, priors=find_priors(context, device, found)
        )
    limits = _limits(context, records, models)
    about = {
        d.name: _about(context, d, records[d.name].all, models[d.name]) for d in context.devices
    }
    write_records(context, "table.jsonl", [m for found in records.values() for m in found.all])
    write_json(
        context.folder.file("latency.json"),
        {"schema": SCHEMA, "devices": about, "limits": [limit.to_dict() for limit in limits]},
    )


def fit_model(
    context: RunContext,
    device: RunDevice,
    records: Sequence[Measurement],
    *,
    priors: Mapping[str, CostTable],
) -> LatencyModel:
    """The latency model of one device. Raises TableError for too few networks."""
    with context.reporter.bar(f"latency model of {device.name}") as advance:

        def show(done: int, total: int) -> None:
            advance(done, total, "")

        return LatencyModel.fit_measurements(
            context.cost_table, records, priors=priors, progress=show
        )


def write_records(
    context: RunContext,
    name: str,
    records: Sequence[Measurement],
    of_devices: Sequence[RunDevice] | None = None,
) -> None:
    """Freeze records of the live table in a JSON-lines file of the run.

    ``of_devices`` are those that the records are of, by default all; others are not asked.
    """
    header = table_header(
        context.space,
        created=max((str(m.provenance.get("utc", "")) for m in records), default=""),
        n_measurements=len(records),
    )
    asked = context.devices if of_devices is None else of_devices
    devices = [Device(name=d.name, fingerprint=d.measurer.fingerprint()) for d in asked]
    write_table(context.folder.file(name), header, devices, records)


def _limits(
    context: RunContext,
    records: dict[str, TableRecords],
    models: dict[str, LatencyModel],
) -> tuple[Limit, ...]:
    """Limits in numbers, refused where no network can keep them.

    A limit such as "40%" is taken over the networks that the run file asks for, which spread over
    the space: over others too, it would move with every search that measures its favourites.
    """
    limits = resolve_limits(
        {d.name: d.limits for d in context.config.device},
        {name: [e.latency_ms for e in _pooled(found.asked)] for name, found in records.items()},
    )
    fastest = {
        name: min(
            [*_pooled(records[name].all), predicted_fastest(context, models[name])],
            key=lambda e: e.latency_ms,
        )
        for name in models
    }
    check_possible(limits, context.cost_table, fastest, space=context.space.name)
    return limits


def _pooled(records: Sequence[Measurement]) -> list[Estimate]:
    return [pool(found) for found in by_key(records).values()]


def predicted_fastest(context: RunContext, model: LatencyModel) -> Estimate:
    """What the model says of the network that its additive part holds to be the fastest."""
    additive = model.with_latency_column(context.cost_table)
    _, arch = additive.minimum("latency_ms")
    return model.predict([arch])[0]


def _about(
    context: RunContext, device: RunDevice, records: list[Measurement], model: LatencyModel
) -> dict[str, Any]:
    """What ``latency.json`` says of one device; gates are enforced here."""
    report = gates.enforce(
        records,
        cost_table=context.cost_table,
        device_fp=device.deployment.device_fp,
        accept=context.config.latency.accept,
        claims_measured=True,
    )
    _remark(context, device, report, model)
    for gate in report.warnings:
        context.reporter.warn(f"table of {device.name}, gate {gate.name}: {gate.evidence}")
    found = model.diagnostics
    context.reporter.say(
        f"  {device.name}: {found.n} networks; of networks left out the model predicts "
        f"{found.within_10:.0%} within 10 % (MAPE {found.loo_mape:.1%}, "
        f"tau {found.kendall_tau:.2f})"
    )
    rank = macs_rank(context.cost_table, records, seed=context.config.seed)
    if rank is not None:
        context.reporter.say(
            f"  {device.name}: Kendall tau of MACs and measured latency {rank}, over {rank.n} "
            f"{rank.over}"
        )
    return {
        "device_fp": device.deployment.device_fp,
        "runtime": device.deployment.runtime,
        "threads": device.deployment.threads,
        "cores": list(device.deployment.cores),
        "measuring": device.config.measuring,
        "diagnostics": found.to_dict(),
        "macs_rank": None if rank is None else rank.to_dict(),
        **report.to_dict(),
        "model": model.to_dict(),
    }


def _remark(
    context: RunContext, device: RunDevice, report: gates.GateReport, model: LatencyModel
) -> None:
    """Keep in the live table what was accepted, how labels came about, how the model does."""
    evidence = {gate.name: gate.evidence for gate in report.gates}
    said: list[tuple[Kind, str, str]] = [
        ("labels", MEASURED, ""),
        (
            "model",
            "hilnas",
            canonical_json({**model.diagnostics.to_dict(), "mape": model.diagnostics.loo_mape}),
        ),
        *(("accepted", name, evidence.get(name, "")) for name in report.accepted),
    ]
    for kind, name, value in said:
        context.store.add_remark(
            Remark(
                device_fp=device.deployment.device_fp,
                space_id=context.space.space_id,
                setting=device.deployment.setting,
                kind=kind,
                name=name,
                value=value,
                utc=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )


TABLE = Stage(
    name="table",
    title="measuring networks on the devices",
    run=run_table,
    settings=lambda context: {
        "devices": [d.model_dump(mode="json") for d in context.config.device],
        "samples": context.config.latency.samples,
        "accept": context.config.latency.accept,
        "seed": context.config.seed,
    },
    needs=("profile",),
    outputs=("table.jsonl", "latency.json"),
    version=2,
)
