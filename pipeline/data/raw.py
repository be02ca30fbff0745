"""What a reader gives back: images that may still be encoded, labels, and an optional test mask.

Images are an array of pixels, JPEG/PNG bytes in one blob, files, or samples inside shards (those
stand beside their readers). All of them can show image *i* as an upright Pillow picture of mode L
or RGB, which is everything the later steps need. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from latency_tables.errors import DataError

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# sixteen-bit and float pictures are cut off at 255 by Pillow's conversion, silently
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_GREY_MODES = frozenset({"1", "L", "LA", "La"})


class RawImages(Protocol):
    """Images by number."""

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Image.Image:
        """Decode image ``index``, upright, mode L or RGB; a DataError names a damaged one."""
        ...

    def shape(self, index: int) -> tuple[int, int, int]:
        """(channels, height, width) of the upright image, from its header where possible."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawSet:
    """One data set as its reader found it."""

    name: str
    images: RawImages
    labels: Indices
    class_names: tuple[str, ...]
    test: Mask | None = None
    content_sha256: str = ""
    content_kind: Literal["content", "listing"] = "content"
    groups: Indices | None = None
    """Shard or row group of each image: those of one group are read together."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayImages:
    """Pixels in memory, (N, H, W, C)."""

    array: Pixels

    def __len__(self) -> int:
        return len(self.array)

    def picture(self, index: int) -> Image.Image:
        pixels = self.array[index]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def shape(self, index: int) -> tuple[int, int, int]:
        _, height, width, channels = self.array.shape
        return channels, height, width


class OpenedImages(ABC):
    """Images that Pillow opens one by one; a damaged one is refused by its name."""

    __slots__ = ()

    @abstractmethod
    def name(self, index: int) -> str:
        """How messages name image ``index``."""

    @abstractmethod
    def _open(self, index: int) -> Image.Image:
        """Image ``index`` as Pillow has it before the pixels are decoded."""

    def picture(self, index: int) -> Image.Image:
        """Decode image ``index``, upright, mode L or RGB; a DataError names a damaged one."""
        with naming(self.name(index)), self._open(index) as image:
            return upright(image)

    def shape(self, index: int) -> tuple[int, int, int]:
        """(channels, height, width) from the header."""
        with naming(self.name(index)), self._open(index) as image:
            return header_shape(image)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages(OpenedImages):
    """JPEG or PNG bytes in one blob; image i is ``blob[end[i - 1]:end[i]]``."""

    blob: Pixels
    end: Indices
    origin: str

    def __len__(self) -> int:
        return len(self.end)

    def name(self, index: int) -> str:
        return f"image {index} of {self.origin}"

    def _open(self, index: int) -> Image.Image:
        start = int(self.end[index - 1]) if index else 0
        return Image.open(io.BytesIO(self.blob[start : int(self.end[index])].tobytes()))


@dataclass(frozen=True, slots=True, eq=False)
class FileImages(OpenedImages):
    """Image files below one folder; only the relative paths appear in messages."""

    root: Path
    paths: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def _open(self, index: int) -> Image.Image:
        return Image.open(self.root / self.paths[index])


def upright(image: Image.Image) -> Image.Image:
    """Decode, turn as EXIF says, and convert to L or RGB (transparency is dropped)."""
    if image.mode in _DEEP_MODES:
        raise ValueError(f"pixels of mode {image.mode!r}; only 8 bits per channel are allowed")
    image.load()
    # looking for EXIF data costs as much as decoding a small JPEG that has none
    if image.format != "JPEG" or not image.info.keys().isdisjoint(("exif", "xmp")):
        image = ImageOps.exif_transpose(image)
    return as_mode(image, "L" if image.mode in _GREY_MODES else "RGB")


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert only where needed: ``Image.convert`` copies even if it has nothing to do."""
    return image if image.mode == mode else image.convert(mode)


def header_shape(image: Image.Image) -> tuple[int, int, int]:
    """(channels, height, width) after turning, without decoding the pixels."""
    if image.mode in _DEEP_MODES:
        raise ValueError(f"pixels of mode {image.mode!r}; only 8 bits per channel are allowed")
    width, height = image.size
    if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # orientations that swap the sides
        width, height = height, width
    return (1 if image.mode in _GREY_MODES else 3), height, width


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn whatever Pillow raises into a DataError that names the image."""
    try:
        yield
    # Pillow raises SyntaxError and struct.error (not OSError) on some damaged PNG and TIFF files
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(
            f"{what} cannot be read: {error}",
            hint="remove or replace that image, then run again",
        ) from error


def hash_arrays(*arrays: npt.NDArray[np.generic] | None) -> str:
    """SHA-256 over type, shape and bytes of arrays; ``None`` counts as absent.

    >>> hash_arrays(np.zeros(2)) == hash_arrays(np.zeros((1, 2)))
    False
    """
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"absent;")
            continue
        whole = np.ascontiguousarray(array)
        digest.update(f"{whole.dtype.str}{whole.shape};".encode())
        digest.update(whole.view(np.uint8).data if whole.size else b"")
    return digest.hexdigest()
