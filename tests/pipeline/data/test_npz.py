"""Own images in .npz files: what is read and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.errors import DataError
from pipeline.data.config import DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset


def load(path: Path, **settings: Any) -> ImageDataset:
    return load_dataset(DataConfig(name="npz", path=str(path), **settings), seed=1)


def test_pixels_arrive_unchanged_with_channels_first(write_npz: Any) -> None:
    path = write_npz()
    images = load(path).images
    assert torch.equal(images, torch.from_numpy(np.load(path)["images"]).permute(0, 3, 1, 2))


def test_grey_images_need_no_channel_axis(write_npz: Any) -> None:
    path = write_npz(
        images=np.full((60, 8, 6), 9, np.uint8) * (np.arange(60, dtype=np.uint8) % 5)[:, None, None]
    )
    assert load(path).input_shape == (1, 8, 6)


def test_a_test_mask_decides_the_test_images(write_npz: Any) -> None:
    mask = np.arange(60) < 12
    dataset = load(write_npz(test=mask))
    assert dataset.test.tolist() == list(range(12))
    assert dataset.describe()["test_split"] == "given"


def test_without_a_mask_a_balanced_fifth_becomes_test_images(write_npz: Any) -> None:
    dataset = load(write_npz())
    assert np.bincount(dataset.labels.numpy()[dataset.test]).tolist() == [4, 4, 4]
    assert dataset.describe()["test_split"] == "seeded"


def test_encoded_images_are_decoded(blob_npz: Path) -> None:
    dataset = load(blob_npz)
    assert dataset.input_shape == (3, 12, 10)
    assert dataset.class_names == ("ant", "bee", "cow")
    assert len(dataset.test) == 15


def test_the_content_hash_ignores_file_name_and_compression(write_npz: Any, tmp_path: Path) -> None:
    path = write_npz()
    with np.load(path) as file:
        np.savez_compressed(tmp_path / "packed.npz", **dict(file))
    assert load(path).content_sha256 == load(tmp_path / "packed.npz").content_sha256


def test_the_content_hash_follows_one_label(write_npz: Any) -> None:
    before = load(write_npz()).content_sha256
    labels = np.arange(60) % 3
    labels[0] = 1
    assert load(write_npz(labels=labels)).content_sha256 != before


def test_the_content_hash_follows_the_test_mask(write_npz: Any) -> None:
    one = load(write_npz(test=np.arange(60) < 12)).content_sha256
    assert load(write_npz(test=np.arange(60) < 15)).content_sha256 != one


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": np.zeros((60, 8, 8, 3))}, "float64"),
        ({"images": np.ones((60, 8, 8, 3), np.uint8)}, "every pixel is 0 or 1"),
        ({"images": np.zeros((60, 8), np.uint8)}, r"shape \(60, 8\)"),
        ({"images": np.zeros((60, 8, 8, 4), np.uint8)}, "alpha"),
        ({"images": np.zeros((60, 3, 8, 8), np.uint8)}, "channels first"),
        ({"labels": np.zeros((60, 3), np.int64)}, "one-hot"),
        ({"labels": np.zeros(60)}, "float64"),
        ({"labels": np.arange(59) % 3}, "60 images but 59 labels"),
        ({"labels": np.arange(60) % 3 - 1}, "label -1 at row 0"),
        ({"labels": np.zeros(60, np.int64)}, "one class"),
        ({"labels": np.arange(60) // 58}, "'1' has 2"),
        ({"labels": (np.arange(60) % 3) * 2}, "without gaps"),
        ({"labels": None}, "no 'labels'"),
        ({"images": None}, "'images' and 'labels'"),
        ({"test": np.zeros(60, np.int64)}, "int64"),
        ({"test": np.ones(60, bool)}, "60 of 60"),
        ({"test": np.arange(60) % 3 == 1}, "not test images"),
        ({"classes": np.array(["a", "b"])}, "only 2 class names"),
        ({"classes": np.array([1, 2, 3])}, "text"),
    ],
)
def test_a_bad_array_is_refused_with_what_was_found_and_what_to_try(
    write_npz: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load(write_npz(**changes))
    assert caught.value.hint


def test_pickled_objects_are_never_read(write_npz: Any) -> None:
    with pytest.raises(DataError, match="never read"):
        load(write_npz(labels=np.array([object()] * 60)))


@pytest.mark.parametrize("kept", [0, 10, 2000])
def test_a_truncated_file_is_refused(write_npz: Any, kept: int) -> None:
    path = write_npz()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="cannot be read"):
        load(path)


def test_a_single_array_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        load(tmp_path / "one.npy")


def test_a_misspelt_path_names_the_nearest_file(write_npz: Any) -> None:
    path = write_npz()
    with pytest.raises(DataError, match=r"mine\.npz"):
        load(path.with_name("mnie.npz"))


def test_a_damaged_picture_is_named(blob_npz: Path) -> None:
    with np.load(blob_npz) as file:
        arrays = dict(file)
    arrays["blob"] = arrays["blob"].copy()
    arrays["blob"][arrays["end"][6] : arrays["end"][7]] = 0
    np.savez(blob_npz, **arrays)
    with pytest.raises(DataError, match=r"image 7 of blob\.npz"):
        load(blob_npz)


def test_offsets_beyond_the_blob_are_refused(blob_npz: Path) -> None:
    with np.load(blob_npz) as file:
        arrays = dict(file)
    arrays["blob"] = arrays["blob"][:-5]
    np.savez(blob_npz, **arrays)
    with pytest.raises(DataError, match="offsets"):
        load(blob_npz)
