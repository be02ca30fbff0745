"""Everything the report shows, as plain data.

The run fills :class:`ReportData` from its files; the renderers (:mod:`pipeline.report.html`,
:mod:`pipeline.report.terminal`) read nothing else. Every part may be missing, because a run that
failed half-way deserves a report, too. Texts come from boards and config files and are hostile:
they are kept as they are here and escaped where they are printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from latency_tables.arch import Arch
from latency_tables.estimate import Estimate
from latency_tables.macs_rank import MacsRank
from latency_tables.pooling import pool
from latency_tables.records import Measurement, Verdict
from pipeline.report.rank_evidence import RankEvidence

StageStatus = Literal["done", "skipped", "failed", "pending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceSummary:
    """The search space; ``n_architectures`` counts genomes, ``input_shape`` is (C, H, W)."""

    name: str
    preset: str
    n_architectures: int
    n_decisions: int
    input_shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPoint:
    """Loss of the supernet at one optimizer step."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelPoint:
    """B at one step: probability and held-out loss of every level, where it is known."""

    step: int
    probabilities: tuple[float, ...]
    losses: tuple[float | None, ...]
    entropy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelHistory:
    """How training was spread over levels of a cost; ``targets`` in ``unit``."""

    cost: str
    unit: str
    targets: tuple[float, ...]
    points: tuple[LevelPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePoint:
    """One network of the latency table."""

    macs: float
    latency_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRow:
    """One measurement: what was timed when, and what looked wrong.

    ``reason`` says why there is no latency; it is empty where there is one.
    """

    what: str
    utc: str
    profile: str
    latency: Estimate | None
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """One device: who it is, its limit, its table, and what was measured on it.

    ``limit_source`` says where the latency limit comes from ("40 % quantile of the table"),
    ``macs_rank`` how well MACs order the networks of the table as the device does.
    """

    name: str
    fingerprint: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = ""
    threads: int = 1
    cores: tuple[int, ...] = ()
    limit_ms: float | None = None
    limit_source: str = ""
    table: tuple[TablePoint, ...] = ()
    macs_rank: MacsRank | None = None
    measured: tuple[MeasuredRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One architecture that the search scored; ``latency`` maps device name to Estimate."""

    arch: Arch
    accuracy: float
    latency: Mapping[str, Estimate]
    generation: int
    feasible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRow:
    """One architecture of the front, with both latencies per device where they are known."""

    arch: Arch
    accuracy: float
    predicted: Mapping[str, Estimate]
    measured: Mapping[str, Estimate]
    verdicts: tuple[Verdict, ...] = ()
    winner: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRow:
    """One limit and what the winner needs; ``device`` is None where it holds everywhere."""

    name: str
    unit: str
    limit: float
    value: float | None = None
    device: str | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the winner keeps the limit; None where its need is not known."""
        return None if self.value is None else self.value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One position of the chosen network. A position with one choice was not searched.

    ``choice`` says all that was decided; ``tone`` is the decision that colours it, one of
    ``choices``.
    """

    name: str
    choice: str
    choices: tuple[str, ...]
    tone: str = ""
    macs: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The exported network. Accuracies lie between 0 and 1 and come with their image counts."""

    arch: Arch
    blocks: tuple[Block, ...]
    settings: tuple[tuple[str, str], ...] = ()
    search_accuracy: float
    n_search_images: int
    test_accuracy: float | None = None
    n_test_images: int = 0
    macs: float
    params: float
    size_bytes: int | None = None
    latency: Mapping[str, Estimate] = field(default_factory=dict)
    onnx_sha256: str = ""
    opset: int | None = None
    ir_version: int | None = None
    parity_max_abs: float | None = None
    parity_n_images: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNetwork:
    """The network of one device alone, chosen under that device's own limits.

    ``folder`` is where its files lie inside the run's; ``limits`` hold what it needs of each.
    ``shared`` says that it is the network for all devices, too. Where the search found none,
    ``reason`` says why and the rest is empty.
    """

    device: str
    folder: str
    limits: tuple[LimitRow, ...] = ()
    arch: Arch | None = None
    search_accuracy: float | None = None
    test_accuracy: float | None = None
    n_test_images: int = 0
    latency: Estimate | None = None
    macs: float | None = None
    size_bytes: int | None = None
    shared: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """A network of the front that was trained alone; accuracies (0 ... 1) on the test images."""

    name: str
    what: str
    """Which network, from which weights, by which recipe."""
    inherited_accuracy: float
    retrained_accuracy: float
    n_images: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """How long a stage took, and what became of it."""

    name: str
    seconds: float
    status: StageStatus = "done"
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to type next, and why."""

    text: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """A run, ready to be shown.

    ``data`` are the rows of the data summary (images per split, classes, …) in the order shown,
    ``hashes`` the content hashes by artefact, ``failure`` the message of a stage that failed.
    ``own`` are the networks of single devices beside ``winner``, the one for all; ``no_common``
    says why there is none for all.

    >>> ReportData(run_name="first", created_utc="2026-11-22T12:00:00Z").to_dict()["run_name"]
    'first'
    """

    run_name: str
    created_utc: str
    data: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    space: SpaceSummary | None = None
    strategy: str = ""
    training: tuple[TrainingPoint, ...] = ()
    levels: LevelHistory | None = None
    evaluations: tuple[Evaluated, ...] = ()
    front: tuple[FrontRow, ...] = ()
    limits: tuple[LimitRow, ...] = ()
    devices: tuple[DeviceReport, ...] = ()
    winner: Winner | None = None
    own: tuple[OwnNetwork, ...] = ()
    no_common: str = ""
    retrained: tuple[Retrained, ...] = ()
    order: RankEvidence = field(default_factory=RankEvidence)
    stages: tuple[StageTime, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[Command, ...] = ()
    failure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data with the same structure."""
        plain: dict[str, Any] = _plain(self)
        return plain


def measured_row(what: str, measurement: Measurement) -> MeasuredRow:
    """A row from a record; a failed measurement keeps its verdicts and says why it failed."""
    return MeasuredRow(
        what=what,
        utc=str(measurement.provenance.get("utc", "")),
        profile=str(measurement.provenance.get("profile", "")),
        latency=pool([measurement], source="measured") if measurement.ok else None,
        verdicts=measurement.verdicts,
        reason=measurement.why_not(),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value
