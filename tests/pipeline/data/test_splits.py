"""Named splits: disjoint, balanced, repeatable."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.errors import SplitError
from pipeline.data.splits import Splits


def make(n: int = 400, n_classes: int = 10, **settings: object) -> Splits:
    numbers = np.arange(n)
    return Splits(
        labels=numbers % n_classes,
        pool=numbers[: n * 3 // 4],
        test=numbers[n * 3 // 4 :],
        **settings,  # type: ignore[arg-type]
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=60, max_size=200),
    st.integers(0, 2**32),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
)
def test_splits_of_any_labels_never_share_an_image(
    labels: list[int], seed: int, sizes: list[int]
) -> None:
    numbers = np.arange(len(labels))
    splits = Splits(
        labels=np.array(labels), pool=numbers[10:], test=numbers[:10], heldout=0.5, seed=seed
    )
    parts = [splits.train, splits.test()]
    parts += [splits.cut(f"s{i}", size) for i, size in enumerate(sizes) if size <= splits.remaining]
    everything = np.concatenate(parts)
    assert len(np.unique(everything)) == len(everything)


@pytest.mark.parametrize("size", [1, 9, 10, 25, 37, 60])
def test_class_counts_of_a_cut_differ_by_at_most_one(size: int) -> None:
    images = make().cut("scoring", size)
    counts = np.bincount(images % 10, minlength=10)
    assert len(images) == size
    assert counts.max() - counts.min() <= 1


def test_every_prefix_of_a_cut_is_balanced_too() -> None:
    images = make().cut("scoring", 30)
    for end in range(1, 31):
        counts = np.bincount(images[:end] % 10, minlength=10)
        assert counts.max() - counts.min() <= 1


def test_a_rare_class_gives_all_it_has_and_the_others_share_the_rest() -> None:
    labels = np.array([0] * 100 + [1] * 100 + [2] * 10)
    splits = Splits(labels=labels, pool=np.arange(209), test=np.array([209]), heldout=0.2)
    counts = np.bincount(labels[splits.cut("scoring", 32)])
    assert counts.tolist() == [15, 15, 2]


def test_the_same_seed_gives_the_same_cuts_and_another_seed_does_not() -> None:
    assert np.array_equal(make(seed=3).cut("a", 20), make(seed=3).cut("a", 20))
    assert not np.array_equal(make(seed=3).cut("a", 20), make(seed=4).cut("a", 20))


def test_planned_cuts_do_not_depend_on_their_order() -> None:
    one = make(plan={"scoring": 20, "calibration": 10})
    two = make(plan={"calibration": 10, "scoring": 20})
    assert np.array_equal(two.cut("scoring", 20), one.cut("scoring", 20))
    assert np.array_equal(one.indices("calibration"), two.indices("calibration"))


def test_asking_again_gives_the_same_images_and_takes_nothing() -> None:
    splits = make()
    first, left = splits.cut("calibration", 20), splits.remaining
    assert np.array_equal(splits.cut("calibration", 20), first)
    assert splits.remaining == left


def test_changing_a_returned_array_does_not_change_the_split() -> None:
    splits = make()
    splits.train[:] = 0
    splits.cut("a", 5)[:] = 0
    splits.assert_disjoint()
    assert len(set(splits.indices("a"))) == 5


def test_the_held_out_pool_is_the_asked_share_of_every_class() -> None:
    splits = make(heldout=0.2)
    assert splits.remaining == 60
    assert np.bincount(splits.train % 10).tolist() == [24] * 10


def test_the_held_out_pool_is_capped() -> None:
    assert make(heldout=0.5, heldout_max=30).remaining == 30


def test_an_exhausted_pool_says_what_was_taken_and_what_is_left() -> None:
    splits = make(plan={"calibration": 50})
    with pytest.raises(SplitError, match=r"wants 11 images; 10 of 60 .*calibration 50"):
        splits.cut("scoring", 11)


def test_a_split_keeps_its_size() -> None:
    splits = make(plan={"calibration": 50})
    with pytest.raises(SplitError, match="50 images and is now asked for with 40"):
        splits.cut("calibration", 40)


@pytest.mark.parametrize("name", ["train", "test"])
def test_fixed_splits_cannot_be_cut(name: str) -> None:
    with pytest.raises(SplitError, match="fixed"):
        make().cut(name, 1)


def test_test_images_are_not_reached_by_name() -> None:
    with pytest.raises(SplitError, match="there is no split 'test'"):
        make().indices("test")


def test_overlapping_pools_are_refused_at_the_start() -> None:
    numbers = np.arange(40)
    with pytest.raises(SplitError, match="'train' and 'test'"):
        Splits(labels=numbers % 2, pool=numbers, test=numbers[:5])


def test_an_empty_test_set_is_refused_at_the_start() -> None:
    numbers = np.arange(40)
    with pytest.raises(SplitError, match="'test' is empty"):
        Splits(labels=numbers % 2, pool=numbers, test=numbers[:0])


def test_the_description_shows_sizes_and_class_counts() -> None:
    described = make(plan={"calibration": 25}).describe()
    assert described["splits"]["calibration"] == {"images": 25, "per_class": [2, 3]}
    assert described["remaining"] == 35


@pytest.mark.parametrize(
    "module", ["config", "splits", "raw", "checks", "preprocessing", "readers.npz"]
)
def test_settings_splits_and_readers_do_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import pipeline.data.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
