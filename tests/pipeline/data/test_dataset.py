"""Loaded sets: statistics, resizing, description; and the real sets where they are present."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.errors import DataError
from pipeline.data.config import AugmentConfig, DataConfig
from pipeline.data.dataset import dataset_at, load_dataset
from pipeline.data.preprocessing import Preprocessing


def test_digits_are_scaled_to_the_whole_range() -> None:
    digits = load_dataset(DataConfig(name="digits"))
    assert digits.images.shape == (1797, 1, 8, 8)
    assert int(digits.images.max()) == 255
    assert digits.images.unique().numel() == 17


def test_the_test_split_of_digits_is_a_fifth_and_follows_the_seed() -> None:
    one, again, other = (load_dataset(DataConfig(), seed=s) for s in (1, 1, 2))
    assert abs(len(one.test) - 1797 / 5) <= 5
    assert np.array_equal(one.test, again.test)
    assert not np.array_equal(one.test, other.test)


def test_mean_and_deviation_come_from_images_outside_the_test_set(write_npz: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    images[:12] = 255  # test images that would move the mean
    test = np.arange(60) < 12
    path = write_npz(images=images, test=test)
    dataset = load_dataset(DataConfig(name="npz", path=str(path)))
    np.testing.assert_allclose(dataset.mean, images[12:].mean((0, 1, 2)) / 255, atol=1e-12)
    np.testing.assert_allclose(dataset.std, images[12:].std((0, 1, 2)) / 255, atol=1e-12)


def test_images_without_any_variation_are_refused(write_npz: Any) -> None:
    path = write_npz(images=np.full((60, 8, 8, 3), 9, np.uint8))
    with pytest.raises(DataError, match="all pixels"):
        load_dataset(DataConfig(name="npz", path=str(path)))


def test_a_constant_channel_becomes_zero_instead_of_infinite(write_npz: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    images[..., 2] = 40
    dataset = load_dataset(DataConfig(name="npz", path=str(write_npz(images=images))))
    assert dataset.std[2] == 1.0
    np.testing.assert_allclose(dataset.preprocessing.apply(images)[:, 2], 0.0, atol=1e-6)


def test_raw_normalisation_leaves_the_values_at_0_to_255(write_npz: Any) -> None:
    dataset = load_dataset(DataConfig(name="npz", path=str(write_npz()), normalise="raw"))
    pixels = dataset.images[:2].permute(0, 2, 3, 1).contiguous().numpy()
    expected = pixels.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(dataset.preprocessing.apply(pixels), expected, rtol=1e-6)


def test_streamed_and_resident_sets_have_equal_images_and_statistics(blob_npz: Path) -> None:
    settings = {"name": "npz", "path": str(blob_npz), "image_size": 160}
    resident = load_dataset(DataConfig(**settings))
    streamed = load_dataset(DataConfig(**settings, memory_limit_mb=1))
    assert (resident.in_memory, streamed.in_memory) == (True, False)
    assert resident.preprocessing == streamed.preprocessing
    some = np.array([5, 0, 59])
    assert torch.equal(resident.gather(some), streamed.gather(some))


def test_a_streamed_set_has_no_tensor_of_all_images(blob_npz: Path) -> None:
    config = DataConfig(name="npz", path=str(blob_npz), image_size=160, memory_limit_mb=1)
    with pytest.raises(DataError, match="memory_limit_mb"):
        _ = load_dataset(config).images


def test_squash_keeps_the_borders_and_crop_cuts_them_off() -> None:
    from PIL import Image

    wide = np.zeros((8, 16), np.uint8)
    wide[:, :3], wide[:, 4:12] = 255, 100  # a white bar that a centre crop loses
    common: dict[str, Any] = {
        "height": 8, "width": 8, "color_order": "GREY", "mean": (0.0,), "std": (1.0,),
    }  # fmt: skip
    crop = Preprocessing(resize="crop", **common).picture(Image.fromarray(wide))
    squash = Preprocessing(resize="squash", **common).picture(Image.fromarray(wide))
    assert (crop == 100).all()
    assert squash[0, 0, 0] == 255


def test_a_margin_cuts_the_border_away() -> None:
    from PIL import Image

    framed = np.full((32, 32), 200, np.uint8)
    framed[2:-2, 2:-2] = 50
    common: dict[str, Any] = {
        "height": 16, "width": 16, "color_order": "GREY", "mean": (0.0,), "std": (1.0,),
    }  # fmt: skip
    assert Preprocessing(**common).picture(Image.fromarray(framed)).max() > 100
    margin = Preprocessing(resize_margin=1.5, **common).picture(Image.fromarray(framed))
    assert (margin == 50).all()


def test_preprocessing_survives_json() -> None:
    preprocessing = load_dataset(DataConfig()).preprocessing
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_preprocessing_with_an_unknown_key_is_refused() -> None:
    data = load_dataset(DataConfig()).preprocessing.to_dict()
    with pytest.raises(DataError, match="colour"):
        Preprocessing.from_dict(data | {"colour": 1})


def test_the_description_is_plain_json_without_paths(image_folder: Path) -> None:
    config = DataConfig(name="folder", path=str(image_folder), image_size=16)
    text = json.dumps(load_dataset(config).describe(), allow_nan=False)
    assert str(image_folder.parent) not in text
    assert json.loads(text)["per_class"] == [8, 8]


def test_a_relative_path_counts_from_the_given_folder(write_npz: Any) -> None:
    path = write_npz()
    dataset = load_dataset(DataConfig(name="npz", path="mine.npz"), base=path.parent)
    assert dataset.n_images == 60


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "npz"}, "needs a path"),
        ({"name": "digits", "path": "x"}, "takes no path"),
        ({"nmae": "digits"}, "nmae"),
        ({"heldout": 1.0}, "heldout"),
        ({"augment": {"crop_padding": 2, "random_resized_crop": (0.1, 1.0)}}, "exclude"),
        ({"augment": {"random_resized_crop": (0.0, 1.0)}}, "low <= high"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig(**settings)


def test_nothing_is_augmented_by_default() -> None:
    config = AugmentConfig()
    assert (config.flip, config.crop_padding, config.policy, config.mixup) == (False, 0, "none", 0)


def test_another_resolution_keeps_images_labels_and_normalisation() -> None:
    config = DataConfig(name="digits")
    digits = load_dataset(config, seed=3)
    small = dataset_at(digits, (6, 6), config, seed=3)
    assert small.images.shape == (1797, 1, 6, 6)
    assert (small.mean, small.std) == (digits.mean, digits.std)
    np.testing.assert_array_equal(small.test, digits.test)
    assert small.labels.equal(digits.labels)
    assert dataset_at(digits, (8, 8), config, seed=3) is digits


def test_oblong_images_are_read_at_an_oblong_resolution(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 12, 3), np.uint8)
    np.savez(path, images=images, labels=np.repeat(np.arange(2), 20))
    config = DataConfig(name="npz", path=str(path))
    dataset = load_dataset(config)
    assert dataset_at(dataset, (6, 9), config).input_shape == (3, 6, 9)


def test_images_that_changed_since_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 20)
    config = DataConfig(name="npz", path=str(path))
    np.savez(path, images=rng.integers(0, 255, (40, 8, 8, 3), np.uint8), labels=labels)
    dataset = load_dataset(config)
    np.savez(path, images=rng.integers(0, 255, (40, 8, 8, 3), np.uint8), labels=labels)
    with pytest.raises(DataError, match="has changed since"):
        dataset_at(dataset, (6, 6), config)


def test_the_published_fashion_mnist_is_read(shared_images: Path) -> None:
    path = str(shared_images / "fashion-mnist")
    dataset = load_dataset(DataConfig(name="fashion-mnist", path=path))
    assert dataset.images.shape == (70_000, 1, 28, 28)
    # mean and deviation of the 60,000 training images, as everybody uses them
    assert dataset.mean == pytest.approx((0.2860,), abs=5e-5)
    assert dataset.std == pytest.approx((0.3530,), abs=5e-5)


def test_real_jpeg_blobs_are_read(shared_images: Path) -> None:
    path = str(shared_images / "sign_digits100_jpeg.npz")
    dataset = load_dataset(DataConfig(name="npz", path=path, image_size=32))
    assert dataset.images.shape == (2062, 3, 32, 32)
    assert dataset.n_classes == 10


@pytest.mark.long
def test_cifar10_as_jpeg_bytes_is_read(shared_images: Path) -> None:
    dataset = load_dataset(DataConfig(name="npz", path=str(shared_images / "cifar10_jpeg32.npz")))
    assert (len(dataset.pool), len(dataset.test)) == (50_000, 10_000)
    # the published means; JPEG keeps them
    assert dataset.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
