"""The file of a trained generator, ``generator.safetensors``.

Its weights are for one space, one cost and one list of targets; for a latency also for one device
and one latency table. All of that is in the metadata, one JSON text under the key ``hilnas``, and
is checked before a weight is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from latency_tables.arch import Arch, Choice
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import (
    CheckpointError,
    ForeignTableError,
    HilnasError,
    LimitError,
    SpaceError,
    UsageError,
)
from latency_tables.files import canonical_json, sha256_bytes, write_bytes
from pipeline.generator.generator import ArchitectureGenerator
from pipeline.generator.levels import check_targets, level_weights
from pipeline.spaces.base import Space
from pipeline.training.checkpoint import UNREADABLE, pack, read_packed

SCHEMA = "hilnas.generator/1"
FILE_NAME = "generator.safetensors"

_TRAIN = "hilnas run FILE --set train.strategy=shiftnas"


class _Metadata(BaseModel, extra="forbid", strict=True):
    space_id: str
    column: str
    unit: str
    device: str | None
    column_hash: str
    targets: list[float]
    hidden: int
    heads: dict[str, str]
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedGenerator:
    """A trained generator and what it was trained for.

    ``targets`` are the costs of its levels in ``unit``; ``device`` is None unless the cost is a
    latency; ``column_hash`` is :func:`column_hash` of the table that it learned from.
    """

    generator: ArchitectureGenerator
    column: str
    unit: str
    device: str | None
    targets: tuple[float, ...]
    column_hash: str

    def level(self, target: float, *, clamp: bool = False) -> Tensor:
        """The generator's input (K,) for a cost; see :func:`level_weights`."""
        try:
            return level_weights(self.targets, target, clamp=clamp)
        except LimitError as error:
            where = f" on {self.device}" if self.device else ""
            raise LimitError(f"{error.message} {self.unit}{where}") from None

    def argmax(self, target: float, *, clamp: bool = False) -> Arch:
        """The architecture for a cost; what it really costs is for the table to say."""
        return self.generator.argmax(self.level(target, clamp=clamp))

    def sample(self, target: float, n: int, *, seed: int, clamp: bool = False) -> list[Arch]:
        """``n`` architectures for a cost."""
        return self.generator.sample(self.level(target, clamp=clamp), n, seed=seed)

    def log_probability(
        self, archs: Sequence[Mapping[str, Choice]], target: float, *, clamp: bool = False
    ) -> Tensor:
        """Log-probabilities (N,) of architectures for a cost."""
        with torch.no_grad():
            return self.generator.log_probability(archs, self.level(target, clamp=clamp))


def column_hash(table: CostTable, column: str) -> str:
    """Content hash of one column of a cost table: other columns, and factors that add nothing to
    this one, do not change it.

    Raises:
        SpaceError: there is no such column.
    """
    found = next((c for c in table.columns if c.name == column), None)
    if found is None:
        raise SpaceError(
            f"the cost table has no column {column!r}; known: {', '.join(table.column_names())}"
        )
    index = table.columns.index(found)
    factors = [
        Factor(name=f.name, labels=f.labels, values=f.values[..., [index]])
        for f in table.factors
        if f.values[..., index].any()
    ]
    alone = Column(name=found.name, unit=found.unit, reduce=found.reduce)
    return CostTable(table.decisions, [alone], factors).table_hash


def save_generator(
    path: Path,
    generator: ArchitectureGenerator,
    *,
    space: Space,
    table: CostTable,
    column: str,
    targets: Sequence[float],
    device: str | None = None,
) -> None:
    """Write a generator, whole or not at all.

    Args:
        space: whose architectures it writes.
        table, column: the cost that it was trained on.
        targets: costs of its levels, rising.
        device: name of the device where the cost is a latency.

    Raises:
        SpaceError: the generator, the targets and the space do not belong together.
        UsageError: a latency without a device.
    """
    costs = check_targets(targets)
    if len(costs) != generator.n_levels or generator.decisions != tuple(space.decisions):
        raise SpaceError(
            f"a generator of {generator.n_levels} levels and {len(generator.decisions)} decisions "
            f"is not one of {len(costs)} targets in {space.name} {space.preset}"
        )
    hashed = column_hash(table, column)
    unit = next(c.unit for c in table.columns if c.name == column)
    if unit == "ms" and device is None:
        raise UsageError(f"the cost {column!r} is a latency: name the device that it is of")
    weights = {name: value.detach() for name, value in generator.state_dict().items()}
    metadata = _Metadata(
        space_id=space.space_id,
        column=column,
        unit=unit,
        device=device,
        column_hash=hashed,
        targets=list(costs),
        hidden=generator.hidden,
        heads=generator.head_names,
        weights_sha256=sha256_bytes(pack(weights)),
    )
    text = canonical_json({"schema": SCHEMA, **metadata.model_dump()})
    write_bytes(path, pack(weights, {"hilnas": text}))


def load_generator(
    path: Path,
    space: Space,
    *,
    device: str | None = None,
    table: CostTable | None = None,
) -> LoadedGenerator:
    """Read a generator of ``space``, on the CPU. torch's random state is left as it was.

    Args:
        device: the device that a latency must be of.
        table: the cost table that it must have learned from.

    Raises:
        CheckpointError: the file is missing, damaged, of another schema or of another space.
        ForeignTableError: its cost is the latency of another device, no latency at all although a
            device is given, or of another table.

    >>> import tempfile
    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> generator = ArchitectureGenerator(space.decisions, n_levels=2)
    >>> path = Path(tempfile.mkdtemp()) / FILE_NAME
    >>> table = space.cost_table()
    >>> save_generator(
    ...     path, generator, space=space, table=table, column="macs", targets=[2e4, 3e4]
    ... )
    >>> load_generator(path, space, table=table).unit
    'MAC'
    """
    metadata, tensors = _read(path)
    if metadata.space_id != space.space_id:
        raise CheckpointError(
            f"{path} was trained in the space {metadata.space_id}, but {space.name} "
            f"{space.preset} with these images is {space.space_id}",
            hint=f"use the run file it was trained with, or train another: {_TRAIN}",
        )
    if device is not None and metadata.device != device:
        cost = f"{metadata.column} of {metadata.device}" if metadata.device else metadata.column
        raise ForeignTableError(
            f"{path} was trained on {cost}, not on latencies of {device}",
            hint=f"{_TRAIN} --set train.options.cost=latency:{device}",
        )
    if table is not None and column_hash(table, metadata.column) != metadata.column_hash:
        raise ForeignTableError(
            f"{path} learned {metadata.column} from another cost table than this one",
            hint=f"train it on this table: {_TRAIN}",
        )
    return LoadedGenerator(
        generator=_generator(path, space, metadata, tensors),
        column=metadata.column,
        unit=metadata.unit,
        device=metadata.device,
        targets=check_targets(metadata.targets),
        column_hash=metadata.column_hash,
    )


def _read(path: Path) -> tuple[_Metadata, dict[str, Tensor]]:
    """Metadata and weights of a file. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"there is no generator {path}", hint=f"train one: {_TRAIN}")
    try:
        found, tensors = read_packed(path)
    except UNREADABLE as error:
        raise _damaged(path, str(error)) from error
    schema = found.pop("schema", None) if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path} has the schema {schema!r}; {SCHEMA!r} is read here",
            hint=f"train another: {_TRAIN}",
        )
    try:
        metadata = _Metadata.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if sha256_bytes(pack(tensors)) != metadata.weights_sha256:
        raise _damaged(path, "the hash of its weights is wrong")
    return metadata, tensors


def _generator(
    path: Path, space: Space, metadata: _Metadata, tensors: Mapping[str, Tensor]
) -> ArchitectureGenerator:
    try:
        with torch.random.fork_rng(devices=[]):
            generator = ArchitectureGenerator(
                space.decisions,
                n_levels=len(check_targets(metadata.targets)),
                heads=metadata.heads,
                hidden=metadata.hidden,
            )
        generator.load_state_dict(dict(tensors))
    except (HilnasError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    return generator.eval()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the generator {path} cannot be read: {why}", hint=f"train another: {_TRAIN}"
    )
