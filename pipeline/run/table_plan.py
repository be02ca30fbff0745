"""Which networks a run measures for its tables, and what ``--more`` has still to do.

The run file asks for ``latency.samples`` networks: the first of a design that follows from the seed
alone. Further ones are chosen per device, by what its table knows already. What ``--more`` chose is
kept in ``table_plan.json`` until all of it is measured, so that a call that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

from latency_tables.arch import Arch
from latency_tables.design import Design
from latency_tables.errors import RunError
from latency_tables.files import write_json
from latency_tables.oracle import Deployment
from latency_tables.sampler import make_sampler
from latency_tables.sampler_base import CostSampler
from pipeline.randomness import child_seed
from pipeline.run.context import RunContext
from pipeline.run.devices import RunDevice
from pipeline.spaces.base import net_id

SCHEMA = 1
PLAN_FILE = "table_plan.json"


class Planner:
    """Designs of one run, spread over the MACs of its space."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    @cached_property
    def _sampler(self) -> CostSampler:
        return make_sampler(self.context.cost_table, "macs", approximate=True)

    def first(self, n: int) -> list[Arch]:
        """The ``n`` networks that every table of the run begins with, fewer in a tiny space."""
        return self._design((), ()).take(n)

    def further(self, device: RunDevice, known: Sequence[Arch], n: int) -> list[Arch]:
        """``n`` networks that the table of a device says least about; ``known`` are those it has.

        Networks that failed there by their own fault are not chosen again.
        """
        return self._design(known, failed_networks(device)).take(n)

    def _design(self, known: Iterable[Arch], avoid: Iterable[str]) -> Design:
        return Design(
            self._sampler,
            identify=partial(net_id, self.context.space),
            seed=child_seed(self.context.config.seed, "table", "design"),
            known=known,
            avoid=avoid,
        )


def failed_networks(device: RunDevice) -> set[str]:
    """Net ids that the device could not run, by the networks' own fault."""
    deployment = device.deployment
    rejected = device.store.rejected(device_fp=deployment.device_fp, space_id=device.space.space_id)
    return {
        m.net_id
        for m in (r.measurement for r in rejected)
        if m.error is not None
        and m.error["blames"] == "candidate"
        and Deployment.of(m).setting == deployment.setting
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOrder:
    """What ``--more`` chose and has not finished: genes by device, for one space and setting."""

    n: int
    cost_table_hash: str
    settings: dict[str, str]
    genes: dict[str, list[list[int]]]


def order_more(context: RunContext, chosen: Mapping[str, Sequence[Arch]], n: int) -> None:
    """Keep in the run folder what ``--more n`` is going to measure."""
    table = context.cost_table
    order = OpenOrder(
        n=n,
        cost_table_hash=table.table_hash,
        settings=_settings(context),
        genes={name: table.genes(archs).tolist() for name, archs in chosen.items()},
    )
    write_json(context.folder.file(PLAN_FILE), {"schema": SCHEMA, **asdict(order)})


def open_order(context: RunContext, n: int) -> dict[str, list[Arch]] | None:
    """What an earlier ``--more n`` of the same devices and space has left; None without one.

    Raises:
        RunError: the file is damaged.
    """
    path = context.folder.file(PLAN_FILE)
    if not path.exists():
        return None
    order = _read(path)
    table = context.cost_table
    same = (order.n, order.cost_table_hash, order.settings) == (
        n, table.table_hash, _settings(context),
    )  # fmt: skip
    if not same:
        return None
    return {name: [table.arch(g) for g in genes] for name, genes in order.genes.items()}


def close_order(context: RunContext) -> None:
    """Forget what ``--more`` chose: all of it is in the tables."""
    context.folder.file(PLAN_FILE).unlink(missing_ok=True)


def _settings(context: RunContext) -> dict[str, str]:
    """Device and setting by name: where another runtime came, another table is built."""
    return {d.name: f"{d.deployment.device_fp} {d.deployment.setting}" for d in context.devices}


def _read(path: Path) -> OpenOrder:
    try:
        data = json.loads(path.read_text())
        if data.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return OpenOrder(**data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged ({error})",
            hint="delete that file; what was measured is in the table",
        ) from None
