"""Named, disjoint, class-balanced sets of images, so that nothing is scored on what trained it.

The non-test images are divided once into *train* and a held-out pool, class by class in the same
proportion. Named cuts (calibration, search-validation, b-update, scoring, ...) are taken from the
pool when they are asked for, with class counts that differ by at most one as long as the pool has
the images. Test images are reached through :meth:`Splits.test` only, which is for final reports.

Determinism: a cut follows from the seed and from the cuts before it. Cuts whose order of creation
may vary are declared together, with ``plan`` or :meth:`Splits.reserve`: they are made in the order
of their names, whoever asks first later. Asking again for the same name and size gives the same
images.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from latency_tables.errors import SplitError
from pipeline.data.raw import Indices
from pipeline.randomness import numpy_generator

_FIXED = ("train", "test")


def stratified(
    labels: Indices, among: Indices, fraction: float, rng: np.random.Generator
) -> Indices:
    """Draw ``fraction`` of every class (at least one image, at least two left behind).

    >>> labels = np.repeat(np.arange(2), 10)
    >>> drawn = stratified(labels, np.arange(20), 0.2, np.random.default_rng(0))
    >>> np.bincount(labels[drawn]).tolist()
    [2, 2]
    """
    drawn = []
    for label in np.unique(labels[among]):
        members = rng.permutation(among[labels[among] == label])
        size = min(max(1, round(len(members) * fraction)), max(0, len(members) - 2))
        drawn.append(members[:size])
    return np.sort(np.concatenate(drawn)) if drawn else among[:0]


class Splits:
    """Hands out image numbers by purpose.

    Args:
        labels: (N,) class of every image of the set.
        pool: numbers of the images that are not test images.
        test: numbers of the test images.
        heldout: share of ``pool`` that is kept from training.
        heldout_max: upper bound of that share, in images.
        seed: root seed of the run.
        plan: sizes by name of cuts to make at once; see :meth:`reserve`.

    Raises:
        SplitError: the pools overlap, or a plan needs more images than are held out.

    >>> splits = Splits(labels=np.arange(100) % 10, pool=np.arange(80), test=np.arange(80, 100))
    >>> splits.cut("calibration", 10).shape, splits.remaining
    ((10,), 10)
    >>> np.intersect1d(splits.cut("calibration", 10), splits.train).size
    0
    """

    def __init__(
        self,
        *,
        labels: Indices,
        pool: Indices,
        test: Indices,
        heldout: float = 0.2,
        heldout_max: int = 50_000,
        seed: int = 0,
        plan: Mapping[str, int] | None = None,
    ) -> None:
        self._labels, self._seed = labels, seed
        self._n_classes = int(labels.max()) + 1
        share = min(heldout, heldout_max / max(1, len(pool)))
        rng = numpy_generator(seed, "data", "heldout")
        held = stratified(labels, pool, share, rng)
        self._sets: dict[str, Indices] = {
            "train": np.setdiff1d(pool, held),
            "test": np.array(test, np.int64),
        }
        # one queue per class; cuts take from the front
        self._queues = [rng.permutation(held[labels[held] == k]) for k in range(self._n_classes)]
        self._n_heldout = len(held)
        self.assert_disjoint()
        self.reserve(plan or {})

    @property
    def train(self) -> Indices:
        """Numbers of the training images, ascending."""
        return self._sets["train"].copy()

    @property
    def remaining(self) -> int:
        """Held-out images that no cut has taken yet."""
        return sum(len(queue) for queue in self._queues)

    @property
    def sizes(self) -> dict[str, int]:
        """Images by name, in the order in which the cuts were made."""
        return {name: len(indices) for name, indices in self._sets.items()}

    def reserve(self, sizes: Mapping[str, int]) -> None:
        """Make several cuts at once; the result does not depend on the order of ``sizes``."""
        for name in sorted(sizes):
            self.cut(name, sizes[name])

    def cut(self, name: str, size: int) -> Indices:
        """Take ``size`` images from the held-out pool under a name, or return them again.

        The classes take turns in the result, so every prefix of it is balanced as well.

        Raises:
            SplitError: fewer images are left, the name is fixed or was cut with another size.
        """
        if name in _FIXED:
            raise SplitError(
                f"the split {name!r} is fixed and cannot be cut from the held-out pool",
                hint="Splits.train, or Splits.test() in a final report",
            )
        if name in self._sets:
            return self._again(name, size)
        if size < 1 or size > self.remaining:
            taken = ", ".join(f"{n} {s}" for n, s in self.sizes.items() if n not in _FIXED)
            raise SplitError(
                f"the split {name!r} wants {size} images; {self.remaining} of {self._n_heldout} "
                f"held-out images are left (taken: {taken or 'none'})",
                hint="ask for fewer images, or raise data.heldout",
            )
        self._sets[name] = self._take(name, size)
        self.assert_disjoint()
        return self._sets[name].copy()

    def indices(self, name: str) -> Indices:
        """Numbers of the images of a split that exists; test images are not among the names.

        Raises:
            SplitError: no such split.
        """
        if name not in self._sets or name == "test":
            allowed = ", ".join(n for n in self._sets if n != "test")
            raise SplitError(
                f"there is no split {name!r}; there are {allowed}",
                hint=f"Splits.cut({name!r}, size)" if name != "test" else "Splits.test()",
            )
        return self._sets[name].copy()

    def test(self) -> Indices:
        """Numbers of the test images. For final reports only: nothing may be chosen by them."""
        return self._sets["test"].copy()

    def assert_disjoint(self) -> None:
        """Raise a SplitError if an image belongs to two splits or a fixed split is empty."""
        for name in _FIXED:
            if not len(self._sets[name]):
                raise SplitError(
                    f"the split {name!r} is empty", hint="add images, or lower data.heldout"
                )
        owner = np.full(len(self._labels), -1, np.int64)
        names = list(self._sets)
        for number, name in enumerate(names):
            indices = self._sets[name]
            clash = indices[owner[indices] >= 0]
            if len(clash):
                other = names[owner[clash[0]]]
                raise SplitError(
                    f"image {int(clash[0])} is in the splits {other!r} and {name!r} "
                    f"({len(clash)} such images); splits must not share images",
                    hint="check the test mask and the pool",
                )
            owner[indices] = number

    def describe(self) -> dict[str, Any]:
        """Size, class counts (lowest, highest) of every split, and what is left: plain data."""
        described: dict[str, Any] = {}
        for name, indices in self._sets.items():
            counts = np.bincount(self._labels[indices], minlength=self._n_classes)
            described[name] = {
                "images": len(indices),
                "per_class": [int(counts.min()), int(counts.max())],
            }
        return {"splits": described, "heldout": self._n_heldout, "remaining": self.remaining}

    def _again(self, name: str, size: int) -> Indices:
        held = self._sets[name]
        if len(held) != size:
            raise SplitError(
                f"the split {name!r} was cut with {len(held)} images and is now asked for with "
                f"{size}; a split keeps its size",
                hint=f"Splits.indices({name!r}), or another name",
            )
        return held.copy()

    def _take(self, name: str, size: int) -> Indices:
        """Fill the classes evenly; a class that runs out leaves its share to the others."""
        rng = numpy_generator(self._seed, "data", "cut", name)
        left = np.array([len(queue) for queue in self._queues])
        level = 0
        while int(np.minimum(left, level + 1).sum()) <= size and level < int(left.max()):
            level += 1
        counts = np.minimum(left, level)
        order = rng.permutation(self._n_classes)
        spare = [k for k in order if left[k] > level][: size - int(counts.sum())]
        counts[spare] += 1
        turns = []
        for rank, k in enumerate(order):
            images = self._queues[k][: counts[k]]
            self._queues[k] = self._queues[k][counts[k] :]
            turns += [(turn, rank, int(image)) for turn, image in enumerate(images)]
        return np.array([image for _, _, image in sorted(turns)], np.int64)
