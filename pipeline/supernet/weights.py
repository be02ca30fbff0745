"""The file that holds a trained supernet, ``supernet.safetensors``.

Its metadata is one JSON text under the key ``hilnas`` (schema, space_id and what the writer adds):
one key, because safetensors writes several keys in an order that differs from run to run, and
equal weights should give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latency_tables.errors import CheckpointError
from latency_tables.files import canonical_json, write_bytes
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.split import supernet_of_layout
from pipeline.training.checkpoint import UNREADABLE, pack, read_packed

SCHEMA = "hilnas.supernet/1"


def save_supernet(
    space: Space, supernet: Supernet, path: Path, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write all parameters and buffers; ``extra`` is added to the metadata."""
    metadata = {"schema": SCHEMA, "space_id": space.space_id, **(extra or {})}
    if layout := supernet.layout():
        metadata["layout"] = layout
    write_bytes(path, pack(supernet.state_dict(), {"hilnas": canonical_json(metadata)}))


def load_supernet(space: Space, path: Path) -> Supernet:
    """Read a supernet of ``space``, on the CPU. torch's random state is left as it was.

    Raises:
        CheckpointError: the file is missing, damaged, of another space, or its tensors are not
            those of the space's supernet.

    >>> import tempfile
    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> path = Path(tempfile.mkdtemp()) / "supernet.safetensors"
    >>> save_supernet(space, space.supernet(), path)
    >>> len(load_supernet(space, path).state_dict()) == len(space.supernet().state_dict())
    True
    """
    try:
        metadata, tensors = read_packed(path)
    except UNREADABLE as error:
        raise CheckpointError(
            f"the supernet {path} cannot be read: {error}", hint="train it again: hilnas train"
        ) from error
    if metadata.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has the schema {metadata.get('schema')!r}; {SCHEMA!r} is read here"
        )
    if metadata.get("space_id") != space.space_id:
        raise CheckpointError(
            f"{path} was trained in the space {metadata.get('space_id')}, but {space.name} "
            f"{space.preset} with these images is {space.space_id}",
            hint="use the run file it was trained with, or train again: hilnas train",
        )
    with torch.random.fork_rng(devices=[]):
        supernet = supernet_of_layout(space, metadata.get("layout", {}))
    check_tensors(supernet, tensors, path)
    supernet.load_state_dict(tensors)
    return supernet


def check_tensors(supernet: Supernet, tensors: Mapping[str, torch.Tensor], origin: object) -> None:
    """Raise CheckpointError, naming the first ones, unless names and shapes are the supernet's."""
    expected = {k: tuple(v.shape) for k, v in supernet.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if wrong:
        shown = "; ".join(
            f"{k}: {found.get(k, 'absent')} instead of {expected.get(k, 'absent')}"
            for k in wrong[:3]
        )
        raise CheckpointError(f"{len(wrong)} tensors of {origin} do not fit the supernet: {shown}")
