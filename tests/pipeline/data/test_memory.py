"""Memory of a streamed set stays flat over epochs, in the main process and in the workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.batches import RELEASE_EVERY, TrainStream
from pipeline.data.config import DataConfig
from pipeline.data.dataset import load_dataset
from tests.pipeline.data.shard_files import parquet_shards, tar_shards

PIXELS, BATCH = 96, 8
SETTLED = 3
"""Epochs until caches are full and the allocator has its pages."""
ALLOWED_MB = 12 + RELEASE_EVERY * BATCH * 3 * PIXELS**2 * 4 / 2**20
"""What batches may leave in the heap until it is trimmed again, and some room."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc to see resident memory"
)


def resident_mb(process: int | str = "self") -> float:
    """Resident memory of a process in MiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"{process} has ended")


def growth_mb(
    name: str, folder: Path, *, epochs: int, keep: Callable[[object], None] = lambda batch: None
) -> tuple[float, float]:
    """MiB by which the main process and the largest worker grew; and MiB decoded meanwhile."""
    config = DataConfig(
        name=name, path=str(folder), image_size=PIXELS, channels=3, memory_limit_mb=1, workers=2
    )
    dataset = load_dataset(config)
    assert not dataset.in_memory
    stream = TrainStream(dataset, dataset.pool, batch_size=BATCH, seed=0, workers=config.workers)
    at: list[list[float]] = []
    for epoch in range(SETTLED + epochs):
        first = epoch * stream.batches_per_epoch
        for number in range(first, first + stream.batches_per_epoch):
            keep(stream.batch(number))
        workers = stream._prefetcher._iterator._workers  # type: ignore[union-attr]
        assert len(workers) == 2
        at.append([resident_mb(), *(resident_mb(worker.pid) for worker in workers)])
    stream.close()
    decoded = epochs * stream.n_images * 3 * PIXELS**2 / 2**20
    return max(b - a for a, b in zip(at[SETTLED - 1], at[-1], strict=True)), decoded


def test_memory_is_flat_over_epochs(tmp_path: Path) -> None:
    shards = tar_shards(tmp_path, n=300, shards=4, size=PIXELS)
    grown, decoded = growth_mb("webdataset", shards, epochs=6)
    assert decoded > ALLOWED_MB
    assert grown < ALLOWED_MB


@pytest.mark.long
@pytest.mark.parametrize("name", ["webdataset", "parquet"])
def test_memory_is_flat_over_many_epochs(tmp_path: Path, name: str) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
        shards = parquet_shards(tmp_path, n=1500, shards=4, size=PIXELS, row_group=25)
    else:
        shards = tar_shards(tmp_path, n=1500, shards=4, size=PIXELS)
    grown, decoded = growth_mb(name, shards, epochs=12)
    assert decoded > 350
    assert grown < ALLOWED_MB


@pytest.mark.long
def test_a_leak_would_be_seen(tmp_path: Path) -> None:
    kept: list[object] = []
    shards = tar_shards(tmp_path, n=600, shards=4, size=PIXELS)
    grown, _ = growth_mb("webdataset", shards, epochs=1, keep=kept.append)
    assert grown > ALLOWED_MB
