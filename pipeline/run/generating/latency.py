"""What is known of latencies on one device, for ``hilnas generate``: its table, its board.

The additive part of the latency model decides which architectures are looked at, the model (or the
table, for a network that was measured) says what each of them takes, and the board measures what
is chosen. A table that the device at hand did not fill is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable, Genes
from latency_tables.errors import ForeignTableError, MissingLatencyError
from latency_tables.estimate import Estimate
from latency_tables.oracle import Deployment, Oracle
from latency_tables.predictor import LatencyModel
from latency_tables.records import Measurement
from pipeline.run.searching import Oracles, Settled
from pipeline.search.sources import answer_of
from pipeline.spaces.base import net_id

if TYPE_CHECKING:
    from pipeline.run.context import RunContext
    from pipeline.run.devices import RunDevice

ATTEMPTS = 2
"""Times that a network is measured when the board is to blame for a failure."""


@dataclass(frozen=True, slots=True)
class DeviceLatency:
    """Latencies of one device: predicted without it, measured with it."""

    context: RunContext
    device: RunDevice
    model: LatencyModel
    table: CostTable
    """The costs of the space, and a column ``latency_ms``."""
    oracle: Oracle
    device_fp: str

    @property
    def name(self) -> str:
        """Of the device, as the run file has it."""
        return self.device.name

    def predict(self, archs: Sequence[Arch]) -> list[Estimate]:
        """From the run's table where it was measured, else by the model; no device is asked."""
        return self.oracle.collect(self.oracle.submit(archs)) if archs else []

    def keeps(self, bound_ms: float, genes: Genes) -> NDArray[np.bool_]:
        """Which of N genomes (N, n_decisions) are predicted to keep a limit: (N,)."""
        found = self.predict([self.table.arch(row) for row in genes])
        return np.array([estimate.keeps(bound_ms) for estimate in found], dtype=bool)

    def measure(self, arch: Arch) -> tuple[Estimate, Measurement]:
        """Time one network on the device now; the record is in the live table then.

        Raises:
            ForeignTableError: the device at hand is not the one that filled the table.
            DeviceError: it cannot be reached, or fails.
        """
        found = self.device.deployment.device_fp
        if found != self.device_fp:
            raise ForeignTableError(
                f"the table of {self.name} was measured on another device (fingerprint "
                f"{self.device_fp[:8]}) than the one that answers now ({found[:8]})",
                hint=f"hilnas tables build {self.context.folder.path}",
            )
        settled = Settled(self.context, self.device)
        for attempt in range(1, ATTEMPTS + 1):
            (record,) = settled.measure([arch])
            answer = answer_of(record)
            if isinstance(answer, Estimate):
                return answer, record
            if answer.blames != "board" or attempt == ATTEMPTS:
                raise answer
        raise MissingLatencyError(f"{self.name} was never asked")  # ATTEMPTS is positive


@contextmanager
def device_latency(context: RunContext, name: str) -> Iterator[DeviceLatency]:
    """What the run's table says of a device; the device itself is not asked.

    Raises:
        MissingLatencyError: the run has no table, or none of this device.
        ForeignTableError: it is of another space.
    """
    about = _about(context, name)
    with Oracles.opened(context) as oracles:
        model = oracles.models[name]
        deployment = Deployment(
            device_name=name,
            device_fp=str(about["device_fp"]),
            runtime=about["runtime"],
            threads=int(about["threads"]),
            cores=tuple(about["cores"]),
        )
        yield DeviceLatency(
            context=context,
            device=next(d for d in context.devices if d.name == name),
            model=model,
            table=model.with_latency_column(context.cost_table),
            oracle=Oracle(
                oracles.frozen, deployment, identify=partial(net_id, context.space), model=model
            ),
            device_fp=deployment.device_fp,
        )


def additive_table(context: RunContext, name: str) -> CostTable:
    """The costs of the space with the additive latencies of a device. Raises as device_latency."""
    model = LatencyModel.from_dict(_about(context, name)["model"], context.cost_table)
    return model.with_latency_column(context.cost_table)


def _about(context: RunContext, name: str) -> Mapping[str, Any]:
    """What ``latency.json`` holds of a device. Raises MissingLatencyError."""
    path, listed = context.folder.file("latency.json"), [d.name for d in context.config.device]
    devices = json.loads(path.read_text())["devices"] if path.exists() else {}
    missing = [other for other in listed if other not in devices]
    if name in devices and name in listed and not missing:
        found: Mapping[str, Any] = devices[name]
        return found
    folder = context.folder.path
    if name in listed:
        raise MissingLatencyError(
            f"{folder} has no latency table of {', '.join(missing)} yet, and a latency is never "
            "guessed",
            hint=f"hilnas tables build {folder}",
        )
    all_devices = ", ".join(f'{{name="{device}"}}' for device in (*listed, name))
    raise MissingLatencyError(
        f"{folder} has no latency table of {name!r}; it is for {', '.join(listed)}",
        hint=f"--device {listed[0]}, or measure on {name} first: hilnas tables build {folder} "
        f"--set 'device=[{all_devices}]'",
    )
