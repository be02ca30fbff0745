"""Image folders: one sub-folder per class, optionally below ``train/`` and ``test/`` or ``val/``.

mine/cat/1.jpg  mine/dog/7.png            a seeded test split is cut
mine/train/cat/1.jpg  mine/val/dog/7.png  the images of test/ or val/ are the test images
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from latency_tables.errors import DataError
from latency_tables.files import sha256_file, sha256_json
from pipeline.data.checks import checked_classes, existing
from pipeline.data.raw import FileImages, RawSet

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_TRAIN_NAMES = ("train", "training")
_TEST_NAMES = ("test", "val", "valid", "validation")


def read_folder(path: Path, *, verify: bool = False) -> RawSet:
    """List an image folder; the images are decoded later.

    ``verify`` hashes every file instead of the listing of path, size and mtime.

    Raises:
        DataError: no such folder, no images, or a class with too few of them.
    """
    root = existing(path, "image folder")
    if not root.is_dir():
        raise DataError(
            f"{root} is a file, not a folder of images",
            hint='name = "npz" if it is an .npz file',
        )
    train_root, test_root = _levels(root)
    names = _class_folders(train_root)
    paths, labels = _list_images(train_root, names, root)
    n_train = len(paths)
    if test_root is not None:
        extra = sorted(set(_class_folders(test_root)) - set(names))
        if extra:
            raise DataError(
                f"{test_root.name}/ has the class {extra[0]!r}, which {train_root.name}/ lacks",
                hint="give both levels the same class folders",
            )
        test_paths, test_labels = _list_images(test_root, names, root)
        if not test_paths:
            raise DataError(f"{test_root.name}/ holds no images", hint=f"remove {test_root.name}/")
        paths, labels = paths + test_paths, labels + test_labels
    if not paths:
        raise DataError(
            f"no images below {root.name}/; files ending in {', '.join(sorted(SUFFIXES))} count",
            hint="put them into one sub-folder per class",
        )
    numbers = np.asarray(labels, np.int64)
    checked_classes(numbers, tuple(names), f"{root.name}/")
    return RawSet(
        name=root.resolve().name,
        images=FileImages(root, tuple(paths)),
        labels=numbers,
        class_names=tuple(names),
        test=None if test_root is None else np.arange(len(paths)) >= n_train,
        content_sha256=_hash(root, paths, verify=verify),
        content_kind="content" if verify else "listing",
    )


def _levels(root: Path) -> tuple[Path, Path | None]:
    """The folders that hold the class folders of training and, if given, of test images."""
    folders = {entry.name: entry for entry in root.iterdir() if entry.is_dir()}
    train = next((folders[name] for name in _TRAIN_NAMES if name in folders), None)
    tests = [folders[name] for name in _TEST_NAMES if name in folders]
    # classes may be called "test": a level is one only where train/ and nothing else is beside it
    if train is None or len(tests) + 1 != len([n for n in folders if not n.startswith(".")]):
        return root, None
    if len(tests) > 1:
        # published sets with both keep their labels in val/ and hide those of test/, or have two
        raise DataError(
            f"{root.name}/ has both {tests[0].name}/ and {tests[1].name}/; one of them is allowed",
            hint="move the one that is not the test set away",
        )
    return train, (tests[0] if tests else None)


def _class_folders(folder: Path) -> list[str]:
    names = sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(
            f"{folder.name}/ has no sub-folders; one per class is needed",
            hint=f"{folder.name}/cat/1.jpg, {folder.name}/dog/1.jpg, ...",
        )
    return names


def _list_images(folder: Path, names: list[str], root: Path) -> tuple[list[str], list[int]]:
    """Relative paths and labels, sorted, so that the numbering is the same on every machine."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = [
            os.path.relpath(os.path.join(parent, file), root)
            for parent, _, files in os.walk(folder / name)
            for file in files
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")
        ]
        paths += sorted(found)
        labels += [label] * len(found)
    return paths, labels


def _hash(root: Path, paths: list[str], *, verify: bool) -> str:
    if verify:
        return sha256_json([[path, sha256_file(root / path)] for path in paths])
    listing = [(path, (root / path).stat()) for path in paths]
    return sha256_json([[path, stat.st_size, stat.st_mtime_ns] for path, stat in listing])
