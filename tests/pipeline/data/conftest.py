"""Small synthetic sets, written to the test's own folder."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)

WriteNpz = Callable[..., Path]


def colourful(
    n: int, height: int, width: int, channels: int, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Random pixels (n, height, width, channels)."""
    shape = (n, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: npt.NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """One picture as bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def write_npz(tmp_path: Path) -> WriteNpz:
    """Write an .npz of 60 colour 8x8 images of 3 classes; keywords replace arrays, None drops."""

    def write(**changes: object) -> Path:
        arrays: dict[str, object] = {
            "images": colourful(60, 8, 8, 3),
            "labels": np.arange(60) % 3,
        }
        arrays.update(changes)
        path = tmp_path / "mine.npz"
        np.savez(path, **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
        return path

    return write


@pytest.fixture
def blob_npz(tmp_path: Path) -> Path:
    """60 images of 12x10 pixels as PNG bytes in one blob."""
    files = [encoded(pixels) for pixels in colourful(60, 12, 10, 3)]
    path = tmp_path / "blob.npz"
    np.savez(
        path,
        blob=np.frombuffer(b"".join(files), np.uint8),
        end=np.cumsum([len(file) for file in files]),
        y=(np.arange(60) % 3).astype(np.uint8),
        test=np.arange(60) >= 45,
        classes=np.array(["ant", "bee", "cow"]),
    )
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes with eight colour pictures of varying sizes each."""
    root = tmp_path / "pets"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(8):
            pixels = colourful(1, 20 + i, 30 - i, 3, seed=10 * label + i)[0]
            (root / name / f"{i}.png").write_bytes(encoded(pixels))
    return root


@pytest.fixture(scope="session")
def shared_images() -> Path:
    """Folder of the real image sets; the test is skipped where it is absent."""
    given = os.environ.get("HILNAS_SHARED_DATA")
    root = Path(given) if given else Path(__file__).parents[4] / "shared" / "data"
    folder = root / "images"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} does not exist (set HILNAS_SHARED_DATA)")
    return folder
