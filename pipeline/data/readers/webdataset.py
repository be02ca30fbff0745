"""WebDataset shards: plain tar files of samples ``KEY.jpg`` + ``KEY.cls`` (or ``KEY.json``).

A sample is a run of files with the same name up to its first dot. The label is the number in
``.cls``, or ``"label"`` of ``.json``. A shard is listed once: offset, size and label of every
image go to a file beside it (``.NAME.index.npz``), which is used as long as the shard's size and
mtime are the same. Images are then read from their offset, in any order. Nothing but the standard
library and Pillow is needed.
"""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from latency_tables.errors import DataError
from latency_tables.files import write_bytes
from pipeline.data.checks import checked_classes
from pipeline.data.raw import Indices, OpenedImages, RawSet
from pipeline.data.readers.folder import SUFFIXES
from pipeline.data.shards import find_shards

INDEX_VERSION = 1
_LABEL_BYTES = 1 << 20
"""A .cls or .json file larger than this is no label."""
_END = bytes(512)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TarIndex:
    """The samples of one shard; key i is ``keys[key_end[i - 1]:key_end[i]]`` (UTF-8)."""

    offset: Indices  # (N,)
    size: Indices  # (N,)
    label: Indices  # (N,)
    keys: npt.NDArray[np.uint8]
    key_end: Indices  # (N,)


@dataclass(frozen=True, slots=True, eq=False)
class TarImages(OpenedImages):
    """Images inside tar files. A file is opened for each image, so that forks share nothing."""

    paths: tuple[Path, ...]
    shard: Indices = field(repr=False)  # (N,) number of the file
    offset: Indices = field(repr=False)  # (N,)
    size: Indices = field(repr=False)  # (N,)
    keys: npt.NDArray[np.uint8] = field(repr=False)
    key_end: Indices = field(repr=False)

    def __len__(self) -> int:
        return len(self.offset)

    def name(self, index: int) -> str:
        """How messages name image ``index``."""
        start = int(self.key_end[index - 1]) if index else 0
        key = self.keys[start : int(self.key_end[index])].tobytes().decode()
        return f"sample {key!r} of {self.paths[int(self.shard[index])].name}"

    def _open(self, index: int) -> Image.Image:
        size = int(self.size[index])
        with self.paths[int(self.shard[index])].open("rb", buffering=0) as stream:
            stream.seek(int(self.offset[index]))
            data = _exactly(stream, size)
        return Image.open(BytesIO(data))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise OSError(f"the shard ends after {len(data)} of {size} bytes")
        data += more
    return data


def read_webdataset(path: Path, test_path: Path | None = None, *, verify: bool = False) -> RawSet:
    """List tar shards; the images are decoded later.

    ``verify`` hashes the shards instead of the listing of name, size and mtime.

    Raises:
        DataError: no shards, a shard that is cut off or compressed, or a sample without an image
            or a usable label; names shard and key.
    """
    shards = find_shards(path, test_path, ".tar")
    with ThreadPoolExecutor(8) as pool:
        indexes = list(pool.map(_index, shards.paths))
    empty = [p.name for p, index in zip(shards.paths, indexes, strict=True) if not len(index.label)]
    if empty:
        raise DataError(
            f"{empty[0]} holds no samples", hint="a sample is 0001.jpg and 0001.cls, for example"
        )
    counts = [len(index.label) for index in indexes]
    shard = np.repeat(np.arange(len(indexes)), counts).astype(np.int64)
    labels = np.concatenate([index.label for index in indexes])
    starts = np.cumsum([0, *(len(index.keys) for index in indexes)])
    images = TarImages(
        shards.paths,
        shard,
        np.concatenate([index.offset for index in indexes]),
        np.concatenate([index.size for index in indexes]),
        np.concatenate([index.keys for index in indexes]),
        np.concatenate([i.key_end + start for i, start in zip(indexes, starts, strict=False)]),
    )
    if int(labels.max()) >= len(labels):  # before anything is counted up to it
        at = int(labels.argmax())
        raise DataError(
            f"{images.name(at)} has the label {int(labels[at])}; with {len(labels)} samples the "
            "labels 0, 1, ... without gaps are allowed",
            hint="number the classes from 0",
        )
    names = tuple(str(k) for k in range(int(labels.max()) + 1))
    checked_classes(labels, names, shards.name)
    return RawSet(
        name=shards.name,
        images=images,
        labels=labels,
        class_names=names,
        test=shards.test_mask(shard),
        content_sha256=shards.content(verify=verify),
        content_kind="content" if verify else "listing",
        groups=shard,
    )


def _index(path: Path) -> TarIndex:
    """The index beside a shard, or a new one; it is kept where the folder can be written."""
    stat = path.stat()
    stamp = np.array([INDEX_VERSION, stat.st_size, stat.st_mtime_ns], np.int64)
    kept = path.parent / f".{path.name}.index.npz"
    found = _kept(kept, stamp)
    if found is not None:
        return found
    index = _scan(path)
    stream = BytesIO()
    np.savez(
        stream, stamp=stamp, offset=index.offset, size=index.size, label=index.label,
        keys=index.keys, key_end=index.key_end,
    )  # fmt: skip
    with suppress(OSError):  # in a read-only folder the shard is listed again next time
        write_bytes(kept, stream.getvalue())
    return index


def _kept(path: Path, stamp: Indices) -> TarIndex | None:
    """An index that was written for exactly this shard; None if it is of another or damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if not np.array_equal(file["stamp"], stamp):
                return None
            names = ("offset", "size", "label", "key_end")
            offset, size, label, end = (file[name].astype(np.int64) for name in names)
            keys = file["keys"].astype(np.uint8)
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile):
        return None
    whole = len(offset) == len(size) == len(label) == len(end)
    inside = whole and bool(np.all((offset >= 0) & (size >= 0) & (offset + size <= stamp[1])))
    if not inside or (len(end) and int(end[-1]) != len(keys)):
        return None
    return TarIndex(offset=offset, size=size, label=label, keys=keys, key_end=end)


def _scan(path: Path) -> TarIndex:
    """List a shard from its headers; of the files only labels are read."""
    rows: list[tuple[int, int, int]] = []
    keys: list[bytes] = []
    for key, members, stream in _samples(path):
        where = f"sample {key!r} of {path.name}"
        images = [m for m in members if _suffix(m) in SUFFIXES]
        if len(images) != 1:
            raise DataError(
                f"{where} has {len(images)} images among {', '.join(_ends(members))}; one is "
                "allowed",
                hint=f"{key}.jpg or {key}.png beside {key}.cls",
            )
        label = _label(where, members, stream)
        rows.append((images[0].offset_data, images[0].size, label))
        keys.append(key.encode())
    table = np.array(rows, np.int64).reshape(-1, 3)
    return TarIndex(
        offset=table[:, 0].copy(),
        size=table[:, 1].copy(),
        label=table[:, 2].copy(),
        keys=np.frombuffer(b"".join(keys), np.uint8),
        key_end=np.cumsum([len(key) for key in keys]).astype(np.int64),
    )


def _samples(path: Path) -> Iterator[tuple[str, list[tarfile.TarInfo], IO[bytes]]]:
    """Key, members and the open shard of each sample, in order."""
    key, last = "", "the beginning"
    members: list[tarfile.TarInfo] = []
    with path.open("rb") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    cast(Any, archive).members.clear()  # it would keep every header of the shard
                    last = member.name
                    folder, _, file = member.name.rpartition("/")
                    if not member.isfile() or file.startswith((".", "__")):
                        continue
                    found = f"{folder}/{file.partition('.')[0]}".lstrip("./")
                    if members and found != key:
                        yield key, members, stream
                        members = []
                    key = found
                    members.append(member)
                end = archive.offset
        except tarfile.TarError as error:
            raise DataError(
                f"{path.name} cannot be read as a tar file: {error} (after {last})",
                hint="copy the shard again; unpack it if it is compressed",
            ) from error
        if members:
            yield key, members, stream
        if not _has_end(stream, end):
            raise DataError(
                f"{path.name} has no end mark after {last}: it was cut off, or is still written",
                hint="copy the shard again",
            )


def _has_end(stream: IO[bytes], end: int) -> bool:
    """Whether an empty block, the end mark of a tar file, stands at ``end``."""
    stream.seek(end)
    return stream.read(len(_END)) == _END


def _suffix(member: tarfile.TarInfo) -> str:
    return Path(member.name).suffix.lower()


def _ends(members: list[tarfile.TarInfo]) -> list[str]:
    return [m.name.rpartition("/")[2].partition(".")[2] or "no ending" for m in members]


def _label(where: str, members: list[tarfile.TarInfo], stream: IO[bytes]) -> int:
    """The class number of a sample."""
    of_kind = {_suffix(m): m for m in members}
    member = of_kind.get(".cls") or of_kind.get(".json")
    if member is None or member.size > _LABEL_BYTES:
        raise DataError(
            f"{where} has no label; it holds {', '.join(_ends(members))}",
            hint='.cls with a class number, or .json with {"label": 3}',
        )
    stream.seek(member.offset_data)
    text = stream.read(member.size).decode(errors="replace").strip()
    value: object = text
    if _suffix(member) == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = None
        value = found.get("label") if isinstance(found, dict) else None
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        raise DataError(
            f"{where} has the label {str(value)[:40]!r}; class numbers 0, 1, ... are allowed",
            hint="drop unlabelled samples, or write class numbers instead of names",
        )
    return int(str(value))
