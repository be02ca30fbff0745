"""An image set that is ready for the network: one uint8 tensor, or a source that decodes late.

Sets whose pixels fit into ``memory_limit_mb`` are decoded and resized once, at load; larger ones
keep their files or bytes and are decoded batch by batch. Mean and standard deviation come from
the non-test images only and are fixed with the set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latency_tables.errors import DataError
from pipeline.data.checks import checked_pool
from pipeline.data.config import DataConfig
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.raw import ArrayImages, Indices, Pixels, RawImages, RawSet
from pipeline.data.readers.digits import read_digits
from pipeline.data.readers.folder import read_folder
from pipeline.data.readers.idx import read_fashion_mnist
from pipeline.data.readers.npz import read_npz
from pipeline.data.readers.parquet import read_parquet
from pipeline.data.readers.webdataset import read_webdataset
from pipeline.data.splits import Splits, stratified
from pipeline.randomness import numpy_generator

SCHEMA_VERSION = 1
STATISTICS_IMAGES = 4_096
"""Images that mean and deviation of a streamed set are computed on (a seeded draw)."""
HEADERS = 4_096
"""Images whose headers decide between grey and RGB where image_size is given."""
_CHUNK = 2_048


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageDataset:
    """Images, labels and what is known about them.

    ``pixels`` is uint8 (N, C, H, W) for a set in memory and None for a streamed one, whose
    pictures come from ``raw``. Image numbers are positions in ``labels``.
    """

    name: str
    labels: Tensor = field(repr=False)  # (N,) int64, always on the CPU
    class_names: tuple[str, ...]
    pool: Indices = field(repr=False)
    test: Indices = field(repr=False)
    preprocessing: Preprocessing
    content_sha256: str
    content_kind: Literal["content", "listing"]
    test_split: Literal["given", "seeded"]
    pixels: Tensor | None = field(repr=False)
    raw: RawImages | None = field(repr=False)
    groups: Indices | None = field(default=None, repr=False)
    """Shard or row group of each image of a streamed set in shards."""
    window: int = 0
    """Groups that are mixed at a time in training; 0: all."""

    @property
    def n_images(self) -> int:
        """Images in all, test images included."""
        return len(self.labels)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input."""
        p = self.preprocessing
        return p.channels, p.height, p.width

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel of the non-test images, in units of 0 ... 1."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel of the non-test images, in units of 0 ... 1."""
        return self.preprocessing.std

    @property
    def in_memory(self) -> bool:
        """Whether all images are one tensor."""
        return self.pixels is not None

    @property
    def images(self) -> Tensor:
        """uint8 (N, C, H, W); a DataError for a streamed set."""
        if self.pixels is None:
            raise DataError(
                f"{self.name} is streamed and has no tensor of all images",
                hint="raise data.memory_limit_mb, or use ImageDataset.gather",
            )
        return self.pixels

    def gather(self, indices: Indices) -> Tensor:
        """uint8 (n, C, H, W) of some images, without augmentation."""
        if self.pixels is not None:
            return self.pixels.index_select(
                0, torch.from_numpy(np.array(indices, np.int64)).to(self.pixels.device)
            )
        if self.raw is None:
            raise DataError(f"{self.name} has neither pixels nor a source", hint="load it again")
        return _render(self.raw, self.preprocessing, indices)

    def to(self, device: str | torch.device) -> ImageDataset:
        """Move the pixels of a set in memory; do it once, before streams are made of it."""
        return replace(self, pixels=None if self.pixels is None else self.pixels.to(device))

    def splits(
        self, config: DataConfig, *, seed: int, plan: Mapping[str, int] | None = None
    ) -> Splits:
        """Cut the set into train, held-out pool and test, checked to be disjoint."""
        return Splits(
            labels=self.labels.numpy(),
            pool=self.pool,
            test=self.test,
            heldout=config.heldout,
            heldout_max=config.heldout_max,
            seed=seed,
            plan=plan,
        )

    def describe(self) -> dict[str, Any]:
        """Plain data for ``data.json``: no paths of this machine."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "sha256": self.content_sha256,
            "sha256_of": self.content_kind,
            "images": self.n_images,
            "pool": len(self.pool),
            "test": len(self.test),
            "test_split": self.test_split,
            "classes": list(self.class_names),
            "per_class": np.bincount(self.labels.numpy(), minlength=self.n_classes).tolist(),
            "input_shape": list(self.input_shape),
            "in_memory": self.in_memory,
            "preprocessing": self.preprocessing.to_dict(),
        }


def load_dataset(config: DataConfig, *, seed: int = 0, base: Path | None = None) -> ImageDataset:
    """Read, check and prepare the data set of a configuration.

    Args:
        config: which set, which size.
        seed: root seed of the run; it decides the test split where the set has none.
        base: folder that a relative ``config.path`` counts from (default: current folder).

    Raises:
        DataError: the set is missing or not usable; the message says what was found.

    >>> digits = load_dataset(DataConfig(name="digits"))
    >>> digits.input_shape, digits.n_classes, digits.images.dtype
    ((1, 8, 8), 10, torch.uint8)
    """
    return prepare(_read(config, base), config, seed=seed)


def dataset_at(
    dataset: ImageDataset,
    size: tuple[int, int],
    config: DataConfig,
    *,
    seed: int = 0,
    base: Path | None = None,
) -> ImageDataset:
    """The same images in the same order, read at (height, width) ``size`` from their source.

    Mean and deviation stay those of ``dataset``, with which its networks were trained.

    Raises:
        DataError: the source is no longer the same.

    >>> digits = load_dataset(DataConfig(name="digits"))
    >>> dataset_at(digits, (6, 6), DataConfig(name="digits")).input_shape
    (1, 6, 6)
    """
    old = dataset.preprocessing
    if size == (old.height, old.width):
        return dataset
    other = prepare(_read(config, base), config, seed=seed, size=size)
    if other.content_sha256 != dataset.content_sha256:
        raise DataError(
            f"{dataset.name} has changed since it was read first",
            hint="put the old images back, or begin a new run",
        )
    kept = replace(other.preprocessing, mean=old.mean, std=old.std)
    return replace(other, preprocessing=kept)


def _read(config: DataConfig, base: Path | None) -> RawSet:
    path, test_path = (
        (base or Path()) / Path(given).expanduser() if given else None
        for given in (config.path, config.test_path)
    )
    if config.name == "fashion-mnist":
        return read_fashion_mnist(path)
    if config.name == "npz" and path is not None:
        return read_npz(path)
    if config.name == "folder" and path is not None:
        return read_folder(path, verify=config.verify)
    if config.name == "webdataset" and path is not None:
        return read_webdataset(path, test_path, verify=config.verify)
    if config.name == "parquet" and path is not None:
        return read_parquet(path, test_path, verify=config.verify, window=config.window)
    return read_digits()


def prepare(
    raw: RawSet, config: DataConfig, *, seed: int = 0, size: tuple[int, int] | None = None
) -> ImageDataset:
    """Split off the test images, resize what fits into memory, and fix mean and deviation.

    ``size`` is (height, width) in place of the configuration's.
    """
    channels, height, width = _input_shape(raw, config)
    height, width = size or (height, width)
    everything = np.arange(len(raw.labels), dtype=np.int64)
    if raw.test is None:
        rng = numpy_generator(seed, "data", "test")
        test = stratified(raw.labels, everything, config.test_fraction, rng)
    else:
        test = everything[raw.test]
    pool = np.setdiff1d(everything, test)
    checked_pool(raw.labels, pool, raw.class_names, raw.name)
    draft = Preprocessing(
        height=height,
        width=width,
        color_order="RGB" if channels == 3 else "GREY",
        mean=(0.0,) * channels,
        std=(1 / 255,) * channels,
        resize=config.resize,
        resize_margin=config.resize_margin,
    )
    size_mb = len(everything) * channels * height * width / 2**20
    pixels = _decode(raw.images, draft) if size_mb <= config.memory_limit_mb else None
    dataset = ImageDataset(
        name=raw.name,
        labels=torch.from_numpy(raw.labels),
        class_names=raw.class_names,
        pool=pool,
        test=test,
        preprocessing=draft,
        content_sha256=raw.content_sha256,
        content_kind=raw.content_kind,
        test_split="seeded" if raw.test is None else "given",
        pixels=pixels,
        raw=None if pixels is not None else raw.images,
        groups=None if pixels is not None else raw.groups,
        window=config.window,
    )
    if config.normalise == "raw":
        return dataset
    mean, std = _statistics(dataset, seed)
    return replace(dataset, preprocessing=replace(draft, mean=mean, std=std))


def _input_shape(raw: RawSet, config: DataConfig) -> tuple[int, int, int]:
    """(C, H, W) that the settings and the images agree on."""
    images = raw.images
    if isinstance(images, ArrayImages):
        found = {images.shape(0)}
    elif config.image_size and config.channels:
        found = {(int(config.channels), config.image_size, config.image_size)}
    else:
        # equal sizes must be proven on all images, the colours of a large set on some
        step = max(1, len(images) // HEADERS) if config.image_size else 1
        found = {images.shape(i) for i in range(0, len(images), step)}
    channels = config.channels or max(c for c, _, _ in found)
    if config.image_size:
        return channels, config.image_size, config.image_size
    sizes = sorted({(h, w) for _, h, w in found})
    if len(sizes) > 1:
        some = ", ".join(f"{h}×{w}" for h, w in sizes[:3])
        raise DataError(
            f"the images of {raw.name} have {len(sizes)} sizes ({some}, ...); "
            "without data.image_size all must have one",
            hint=f"image_size = {min(min(size) for size in sizes)}",
        )
    return channels, *sizes[0]


def _decode(images: RawImages, preprocessing: Preprocessing) -> Tensor:
    """All pictures as uint8 (N, C, H, W)."""
    shape = (preprocessing.channels, preprocessing.height, preprocessing.width)
    if isinstance(images, ArrayImages) and images.shape(0) == shape:
        return torch.from_numpy(np.ascontiguousarray(images.array.transpose(0, 3, 1, 2)))
    return _render(images, preprocessing, np.arange(len(images), dtype=np.int64))


def _render(images: RawImages, preprocessing: Preprocessing, indices: Indices) -> Tensor:
    """Some pictures as uint8 (n, C, H, W); Pillow releases the lock, so threads help."""
    shape = (preprocessing.channels, preprocessing.height, preprocessing.width)
    pixels = np.empty((len(indices), *shape), np.uint8)

    def fill(start: int) -> None:
        for place, index in enumerate(indices[start : start + 64], start):
            pixels[place] = preprocessing.picture(images.picture(int(index)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(0, len(indices), 64)):
            pass
    return torch.from_numpy(pixels)


def _statistics(dataset: ImageDataset, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel of the non-test images, exact sums of integers."""
    indices = dataset.pool
    if not dataset.in_memory and len(indices) > STATISTICS_IMAGES:
        rng = numpy_generator(seed, "data", "statistics")
        indices = np.sort(rng.choice(indices, STATISTICS_IMAGES, replace=False))
    channels, height, width = dataset.input_shape
    total, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(indices), _CHUNK):
        part: Pixels = dataset.gather(indices[start : start + _CHUNK]).numpy()
        wide = torch.from_numpy(part).to(torch.int32)  # (n, C, H, W)
        total += wide.sum((0, 2, 3)).numpy()
        squares += (wide * wide).sum((0, 2, 3)).numpy()
    count = len(indices) * height * width
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    if not variance.any():
        raise DataError(
            f"all pixels of {dataset.name} are equal ({mean.round(1).tolist()})",
            hint="check how the images were written",
        )
    # a constant channel carries nothing; dividing by one keeps it at zero
    std = np.where(variance > 0, np.sqrt(variance), 255.0)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
