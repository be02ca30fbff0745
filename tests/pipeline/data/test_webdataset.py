"""Tar shards of the WebDataset kind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.errors import DataError
from pipeline.data.batches import TrainStream
from pipeline.data.config import DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset
from pipeline.data.readers import webdataset
from pipeline.data.shards import expand, shuffled
from tests.pipeline.data.conftest import colourful, encoded
from tests.pipeline.data.shard_files import sample, tar_shards, write_tar


def load(path: Path, **settings: Any) -> ImageDataset:
    return load_dataset(DataConfig(name="webdataset", path=str(path), **settings))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Folder of 60 samples of 3 classes in three shards."""
    return tar_shards(tmp_path / "pets")


def test_samples_become_images_and_labels_in_the_order_of_the_shards(shards: Path) -> None:
    dataset = load(shards)
    assert dataset.labels.tolist() == [i % 3 for i in range(60)]
    assert dataset.class_names == ("0", "1", "2")
    expected = np.concatenate([colourful(1, 12, 12, 3, seed=i) for i in range(60)])
    assert np.array_equal(dataset.images.numpy(), expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("pattern", ["train-{000000..000002}.tar", "train-*.tar", ""])
def test_shards_are_named_by_a_range_a_star_or_their_folder(shards: Path, pattern: str) -> None:
    assert load(shards / pattern).n_images == 60


def test_one_shard_is_a_set_too(shards: Path) -> None:
    assert load(shards / "train-000001.tar").n_images == 20


def test_ranges_keep_their_zeros_and_multiply() -> None:
    from pipeline.data.shards import _names

    assert _names("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert _names("{9..10}-{0..1}") == ["9-0", "9-1", "10-0", "10-1"]


def test_test_shards_of_a_folder_hold_the_test_images(shards: Path) -> None:
    tar_shards(shards, n=15, shards=1, prefix="val")
    dataset = load(shards)
    assert dataset.test.tolist() == list(range(60, 75))
    assert dataset.test_split == "given"


def test_test_shards_may_be_named(shards: Path, tmp_path: Path) -> None:
    other = tar_shards(tmp_path / "other", n=15, shards=1, prefix="exam")
    dataset = load(shards, test_path=str(other / "exam-*.tar"))
    assert dataset.test.tolist() == list(range(60, 75))


def test_without_test_shards_a_balanced_part_is_cut(shards: Path) -> None:
    dataset = load(shards)
    assert np.bincount(dataset.labels.numpy()[dataset.test]).tolist() == [4, 4, 4]
    assert dataset.test_split == "seeded"


def test_a_shard_cannot_hold_both_kinds(shards: Path) -> None:
    with pytest.raises(DataError, match=r"train-000001\.tar is in data\.path and in data\.test"):
        load(shards / "train-*.tar", test_path=str(shards / "train-000001.tar"))


def test_labels_may_stand_in_json_files_and_keys_in_folders(tmp_path: Path) -> None:
    rows = [
        (f"./n{i % 2}/im_{i}", {"json": json.dumps({"label": i % 2, "x": "y"}).encode(),
                                "jpg": encoded(colourful(1, 9, 9, 3, seed=i)[0], "JPEG")})
        for i in range(12)
    ]  # fmt: skip
    dataset = load(write_tar(tmp_path / "a.tar", rows))
    assert dataset.labels.tolist() == [0, 1] * 6


def test_long_names_and_other_files_do_no_harm(tmp_path: Path) -> None:
    rows = [("x" * 150 + f"/{i}", {**sample(i, i % 2), "txt": b"a cat"}) for i in range(12)]
    rows.insert(0, ("__meta__", {"json": b"{}"}))
    assert load(write_tar(tmp_path / "a.tar", rows)).n_images == 12


# --- the index --------------------------------------------------------------------------------


def test_a_shard_is_listed_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(shards)
    monkeypatch.setattr(webdataset, "_scan", lambda path: pytest.fail(f"{path} listed again"))
    again = load(shards)
    assert torch.equal(first.images, again.images)
    assert first.content_sha256 == again.content_sha256


def test_a_changed_shard_is_listed_again(shards: Path) -> None:
    before = load(shards)
    write_tar(
        shards / "train-000001.tar", [(f"n{i}", sample(i + 500, (i + 1) % 3)) for i in range(20)]
    )
    after = load(shards)
    assert after.labels.tolist()[20:40] == [(i + 1) % 3 for i in range(20)]
    assert after.content_sha256 != before.content_sha256


@pytest.mark.parametrize("damage", [b"", b"nothing", None])
def test_a_damaged_index_is_made_again(shards: Path, damage: bytes | None) -> None:
    before = load(shards)
    index = shards / ".train-000001.tar.index.npz"
    index.write_bytes(index.read_bytes()[:-300] if damage is None else damage)
    assert torch.equal(load(shards).images, before.images)


def test_an_index_that_points_outside_its_shard_is_not_believed(shards: Path) -> None:
    before = load(shards)
    index = shards / ".train-000001.tar.index.npz"
    arrays = dict(np.load(index))
    arrays["offset"] = arrays["offset"] + 10**9
    np.savez(index, **arrays)
    assert torch.equal(load(shards).images, before.images)


def test_a_read_only_folder_needs_no_index(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(webdataset, "write_bytes", refuse)
    assert load(shards).n_images == 60
    assert not list(shards.glob(".*"))


def test_the_full_hash_follows_the_content_and_not_the_mtime(shards: Path) -> None:
    quick, full = load(shards), load(shards, verify=True)
    os.utime(shards / "train-000000.tar", ns=(1, 1))
    assert load(shards).content_sha256 != quick.content_sha256
    assert load(shards, verify=True).content_sha256 == full.content_sha256
    assert (quick.content_kind, full.content_kind) == ("listing", "content")


# --- what is wrong with shards ----------------------------------------------------------------


def rows(n: int = 12) -> list[tuple[str, dict[str, bytes]]]:
    return [(f"s{i}", dict(sample(i, i % 2))) for i in range(n)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls": None}, r"sample 's7' of a\.tar has no label; it holds png"),
        ({"png": None}, r"sample 's7' of a\.tar has 0 images among cls"),
        ({"jpg": b"x"}, r"sample 's7' of a\.tar has 2 images among png, cls, jpg"),
        ({"cls": b"cat"}, r"sample 's7' of a\.tar has the label 'cat'; class numbers"),
        ({"cls": b"-1"}, r"sample 's7' of a\.tar has the label '-1'"),
        ({"cls": b""}, r"sample 's7' of a\.tar has the label ''"),
        ({"cls": b"700000000"}, r"sample 's7' of a\.tar has the label 700000000; with 12 samples"),
        ({"cls": None, "json": b"{"}, r"sample 's7' of a\.tar has the label 'None'"),
        ({"cls": None, "json": b'{"label": true}'}, r"has the label 'True'"),
        ({"png": b"no picture"}, r"sample 's7' of a\.tar cannot be read"),
        ({"png": encoded(colourful(1, 12, 12, 3)[0])[:60]}, r"'s7' of a\.tar cannot be read"),
    ],
)
def test_a_bad_sample_is_named_with_its_shard(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    samples = rows()
    files = {**samples[7][1], **change}
    samples[7] = "s7", {k: v for k, v in files.items() if v is not None}
    with pytest.raises(DataError, match=message):
        load(write_tar(tmp_path / "a.tar", samples))


@pytest.mark.parametrize("n_bytes", [600, 5000, 512 * 13, 0])
def test_a_shard_that_was_cut_off_is_refused(tmp_path: Path, n_bytes: int) -> None:
    path = write_tar(tmp_path / "a.tar", rows(40))
    data = path.read_bytes()
    end = data.rstrip(b"\0")
    keep = n_bytes if n_bytes > 0 else -(-len(end) // 512) * 512
    path.write_bytes(data[:keep])
    with pytest.raises(DataError, match=r"a\.tar .*(cannot be read as a tar|no end mark after s)"):
        load(path)


def test_a_shard_that_is_no_tar_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar file" * 99)
    with pytest.raises(DataError, match=r"a\.tar cannot be read as a tar file"):
        load(tmp_path / "a.tar")


def test_compressed_shards_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"unpack compressed shards"):
        load(tmp_path / "a.tar.gz")


def test_a_missing_shard_of_a_range_is_named(shards: Path) -> None:
    with pytest.raises(DataError, match=r"2 of the 5 shards .* first one is train-000003\.tar"):
        load(shards / "train-{000000..000004}.tar")
    with pytest.raises(DataError, match="no shards"):
        load(shards / "none-*.tar")
    with pytest.raises(DataError, match="counts from the lower"):
        expand(shards / "train-{000004..000000}.tar", ".tar")


def test_a_shard_without_samples_is_refused(shards: Path) -> None:
    write_tar(shards / "train-000003.tar", [])
    with pytest.raises(DataError, match=r"train-000003\.tar holds no samples"):
        load(shards)


def test_a_shard_that_shrinks_while_it_is_read_is_named(shards: Path) -> None:
    dataset = load(shards, image_size=300, memory_limit_mb=1, channels=3)
    path = shards / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"'000045' of train-000002\.tar cannot be read"):
        dataset.gather(np.array([45]))


# --- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, 1, 2])
def test_streamed_batches_are_those_of_the_set_in_memory(shards: Path, window: int) -> None:
    # 300 pixels: 60 images of 264 KiB do not fit into 1 MiB
    settings = {"image_size": 300, "channels": 3, "shuffle_shards": window}
    streamed = load(shards, memory_limit_mb=1, **settings)
    memory = load(shards, **settings)
    assert not streamed.in_memory
    stream = TrainStream(streamed, streamed.pool, batch_size=7, seed=0, workers=2)
    kept = TrainStream(memory, memory.pool, batch_size=7, seed=0)
    for number in range(3):
        ids = stream.ids(number)
        same = memory.images[torch.from_numpy(ids)]
        assert torch.equal(stream._pixels(torch.from_numpy(ids), number), same)
        if not window:
            assert np.array_equal(ids, kept.ids(number))
    stream.close()


def test_batch_k_is_the_same_after_streaming_and_when_resumed_there(shards: Path) -> None:
    settings = {"image_size": 300, "channels": 3, "memory_limit_mb": 1, "shuffle_shards": 1}
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


@pytest.mark.parametrize("window", [0, 1, 2, 5])
def test_every_epoch_shows_every_image_once(window: int) -> None:
    groups = np.repeat(np.arange(7), [3, 1, 4, 1, 5, 9, 2])
    indices = np.arange(100, 125)
    first = shuffled(indices, groups, np.random.default_rng(0), window=window)
    other = shuffled(indices, groups, np.random.default_rng(1), window=window)
    assert sorted(first) == sorted(other) == list(indices)
    assert not np.array_equal(first, other)


def test_no_more_shards_than_the_window_are_mixed() -> None:
    groups = np.arange(120) // 10
    order = shuffled(np.arange(120), groups, np.random.default_rng(0), window=3)
    in_turn = groups[order].reshape(4, 30)
    assert [len(np.unique(part)) for part in in_turn] == [3, 3, 3, 3]
    assert all(len(np.unique(part[:10])) > 1 for part in in_turn)


def test_settings_of_shards_belong_to_shards() -> None:
    with pytest.raises(ValueError, match="shuffle_shards belongs to"):
        DataConfig(name="folder", path="a", shuffle_shards=2)
    with pytest.raises(ValueError, match="needs a path"):
        DataConfig(name="webdataset")
