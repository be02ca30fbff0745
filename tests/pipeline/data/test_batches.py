"""Training batches are functions of their number; evaluation batches are the same for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.errors import DataError
from pipeline.data.batches import Batch, EvalBatches, TrainStream
from pipeline.data.config import AugmentConfig, DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset

EVERYTHING = AugmentConfig(
    crop_padding=2, flip=True, color_jitter=0.4, erasing=0.5, mixup=0.8, cutmix=1.0
)


def equal(a: Batch, b: Batch) -> bool:
    pairs = ((a.images, b.images), (a.labels, b.labels), (a.ids, b.ids))
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def colour(write_npz: Any) -> ImageDataset:
    return load_dataset(DataConfig(name="npz", path=str(write_npz())))


@pytest.fixture
def streamed(blob_npz: Path) -> ImageDataset:
    config = DataConfig(name="npz", path=str(blob_npz), image_size=160, memory_limit_mb=1)
    return load_dataset(config)


@pytest.fixture
def resident(blob_npz: Path) -> ImageDataset:
    return load_dataset(DataConfig(name="npz", path=str(blob_npz), image_size=160))


def stream(dataset: ImageDataset, **settings: Any) -> TrainStream:
    return TrainStream(dataset, dataset.pool, **({"batch_size": 16, "seed": 3} | settings))


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """Streams whose workers are stopped after the test."""
    streams: list[Any] = []
    yield streams
    for one in streams:
        one.close()


def test_a_batch_does_not_depend_on_what_was_asked_before(colour: ImageDataset) -> None:
    fresh, used = stream(colour, augment=EVERYTHING), stream(colour, augment=EVERYTHING)
    for number in (9, 0, 4, 3):
        used.batch(number)
        torch.rand(3)
    assert equal(fresh.batch(5), used.batch(5))


@pytest.mark.parametrize("change", [{"seed": 4}, {"name": "b-update"}])
def test_another_seed_or_name_gives_other_batches(
    colour: ImageDataset, change: dict[str, Any]
) -> None:
    assert not equal(stream(colour).batch(0), stream(colour, **change).batch(0))


def test_one_epoch_shows_every_image_once(colour: ImageDataset) -> None:
    one = TrainStream(colour, colour.pool, batch_size=12, seed=0)
    for epoch in range(3):
        first = epoch * one.batches_per_epoch
        seen = np.concatenate([one.ids(first + i) for i in range(one.batches_per_epoch)])
        assert sorted(seen.tolist()) == colour.pool.tolist()


def test_batches_run_on_over_the_end_of_an_epoch(colour: ImageDataset) -> None:
    one = stream(colour, batch_size=32)  # 48 images: three batches are two epochs
    seen = np.concatenate([one.ids(i) for i in range(3)])
    assert np.bincount(seen, minlength=60)[colour.pool].tolist() == [2] * 48


def test_a_batch_may_be_larger_than_the_set(colour: ImageDataset) -> None:
    batch = stream(colour, batch_size=100).batch(0)
    assert batch.images.shape == (100, 3, 8, 8)


def test_two_epochs_have_different_orders(colour: ImageDataset) -> None:
    one = stream(colour, batch_size=48)
    assert one.ids(0).tolist() != one.ids(1).tolist()


def test_images_labels_and_numbers_belong_together(colour: ImageDataset) -> None:
    batch = stream(colour).batch(2)
    assert torch.equal(batch.labels, colour.labels[batch.ids])
    expected = colour.preprocessing.apply(
        colour.images[batch.ids].permute(0, 2, 3, 1).contiguous().numpy()
    )
    np.testing.assert_allclose(batch.images.numpy(), expected, atol=2e-6)


def test_mixing_gives_soft_targets_that_sum_to_one(colour: ImageDataset) -> None:
    labels = stream(colour, augment=AugmentConfig(mixup=0.5)).batch(0).labels
    assert labels.shape == (16, 3)
    torch.testing.assert_close(labels.sum(1), torch.ones(16))


def test_the_global_generators_are_left_alone(colour: ImageDataset) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    stream(colour, augment=EVERYTHING).batch(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_padding": 4},
        {"color_jitter": 0.4},
        {"random_resized_crop": (0.1, 0.9)},
        {"erasing": 1.0},
        {"policy": "randaugment"},
        {"mixup": 1.0},
        {"cutmix": 1.0},
    ],
)
def test_the_same_image_varies_from_batch_to_batch(
    colour: ImageDataset, settings: dict[str, Any]
) -> None:
    # two images, so every batch holds the same two, in one of two orders
    one = TrainStream(
        colour, colour.pool[:2], batch_size=2, seed=0, augment=AugmentConfig(**settings)
    )
    sums = [one.batch(i).images.double().sum((1, 2, 3)).tolist() for i in range(8)]
    seen = {tuple(sorted(round(value, 3) for value in pair)) for pair in sums}
    assert len(seen) >= 3


def test_workers_leave_the_global_generator_alone(
    streamed: ImageDataset, opened: list[Any]
) -> None:
    before = torch.get_rng_state()
    opened.append(stream(streamed, workers=1))
    opened[0].batch(0)
    assert torch.equal(before, torch.get_rng_state())


def test_channels_last_changes_the_layout_only(colour: ImageDataset) -> None:
    last = stream(colour, channels_last=True).batch(0).images
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, stream(colour).batch(0).images)


def test_a_policy_for_grey_images_is_refused_before_training() -> None:
    digits = load_dataset(DataConfig())
    with pytest.raises(DataError, match="RGB"):
        stream(digits, augment=AugmentConfig(policy="randaugment"))


def test_a_stream_of_no_images_is_refused(colour: ImageDataset) -> None:
    with pytest.raises(DataError, match="0 images"):
        TrainStream(colour, colour.pool[:0], batch_size=4, seed=0)


def test_a_negative_batch_number_is_refused(colour: ImageDataset) -> None:
    with pytest.raises(DataError, match="batch -1"):
        stream(colour).batch(-1)


@pytest.mark.parametrize("box", [None, (0.2, 1.0)])
def test_streamed_batches_are_the_same_with_any_number_of_workers(
    streamed: ImageDataset, opened: list[Any], box: tuple[float, float] | None
) -> None:
    augment = AugmentConfig(random_resized_crop=box, flip=True)
    for workers in (0, 1, 2):
        opened.append(stream(streamed, augment=augment, workers=workers, batch_size=7))
    for number in (0, 1, 2, 11, 12, 0):  # forward, a jump ahead, and back to the start
        batches = [one.batch(number) for one in opened]
        assert equal(batches[0], batches[1])
        assert equal(batches[0], batches[2])


def test_a_streamed_set_gives_the_batches_of_the_same_set_in_memory(
    streamed: ImageDataset, resident: ImageDataset, opened: list[Any]
) -> None:
    opened.append(stream(streamed, augment=EVERYTHING))
    assert equal(opened[0].batch(1), stream(resident, augment=EVERYTHING).batch(1))


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_a_process_gets_its_part_of_a_streamed_batch_as_if_it_had_decoded_all(
    streamed: ImageDataset, opened: list[Any], mixup: float
) -> None:
    augment = AugmentConfig(random_resized_crop=(0.2, 1.0), flip=True, mixup=mixup)
    opened += [stream(streamed, augment=augment, share=share) for share in ((0, 1), (1, 2))]
    whole, part = (one.batch(1) for one in opened)
    assert torch.equal(part.images[8:], whole.images[8:])
    assert torch.equal(part.labels, whole.labels)
    # what is another process's is not decoded, unless its images are mixed into ours
    assert torch.equal(part.images[:8], whole.images[:8]) is bool(mixup)


def test_a_crop_of_a_streamed_image_is_cut_from_the_original(
    streamed: ImageDataset, resident: ImageDataset, opened: list[Any]
) -> None:
    augment = AugmentConfig(random_resized_crop=(0.5, 0.6))
    opened.append(stream(streamed, augment=augment, workers=0))
    ours, theirs = opened[0].batch(0).images, stream(resident, augment=augment).batch(0).images
    assert ours.shape == theirs.shape
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_streamed_image_is_named(
    image_folder: Path, opened: list[Any], workers: int
) -> None:
    settings = {"name": "folder", "path": str(image_folder), "image_size": 512}
    dataset = load_dataset(DataConfig(**settings, memory_limit_mb=1))
    opened.append(stream(dataset, workers=workers))
    (image_folder / "cat" / "1.png").write_bytes(b"gone")
    (image_folder / "dog" / "1.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"^(cat|dog)/1\.png cannot be read"):
        opened[0].batch(0)


def test_evaluation_batches_keep_the_order_and_vary_nothing(colour: ImageDataset) -> None:
    chosen = np.array([7, 3, 50, 1, 2])
    batches = EvalBatches(colour, chosen, batch_size=2)
    assert torch.cat([batch.ids for batch in batches]).tolist() == chosen.tolist()
    images = torch.cat([batch.images for batch in batches])
    expected = colour.preprocessing.apply(
        colour.images[chosen].permute(0, 2, 3, 1).contiguous().numpy()
    )
    np.testing.assert_allclose(images.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("keep_mb", [0, 100])
def test_two_passes_of_evaluation_are_bit_identical(colour: ImageDataset, keep_mb: int) -> None:
    batches = EvalBatches(colour, colour.pool, batch_size=20, keep_mb=keep_mb)
    assert all(equal(a, b) for a, b in zip(list(batches), list(batches), strict=True))


def test_small_splits_are_prepared_once(colour: ImageDataset) -> None:
    kept = EvalBatches(colour, colour.pool, batch_size=20)
    assert kept.batch(1) is kept.batch(1)
    large = EvalBatches(colour, colour.pool, batch_size=20, keep_mb=0)
    assert large.batch(1) is not large.batch(1)


def test_equal_hashes_mean_equal_images(colour: ImageDataset) -> None:
    one = EvalBatches(colour, colour.pool[:6], batch_size=2)
    two = EvalBatches(colour, colour.pool[:6], batch_size=5)
    other = EvalBatches(colour, colour.pool[:7], batch_size=5)
    assert one.ids_sha256 == two.ids_sha256 != other.ids_sha256


def test_evaluation_streams_in_a_fixed_order_and_ends(
    streamed: ImageDataset, resident: ImageDataset, opened: list[Any]
) -> None:
    opened.append(EvalBatches(streamed, streamed.test, batch_size=4, workers=2, keep_mb=0))
    for _ in range(2):
        expected = EvalBatches(resident, streamed.test, batch_size=4)
        assert all(equal(a, b) for a, b in zip(opened[0], expected, strict=True))


def test_a_batch_beyond_the_last_one_is_refused(colour: ImageDataset) -> None:
    with pytest.raises(DataError, match="batch 2 of 2"):
        EvalBatches(colour, colour.pool[:4], batch_size=2).batch(2)


def test_evaluating_no_images_is_refused(colour: ImageDataset) -> None:
    with pytest.raises(DataError, match="0 images"):
        EvalBatches(colour, colour.pool[:0])
