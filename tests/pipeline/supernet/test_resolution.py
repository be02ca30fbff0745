"""Images at the resolution of a subnet."""

from __future__ import annotations

import torch

from pipeline.data.batches import Batch
from pipeline.supernet.resolution import batches_at, resized


def batch_of(images: torch.Tensor) -> Batch:
    numbers = torch.arange(len(images))
    return Batch(images=images, labels=numbers % 10, ids=numbers)


def test_images_of_the_right_size_are_passed_on_untouched() -> None:
    batch = batch_of(torch.rand(2, 3, 8, 8))
    assert resized(batch.images, (8, 8)) is batch.images
    assert next(batches_at([batch], (8, 8))) is batch


def test_halving_averages_over_the_neighbourhood() -> None:
    """Antialiasing reads every pixel: a checkerboard becomes grey, not one of its colours."""
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8)[None, None]  # (1, 1, 16, 16)
    small = resized(board, (8, 8))
    torch.testing.assert_close(small, torch.full((1, 1, 8, 8), 0.5), atol=0.02, rtol=0)


def test_shrunk_batches_keep_their_labels() -> None:
    batch = batch_of(torch.rand(3, 1, 8, 8))
    (small,) = batches_at([batch], (6, 6))
    assert small.images.shape == (3, 1, 6, 6)
    assert small.labels is batch.labels
