"""Checkpoints: tensors as safetensors, everything else as JSON, two generations, no pickle.

``step-000001200.safetensors`` holds the tensors; ``step-000001200.json``, written after it, holds
their SHA-256 and the rest under a hash of its own, so a checkpoint exists once its JSON exists.
Both are written to a temporary name, fsynced and renamed. Reading verifies the hashes; where the
newest checkpoint is damaged the previous one is used, with a warning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

from latency_tables.errors import CheckpointError, TrainingError
from latency_tables.files import sha256_bytes, sha256_json, write_bytes, write_json

SCHEMA = "hilnas.checkpoint/1"
KEPT = 2
_TENSOR = "__tensor__"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state after ``step`` steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointFolder:
    """Writes and reads the checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._good: list[int] = []  # steps of the checkpoints known to be whole, oldest first

    def write(self, checkpoint: Checkpoint) -> None:
        """Write one checkpoint, then remove all but it and the one before it.

        Raises:
            TrainingError: the disk is full or not writable; older checkpoints are untouched.
        """
        stem = self._stem(checkpoint.step)
        data = pack(checkpoint.tensors)
        body = {
            "schema": SCHEMA,
            "step": checkpoint.step,
            "tensors_sha256": sha256_bytes(data),
            "state": checkpoint.state,
        }
        try:
            write_bytes(stem.with_suffix(".safetensors"), data)
            write_json(stem.with_suffix(".json"), {**body, "sha256": sha256_json(body)})
        except OSError as error:
            before = f"; the checkpoint of step {self._good[-1]} is intact" if self._good else ""
            raise TrainingError(
                f"the checkpoint of step {checkpoint.step} ({len(data) / 1e6:.1f} MB) cannot be "
                f"written to {self.folder}: {error.strerror or error}{before}",
                hint="free some disk space and start the same command again",
            ) from error
        self._good = [s for s in self._good if s != checkpoint.step][-(KEPT - 1) :]
        self._good.append(checkpoint.step)
        self._prune()

    def read_newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where none was ever written.

        Raises:
            CheckpointError: there are checkpoints, but none is whole.
        """
        found = sorted(self.folder.glob("step-*.json"), reverse=True)
        damage: list[str] = []
        for path in found:
            try:
                checkpoint = self._read(path)
            except CheckpointError as error:
                damage.append(error.message)
                logger.warning("%s; the one before it is tried", error.message)
                continue
            self._good = [checkpoint.step]
            return checkpoint
        if damage:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole: {'; '.join(damage)}",
                hint=f"remove {self.folder} to train from the beginning",
            )
        return None

    def _stem(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _read(self, path: Path) -> Checkpoint:
        try:
            body = json.loads(path.read_bytes())
            stated = body.pop("sha256")
            if body["schema"] != SCHEMA:
                raise CheckpointError(
                    f"checkpoint {path.name} has the schema {body['schema']!r}; "
                    f"{SCHEMA!r} is read here"
                )
            if sha256_json(body) != stated:
                raise CheckpointError(f"checkpoint {path.name} is damaged: its hash is wrong")
            data = path.with_suffix(".safetensors").read_bytes()
            if sha256_bytes(data) != body["tensors_sha256"]:
                raise CheckpointError(
                    f"checkpoint {path.stem}.safetensors is damaged: its hash is wrong"
                )
            tensors = unpack(data)
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise CheckpointError(f"checkpoint {path.name} is damaged: {error!r}") from error
        return Checkpoint(step=int(body["step"]), tensors=tensors, state=body["state"])

    def _prune(self) -> None:
        """Remove older checkpoints, damaged ones and what a killed process left."""
        keep = {self._stem(step).name for step in self._good}
        for path in [*self.folder.glob("step-*"), *self.folder.glob(".step-*.part")]:
            if path.stem not in keep:
                path.unlink(missing_ok=True)


UNREADABLE = (OSError, SafetensorError, ValueError)
"""What :func:`read_packed` raises where a file is missing or damaged."""


def read_packed(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """What :func:`pack` wrote, of a file: the decoded metadata under ``hilnas`` ({} where there is
    none), and the tensors by name, on the CPU. Raises one of :data:`UNREADABLE`."""
    with safe_open(path, framework="pt") as stream:
        metadata = json.loads((stream.metadata() or {}).get("hilnas", "{}"))
        return metadata, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data: bytes = safetensors_torch.save(plain, metadata=metadata)
    return data


def unpack(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises CheckpointError."""
    try:
        tensors: dict[str, Tensor] = safetensors_torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error
    return tensors


def split_state(state: Any, prefix: str) -> tuple[Any, dict[str, Tensor]]:
    """Take the tensors out of nested dicts and lists, leaving JSON that says where they were.

    >>> import torch
    >>> split_state({"a": [1, torch.zeros(2)]}, "strategy")
    ({'a': [1, {'__tensor__': 'strategy/a/1'}]}, {'strategy/a/1': tensor([0., 0.])})
    """
    if isinstance(state, Tensor):
        return {_TENSOR: prefix}, {prefix: state}
    tensors: dict[str, Tensor] = {}
    if isinstance(state, Mapping):
        named: dict[str, Any] = {}
        for key, value in state.items():
            if not isinstance(key, str):
                raise TrainingError(f"strategy state has the key {key!r}; keys must be text")
            named[key], found = split_state(value, f"{prefix}/{key}")
            tensors.update(found)
        return named, tensors
    if isinstance(state, list | tuple):
        listed = []
        for index, value in enumerate(state):
            plain, found = split_state(value, f"{prefix}/{index}")
            listed.append(plain)
            tensors.update(found)
        return listed, tensors
    return state, tensors


def join_state(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo :func:`split_state`; tuples come back as lists."""
    if isinstance(state, dict):
        if set(state) == {_TENSOR}:
            return tensors[state[_TENSOR]]
        return {key: join_state(value, tensors) for key, value in state.items()}
    if isinstance(state, list):
        return [join_state(value, tensors) for value in state]
    return state
