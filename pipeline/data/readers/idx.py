"""Fashion-MNIST (and any other set) as the four idx files of MNIST, plain or gzipped."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latency_tables.errors import DataError
from pipeline.data.checks import checked_classes, checked_labels, existing
from pipeline.data.raw import ArrayImages, Pixels, RawSet, hash_arrays

# the first is where the Debian package dataset-fashion-mnist puts the files
SYSTEM_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path("/usr/share/dataset-fashion-mnist"),
)
_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST_PARTS = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_HINT = (
    "apt-get install dataset-fashion-mnist, or download the four .gz files of "
    "github.com/zalandoresearch/fashion-mnist and set data.path to their folder"
)


def read_fashion_mnist(
    path: Path | None, *, system_folders: Sequence[Path] = SYSTEM_FOLDERS
) -> RawSet:
    """Read 60,000 + 10,000 grey 28×28 images from ``path`` or from where Debian puts them.

    Raises:
        DataError: files are missing, cut off, or not idx files.
    """
    folder = existing(path, "folder") if path else _system_folder(system_folders)
    images = [_read(folder, part, n_dims=3) for part in (_PARTS[0], _TEST_PARTS[0])]
    labels = [_read(folder, part, n_dims=1) for part in (_PARTS[1], _TEST_PARTS[1])]
    for name, pixels, numbers in zip(("training", "test"), images, labels, strict=True):
        checked_labels(numbers, len(pixels), f"the {name} files of Fashion-MNIST")
    if images[0].shape[1:] != images[1].shape[1:]:
        raise DataError(
            f"training images are {images[0].shape[1:]}, test images {images[1].shape[1:]}; "
            "one size is allowed",
            hint=_HINT,
        )
    array = np.concatenate(images)[..., None]
    wide = np.concatenate(labels).astype(np.int64)
    test = np.arange(len(array)) >= len(images[0])
    checked_classes(wide, _CLASSES, "Fashion-MNIST")
    return RawSet(
        name="fashion-mnist",
        images=ArrayImages(array),
        labels=wide,
        class_names=_CLASSES,
        test=test,
        content_sha256=hash_arrays(array, wide, test),
    )


def _system_folder(folders: Sequence[Path]) -> Path:
    for folder in folders:
        if folder.is_dir():
            return folder
    looked = " and ".join(str(folder) for folder in folders)
    raise DataError(f"Fashion-MNIST was not found in {looked}", hint=_HINT)


def _read(folder: Path, stem: str, *, n_dims: int) -> Pixels:
    """One idx file: two zero bytes, type 8 (uint8), number of dimensions, sizes, values."""
    file = next((f for f in (folder / f"{stem}.gz", folder / stem) if f.is_file()), None)
    if file is None:
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise DataError(f"{folder} has neither {stem}.gz nor {stem}; it holds {held}", hint=_HINT)
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.name} cannot be read: {error}", hint="copy it again") from error
    header = 4 + 4 * n_dims
    if len(data) < header or data[:4] != bytes((0, 0, 8, n_dims)):
        raise DataError(
            f"{file.name} starts with {data[:4].hex() or 'nothing'}, not with "
            f"{bytes((0, 0, 8, n_dims)).hex()} as idx files of {n_dims} dimensions do",
            hint="check that images and labels were not swapped",
        )
    shape = struct.unpack(f">{n_dims}I", data[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        raise DataError(
            f"{file.name} holds {len(data)} bytes, its header {shape} says {expected}",
            hint="the file is cut off: copy it again",
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
