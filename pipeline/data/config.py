"""Settings of the data set and of the augmentation, without torch.

The paths are read as given; a relative path counts from the folder that the caller names (the
run file's folder on the command line).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DataName = Literal["digits", "fashion-mnist", "npz", "folder", "webdataset", "parquet"]
SHARDED = ("webdataset", "parquet")
PARQUET_WINDOW = 8
"""Row groups that are mixed at a time where the run file does not say: each is read as a whole."""
ResizeMode = Literal["crop", "squash"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Strict(BaseModel):
    """Unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AugmentConfig(_Strict):
    """How training images are varied; the defaults vary nothing.

    Applied in this order: random_resized_crop or crop, flip, policy, color_jitter, normalisation,
    erasing, then mixup or cutmix (one of the two per batch, a fair coin where both are on).
    """

    crop_padding: int = Field(default=0, ge=0, le=64)
    """Pixels of zero padding on each side before a random crop back to the image size."""
    flip: bool = False
    """Mirror left and right with probability 1/2. Wrong for digits and text, hence off."""
    random_resized_crop: tuple[float, float] | None = None
    """Range of the area kept, as in (0.08, 1.0); aspect ratios between 3/4 and 4/3."""
    color_jitter: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Strength of brightness, contrast and saturation changes (the SPOS paper: 0.4)."""
    policy: Literal["none", "autoaugment", "randaugment"] = "none"
    policy_operations: int = Field(default=2, ge=1, le=10)
    """Operations per image; RandAugment only."""
    policy_magnitude: int = Field(default=9, ge=1, le=29)
    """Strength in 1 ... 29; RandAugment only."""
    policy_groups: int = Field(default=8, ge=1)
    """A batch is split into this many groups, and each group draws its own operations."""
    erasing: Fraction = 0.0
    """Probability that a random rectangle becomes the mean colour."""
    mixup: float = Field(default=0.0, ge=0.0)
    """Parameter of the Beta distribution of mixup; 0 is off."""
    cutmix: float = Field(default=0.0, ge=0.0)
    """Parameter of the Beta distribution of cutmix; 0 is off."""
    mix_probability: Fraction = 1.0
    """Share of the batches that are mixed where mixup or cutmix is on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        box = self.random_resized_crop
        if box is not None and not 0 < box[0] <= box[1] <= 1:
            raise ValueError(
                f"random_resized_crop = {list(box)}: two areas with 0 < low <= high <= 1 are "
                "allowed, for example [0.08, 1.0]"
            )
        if box is not None and self.crop_padding:
            raise ValueError(
                "crop_padding and random_resized_crop exclude each other: keep one of the two"
            )
        return self


class DataConfig(_Strict):
    """Which images, and how they reach the network.

    >>> DataConfig(name="npz", path="mine.npz").heldout
    0.2
    """

    name: DataName = "digits"
    path: str | None = None
    """The .npz file, the image folder, the folder of the Fashion-MNIST files, or the shards: one,
    ``train-{000000..000009}.tar``, ``train-*.parquet``, or their folder."""
    test_path: str | None = None
    """Shards of the test images, like ``path``; else a folder's test* or val*, or a seeded cut."""
    shuffle_shards: int | None = Field(default=None, ge=0)
    """Shards (parquet: row groups) whose training images are mixed at a time; 0: all of them.
    By default 0 for webdataset and 8 for parquet, where a row group is read as a whole."""
    image_size: int | None = Field(default=None, ge=4, le=2048)
    """Height and width in pixels; images keep their size if it is not given."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB); as the images are if it is not given."""
    resize: ResizeMode = "crop"
    """``crop``: shorter side, then the centre; ``squash``: both sides, the shape changes."""
    resize_margin: float = Field(default=1.0, ge=1.0, le=2.0)
    """``crop`` only: the shorter side becomes image_size times this (ImageNet: 256/224)."""
    normalise: Literal["pool", "raw"] = "pool"
    """``pool``: mean 0 and deviation 1 per channel; ``raw``: values 0 ... 255 (SPOS paper)."""
    heldout: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of the non-test images kept from training, from which the named splits are cut."""
    heldout_max: int = Field(default=50_000, ge=1)
    """Upper bound of the held-out pool, in images (up to rounding per class)."""
    test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of test images where the data set names none."""
    memory_limit_mb: int = Field(default=1024, ge=1)
    """Sets up to this size (uint8, after resizing) live on the device; larger ones stream."""
    workers: int = Field(default=2, ge=0, le=256)
    """Processes that decode images of a streamed set; 0 decodes in the main process."""
    verify: bool = False
    """Hash the content of an image folder instead of its listing of path, size and mtime."""
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name in ("npz", "folder", *SHARDED) and not self.path:
            raise ValueError(f'name = "{self.name}" needs a path, for example path = "mine.npz"')
        for key in ("test_path", "shuffle_shards"):
            if getattr(self, key) is not None and self.name not in SHARDED:
                raise ValueError(f'{key} belongs to name = "webdataset" and name = "parquet"')
        if self.name == "digits" and self.path:
            raise ValueError(
                'name = "digits" comes with scikit-learn and takes no path; '
                'own images are name = "npz" or name = "folder"'
            )
        return self

    @property
    def window(self) -> int:
        """Groups of images that are mixed at a time; 0: all of them."""
        if self.shuffle_shards is not None:
            return self.shuffle_shards
        return PARQUET_WINDOW if self.name == "parquet" else 0
