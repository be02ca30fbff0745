"""Synthetic weights: the same bytes everywhere, of the right size, never denormal."""

from __future__ import annotations

import ast
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from latency_tables import synthetic
from latency_tables.errors import GraphError
from latency_tables.weights_spec import WeightsSpec

SPEC = {
    "schema": 1,
    "seed": 5,
    "location": "weights.bin",
    "tensors": [["conv", 1001, 27, 0], ["scale", 16, 0, 4032], ["last", 3, 1000, 4096]],
}


def tensors(spec: dict) -> dict[str, np.ndarray]:
    data = np.frombuffer(synthetic.synthesise(spec), dtype="<f4")
    return {name: data[at // 4 : at // 4 + n] for name, n, _, at in spec["tensors"]}


def test_the_bytes_are_those_of_every_other_machine() -> None:
    digest = hashlib.sha256(synthetic.synthesise(SPEC)).hexdigest()
    assert digest == "88375fb6012a06ba2834d67b643f47bdcf69f7f011ad8d8c1e0d94b103648d0d"


def test_another_seed_gives_other_bytes() -> None:
    assert synthetic.synthesise(SPEC) != synthetic.synthesise({**SPEC, "seed": 6})


def test_values_keep_hes_bound_and_fill_it() -> None:
    values, bound = tensors(SPEC)["conv"], math.sqrt(6 / 27)
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.99 * bound
    assert values.std() == pytest.approx(math.sqrt(2 / 27), rel=0.05)
    assert abs(values.mean()) < 0.03


def test_scales_stay_near_one() -> None:
    scales = tensors(SPEC)["scale"]
    assert scales.min() >= 0.5
    assert scales.max() <= 1.5


def test_no_value_is_zero_or_denormal() -> None:
    spec = {**SPEC, "tensors": [["w", 2_000_000, 10_000, 0]]}
    assert np.abs(tensors(spec)["w"]).min() > np.finfo(np.float32).tiny


def test_tensors_lie_where_they_are_declared() -> None:
    data = synthetic.synthesise(SPEC)
    assert len(data) == synthetic.n_bytes(SPEC) == 4096 + 12
    assert data[4004:4032] == bytes(28)


def test_the_file_is_what_synthesise_gives(tmp_path: Path) -> None:
    synthetic.write(SPEC, str(tmp_path / "weights.bin"))
    assert (tmp_path / "weights.bin").read_bytes() == synthetic.synthesise(SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"location": "../weights.bin"},
        {"location": "/etc/passwd"},
        {"location": ""},
        {"seed": -1},
        {"seed": True},
        {"tensors": [["a", 4, 1, 0], ["b", 4, 1, 8]]},
        {"tensors": [["a", 4, 1, 2]]},
        {"tensors": [["a", -4, 1, 0]]},
        {"tensors": [["a", 4, 1.5, 0]]},
        {"tensors": [["a", 4]]},
        {"tensors": [[7, 4, 1, 0]]},
    ],
)
def test_a_specification_that_is_none_is_refused(change: dict) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (numpy-only file: it has no errors of its own)
        synthetic.synthesise({**SPEC, **change})
    with pytest.raises(GraphError):
        WeightsSpec.from_dict({**SPEC, **change})


def test_the_typed_form_survives_a_round_trip() -> None:
    assert WeightsSpec.from_dict(SPEC).to_dict() == SPEC


def test_the_file_runs_alone_on_python_3_7() -> None:
    source = Path(synthetic.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {
        name.name if isinstance(n, ast.Import) else n.module
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for name in n.names
    }
    assert imported == {"math", "typing", "numpy"}
