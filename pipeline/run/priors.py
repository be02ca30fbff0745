"""What a device's latency model may start from: other tables of the space, and operators' times.

All of it is offered, none of it believed: the model takes priors where cross-validation on the
device's own networks says that they help.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from latency_tables import LatencyModel, gates
from latency_tables.cost_table import CostTable
from latency_tables.errors import HilnasError
from latency_tables.records import Measurement
from latency_tables.summaries import TableSummary
from pipeline.run.context import RunContext
from pipeline.run.devices import RunDevice
from pipeline.run.operator_profiles import operator_prior

LEAST = 30
"""A table with fewer networks tells another device little."""
MOST_RECORDS = 1_000
"""Records of another table that are read: more of them hardly change its sums."""
MOST_TABLES = 20
OPERATORS = "operators"
"""Name of the prior that is made of profiled operators."""


def find_priors(
    context: RunContext, device: RunDevice, records: Sequence[Measurement]
) -> dict[str, CostTable]:
    """Additive latencies of other tables of the space, and of the device's operators, by name.

    ``records`` are the device's own. Tables that the gates refuse are left out.
    """
    found = {}
    for summary in _others(context, device)[:MOST_TABLES]:
        table = _additive(context, summary)
        if table is not None:
            runtime = summary.runtime.get("name", "?")
            name = f"{summary.device_name} ({runtime}, {summary.threads} threads)"
            found[name if name not in found else f"{name} {summary.device_fp[:8]}"] = table
    archs = [m.arch for m in records if m.arch is not None]
    operators = operator_prior(context, device, archs)
    if operators is not None:
        found[OPERATORS] = operators
    return found


def _others(context: RunContext, device: RunDevice) -> list[TableSummary]:
    """Other tables of the run's space, the largest first.

    Networks of the space that a supernet was taken over from differ in their classifier alone.
    """
    spaces = {context.space.space_id}
    if context.config.transfer is not None and context.config.transfer.space_id is not None:
        spaces.add(context.config.transfer.space_id)
    own = (context.space.space_id, device.deployment.device_fp, device.deployment.setting)
    others = [
        s
        for s in context.store.summaries()
        if s.space_id in spaces
        and (s.space_id, s.device_fp, s.setting) != own
        and s.n_networks >= LEAST
    ]
    return sorted(others, key=lambda s: (-s.n_networks, s.device_fp, s.setting))


def _additive(context: RunContext, summary: TableSummary) -> CostTable | None:
    stored = context.store.measurements(
        device_fp=summary.device_fp, space_id=summary.space_id, setting=summary.setting
    )
    records = [m for m in islice(stored, MOST_RECORDS) if m.arch is not None]
    try:
        if not gates.check(records, cost_table=context.cost_table).passed:
            return None
        table = context.cost_table
        return LatencyModel.fit_measurements(table, records, forms=("table",)).additive
    except HilnasError as error:
        context.reporter.warn(f"the table of {summary.device_name} is no prior: {error}")
        return None
