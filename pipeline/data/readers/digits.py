"""scikit-learn's digits: 1,797 grey 8×8 images of 10 classes, part of the package itself."""

from __future__ import annotations

import numpy as np

from pipeline.data.raw import ArrayImages, RawSet, hash_arrays


def read_digits() -> RawSet:
    """Read the set; values 0 ... 16 become 0 ... 255 (rounded).

    The set has no test split of its own: a seeded one is cut by the loader.

    >>> len(read_digits().images)
    1797
    """
    from sklearn.datasets import load_digits  # late: costs half a second

    bunch = load_digits()
    array = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[..., None]
    labels = np.asarray(bunch.target).astype(np.int64)
    return RawSet(
        name="digits",
        images=ArrayImages(array),
        labels=labels,
        class_names=tuple(str(k) for k in range(10)),
        content_sha256=hash_arrays(array, labels),
    )
