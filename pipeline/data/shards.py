"""Sets that lie in shards: which files, in which order images are drawn from them.

A path names shards in one of four ways: one file, ``train-{000000..000009}.tar``, ``train-*.tar``,
or a folder, whose shards that begin with ``test`` or ``val`` hold the test images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latency_tables.errors import DataError
from latency_tables.files import sha256_file, sha256_json
from pipeline.data.checks import existing
from pipeline.data.raw import Indices

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TEST_PREFIXES = ("test", "val")
_MOST_SHARDS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """The files of a set, test shards last."""

    name: str
    paths: tuple[Path, ...]
    n_train: int
    """Files that hold training images; the others hold test images."""

    def test_mask(self, shard: Indices) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None:
        """Which images are test images, from the number of the shard of each; None: not said."""
        return None if self.n_train == len(self.paths) else shard >= self.n_train

    def content(self, *, verify: bool) -> str:
        """Hash of the listing of name, size and mtime, or of the files themselves."""
        if verify:
            return sha256_json([[path.name, sha256_file(path)] for path in self.paths])
        stats = [(path.name, path.stat()) for path in self.paths]
        return sha256_json([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def find_shards(path: Path, test_path: Path | None, suffix: str) -> Shards:
    """Find the shards of a set, in the order of their names.

    Raises:
        DataError: there are none, one of a range is missing, or one holds both training and test
            images.
    """
    train = expand(path, suffix)
    test: list[Path] = []
    if test_path is not None:
        test = expand(test_path, suffix)
    elif path.is_dir():
        test = [p for p in train if p.name.startswith(_TEST_PREFIXES)]
        kinds = {prefix for p in test for prefix in _TEST_PREFIXES if p.name.startswith(prefix)}
        if len(kinds) > 1:
            raise DataError(
                f"{path.name}/ has shards that begin with test and with val; one kind is allowed",
                hint=f"name the two by data.path and data.test_path, as in 'val-*{suffix}'",
            )
        train = [p for p in train if p not in test]
        if not train:
            raise DataError(
                f"{path.name}/ has test shards only", hint=f"add train-*{suffix} beside them"
            )
    twice = sorted({p.resolve() for p in train} & {p.resolve() for p in test})
    if twice:
        raise DataError(
            f"the shard {twice[0].name} is in data.path and in data.test_path",
            hint="a shard holds training images or test images",
        )
    name = re.sub(r"[-_.*?\d{}]+$", "", path.name.removesuffix(suffix)) or path.parent.name
    return Shards(name=name, paths=(*train, *test), n_train=len(train))


def expand(path: Path, suffix: str) -> list[Path]:
    """The files that a path with ``{000..009}`` or ``*`` in its last part names.

    Raises:
        DataError: there are none, or one of the range is missing.
    """
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix == suffix and p.name[0] != ".")
    elif _RANGE.search(path.name):
        found = [path.parent / name for name in _names(path.name)]
        missing = [p.name for p in found if not p.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(found)} shards {path.name} do not exist; the first "
                f"one is {missing[0]}",
                hint="correct data.path; a relative path counts from the folder of the run file",
            )
    elif "*" in path.name or "?" in path.name:
        found = sorted(p for p in existing(path.parent, "folder").glob(path.name) if p.is_file())
    else:
        found = [existing(path, "shard")]
    wrong = [p.name for p in found if p.suffix != suffix]
    if wrong:
        raise DataError(
            f"{wrong[0]} does not end in {suffix}",
            hint="unpack compressed shards: only plain ones can be read from the middle"
            if suffix == ".tar"
            else f"name the {suffix} files only",
        )
    if not found:
        raise DataError(f"no shards {path.name} ({suffix})", hint="correct data.path")
    return found


def _names(pattern: str) -> list[str]:
    """``a-{08..10}`` to a-08, a-09, a-10; several ranges multiply."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    low, high = match.groups()
    if int(high) < int(low) or int(high) - int(low) >= _MOST_SHARDS:
        raise DataError(
            f"the range {match.group()} has no shards, or more than {_MOST_SHARDS:,}",
            hint="{000000..000009} counts from the lower to the higher number",
        )
    head, tail = pattern[: match.start()], pattern[match.end() :]
    width = len(low) if low[0] == "0" else 0
    return [
        head + f"{n:0{width}d}" + rest
        for n in range(int(low), int(high) + 1)
        for rest in _names(tail)
    ]


def shuffled(
    indices: Indices, groups: Indices | None, rng: np.random.Generator, *, window: int
) -> Indices:
    """Permute images; with ``window`` > 0 only images of that many groups at a time are mixed.

    ``groups`` are the numbers of the shard (or row group) of each image in ``indices``. The groups
    come in random order, and the images of ``window`` consecutive ones are permuted together, so
    that a reader needs no more than these at a time.

    >>> order = shuffled(np.arange(8), np.arange(8) // 2, np.random.default_rng(0), window=1)
    >>> (order.reshape(4, 2) // 2 == order[::2, None] // 2).all(), sorted(order) == list(range(8))
    (np.True_, True)
    """
    if groups is None or window < 1:
        return rng.permutation(indices)
    numbers, rank = np.unique(groups, return_inverse=True)
    turn = rng.permutation(len(numbers))[rank] // window  # which window an image belongs to
    return indices[np.lexsort((rng.permutation(len(indices)), turn))]
