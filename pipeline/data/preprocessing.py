"""What turns an image into the network's input: the contract that travels with an exported model.

    x = (pixel / 255 - mean) / std      per channel, pixel in 0 ... 255, layout NCHW

Images that do not have the input size are resized with Pillow (bilinear, antialiased): ``crop``
scales the shorter side to ``round(size * margin)`` and takes the centre, ``squash`` scales both
sides. Torch-free, so that a checking script can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from latency_tables.errors import DataError
from pipeline.data.raw import Pixels, as_mode

FloatBox = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """From picture to input tensor, as written to the manifest.

    >>> p = Preprocessing(height=1, width=2, color_order="GREY", mean=(0.5,), std=(0.25,))
    >>> p.apply(np.array([[[[0], [255]]]], np.uint8)).tolist()
    [[[[-2.0, 2.0]]]]
    >>> Preprocessing.from_dict(p.to_dict()) == p
    True
    """

    height: int
    width: int
    color_order: Literal["RGB", "GREY"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    layout: Literal["NCHW"] = "NCHW"
    resize: Literal["crop", "squash"] = "crop"
    resize_margin: float = 1.0
    resize_filter: Literal["bilinear-antialias"] = "bilinear-antialias"

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return 3 if self.color_order == "RGB" else 1

    def picture(self, image: Image.Image, box: FloatBox | None = None) -> Pixels:
        """Resize one picture (L or RGB) to uint8 (C, H, W); ``box`` replaces the centre crop.

        ``box`` is (left, upper, right, lower) in pixels of the picture.
        """
        image = as_mode(image, "RGB" if self.channels == 3 else "L")
        if box is None:
            box = self._box(image.width, image.height)
        whole = (0.0, 0.0, float(image.width), float(image.height))
        if image.size != (self.width, self.height) or box != whole:
            image = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _box(self, width: int, height: int) -> FloatBox:
        """Part of the picture that becomes the input: one resize does scaling and centre crop."""
        if self.resize == "squash" or (width, height) == (self.width, self.height):
            return 0.0, 0.0, float(width), float(height)
        scale = max(self.width / width, self.height / height) * self.resize_margin
        half_w, half_h = self.width / scale / 2, self.height / scale / 2
        return (
            max(0.0, width / 2 - half_w),
            max(0.0, height / 2 - half_h),
            min(float(width), width / 2 + half_w),
            min(float(height), height / 2 + half_h),
        )

    def apply(self, images: Pixels) -> npt.NDArray[np.float32]:
        """Normalise uint8 (N, H, W, C) of the input size to float32 (N, C, H, W)."""
        expected = (self.height, self.width, self.channels)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise DataError(
                f"images are {images.dtype} {images.shape}; uint8 (N, {expected}) is allowed",
                hint="resize each one with Preprocessing.picture",
            )
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        scaled = images.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(self.scale)
        return np.ascontiguousarray((scaled - mean) / std)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        data = asdict(self)
        return data | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote; unknown or missing keys raise a DataError."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise DataError(
                f"preprocessing has the keys {sorted(data)}; needed are {sorted(names)}",
                hint="export the model again",
            )
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
