"""Own images in one ``.npz`` file, as pixels or as JPEG/PNG bytes. Pickles are never read.

Pixels: ``images`` uint8 (N, H, W, C) or (N, H, W), ``labels`` integers (N,).
Encoded: ``blob`` uint8, all files one after the other; ``end`` integers (N,), where each of them
ends; ``y`` (or ``labels``) integers (N,).
Both: optional ``test`` bool (N,), optional ``classes`` text (K,).
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latency_tables.errors import DataError
from pipeline.data.checks import checked_classes, checked_labels, checked_mask, existing
from pipeline.data.raw import (
    ArrayImages,
    EncodedImages,
    Indices,
    Pixels,
    RawImages,
    RawSet,
    hash_arrays,
)

Arrays = dict[str, npt.NDArray[np.generic]]
_KNOWN = frozenset({"images", "blob", "end", "labels", "y", "test", "classes"})


def read_npz(path: Path) -> RawSet:
    """Read and check one ``.npz`` file.

    Raises:
        DataError: the file is missing, damaged, or an array has a wrong name, type or shape.
    """
    arrays = _load(existing(path, "data file"))
    where = path.name
    images: RawImages
    if "images" in arrays:
        pixels = _pixels(arrays["images"], where)
        images = ArrayImages(pixels)
        content: tuple[npt.NDArray[np.generic], ...] = (pixels,)
    elif "blob" in arrays and "end" in arrays:
        blob, end = _blob(arrays["blob"], arrays["end"], where)
        images, content = EncodedImages(blob, end, where), (blob, end)
    else:
        raise DataError(
            f"{where} holds {', '.join(sorted(arrays)) or 'nothing'}; needed are 'images' and "
            "'labels', or 'blob', 'end' and 'y'",
            hint="np.savez(path, images=images, labels=labels)",
        )
    key = "labels" if "labels" in arrays else "y"
    if key not in arrays:
        raise DataError(
            f"{where} has no 'labels'; it holds {', '.join(sorted(arrays))}",
            hint="np.savez(path, images=images, labels=labels)",
        )
    labels = checked_labels(arrays[key], len(images), where)
    test = checked_mask(arrays["test"], len(images), where) if "test" in arrays else None
    names = _class_names(arrays, labels, where)
    checked_classes(labels, names, where)
    return RawSet(
        name=path.stem,
        images=images,
        labels=labels,
        class_names=names,
        test=test,
        content_sha256=hash_arrays(*content, labels, test),
    )


def _load(path: Path) -> Arrays:
    if not zipfile.is_zipfile(path) and not path.read_bytes()[:6].startswith(b"\x93NUMPY"):
        raise DataError(
            f"{path.name} cannot be read as .npz: it is no zip archive, or was cut off",
            hint="np.savez(path, images=images, labels=labels)",
        )
    try:
        # opened here because np.load leaves a file that it cannot read open
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.lib.npyio.NpzFile):
                return {name: file[name] for name in file.files if name in _KNOWN}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path.name} cannot be read as .npz: {error}",
            hint="copy the file again; arrays of Python objects (pickles) are never read",
        ) from error
    raise DataError(
        f"{path.name} is a single array (.npy); an .npz with 'images' and 'labels' is needed",
        hint="np.savez(path, images=images, labels=labels)",
    )


def _pixels(images: npt.NDArray[np.generic], where: str) -> Pixels:
    """(N, H, W) or (N, H, W, C) uint8 -> (N, H, W, C)."""
    if images.dtype != np.uint8:
        as_floats = images.dtype.kind == "f"
        raise DataError(
            f"{where}: images have type {images.dtype}; only uint8 (0 ... 255) is allowed",
            hint="(images * 255).round().astype('uint8') if they lie in 0 ... 1"
            if as_floats
            else "images.astype('uint8') if they lie in 0 ... 255",
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise DataError(
            f"{where}: images have shape {images.shape}, channels first; (N, H, W, C) is allowed",
            hint="images.transpose(0, 2, 3, 1)",
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{where}: images have shape {images.shape}; (N, H, W), (N, H, W, 1) and "
            "(N, H, W, 3) are allowed",
            hint="drop an alpha channel with images[..., :3]",
        )
    if images.size and int(np.max(images[: 1 << 14])) <= 1 and int(np.max(images)) <= 1:
        raise DataError(
            f"{where}: every pixel is 0 or 1; uint8 images use 0 ... 255",
            hint="scale before the cast: (images * 255).round().astype('uint8')",
        )
    pixels = images.astype(np.uint8, copy=False)
    return pixels[..., None] if pixels.ndim == 3 else pixels


def _blob(
    blob: npt.NDArray[np.generic], end: npt.NDArray[np.generic], where: str
) -> tuple[Pixels, Indices]:
    if blob.dtype != np.uint8 or blob.ndim != 1 or end.ndim != 1 or end.dtype.kind not in "iu":
        raise DataError(
            f"{where}: blob is {blob.dtype} {blob.shape}, end is {end.dtype} {end.shape}; "
            "uint8 (bytes,) and integers (N,) are allowed",
            hint="end = np.cumsum([len(file) for file in files])",
        )
    offsets = end.astype(np.int64)
    if len(offsets) and (
        offsets[0] <= 0 or np.any(np.diff(offsets) <= 0) or offsets[-1] != len(blob)
    ):
        raise DataError(
            f"{where}: the offsets in 'end' must rise and finish at {len(blob)}, the size of "
            f"'blob'; the last one is {int(offsets[-1])}",
            hint="end = np.cumsum([len(file) for file in files])",
        )
    return blob.astype(np.uint8, copy=False), offsets


def _class_names(arrays: Arrays, labels: Indices, where: str) -> tuple[str, ...]:
    if "classes" not in arrays:
        return tuple(str(k) for k in range(int(labels.max()) + 1))
    classes = arrays["classes"]
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise DataError(
            f"{where}: classes have type {classes.dtype} and shape {classes.shape}; "
            "text of shape (K,) is allowed",
            hint="np.array(['cat', 'dog'])",
        )
    return tuple(str(name) for name in classes)
