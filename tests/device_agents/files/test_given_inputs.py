"""Inputs of the user: what fits the model is taken, anything else is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agents.files.given_inputs import read_inputs
from device_agents.files.onnx_files import ModelFacts, TensorFacts
from latency_tables.errors import UsageError

FACTS = ModelFacts(
    name="net.onnx",
    sha256="0" * 64,
    size_bytes=1,
    external_bytes=0,
    ir_version=8,
    opsets={"": 17},
    producer="",
    n_nodes=1,
    inputs=(
        TensorFacts(name="image", shape=("N", 3, 4), type="float"),
        TensorFacts(name="length", shape=(), type="int64"),
    ),
    outputs=(),
)
IMAGE = np.ones((2, 3, 4), dtype=np.float32)
LENGTH = np.array(3, dtype=np.int64)


def as_folder(path: Path, **arrays: Any) -> Path:
    folder = path / "inputs"
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def as_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path / "inputs.npz", **arrays)
    return path / "inputs.npz"


@pytest.mark.parametrize("write", [as_folder, as_npz])
def test_inputs_are_read_from_a_folder_and_from_an_archive(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    found = read_inputs(write(tmp_path, image=IMAGE, length=LENGTH), FACTS)
    assert list(found) == ["image", "length"]
    np.testing.assert_array_equal(found["image"], IMAGE)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"image": IMAGE}, "has no input 'length'"),
        ({"image": IMAGE, "length": LENGTH, "extra": LENGTH}, "holds 'extra'"),
        ({"image": IMAGE.astype(np.float64), "length": LENGTH}, "float64, the model wants float32"),
        ({"image": IMAGE[0], "length": LENGTH}, "is 3x4, the model wants Nx3x4"),
        ({"image": IMAGE[:, :2], "length": LENGTH}, "is 2x2x4, the model wants Nx3x4"),
        ({"image": IMAGE[:0], "length": LENGTH}, "is 0x3x4"),
        ({"image": np.array([{}]), "length": LENGTH}, "no .npy or .npz file of plain numbers"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, arrays: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_inputs(as_npz(tmp_path, **arrays), FACTS)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", b"\x93NUMPY"])
def test_files_that_hold_no_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "inputs.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"inputs\.npz"):
        read_inputs(tmp_path / "inputs.npz", FACTS)


def test_an_empty_folder_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one for each input, NAME\.npy"):
        read_inputs(tmp_path, FACTS)


def test_one_array_serves_a_model_of_one_input_only(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGE)
    with pytest.raises(UsageError, match="has 2 inputs"):
        read_inputs(tmp_path / "x.npy", FACTS)
