"""Image folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latency_tables.errors import DataError
from pipeline.data.config import DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset


def load(path: Path, **settings: Any) -> ImageDataset:
    settings = {"image_size": 16} | settings
    return load_dataset(DataConfig(name="folder", path=str(path), **settings))


def test_class_folders_become_classes_in_alphabetical_order(image_folder: Path) -> None:
    dataset = load(image_folder)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0] * 8 + [1] * 8
    assert dataset.images.shape == (16, 3, 16, 16)


@pytest.mark.parametrize("level", ["test", "val"])
def test_a_second_level_holds_the_test_images(image_folder: Path, level: str) -> None:
    root = image_folder.parent / "levels"
    shutil.copytree(image_folder, root / "train")
    shutil.copytree(image_folder, root / level)
    dataset = load(root)
    assert dataset.test.tolist() == list(range(16, 32))
    assert dataset.class_names == ("cat", "dog")


def test_classes_may_be_called_train_and_test_if_there_are_others(image_folder: Path) -> None:
    shutil.copytree(image_folder / "cat", image_folder / "train")
    shutil.copytree(image_folder / "cat", image_folder / "test")
    assert load(image_folder).class_names == ("cat", "dog", "test", "train")


def test_pictures_are_turned_as_their_exif_data_say(image_folder: Path) -> None:
    tall = np.zeros((16, 8, 3), np.uint8)
    tall[:8] = 255  # white above black
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(tall[::-1, ::-1]).save(image_folder / "cat" / "0.png", exif=exif)
    shown = load(image_folder, resize="squash").images[0]
    assert int(shown[:, :7].min()) == 255
    assert int(shown[:, 9:].max()) == 0


def test_sizes_are_compared_after_turning(image_folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    for number, file in enumerate(sorted(image_folder.rglob("*.png"))):
        noise = np.random.default_rng(number).integers(0, 256, (12, 9, 3), dtype=np.uint8)
        if number % 2:
            Image.fromarray(noise.transpose(1, 0, 2)).save(file, exif=exif)
        else:
            Image.fromarray(noise).save(file)
    assert load(image_folder, image_size=None).input_shape == (3, 12, 9)


def test_jpeg_pictures_are_turned_too(image_folder: Path) -> None:
    half = np.zeros((16, 16, 3), np.uint8)
    half[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(half).save(image_folder / "cat" / "0.jpg", exif=exif)
    (image_folder / "cat" / "0.png").unlink()
    shown = load(image_folder).images[0]
    assert int(shown[:, :7].max()) < 50
    assert int(shown[:, 9:].min()) > 200


def test_grey_and_colour_pictures_together_are_read_as_colour(image_folder: Path) -> None:
    Image.new("L", (20, 20), 7).save(image_folder / "cat" / "0.png")
    assert load(image_folder).input_shape == (3, 16, 16)


def test_channels_1_turns_colour_to_grey(image_folder: Path) -> None:
    assert load(image_folder, channels=1).images.shape == (16, 1, 16, 16)


def test_different_sizes_without_image_size_are_refused(image_folder: Path) -> None:
    with pytest.raises(DataError, match=r"8 sizes.*image_size = "):
        load(image_folder, image_size=None)


@pytest.mark.parametrize("damage", [b"", b"no picture"])
def test_a_damaged_file_is_named(image_folder: Path, damage: bytes) -> None:
    (image_folder / "dog" / "3.png").write_bytes(damage)
    with pytest.raises(DataError, match=r"dog/3\.png"):
        load(image_folder)


def test_a_cut_off_file_is_named(image_folder: Path) -> None:
    file = image_folder / "dog" / "3.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"dog/3\.png"):
        load(image_folder)


def test_sixteen_bit_pictures_are_refused_instead_of_clipped(image_folder: Path) -> None:
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(image_folder / "cat" / "0.png")
    with pytest.raises(DataError, match="8 bits"):
        load(image_folder)


def test_a_class_with_too_few_pictures_is_named(image_folder: Path) -> None:
    for file in list((image_folder / "dog").iterdir())[2:]:
        file.unlink()
    with pytest.raises(DataError, match="'dog' has 2"):
        load(image_folder)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub-folders"):
        load(tmp_path)


def test_a_test_level_with_an_unknown_class_is_refused(image_folder: Path) -> None:
    root = image_folder.parent / "levels"
    shutil.copytree(image_folder, root / "train")
    shutil.copytree(image_folder, root / "test")
    (root / "test" / "dog").rename(root / "test" / "dgo")
    with pytest.raises(DataError, match="'dgo'"):
        load(root)


def test_the_listing_hash_follows_mtime_and_the_full_hash_does_not(image_folder: Path) -> None:
    quick, full = load(image_folder), load(image_folder, verify=True)
    os.utime(image_folder / "cat" / "0.png", ns=(1, 1))
    assert load(image_folder).content_sha256 != quick.content_sha256
    assert load(image_folder, verify=True).content_sha256 == full.content_sha256
    assert (quick.content_kind, full.content_kind) == ("listing", "content")


def test_the_full_hash_follows_the_content(image_folder: Path) -> None:
    full = load(image_folder, verify=True).content_sha256
    shutil.copy(image_folder / "cat" / "0.png", image_folder / "cat" / "1.png")
    assert load(image_folder, verify=True).content_sha256 != full
