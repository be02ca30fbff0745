from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from latency_tables.errors import CheckpointError
from pipeline.spaces import load_space
from pipeline.supernet.weights import load_supernet, save_supernet
from pipeline.training.checkpoint import pack
from tests.pipeline.training.toys import toy_space, toy_supernet


@pytest.mark.parametrize("name", ["nasbench_macro", "shufflenetv2"])
def test_a_supernet_survives_a_round_trip(tmp_path: Path, name: str) -> None:
    space = toy_space(name)
    supernet = toy_supernet(space).to(memory_format=torch.channels_last)
    save_supernet(space, supernet, tmp_path / "s.safetensors")
    read = load_supernet(space, tmp_path / "s.safetensors").state_dict()
    assert all(torch.equal(v, read[k]) for k, v in supernet.state_dict().items())


def test_the_file_says_which_space_and_schema_it_has(tmp_path: Path) -> None:
    space = toy_space()
    save_supernet(space, toy_supernet(space), tmp_path / "s.safetensors", extra={"steps": 7})
    with safe_open(tmp_path / "s.safetensors", framework="pt") as stream:
        metadata = json.loads(stream.metadata()["hilnas"])
    assert metadata == {
        "schema": "hilnas.supernet/1", "space_id": space.space_id, "steps": 7,
    }  # fmt: skip


def test_a_supernet_of_another_space_is_refused(tmp_path: Path) -> None:
    space = toy_space()
    save_supernet(space, toy_supernet(space), tmp_path / "s.safetensors")
    other = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=9)
    with pytest.raises(CheckpointError, match="was trained in the space"):
        load_supernet(other, tmp_path / "s.safetensors")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    space, path = toy_space(), tmp_path / "s.safetensors"
    state = dict(toy_supernet(space).state_dict())
    name = next(iter(state))
    state[name] = torch.zeros(3)
    metadata = json.dumps({"schema": "hilnas.supernet/1", "space_id": space.space_id})
    path.write_bytes(pack(state, {"hilnas": metadata}))
    with pytest.raises(CheckpointError, match=rf"1 tensors .* {name}: \(3,\) instead of"):
        load_supernet(space, path)


@pytest.mark.parametrize("content", [b"", b"no tensors at all", None])
def test_a_missing_or_damaged_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_supernet(toy_space(), path)


def test_a_file_of_another_tool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(pack({"a": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="schema None"):
        load_supernet(toy_space(), path)


def test_loading_leaves_the_random_state_as_it_was(tmp_path: Path) -> None:
    space = toy_space()
    save_supernet(space, toy_supernet(space), tmp_path / "s.safetensors")
    state = torch.get_rng_state()
    load_supernet(space, tmp_path / "s.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
