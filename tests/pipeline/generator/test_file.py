from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from latency_tables.errors import (
    CheckpointError,
    ForeignTableError,
    LimitError,
    SpaceError,
    UsageError,
)
from pipeline.generator.file import FILE_NAME, column_hash, load_generator, save_generator
from pipeline.generator.generator import ArchitectureGenerator
from pipeline.training.checkpoint import pack, unpack
from tests.pipeline.generator.tables import space_of, with_latency

TARGETS = (20_000.0, 30_000.0, 50_000.0)
SPACE = space_of("nasbench_macro", "tiny", 8)


def fresh(seed: int = 0) -> ArchitectureGenerator:
    torch.manual_seed(seed)
    generator = ArchitectureGenerator(SPACE.decisions, n_levels=3, hidden=8)
    for head in generator.heads:
        torch.nn.init.normal_(head.weight)  # type: ignore[arg-type]
    return generator


@pytest.fixture
def macs_file(tmp_path: Path) -> Path:
    path = tmp_path / FILE_NAME
    table = SPACE.cost_table()
    save_generator(path, fresh(), space=SPACE, table=table, column="macs", targets=TARGETS)
    return path


@pytest.fixture
def latency_file(tmp_path: Path) -> Path:
    path = tmp_path / FILE_NAME
    save_generator(
        path, fresh(), space=SPACE, table=with_latency(SPACE.cost_table()), column="latency_ms",
        targets=(8.0, 9.0, 10.0), device="rk3588-a",
    )  # fmt: skip
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the metadata of a file and nothing else."""
    with safe_open(path, framework="pt") as stream:
        metadata = json.loads(stream.metadata()["hilnas"])
    change(metadata)
    path.write_bytes(pack(unpack(path.read_bytes()), {"hilnas": json.dumps(metadata)}))


def test_a_loaded_generator_writes_the_same_architectures(macs_file: Path) -> None:
    written = fresh()
    state = torch.random.get_rng_state()
    loaded = load_generator(macs_file, SPACE, table=SPACE.cost_table())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (loaded.column, loaded.unit, loaded.device) == ("macs", "MAC", None)
    assert loaded.targets == TARGETS
    level = torch.tensor([0.5, 0.5, 0.0])
    assert loaded.argmax(25_000) == written.argmax(level)
    archs = loaded.sample(25_000, 20, seed=3)
    assert archs == written.sample(level, 20, seed=3)
    assert torch.equal(
        loaded.log_probability(archs, 25_000), written.log_probability(archs, level).detach()
    )


def test_equal_generators_give_equal_bytes(macs_file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    table = SPACE.cost_table()
    save_generator(again, fresh(), space=SPACE, table=table, column="macs", targets=TARGETS)
    assert again.read_bytes() == macs_file.read_bytes()


def test_a_latency_keeps_its_device(latency_file: Path) -> None:
    table = with_latency(SPACE.cost_table())
    loaded = load_generator(latency_file, SPACE, device="rk3588-a", table=table)
    assert (loaded.device, loaded.unit) == ("rk3588-a", "ms")


def test_a_target_outside_of_the_levels_names_their_range_unit_and_device(
    latency_file: Path,
) -> None:
    loaded = load_generator(latency_file, SPACE)
    with pytest.raises(LimitError, match=r"target 11 is outside.* 8 to 10 ms on rk3588-a"):
        loaded.argmax(11.0)
    assert loaded.argmax(11.0, clamp=True) == loaded.argmax(10.0)


def test_another_device_is_refused(latency_file: Path, macs_file: Path) -> None:
    with pytest.raises(ForeignTableError, match="not on latencies of pi5") as caught:
        load_generator(macs_file, SPACE, device="pi5")
    assert "cost=latency:pi5" in str(caught.value.hint)


def test_the_latency_of_another_device_is_refused(latency_file: Path) -> None:
    with pytest.raises(ForeignTableError, match="latency_ms of rk3588-a, not on latencies of pi5"):
        load_generator(latency_file, SPACE, device="pi5")


def test_another_table_is_refused(latency_file: Path) -> None:
    other = with_latency(SPACE.cost_table(), seed=1)
    with pytest.raises(ForeignTableError, match="learned latency_ms from another cost table"):
        load_generator(latency_file, SPACE, table=other)


def test_other_columns_of_a_table_do_not_matter() -> None:
    table = SPACE.cost_table()
    assert column_hash(with_latency(table), "params") == column_hash(table, "params")
    doubled = table.with_column(
        "params", "parameter", [2 * f.values[..., 1] for f in table.factors]
    )
    assert column_hash(doubled, "params") != column_hash(table, "params")
    with pytest.raises(SpaceError, match="no column 'flops'"):
        column_hash(table, "flops")


def test_another_space_is_refused(macs_file: Path) -> None:
    with pytest.raises(CheckpointError, match="trained in the space") as caught:
        load_generator(macs_file, space_of("nasbench_macro", "paper", 32))
    assert caught.value.hint is not None


def test_a_run_without_generator_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no generator") as caught:
        load_generator(tmp_path / FILE_NAME, SPACE)
    assert "train.strategy=shiftnas" in str(caught.value.hint)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_file_is_refused(macs_file: Path, kept: int) -> None:
    macs_file.write_bytes(macs_file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_generator(macs_file, SPACE)


def test_a_flipped_bit_in_the_weights_is_noticed(macs_file: Path) -> None:
    data = bytearray(macs_file.read_bytes())
    data[-3] ^= 0x40
    macs_file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="the hash of its weights is wrong"):
        load_generator(macs_file, SPACE)


def test_another_schema_is_refused(macs_file: Path) -> None:
    rewrite(macs_file, lambda data: data.update(schema="hilnas.generator/99"))
    with pytest.raises(CheckpointError, match=r"'hilnas.generator/99'; 'hilnas.generator/1' is"):
        load_generator(macs_file, SPACE)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(pack({"weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="schema None"):
        load_generator(path, SPACE)


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden", 9), ("hidden", "many"), ("targets", [1.0]), ("targets", [3.0, 2.0, 1.0]),
     ("heads", {}), ("unit", None), ("added", 1)],
)  # fmt: skip
def test_damaged_metadata_are_refused(macs_file: Path, key: str, value: object) -> None:
    rewrite(macs_file, lambda data: data.update({key: value}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_generator(macs_file, SPACE)


def test_a_latency_without_device_is_not_written(tmp_path: Path) -> None:
    table = with_latency(SPACE.cost_table())
    with pytest.raises(UsageError, match="name the device"):
        save_generator(
            tmp_path / FILE_NAME, fresh(), space=SPACE, table=table, column="latency_ms",
            targets=(8.0, 9.0, 10.0),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_targets_that_are_not_the_generators_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="3 levels and 8 decisions is not one of 2 targets"):
        save_generator(
            tmp_path / FILE_NAME, fresh(), space=SPACE, table=SPACE.cost_table(), column="macs",
            targets=TARGETS[:2],
        )  # fmt: skip


def test_no_pickle_is_in_the_file(macs_file: Path) -> None:
    size = int(np.frombuffer(macs_file.read_bytes()[:8], dtype="<u8")[0])
    header = json.loads(macs_file.read_bytes()[8 : 8 + size])
    assert set(header.pop("__metadata__")) == {"hilnas"}
    assert all(entry["dtype"] == "F32" for entry in header.values())
