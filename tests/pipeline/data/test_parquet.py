"""Parquet shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.errors import DataError
from pipeline.data.batches import TrainStream
from pipeline.data.config import DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset
from pipeline.data.readers import parquet as reader
from tests.pipeline.data.conftest import colourful, encoded
from tests.pipeline.data.shard_files import parquet_shards, sample, write_parquet

pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")


def load(path: Path, **settings: Any) -> ImageDataset:
    return load_dataset(DataConfig(name="parquet", path=str(path), **settings))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Folder of 60 samples of 3 classes in three shards with row groups of 8."""
    return parquet_shards(tmp_path / "pets", names=["ant", "bee", "cow"])


def test_rows_become_images_and_labels_in_the_order_of_the_shards(shards: Path) -> None:
    dataset = load(shards)
    assert dataset.labels.tolist() == [i % 3 for i in range(60)]
    assert dataset.class_names == ("ant", "bee", "cow")
    expected = np.concatenate([colourful(1, 12, 12, 3, seed=i) for i in range(60)])
    assert np.array_equal(dataset.images.numpy(), expected.transpose(0, 3, 1, 2))


def test_plain_bytes_and_labels_without_names_will_do(tmp_path: Path) -> None:
    rows = [sample(i, i % 2) for i in range(12)]
    path = write_parquet(tmp_path / "a.parquet", rows, nested=False, label="labels")
    assert load(path).class_names == ("0", "1")


def test_test_shards_of_a_folder_hold_the_test_images(shards: Path) -> None:
    parquet_shards(shards, n=15, shards=1, prefix="test", names=["ant", "bee", "cow"])
    assert load(shards).test.tolist() == list(range(60, 75))


def test_two_kinds_of_test_shards_are_refused(shards: Path) -> None:
    for prefix in ("test", "validation"):
        parquet_shards(shards, n=15, shards=1, prefix=prefix, names=["ant", "bee", "cow"])
    with pytest.raises(DataError, match=r"begin with test and with val"):
        load(shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_hold_the_pictures_of_their_numbers(shards: Path, workers: int) -> None:
    settings = {"image_size": 300, "channels": 3}
    streamed, memory = load(shards, memory_limit_mb=1, **settings), load(shards, **settings)
    stream = TrainStream(streamed, streamed.pool, batch_size=7, seed=0, workers=workers)
    for number in range(3):
        ids = torch.from_numpy(stream.ids(number))
        assert torch.equal(stream._pixels(ids, number), memory.images[ids])
    stream.close()


def test_batch_k_is_the_same_after_streaming_and_when_resumed_there(shards: Path) -> None:
    settings = {"image_size": 300, "channels": 3, "memory_limit_mb": 1, "shuffle_shards": 2}
    dataset = load(shards, **settings)
    whole = TrainStream(dataset, dataset.pool, batch_size=5, seed=0, workers=2)
    batches = [whole.batch(number) for number in range(12)]  # more than an epoch
    whole.close()
    resumed = TrainStream(load(shards, **settings), dataset.pool, batch_size=5, seed=0, workers=1)
    for number in (7, 8, 11):
        batch = resumed.batch(number)
        assert torch.equal(batch.ids, batches[number].ids)
        assert torch.equal(batch.images, batches[number].images)
    resumed.close()


def test_an_epoch_reads_each_row_group_once_per_process(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load(shards, image_size=300, channels=3, memory_limit_mb=1, normalise="raw")
    assert dataset.window == 8
    read: list[tuple[str, int]] = []
    real = reader._image_bytes

    def counted(path: Path, number: int, column: str) -> Any:
        read.append((path.name, number))
        return real(path, number, column)

    monkeypatch.setattr(reader, "_image_bytes", counted)
    stream = TrainStream(dataset, dataset.pool, batch_size=4, seed=0, workers=0)
    for number in range(stream.batches_per_epoch):
        stream.batch(number)
    assert len(read) == len(set(read)) == 9


def test_images_survive_being_sent_to_another_process(shards: Path) -> None:
    import pickle  # how a spawned worker gets them

    images = reader.read_parquet(shards).images
    images.picture(3)
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(np.asarray(again.picture(3)), np.asarray(images.picture(3)))


# --- what is wrong with shards ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (sample(0, b"-1"), r"row 2 of row group 1 of a\.parquet has the label -1; 0 \.\.\. 1 are"),
        (sample(0, b"2"), r"row 2 of row group 1 of a\.parquet has the label 2; 0 \.\.\. 1 are"),
        (sample(0, b""), r"row 2 of row group 1 of a\.parquet has no label"),
        (sample(0, 1, image=b"no picture"), r"row 2 of row group 1 of a\.parquet cannot be read"),
        (sample(0, 1, image=encoded(colourful(1, 12, 12, 3)[0])[:60]), r"row 2 .* cannot be read"),
        ({"png": None, "cls": b"1"}, r"row 2 of row group 1 of a\.parquet cannot be read: it has"),
    ],
)
def test_a_bad_row_is_named_with_its_shard(tmp_path: Path, row: Any, message: str) -> None:
    rows = [sample(i, i % 2) for i in range(20)]
    rows[10] = row
    path = write_parquet(tmp_path / "a.parquet", rows, names=["cat", "dog"])
    with pytest.raises(DataError, match=message):
        load(path)


@pytest.mark.parametrize("keep", [0, 50, -100])
def test_a_shard_that_was_cut_off_is_named(shards: Path, keep: int) -> None:
    path = sorted(shards.iterdir())[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet cannot be read as"):
        load(shards)


def test_shards_of_other_classes_are_refused(shards: Path) -> None:
    rows = [sample(i, i % 2) for i in range(12)]
    write_parquet(shards / "train-00003.parquet", rows, names=["dog", "cat"])
    with pytest.raises(DataError, match=r"train-00003\.parquet names other classes"):
        load(shards)


def test_columns_that_are_no_images_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has the columns text, label"):
        load(tmp_path / "a.parquet")
    parquet.write_table(pa.table({"image": ["a"], "label": [0]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="the column 'image' is string"):
        load(tmp_path / "b.parquet")
    table = pa.table({"image": [b"a"], "label": ["cat"]})
    parquet.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(DataError, match="the column 'label' is string"):
        load(tmp_path / "c.parquet")


def test_without_pyarrow_the_extra_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"hilnas\[parquet\]"):
        load(shards)
