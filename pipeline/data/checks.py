"""Refuse bad labels and masks with a message that says what was found and what to try."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latency_tables.errors import DataError
from pipeline.data.raw import Indices, Mask

MIN_TRAINABLE = 3
"""One held-out image and two for training."""
MIN_PER_CLASS = 5
"""With fewer images a class cannot appear in training, held-out and test images."""


def existing(path: Path, what: str) -> Path:
    """Return ``path``, or raise a DataError that names the nearest thing that does exist."""
    if path.exists():
        return path
    parent = path.parent
    if not parent.is_dir():
        raise DataError(
            f"{what} {path} does not exist, nor does its folder {parent}",
            hint="correct data.path; a relative path counts from the folder of the run file",
        )
    names = sorted(entry.name for entry in parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    seen = ", ".join(names[:5]) or "nothing"
    raise DataError(
        f"{what} {path} does not exist; its folder holds {seen}",
        hint=f"path = {str(parent / near[0])!r}" if near else "correct data.path",
    )


def checked_labels(labels: npt.NDArray[np.generic], n_images: int, where: str) -> Indices:
    """Return labels as int64 (N,), or raise a DataError."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: labels have type {labels.dtype} and shape {labels.shape}; "
            "integers of shape (N,) are allowed",
            hint="labels.astype('int64').ravel(); one-hot labels: labels.argmax(1)",
        )
    if len(labels) != n_images:
        raise DataError(
            f"{where}: {n_images} images but {len(labels)} labels; the counts must be equal",
            hint="write images and labels of the same rows",
        )
    if n_images == 0:
        raise DataError(f"{where} holds no images", hint="check how the file was written")
    wide = labels.astype(np.int64)
    if int(wide.min()) < 0:
        at = int(wide.argmin())
        raise DataError(
            f"{where}: label {int(wide[at])} at row {at}; labels count from 0",
            hint="drop unlabelled rows, or shift the labels so that the first class is 0",
        )
    return wide


def checked_mask(test: npt.NDArray[np.generic], n_images: int, where: str) -> Mask:
    """Return a test mask as bool (N,), or raise a DataError."""
    if test.dtype != np.bool_ or test.shape != (n_images,):
        raise DataError(
            f"{where}: the test mask has type {test.dtype} and shape {test.shape}; "
            f"bool of shape ({n_images},) is allowed",
            hint="test.astype(bool), or leave it out and 20 % become test images",
        )
    mask = test.astype(np.bool_)
    if not mask.any() or mask.all():
        raise DataError(
            f"{where}: the test mask marks {int(mask.sum())} of {n_images} images; "
            "some but not all must be test images",
            hint="leave the mask out and 20 % become test images",
        )
    return mask


def checked_classes(labels: Indices, class_names: tuple[str, ...], where: str) -> None:
    """Raise a DataError unless every class has enough images and a name."""
    counts = np.bincount(labels, minlength=len(class_names))
    if len(counts) > len(class_names):
        raise DataError(
            f"{where}: label {len(counts) - 1} but only {len(class_names)} class names",
            hint="give one name per class, counted from 0",
        )
    if len(counts) < 2:
        raise DataError(
            f"{where}: all images belong to one class; two or more are needed",
            hint="check the labels",
        )
    poor = [k for k, count in enumerate(counts) if count < MIN_PER_CLASS]
    if poor:
        found = ", ".join(f"{class_names[k]!r} has {counts[k]}" for k in poor[:5])
        more = f" and {len(poor) - 5} more classes are as small" if len(poor) > 5 else ""
        raise DataError(
            f"{where}: class {found}{more}; every class needs {MIN_PER_CLASS} images or more",
            hint="add images, drop the class, or number the labels from 0 without gaps",
        )


def checked_pool(labels: Indices, pool: Indices, class_names: tuple[str, ...], where: str) -> None:
    """Raise a DataError unless every class has images to train on beside its test images."""
    counts = np.bincount(labels[pool], minlength=len(class_names))
    poor = int(counts.argmin())
    if counts[poor] < MIN_TRAINABLE:
        raise DataError(
            f"{where}: class {class_names[poor]!r} has {int(counts[poor])} images that are not "
            f"test images; {MIN_TRAINABLE} or more are needed",
            hint="move test images of that class to the training images",
        )
