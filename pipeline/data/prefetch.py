"""Decode batches of a streamed set ahead of time, in worker processes, in a fixed order.

What a batch holds is decided before it is sent to the workers (image numbers and the random
numbers of its crops), so the result does not depend on how many there are. A batch that does not
follow the last one restarts the workers at that place; that is what resuming does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from latency_tables.errors import DataError
from pipeline.data.augment import Boxes, crop_boxes
from pipeline.data.preprocessing import FloatBox, Preprocessing
from pipeline.data.raw import Pixels, RawImages

Request = tuple[int, Boxes | None]
"""Image number, and uniform numbers (10, 4) of its random crop or None."""
Plan = Callable[[int], list[Request] | None]
"""Requests of batch i; None after the last batch."""


@dataclass(frozen=True, slots=True)
class Decoder(Dataset[Pixels | DataError]):
    """Decodes one image in a worker; holds no open file, so a forked copy is safe."""

    raw: RawImages
    preprocessing: Preprocessing
    crop_area: tuple[float, float] | None

    def __getitem__(self, request: Any) -> Pixels | DataError:
        index, numbers = request
        try:
            picture = self.raw.picture(index)
        except DataError as error:
            # returned, not raised: torch would bury the message in a worker's traceback
            return error
        box: FloatBox | None = None
        if numbers is not None and self.crop_area is not None:
            found = crop_boxes(numbers[None], self.crop_area, picture.height, picture.width)[0]
            left, upper, right, lower = found.tolist()
            box = left, upper, min(right, picture.width), min(lower, picture.height)
        return self.preprocessing.picture(picture, box)


class _Batches(Sampler[list[Any]]):
    """The requests of batch ``start`` and all that follow."""

    def __init__(self, plan: Plan, start: int) -> None:
        self.plan, self.start = plan, start

    def __iter__(self) -> Iterator[list[Any]]:
        number = self.start
        while (requests := self.plan(number)) is not None:
            yield requests
            number += 1


def _stack(images: list[Pixels | DataError]) -> Tensor | DataError:
    pixels: list[Pixels] = []
    for image in images:
        if isinstance(image, DataError):
            return image
        pixels.append(image)
    return torch.from_numpy(np.stack(pixels))


class Prefetcher:
    """uint8 batches (n, C, H, W) by number; quick when the numbers follow each other."""

    def __init__(self, decoder: Decoder, plan: Plan, *, workers: int, pin: bool) -> None:
        self._decoder, self._plan, self._workers, self._pin = decoder, plan, workers, pin
        self._iterator: Iterator[Tensor | DataError] | None = None
        self._next = 0

    def get(self, number: int) -> Tensor:
        """Batch ``number``; raises the DataError of an image that cannot be read."""
        if self._iterator is None or number != self._next:
            self._iterator = self._start(number)
        batch = next(self._iterator)
        self._next = number + 1
        if isinstance(batch, DataError):
            self.close()
            raise batch
        return batch

    def close(self) -> None:
        """Stop the workers."""
        self._iterator = None

    def _start(self, number: int) -> Iterator[Tensor | DataError]:
        self.close()  # the old workers end before new ones start
        loader: DataLoader[Any] = DataLoader(
            self._decoder,
            batch_sampler=_Batches(self._plan, number),
            num_workers=self._workers,
            collate_fn=_stack,
            pin_memory=self._pin,
            # a fork needs no `if __name__ == "__main__"` in the user's script and no copy of the
            # bytes; it is safe here because workers only run numpy and Pillow
            multiprocessing_context="fork" if self._workers else None,
            # otherwise the loader draws its workers' seed from the global generator
            generator=torch.Generator().manual_seed(0),
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork of a process with threads
            warnings.simplefilter("ignore", DeprecationWarning)
            return iter(loader)
