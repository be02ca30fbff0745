"""Stage ``table``: measure networks on every device, fit the latency model, fix the limits.

The live table keeps every measurement, whatever becomes of the run; networks that it knows
already are not measured again. ``table.jsonl`` is a copy of the records that this run used,
``latency.json`` says how good the model is and what the limits are in numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from device_agents.measuring.measurer import Progress
from latency_tables import gates
from latency_tables.arch import Arch
from latency_tables.errors import LimitError, MissingLatencyError
from latency_tables.estimate import Estimate
from latency_tables.files import canonical_json, write_json
from latency_tables.interchange import write_table
from latency_tables.predictor import LatencyModel
from latency_tables.pooling import by_key, pool
from latency_tables.records import Measurement
from latency_tables.remarks import MEASURED, Kind, Remark
from latency_tables.sampler import make_sampler
from latency_tables.store import Device
from pipeline.randomness import numpy_generator
from pipeline.run.context import RunContext
from pipeline.run.devices import (
    RunDevice,
    closest_sessions,
    drifted_networks,
    measure_on_all,
    table_header,
)
from pipeline.run.stage import Stage
from pipeline.search.limits import Limit, check_possible, resolve_limits
from pipeline.spaces.base import net_id

SCHEMA = 1


def plan_networks(context: RunContext, n: int) -> list[Arch]:
    """``n`` different networks spread over the MACs of the space, cheapest and dearest included.

    One network is drawn from each of ``n`` equal steps between the cheapest and the dearest
    network by the exact sampler (uniform among the networks of that step), because networks drawn
    at random crowd in the middle.
    """
    table, space = context.cost_table, context.space
    rng = numpy_generator(context.config.seed, "table", "design")
    (low, cheapest), (high, dearest) = table.minimum("macs"), table.maximum("macs")
    sampler = make_sampler(table, "macs", approximate=True)
    chosen = {net_id(space, arch): arch for arch in (cheapest, dearest)}
    edges = np.linspace(low, high, n + 1)
    for lo, hi in itertools.pairwise(edges.tolist()):
        if sampler.count(lo, hi) > 0:
            for arch in sampler.sample_archs(rng, lo, hi, 1):
                chosen.setdefault(net_id(space, arch), arch)
    for _ in range(20 * n):  # steps that held nothing new are made up for at random
        if len(chosen) >= n:
            break
        arch = space.sample(rng)
        chosen.setdefault(net_id(space, arch), arch)
    return list(chosen.values())[:n]


def run_table(context: RunContext) -> None:
    """Measure what is missing, on every device; then fit, check and freeze.

    Raises:
        LimitBelowFastestError: a latency limit is below the fastest network.
        GateError: the measurements do not make a table.
        DeviceError: a device failed; what was measured is kept.
    """
    archs = plan_networks(context, context.config.latency.samples)
    records = _measure(context, archs)
    models = {
        name: LatencyModel.fit_measurements(context.cost_table, found)
        for name, found in records.items()
    }
    limits = _limits(context, records, models)
    about = {d.name: _about(context, d, records[d.name], models[d.name]) for d in context.devices}
    write_records(context, "table.jsonl", [m for found in records.values() for m in found])
    write_json(
        context.folder.file("latency.json"),
        {"schema": SCHEMA, "devices": about, "limits": [limit.to_dict() for limit in limits]},
    )


def write_records(context: RunContext, name: str, records: Sequence[Measurement]) -> None:
    """Freeze records of the live table in a JSON-lines file of the run."""
    header = table_header(
        context.space,
        created=max((str(m.provenance.get("utc", "")) for m in records), default=""),
        n_measurements=len(records),
    )
    devices = [Device(name=d.name, fingerprint=d.measurer.fingerprint()) for d in context.devices]
    write_table(context.folder.file(name), header, devices, records)


def _measure(context: RunContext, archs: Sequence[Arch]) -> dict[str, list[Measurement]]:
    """One record per network, by device; measures those that the live table lacks, boards at once.

    Networks whose batch just saw the device much slower or faster than the others did are measured
    once more; of several sessions the one closest to the device's usual state counts.
    """
    missing = [(device, device.missing(archs)) for device in context.devices]
    for device, lacking in missing:
        if len(lacking) < len(archs):
            context.reporter.say(
                f"  {len(archs) - len(lacking)} of {len(archs)} networks are in the table of "
                f"{device.name} already"
            )
    with context.reporter.bar(f"on {', '.join(d.name for d in context.devices)}") as advance:

        def show(progress: Progress) -> None:
            advance(progress.done, progress.total, progress.note)

        measure_on_all(missing, show, context.reporter.warn)
        drifted = [(device, _drifted(context, device, new, archs)) for device, new in missing]
        for device, again in drifted:
            if again:
                context.reporter.say(
                    f"  {len(again)} networks met {device.name} in another state than the others; "
                    "measuring them again"
                )
        measure_on_all(drifted, show, context.reporter.warn)
    return {device.name: closest_sessions(device.records(archs)) for device in context.devices}


def _drifted(
    context: RunContext, device: RunDevice, fresh: Sequence[Arch], archs: Sequence[Arch]
) -> list[Arch]:
    """Those of ``fresh`` that met the device in another state than ``archs`` did."""
    records = device.records(archs)
    if not records:
        raise MissingLatencyError(
            f"not one of {len(archs)} networks could be measured on {device.name!r}",
            hint=f"hilnas devices doctor {device.name}",
        )
    by_net = {net_id(context.space, arch): arch for arch in fresh}
    return [by_net[net] for net in drifted_networks(records) if net in by_net]


def _limits(
    context: RunContext,
    records: dict[str, list[Measurement]],
    models: dict[str, LatencyModel],
) -> tuple[Limit, ...]:
    """Limits in numbers, refused where no network can keep them."""
    pooled = {
        name: [pool(found) for found in by_key(measurements).values()]
        for name, measurements in records.items()
    }
    limits = resolve_limits(
        {d.name: d.limits for d in context.config.device},
        {name: [e.latency_ms for e in estimates] for name, estimates in pooled.items()},
    )
    fastest = {
        name: min(
            [*pooled[name], predicted_fastest(context, models[name])], key=lambda e: e.latency_ms
        )
        for name in models
    }
    check_possible(limits, context.cost_table, fastest, space=context.space.name)
    return limits


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
    return {
        "device_fp": device.deployment.device_fp,
        "runtime": device.deployment.runtime,
        "threads": device.deployment.threads,
        "cores": list(device.deployment.cores),
        "measuring": device.config.measuring,
        "diagnostics": found.to_dict(),
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


def load_limits(data: dict[str, Any]) -> tuple[Limit, ...]:
    """The limits that ``latency.json`` holds."""
    try:
        return tuple(Limit(**limit) for limit in data["limits"])
    except (KeyError, TypeError) as error:
        raise LimitError(f"latency.json is damaged: {error}", hint="hilnas run FOLDER") from None


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
)
