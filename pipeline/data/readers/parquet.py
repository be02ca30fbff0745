"""Parquet shards of images, as the Hugging Face hub has them.

Columns: ``image`` (a struct with the file's ``bytes``, or the bytes themselves) and ``label`` (or
``labels``), whole numbers. Class names come from the file's ``huggingface`` metadata if it has
them. Parquet has no random access to a row: a row group is read as a whole, and the last few are
kept. Needs pyarrow (``pip install 'hilnas[parquet]'``).
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latency_tables.errors import DataError
from pipeline.data.checks import checked_classes
from pipeline.data.raw import Indices, OpenedImages, RawSet
from pipeline.data.shards import find_shards

LABELS = ("label", "labels")
KEPT_AT_LEAST = 8
"""Row groups that each process keeps, at least."""


class ParquetImages(OpenedImages):
    """Images in row groups; each process keeps the ``n_kept`` row groups that it read last.

    Files and row groups of a forked process are its own: nothing open is shared.
    """

    def __init__(
        self, paths: tuple[Path, ...], column: str, group: Indices, first: Indices,
        where: tuple[tuple[int, int], ...], *, n_kept: int,
    ) -> None:  # fmt: skip
        self._paths, self._column, self._group = paths, column, group
        self._first, self._where, self._n_kept = first, where, n_kept
        self._start()

    def _start(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._group)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def name(self, index: int) -> str:
        """How messages name image ``index``."""
        group = int(self._group[index])
        path, number = self._where[group]
        row = index - int(self._first[group])
        return f"row {row} of row group {number} of {self._paths[path].name}"

    def _open(self, index: int) -> Image.Image:
        group = int(self._group[index])
        data = self._rows(group)[index - int(self._first[group])].as_py()
        if data is None:
            raise ValueError("it has no bytes (a path to a file is not followed)")
        return Image.open(io.BytesIO(data))

    def _rows(self, group: int) -> Any:
        """The bytes of every image of a row group (an arrow array)."""
        if self._process != os.getpid():
            self._start()  # a lock that was held during the fork would never be released
        with self._lock:
            found = self._kept.pop(group, None)
            if found is None:
                path, number = self._where[group]
                found = _image_bytes(self._paths[path], number, self._column)
            self._kept[group] = found
            while len(self._kept) > self._n_kept:
                self._kept.popitem(last=False)
        return found


def _image_bytes(path: Path, number: int, column: str) -> Any:
    parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            # threads of arrow's own do not survive a fork
            table = file.read_row_group(number, columns=[column], use_threads=False)
    except Exception as error:  # arrow's errors have no home before it is imported
        raise _unreadable(path, error) from error
    array = table.column(0).combine_chunks()
    return array.field("bytes") if array.type.num_fields else array


def _pyarrow() -> Any:
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            'name = "parquet" needs pyarrow, which is not installed',
            hint="pip install 'hilnas[parquet]', or tar shards with name = \"webdataset\"",
        ) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path.name} cannot be read as parquet: {(str(error).splitlines() or [''])[0][:200]}",
        hint="copy the shard again",
    )


def read_parquet(
    path: Path, test_path: Path | None = None, *, verify: bool = False, window: int = 0
) -> RawSet:
    """List parquet shards; labels are read now, images later.

    ``verify`` hashes the shards instead of the listing of name, size and mtime; ``window``: row
    groups that are mixed at a time, as many are kept.

    Raises:
        DataError: pyarrow is missing, no shards, a shard that is cut off, without image or label
            column, or with a label that is absent or out of range; names file and row.
    """
    _pyarrow()
    shards = find_shards(path, test_path, ".parquet")
    labels: list[Indices] = []
    where: list[tuple[int, int]] = []
    names: list[str] | None = None
    columns: set[str] = set()
    for number, shard in enumerate(shards.paths):
        column, found, groups = _read_labels(shard)
        columns.add(column)
        names = names if number else found
        if found != names:
            raise DataError(
                f"{shard.name} names other classes than {shards.paths[0].name}",
                hint="take the shards of one set only",
            )
        labels += groups
        where += [(number, row_group) for row_group in range(len(groups))]
    if len(columns) > 1:
        raise DataError(f"the shards of {shards.name} keep their images in different ways")
    sizes = [len(group) for group in labels]
    if not sum(sizes):
        raise DataError(f"the shards of {shards.name} hold no rows", hint="correct data.path")
    group = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    images = ParquetImages(
        shards.paths,
        columns.pop(),
        group,
        np.cumsum([0, *sizes[:-1]]).astype(np.int64),
        tuple(where),
        n_kept=max(KEPT_AT_LEAST, window),
    )
    numbers = np.concatenate(labels)
    most = len(names) if names else len(numbers)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= most))
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"{images.name(at)} has the label {int(numbers[at])}; 0 ... {most - 1} are allowed",
            hint="drop unlabelled rows, and number the classes from 0",
        )
    class_names = tuple(names or (str(k) for k in range(int(numbers.max()) + 1)))
    checked_classes(numbers, class_names, shards.name)
    shard_of = np.array([shard for shard, _ in where], np.int64)[group]
    return RawSet(
        name=shards.name,
        images=images,
        labels=numbers,
        class_names=class_names,
        test=shards.test_mask(shard_of),
        content_sha256=shards.content(verify=verify),
        content_kind="content" if verify else "listing",
        groups=group,
    )


def _read_labels(path: Path) -> tuple[str, list[str] | None, list[Indices]]:
    """Column of the image bytes, class names if any, and the labels of each row group."""
    parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            image, label = _columns(path, schema)
            tables = [
                file.read_row_group(g, columns=[label], use_threads=False)
                for g in range(file.num_row_groups)
            ]
    except DataError:
        raise
    except Exception as error:  # arrow's errors have no home before it is imported
        raise _unreadable(path, error) from error
    groups: list[Indices] = []
    for number, table in enumerate(tables):
        column = table.column(0)
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise DataError(
                f"row {row} of row group {number} of {path.name} has no label",
                hint="drop unlabelled rows",
            )
        groups.append(column.to_numpy().astype(np.int64))
    return image, _class_names(schema.metadata or {}, label), groups


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """Names of the column of image bytes and of the column of labels."""
    label = next((name for name in LABELS if name in schema.names), None)
    if "image" not in schema.names or label is None:
        raise DataError(
            f"{path.name} has the columns {', '.join(schema.names)}",
            hint="rename them so that there are 'image' and 'label'",
        )
    kind = schema.field("image").type
    nested = "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
    content = str(kind.field("bytes").type if nested else kind)
    if content not in ("binary", "large_binary"):
        raise DataError(
            f"{path.name}: the column 'image' is {kind}; bytes of image files, or a struct with "
            "them as 'bytes', are allowed",
            hint="save the images as PNG or JPEG bytes",
        )
    if not str(schema.field(label).type).startswith(("int", "uint")):
        raise DataError(
            f"{path.name}: the column {label!r} is {schema.field(label).type}; whole numbers are "
            "allowed",
            hint="one class number per row",
        )
    return ("image.bytes" if nested else "image"), label


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str] | None:
    """Names of the classes from the metadata that the hub's library writes."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
