"""Batches: for training a pure function of (seed, split, batch number), for evaluation fixed.

Training batch *i* covers positions ``i * batch_size`` ... of an endless row of permutations, one
per epoch, so no image is dropped at the end of an epoch and a run resumes from the integer *i*
alone. Augmentation draws from a generator that is seeded per batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latency_tables.errors import DataError
from pipeline.data import augment as aug
from pipeline.data.config import AugmentConfig
from pipeline.data.dataset import ImageDataset
from pipeline.data.memory import release_unused
from pipeline.data.mixing import mix
from pipeline.data.policy import apply_policy
from pipeline.data.prefetch import Decoder, Plan, Prefetcher, Request
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.raw import Indices
from pipeline.data.shards import shuffled
from pipeline.data.transfer import to_device
from pipeline.randomness import child_seed, numpy_generator, torch_generator

KEEP_MB = 256
"""Evaluation batches up to this size in all (float32) are prepared once and kept."""
RELEASE_EVERY = 16
"""Batches of a streamed set after which free memory is given back."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one step sees.

    ``labels`` are class numbers int64 (n,), or soft targets float32 (n, K) where mixup or cutmix
    is on; ``torch.nn.functional.cross_entropy`` takes both. ``ids`` are image numbers (CPU).
    """

    images: Tensor  # (n, C, H, W) float32, normalised, on the device
    labels: Tensor
    ids: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.ids)


class Normaliser:
    """(pixel / 255 - mean) / std on tensors; see :class:`Preprocessing` for the contract."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(preprocessing.mean, device=device).reshape(shape)
        self._std = torch.tensor(preprocessing.std, device=device).reshape(shape)
        self._scale = preprocessing.scale / self._std
        self._shift = self._mean / self._std

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (n, C, H, W) to normalised float32, in one multiplication per value."""
        return images.float().mul_(self._scale).sub_(self._shift)

    def colours(self, images: Tensor) -> Tensor:
        """Float 0 ... 1 to normalised float32."""
        return (images - self._mean) / self._std


class TrainStream:
    """Training batches by number.

    Args:
        dataset: the set; move it to the device first (:meth:`ImageDataset.to`).
        indices: image numbers, usually ``splits.train``.
        batch_size: images per batch; may exceed the number of images.
        seed: root seed of the run.
        name: name of the split; streams of different names draw differently.
        augment: what is varied (default: nothing).
        device: where the batches are needed.
        channels_last: memory format of the images.
        workers: processes that decode a streamed set.
        share: (rank, world) where several processes take a part of each batch. Of a streamed set
            only that part is decoded, unless images are mixed; the others are black.

    Raises:
        DataError: no images, or a policy that does not suit them.

    >>> from pipeline.data.config import DataConfig
    >>> from pipeline.data.dataset import load_dataset
    >>> digits = load_dataset(DataConfig(name="digits"))
    >>> stream = TrainStream(digits, digits.pool, batch_size=4, seed=0)
    >>> stream.batch(7).images.shape
    torch.Size([4, 1, 8, 8])
    >>> torch.equal(stream.batch(7).ids, stream.batch(7).ids)
    True
    """

    def __init__(
        self,
        dataset: ImageDataset,
        indices: Indices,
        *,
        batch_size: int,
        seed: int,
        name: str = "train",
        augment: AugmentConfig | None = None,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        workers: int = 2,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if not len(indices) or batch_size < 1:
            raise DataError(
                f"the stream {name!r} has {len(indices)} images in batches of {batch_size}; "
                "both must be positive",
                hint="check the split and the batch size",
            )
        self.augment = augment or AugmentConfig()
        if self.augment.policy != "none" and dataset.input_shape[0] != 3:
            raise DataError(
                f"policy = {self.augment.policy!r} needs RGB images; {dataset.name} is grey",
                hint='data.channels = 3, or policy = "none"',
            )
        self.batch_size = batch_size
        self._dataset, self._indices = dataset, np.array(indices, np.int64)
        self._seed, self._name = seed, name
        self._device = torch.device(device)
        self._channels_last = channels_last
        self._normaliser = Normaliser(dataset.preprocessing, self._device)
        self._epoch, self._order = -1, self._indices
        self._groups = None if dataset.groups is None else dataset.groups[self._indices]
        rank, world = share
        size = batch_size // world
        mixes = bool(self.augment.mixup or self.augment.cutmix)
        # places of a batch that are decoded
        self._decoded = slice(None) if mixes else slice(rank * size, (rank + 1) * size)
        self._prefetcher = _prefetcher(
            dataset, self._requests, self.augment.random_resized_crop, workers, self._device
        )

    @property
    def n_images(self) -> int:
        """Images of one epoch."""
        return len(self._indices)

    @property
    def batches_per_epoch(self) -> int:
        """Batches that cover every image once (rounded up)."""
        return -(-self.n_images // self.batch_size)

    def ids(self, number: int) -> Indices:
        """Image numbers of batch ``number``, without touching the images."""
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.n_images)
        parts = [self._permuted(int(e))[places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def batch(self, number: int) -> Batch:
        """Batch ``number`` (0, 1, ... across epochs); the same whenever it is asked for."""
        if number < 0:
            raise DataError(f"batch {number} of {self._name!r}; batches count from 0")
        if self._prefetcher is not None and number % RELEASE_EVERY == 0:
            release_unused()
        ids = torch.from_numpy(self.ids(number))
        labels = to_device(self._dataset.labels[ids], self._device)
        images = self._varied(self._pixels(ids, number), number)
        if self.augment.mixup or self.augment.cutmix:
            rng = numpy_generator(self._seed, "data", self._name, "mix", number)
            images, labels = mix(images, labels, self._dataset.n_classes, self.augment, rng)
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images=images, labels=labels, ids=ids)

    def close(self) -> None:
        """Stop the workers of a streamed set; the stream can still be used afterwards."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def _permuted(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            rng = numpy_generator(self._seed, "data", self._name, "epoch", epoch)
            groups, window = self._groups, self._dataset.window
            self._epoch = epoch
            self._order = shuffled(self._indices, groups, rng, window=window)
        return self._order

    def _boxes(self, number: int) -> aug.Boxes:
        """Random numbers of the crops, apart from the rest: workers need them beforehand."""
        generator = torch_generator(self._seed, "data", self._name, "boxes", number)
        return aug.crop_numbers(self.batch_size, generator)

    def _requests(self, number: int) -> list[Request] | None:
        ids = self.ids(number).tolist()
        requests: list[Request] = [(i, None) for i in ids]
        if self.augment.random_resized_crop is not None:
            requests = list(zip(ids, self._boxes(number), strict=True))
        return requests[self._decoded]

    def _pixels(self, ids: Tensor, number: int) -> Tensor:
        """uint8 images of a batch on the device, cropped by random_resized_crop if it is on."""
        if self._prefetcher is not None:
            pixels = self._prefetcher.get(number).to(self._device, non_blocking=True)
            if len(pixels) == len(ids):
                return pixels
            images = pixels.new_zeros((len(ids), *pixels.shape[1:]))
            images[self._decoded] = pixels
            return images
        stored = self._dataset.images
        images = stored.index_select(0, to_device(ids, stored.device)).to(self._device)
        if self.augment.random_resized_crop is not None:
            boxes = aug.crop_boxes(
                self._boxes(number), self.augment.random_resized_crop, *images.shape[2:]
            )
            images = aug.resized_crop(images, boxes)
        return images

    def _varied(self, images: Tensor, number: int) -> Tensor:
        """uint8 to normalised floats, through every augmentation of single images."""
        config = self.augment
        generator = torch_generator(self._seed, "data", self._name, "augment", number)
        if config.crop_padding:
            images = aug.random_crop(images, config.crop_padding, generator)
        if config.flip:
            images = aug.random_flip(images, generator)
        if config.policy != "none" or config.color_jitter:
            colours = images.float().div_(255)
            if config.policy != "none":
                seed = child_seed(self._seed, "data", self._name, "policy", number)
                colours = apply_policy(colours, config, seed)
            if config.color_jitter:
                colours = aug.color_jitter(colours, config.color_jitter, generator)
            images = self._normaliser.colours(colours)
        else:
            images = self._normaliser.pixels(images)
        return aug.erase(images, config.erasing, generator) if config.erasing else images


class EvalBatches:
    """The images of a split in a fixed order, without augmentation; the same for every network.

    Small splits are normalised once and kept on the device: do not change the batches in place.

    >>> from pipeline.data.config import DataConfig
    >>> from pipeline.data.dataset import load_dataset
    >>> digits = load_dataset(DataConfig(name="digits"))
    >>> batches = EvalBatches(digits, digits.pool[:10], batch_size=4)
    >>> [len(batch) for batch in batches]
    [4, 4, 2]
    """

    def __init__(
        self,
        dataset: ImageDataset,
        indices: Indices,
        *,
        batch_size: int = 512,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        workers: int = 2,
        keep_mb: int = KEEP_MB,
    ) -> None:
        if not len(indices) or batch_size < 1:
            raise DataError(
                f"{len(indices)} images in batches of {batch_size} cannot be evaluated; "
                "both must be positive",
                hint="check the split and the batch size",
            )
        self.batch_size = batch_size
        self._dataset, self._indices = dataset, np.array(indices, np.int64)
        self._device, self._channels_last = torch.device(device), channels_last
        self._normaliser = Normaliser(dataset.preprocessing, self._device)
        self._prefetcher = _prefetcher(dataset, self._requests, None, workers, self._device)
        size_mb = 4 * len(indices) * int(np.prod(dataset.input_shape)) / 2**20
        self._kept: dict[int, Batch] | None = {} if size_mb <= keep_mb else None

    @property
    def n_images(self) -> int:
        """Images in all batches together."""
        return len(self._indices)

    @property
    def ids_sha256(self) -> str:
        """Hash of the image numbers in order: equal hashes mean scored on equal images."""
        return hashlib.sha256(self._indices.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return -(-self.n_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(number) for number in range(len(self)))

    def batch(self, number: int) -> Batch:
        """Batch ``number``; the last one may be smaller."""
        if not 0 <= number < len(self):
            raise DataError(f"batch {number} of {len(self)}; batches count from 0")
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        ids = self._ids(number)
        if self._prefetcher is not None:
            pixels = self._prefetcher.get(number).to(self._device, non_blocking=True)
        else:
            pixels = self._dataset.gather(ids).to(self._device)
        images = self._normaliser.pixels(pixels)
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        numbers = torch.from_numpy(ids)
        labels = self._dataset.labels[numbers].to(self._device)
        batch = Batch(images=images, labels=labels, ids=numbers)
        if self._kept is not None:
            self._kept[number] = batch
        return batch

    def close(self) -> None:
        """Stop the workers of a streamed set."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def _ids(self, number: int) -> Indices:
        return self._indices[number * self.batch_size : (number + 1) * self.batch_size]

    def _requests(self, number: int) -> list[Request] | None:
        return [(int(i), None) for i in self._ids(number)] if number < len(self) else None


class OneBatch:
    """A stream with the same held-out batch under every number."""

    batches_per_epoch = 1

    def __init__(self, batches: EvalBatches) -> None:
        self._batches = batches

    def batch(self, number: int, /) -> Batch:
        """The batch."""
        return self._batches.batch(0)


def _prefetcher(
    dataset: ImageDataset,
    plan: Plan,
    crop_area: tuple[float, float] | None,
    workers: int,
    device: torch.device,
) -> Prefetcher | None:
    """Decode ahead for a streamed set; nothing for a set in memory."""
    if dataset.raw is None:
        return None
    decoder = Decoder(dataset.raw, dataset.preprocessing, crop_area)
    return Prefetcher(decoder, plan, workers=workers, pin=device.type == "cuda")
