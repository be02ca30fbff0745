"""Fashion-MNIST idx files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from latency_tables.errors import DataError
from pipeline.data.config import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.data.readers.idx import read_fashion_mnist

FILES = {
    "train-images-idx3-ubyte.gz": (100, 28, 28),
    "train-labels-idx1-ubyte.gz": (100,),
    "t10k-images-idx3-ubyte.gz": (20, 28, 28),
    "t10k-labels-idx1-ubyte.gz": (20,),
}


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shape in FILES.items():
        n = int(np.prod(shape))
        values = (np.arange(n) % (10 if "labels" in name else 251)).astype(np.uint8)
        (tmp_path / name).write_bytes(gzip.compress(idx(values.reshape(shape))))
    return tmp_path


def test_training_and_test_files_are_read(folder: Path) -> None:
    dataset = load_dataset(DataConfig(name="fashion-mnist", path=str(folder)))
    assert dataset.images.shape == (120, 1, 28, 28)
    assert dataset.test.tolist() == list(range(100, 120))
    assert int(dataset.images[0, 0, 1, 3]) == 31
    assert dataset.class_names[9] == "Ankle boot"


def test_unpacked_files_are_read_as_well(folder: Path) -> None:
    packed = read_fashion_mnist(folder)
    for name in FILES:
        (folder / name).with_suffix("").write_bytes(gzip.decompress((folder / name).read_bytes()))
        (folder / name).unlink()
    assert read_fashion_mnist(folder).content_sha256 == packed.content_sha256


def test_the_system_folder_is_found_without_a_path(folder: Path, tmp_path: Path) -> None:
    found = read_fashion_mnist(None, system_folders=(tmp_path / "absent", folder))
    assert len(found.labels) == 120


def test_an_absent_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        read_fashion_mnist(None, system_folders=(tmp_path / "absent",))


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        read_fashion_mnist(folder)


def test_a_cut_off_gzip_file_is_refused(folder: Path) -> None:
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        read_fashion_mnist(folder)


def test_values_fewer_than_the_header_says_are_refused(folder: Path) -> None:
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))
    with pytest.raises(DataError, match="cut off"):
        read_fashion_mnist(folder)


def test_swapped_images_and_labels_are_refused(folder: Path) -> None:
    labels = (folder / "train-labels-idx1-ubyte.gz").read_bytes()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(labels)
    with pytest.raises(DataError, match="swapped"):
        read_fashion_mnist(folder)


def test_more_labels_than_images_are_refused(folder: Path) -> None:
    labels = idx((np.arange(101) % 10).astype(np.uint8))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(DataError, match="100 images but 101 labels"):
        read_fashion_mnist(folder)
