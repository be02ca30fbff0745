"""``hilnas tables build``: the table of a run file, larger, or as large as an error asks for.

The live table is extended first, in steps that are kept as they end; then stage ``table`` fits,
checks and freezes what it holds. Stopped at any moment, the same call goes on: networks that the
table knows are never measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import TableError
from pipeline.run.context import RunContext
from pipeline.run.priors import find_priors
from pipeline.run.stage import run_stages
from pipeline.run.stages import stages_of
from pipeline.run.stages.table import TABLE, fit_model
from pipeline.run.table_plan import Planner, close_order, open_order, order_more
from pipeline.run.table_records import chosen_records, known_networks, measure_missing, n_missing
from pipeline.run.table_target import ErrorTarget, Extension
from pipeline.run.table_time import TimeEstimate, planned_time

if TYPE_CHECKING:
    from pipeline.run.devices import RunDevice
    from pipeline.run.job import Job

STEP = 20
"""Networks per device between two looks at the error."""


def build_table(job: Job, extension: Extension) -> None:
    """Build the tables of a run, and extend them.

    Without an extension a table that is up to date stays as it is.

    Raises:
        TableError: an error did not become small enough; the tables are built all the same.
        LimitBelowFastestError, GateError, DeviceError: as stage ``table`` does.
    """
    if not extension:
        job.run(until="table")
        return
    with job.working() as context:
        run_stages(stages_of(context.config), context, until="profile")
        missed = _extend(context, extension)
        _freeze(context)
        close_order(context)
    if missed:
        raise TableError(
            "; ".join(missed) + "; everything measured is in the table",
            hint=f"the same command with --at-most {2 * extension.at_most}",
        )


def plan_table(job: Job, extension: Extension) -> list[TimeEstimate]:
    """How many networks would be measured on each device and for how long; nothing is.

    For ``--until`` it is the most that may come: ``at_most`` networks per device. Of a device that
    does not answer it is not known what its table holds, so all of them count.
    """
    with job.context() as context:
        archs = Planner(context).first(context.config.latency.samples)
        more = extension.at_most if extension.until is not None else extension.more or 0
        return [
            planned_time(
                device,
                partial(_n_wanted, context, device, archs, extension),
                otherwise=max(len(archs), more) if extension.until else len(archs) + more,
            )
            for device in context.devices
        ]


def _n_wanted(
    context: RunContext, device: RunDevice, archs: Sequence[Arch], extension: Extension
) -> int:
    """How many networks a call would measure on a device. Raises DeviceError."""
    missing = n_missing(device, archs)
    if extension.until is not None:
        return max(missing, extension.at_most - len(known_networks(device)))
    if extension.more is None:
        return missing
    left = open_order(context, extension.more)
    if left is None:
        return missing + extension.more
    return missing + n_missing(device, left.get(device.name, []))


def _freeze(context: RunContext) -> None:
    """Run stage ``table`` on what the live table holds now; its old files are put aside."""
    context.folder.begin(TABLE.name, "extended", outputs=TABLE.outputs)
    run_stages([TABLE], context)


def _extend(context: RunContext, extension: Extension) -> list[str]:
    """Measure what is asked for; gives what could not be reached, by device."""
    planner = Planner(context)
    first = planner.first(context.config.latency.samples)
    if any(n_missing(device, first) for device in context.devices):
        measure_missing(context, {device.name: first for device in context.devices})
    if extension.more is not None:
        _measure_more(context, planner, extension.more)
        return []
    if extension.until is not None:
        return _measure_until(context, planner, first, extension.until, extension.at_most)
    return []


def _measure_more(context: RunContext, planner: Planner, n: int) -> None:
    """Measure ``n`` further networks on each device, or what an earlier call left of them."""
    chosen = open_order(context, n)
    if chosen is not None:
        context.reporter.say(f"  going on with the {n} networks that an earlier call chose")
    else:
        chosen = {d.name: planner.further(d, known_networks(d), n) for d in context.devices}
        order_more(context, chosen, n)
    measure_missing(context, chosen)
    for device in context.devices:
        failed = len(device.missing(chosen[device.name]))
        if failed:
            context.reporter.warn(
                f"{failed} of {n} networks could not be measured on {device.name}"
            )
        if len(chosen[device.name]) < n:
            context.reporter.warn(
                f"the space holds {len(chosen[device.name])} further networks, not {n}"
            )


def _measure_until(
    context: RunContext, planner: Planner, first: Sequence[Arch], target: ErrorTarget, at_most: int
) -> list[str]:
    """Measure in steps until the model of every device is good enough or ``at_most`` are there."""
    tried: dict[str, dict[Arch, None]] = {device.name: {} for device in context.devices}
    priors: dict[str, dict[str, CostTable]] = {}
    while True:
        missed, wanted = [], {}
        for device in context.devices:
            records = chosen_records(device, first).all
            if device.name not in priors:  # they hardly change from step to step
                priors[device.name] = find_priors(context, device, records)
            found = fit_model(context, device, records, priors=priors[device.name]).diagnostics
            context.reporter.say(
                f"  {device.name}: {found.n} networks, cross-validated MAPE {found.loo_mape:.1%}, "
                f"{found.within_10:.0%} within 10 % (asked: {target})"
            )
            if target.reached(found):
                continue
            missed.append(
                f"{device.name} reached {target.said(found)} with {found.n} networks; "
                f"asked is {target}"
            )
            # what was tried in vain counts, too: a board that fails all the time ends as well
            spent = list({**dict.fromkeys(known_networks(device)), **tried[device.name]})
            room = min(STEP, at_most - len(spent))
            if room > 0:
                wanted[device.name] = planner.further(device, spent, room)
                tried[device.name].update(dict.fromkeys(wanted[device.name]))
        if not missed or not any(wanted.values()):
            return missed
        measure_missing(context, wanted)
