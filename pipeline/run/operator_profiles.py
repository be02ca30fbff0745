"""Times of operators inside of whole networks, as one more cost of a space.

A few networks of a table's design are run under the runtime's profiler. What their operators take,
fused and in place, is fitted (:mod:`latency_tables.operator_times`) and becomes a column
``profiled_ms`` over the decisions of the space: a prior of the latency model.

Each profile is a JSON file of its own, in a folder beside the live table, named by the network's
key: written whole or not at all, by any number of runs at once. Profiles are no records of the
table itself: they are slowed down by profiling, no gate can judge them, and losing one costs a
second on the device. A file that cannot be read counts as absent.

Nothing here fails a table: without profiles it is built from its latencies alone, in one line said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from device_agents.files.passes import Operators, profile_operators
from device_agents.measuring.batches import Net
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.runtimes.artefacts import artefact_request, prepare
from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import CorruptTableError, HilnasError
from latency_tables.fields import Fields
from latency_tables.files import write_json
from latency_tables.operator_groups import ProfileLine
from latency_tables.operator_times import (
    NS_PER_MS,
    PROFILED_COLUMN,
    OperatorTimes,
    ProfiledNetwork,
    profiled_prior,
    with_profiled_values,
)
from latency_tables.oracle import MeasureJob
from pipeline.export.record import graph_of, position_fragments
from pipeline.run.devices import RunDevice, measure_job
from pipeline.spaces.base import Space, net_id

if TYPE_CHECKING:
    from pipeline.run.context import RunContext

SCHEMA = 1
N_PROFILED = 5
"""Networks to profile: every further one repeats mostly what is known already."""
MIN_PROFILED = 2

_CLOCK_US = 1.0  # resolution of profilers


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorProfile:
    """The profile of one network, a line per operator as the runtime ran it."""

    net_id: str
    lines: tuple[ProfileLine, ...]
    utc: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, data: object) -> OperatorProfile:
        """Read what :meth:`to_dict` gave. Raises CorruptTableError naming the field."""
        fields = Fields(data, "profile")
        fields.schema(SCHEMA)
        lines = []
        for entry in fields.items("lines"):
            line = Fields(entry, "profile, line")
            lines.append(
                ProfileLine(name=line.text("name"), op=line.text("op"), ns=line.number("ns"))
            )
            line.end()
        profile = cls(net_id=fields.text("net_id"), lines=tuple(lines), utc=fields.text("utc"))
        fields.end()
        return profile


class ProfileFolder:
    """Profiles beside a live table, by the key of the network on its device.

    >>> import tempfile
    >>> folder = ProfileFolder.beside(Path(tempfile.mkdtemp()) / "tables.sqlite")
    >>> line = ProfileLine(name="conv", op="Conv", ns=5e3)
    >>> folder.keep("key", OperatorProfile(net_id="net", lines=(line,), utc=""))
    >>> folder.find("key").lines[0].ns, folder.find("other")
    (5000.0, None)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, table_path: Path) -> ProfileFolder:
        """The folder that belongs to a live table."""
        return cls(table_path.with_name(f"{table_path.name}.profiles"))

    def find(self, key: str) -> OperatorProfile | None:
        """The profile, None where there is none that can be read."""
        try:
            return OperatorProfile.from_dict(json.loads(self._file(key).read_bytes()))
        except (OSError, ValueError, CorruptTableError):
            return None

    def keep(self, key: str, profile: OperatorProfile) -> None:
        """Write a profile whole. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._file(key), profile.to_dict())

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.json"


def operator_prior(
    context: RunContext, device: RunDevice, archs: Sequence[Arch]
) -> CostTable | None:
    """Times of operators as a prior of the device's latency model, None where there are none.

    A table of one column over the space's decisions, as another device's additive latency would be:
    the model believes it as far as cross-validation says that it helps. See
    :func:`with_profiled_column`.
    """
    table = with_profiled_column(context, device, archs)
    return profiled_prior(table) if PROFILED_COLUMN in table.column_names() else None


def with_profiled_column(
    context: RunContext, device: RunDevice, archs: Sequence[Arch]
) -> CostTable:
    """The space's cost table, with the column ``profiled_ms`` where the device's runtime has it.

    Profiles those of ``archs`` that are missing, of networks whose latency is known. Never raises
    for a device or a runtime: one line says why there is no column.
    """
    try:
        profiles = _profiles(context, device, archs)
        if isinstance(profiles, str):
            context.reporter.say(f"  {device.name}: no times of operators: {profiles}")
            return context.cost_table
        times = OperatorTimes.fit(profiles)
        table = profiled_table(context.space, context.cost_table, times)
    except (HilnasError, OSError) as error:
        context.reporter.warn(f"{device.name}: operators could not be profiled: {error}")
        return context.cost_table
    found = times.report
    context.reporter.say(
        f"  {device.name}: operators of {found.n_networks} networks profiled; "
        f"{found.matched_share:.0%} of their time is that of {found.n_configurations} operators"
    )
    return table


def profiled_table(space: Space, table: CostTable, times: OperatorTimes) -> CostTable:
    """``table`` with what the operators of each entry take, fused as the profiles show.

    Raises CorruptTableError for a table whose factors are not the space's positions.
    """
    positions = {name for name, _ in space.positions()}
    if others := [f.name for f in table.factors if f.name not in positions]:
        raise CorruptTableError(
            f"times of operators are told by position, and the cost table has {', '.join(others)}"
        )
    values = {}
    for position in position_fragments(space):
        taken = np.zeros(position.shape)
        for genes, fragment in position.fragments.items():
            if fragment is not None:
                (section,) = fragment.graph.sections
                taken[genes] = times.section_ns(section) / NS_PER_MS
        values[position.name] = taken
    return with_profiled_values(table, values)


def choose_networks(
    table: CostTable, archs: Sequence[Arch], n: int, known: Sequence[Arch] = ()
) -> list[Arch]:
    """``n`` of ``archs`` that hold as many different entries of the cost table as possible.

    Those ``known`` come first, then the dearest (largest operators) and the cheapest network, then
    always the one with the most entries that no earlier one has.
    """
    genes = table.genes(archs)
    entries = [
        {(f.name, *(int(row[at]) for at in places)) for f, places in _scopes(table)}
        for row in genes
    ]
    macs = table.column("macs", genes)
    order = [archs.index(arch) for arch in known]
    for extreme in (int(np.argmax(macs)), int(np.argmin(macs))):
        if extreme not in order:
            order.append(extreme)
    seen = set().union(*(entries[i] for i in order))
    while len(order) < min(n, len(archs)):
        left = [i for i in range(len(archs)) if i not in order]
        best = max(left, key=lambda i: len(entries[i] - seen))
        order.append(best)
        seen |= entries[best]
    return [archs[i] for i in order[: max(n, len(known))]]


def _scopes(table: CostTable) -> list[tuple[Any, list[int]]]:
    position = {d.label: i for i, d in enumerate(table.decisions)}
    return [(f, [position[label] for label in f.labels]) for f in table.factors]


def _profiles(
    context: RunContext, device: RunDevice, archs: Sequence[Arch]
) -> list[ProfiledNetwork] | str:
    """Profiles of a few networks, from the folder or the device; or why there are none.

    In the order of their keys, so that equal profiles give the same column to the last bit.
    """
    folder = ProfileFolder.beside(context.table_path)
    by_key = {device.deployment.key(net_id(context.space, arch)): arch for arch in archs}
    pooled = context.store.pooled_all(list(by_key))
    keys = {arch: key for key, arch in by_key.items() if key in pooled}
    found = {arch: p for arch, key in keys.items() if (p := folder.find(key)) is not None}
    if len(keys) < MIN_PROFILED:
        return f"{len(keys)} measured networks are too few"
    chosen = choose_networks(context.cost_table, list(keys), N_PROFILED, list(found))
    missing = [arch for arch in chosen if arch not in found]
    with device.measurer.connected() if missing else nullcontext():
        for arch in missing:
            said = profile_job(device.measurer, measure_job(context.space, arch))
            if isinstance(said, str):
                return said
            folder.keep(keys[arch], said)
            found[arch] = said
    return [
        ProfiledNetwork(
            graph=graph_of(context.space, arch),
            lines=profile.lines,
            latency_ns=pooled[keys[arch]].latency_ms * NS_PER_MS,
        )
        for arch, profile in sorted(found.items(), key=lambda entry: keys[entry[0]])
    ]


def profile_job(measurer: DeviceMeasurer, job: MeasureJob) -> OperatorProfile | str:
    """Profile one network on a connected device, or say why its runtime gives no times.

    Raises DeviceError; MeasurementError where the network cannot be converted.
    """
    artefact = prepare(
        measurer.device.runtime,
        job.onnx,
        weights=job.weights,
        options=measurer.device.runtime_options,
    )
    blobs = iter(measurer.upload(artefact.parts()))
    said = profile_operators(measurer, Net(name="0", **artefact_request(artefact, blobs)))
    if isinstance(said, str):
        return said
    return OperatorProfile(
        net_id=job.net_id,
        lines=lines_of(said),
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def lines_of(profile: Operators) -> tuple[ProfileLine, ...]:
    """Time per run of each operator: its mean, kept within the clock's resolution of its median.

    Medians of whole microseconds are too coarse for small operators, means believe every
    interruption.
    """
    lines = []
    for row in profile.rows:
        low, high = row.median_us - _CLOCK_US, row.median_us + _CLOCK_US
        mean = min(max(row.total_us / row.calls, low), high)
        lines.append(ProfileLine(name=row.name, op=row.op, ns=1000.0 * mean))
    runs = max((row.calls for row in profile.rows), default=1)
    if profile.rest_us > 0:
        lines.append(ProfileLine(name="", op="others", ns=1000.0 * profile.rest_us / runs))
    return tuple(lines)
