"""Augmentation of whole batches, against what each operation means for one image."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.errors import DataError
from pipeline.data import augment as aug
from pipeline.data.config import AugmentConfig
from pipeline.data.mixing import mix
from pipeline.data.policy import apply_policy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 16, channels: int = 3, size: int = 8) -> torch.Tensor:
    shape = (n, channels, size, size)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator(9))


def test_every_random_crop_is_a_window_of_the_padded_image() -> None:
    images = pixels()
    padded = F.pad(images, (2, 2, 2, 2))
    for image, cropped in zip(padded, aug.random_crop(images, 2, generator()), strict=True):
        windows = [image[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
        assert any(torch.equal(cropped, window) for window in windows)


def test_random_crops_reach_every_offset() -> None:
    images = torch.zeros(500, 1, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1] = 1
    places = {
        tuple(map(int, image[0].nonzero()[0])) for image in aug.random_crop(images, 1, generator())
    }
    assert len(places) == 9


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    images = pixels(400)
    flipped = aug.random_flip(images, generator())
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert 150 < int(mirrored.sum()) < 250


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda t: (min(t), max(t))),
    st.integers(0, 99),
)
def test_random_boxes_lie_inside_the_image(
    height: int, width: int, area: tuple[float, float], seed: int
) -> None:
    boxes = aug.crop_boxes(aug.crop_numbers(20, generator(seed)), area, height, width)
    left, upper, right, lower = boxes.T
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert (right <= width + 1e-6).all()
    assert (lower <= height + 1e-6).all()
    assert (right > left).all()
    assert (lower > upper).all()


def test_random_boxes_have_the_asked_area_and_ratio() -> None:
    numbers = aug.crop_numbers(500, generator())
    left, upper, right, lower = aug.crop_boxes(numbers, (0.08, 0.5), 100, 100).T
    share = (right - left) * (lower - upper) / 10_000
    ratio = (right - left) / (lower - upper)
    assert 0.08 <= share.min() < 0.12
    assert 0.45 < share.max() <= 0.5 + 1e-9
    assert 0.75 - 1e-9 <= ratio.min() < ratio.max() <= 4 / 3 + 1e-9


def test_a_crop_of_the_whole_image_changes_nothing() -> None:
    images = pixels()
    boxes = np.tile([0.0, 0.0, 8.0, 8.0], (len(images), 1))
    assert torch.equal(aug.resized_crop(images, boxes), images)


def test_a_crop_of_one_quadrant_shows_that_quadrant() -> None:
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 4:, :4] = 200
    inside = aug.resized_crop(images, np.array([[0.0, 4.0, 4.0, 8.0]]))
    assert int(inside[..., 1:, :-1].min()) == 200


def test_color_jitter_stays_in_range_and_changes_every_image_differently() -> None:
    images = torch.full((8, 3, 4, 4), 0.5)
    images[:, 0] = 0.3
    varied = aug.color_jitter(images, 0.4, generator())
    assert 0 <= float(varied.min()) < float(varied.max()) <= 1
    assert len({round(float(image.sum()), 5) for image in varied}) == 8


def test_color_jitter_keeps_grey_images_grey() -> None:
    grey = torch.rand(4, 1, 4, 4, generator=generator()).expand(-1, 3, -1, -1)
    varied = aug.color_jitter(grey, 0.4, generator())
    torch.testing.assert_close(varied[:, 0], varied[:, 2])


def test_a_rectangle_covers_exactly_its_rows_and_columns() -> None:
    mask = aug.rectangles(*(torch.tensor([float(v)]) for v in (1, 2, 3, 4)), 8, 8)
    expected = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    expected[..., 1:4, 2:6] = True
    assert torch.equal(mask, expected)


def test_erasing_blanks_one_rectangle_of_the_asked_share_of_images() -> None:
    images = torch.ones(400, 3, 16, 16)
    blank = aug.erase(images, 0.25, generator()) == 0
    hit = blank.flatten(1).any(1)
    assert 70 < int(hit.sum()) < 130
    for mask in blank[hit]:
        rows, columns = mask[0].any(1).sum(), mask[0].any(0).sum()
        assert int(mask[0].sum()) == int(rows * columns)  # a full rectangle
        assert torch.equal(mask[0], mask[2])


def test_mixup_mixes_images_and_labels_by_the_same_share() -> None:
    labels = torch.arange(8)
    images = F.one_hot(labels, 8).float()[:, :, None, None].expand(-1, -1, 2, 2)
    config = AugmentConfig(mixup=1.0)
    mixed, targets = mix(images, labels, 8, config, np.random.default_rng(1))
    torch.testing.assert_close(mixed[:, :, 0, 0], targets)
    assert bool((targets.max(1).values < 1).any())


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_labels_are_the_area_that_each_image_kept(seed: int) -> None:
    labels = torch.arange(8)
    images = F.one_hot(labels, 8).float()[:, :, None, None].expand(-1, -1, 10, 10)
    config = AugmentConfig(cutmix=1.0)
    mixed, targets = mix(images, labels, 8, config, np.random.default_rng(seed))
    torch.testing.assert_close(mixed.mean((2, 3)), targets)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}


def test_an_unmixed_batch_has_one_hot_targets() -> None:
    config = AugmentConfig(mixup=1.0, mix_probability=0.0)
    images = torch.rand(4, 1, 2, 2)
    same, targets = mix(images, torch.arange(4), 4, config, np.random.default_rng(0))
    assert torch.equal(same, images)
    assert torch.equal(targets, torch.eye(4))


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment"])
def test_a_policy_repeats_with_its_seed_and_leaves_the_global_generators_alone(
    policy: str,
) -> None:
    config = AugmentConfig(policy=policy)
    images = pixels(size=16).float() / 255
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    one = apply_policy(images, config, 5)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    torch.rand(7)  # what others draw must not matter
    assert torch.equal(one, apply_policy(images, config, 5))
    assert not torch.equal(one, apply_policy(images, config, 6))
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert 0 <= float(one.min()) <= float(one.max()) <= 1


def test_groups_of_a_batch_draw_their_own_operations() -> None:
    same = torch.rand(1, 3, 16, 16, generator=generator()).expand(8, -1, -1, -1)
    varied = apply_policy(same, AugmentConfig(policy="randaugment", policy_groups=8), 1)
    assert len({round(float(image.sum()), 3) for image in varied}) >= 6


def test_a_policy_refuses_grey_images() -> None:
    with pytest.raises(DataError, match="RGB"):
        apply_policy(torch.rand(2, 1, 8, 8), AugmentConfig(policy="autoaugment"), 0)
