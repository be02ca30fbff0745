"""Shards as other tools write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.pipeline.data.conftest import colourful, encoded

Sample = Mapping[str, bytes]


def sample(
    number: int, label: int | bytes, *, size: int = 12, image: bytes | None = None
) -> Sample:
    """Files of one sample by their ending; the picture follows from the number."""
    text = label if isinstance(label, bytes) else str(label).encode()
    picture = encoded(colourful(1, size, size, 3, seed=number)[0]) if image is None else image
    return {"png": picture, "cls": text}


def write_tar(path: Path, samples: Iterable[tuple[str, Sample]]) -> Path:
    """One tar shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, files in samples:
            for ending, data in files.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def tar_shards(
    folder: Path, *, n: int = 60, shards: int = 3, size: int = 12, prefix: str = "train"
) -> Path:
    """``n`` samples of 3 classes in several shards; image i is picture i."""
    for shard, numbers in enumerate(np.array_split(np.arange(n), shards)):
        rows = [(f"{i:06d}", sample(int(i), int(i) % 3, size=size)) for i in numbers]
        write_tar(folder / f"{prefix}-{shard:06d}.tar", rows)
    return folder


def write_parquet(
    path: Path, samples: Iterable[Sample], *, row_group: int = 8, names: list[str] | None = None,
    label: str = "label", nested: bool = True, **columns: Any,
) -> Path:  # fmt: skip
    """One shard as the Hugging Face hub has them."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = list(samples)
    images: list[Any] = [row["png"] for row in rows]
    if nested:
        images = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    labels = [None if row["cls"] == b"" else int(row["cls"]) for row in rows]
    table = pa.table({"image": images, label: labels, **columns})
    if names is not None:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=row_group)
    return path


def parquet_shards(
    folder: Path, *, n: int = 60, shards: int = 3, size: int = 12, prefix: str = "train",
    names: list[str] | None = None, row_group: int = 8,
) -> Path:  # fmt: skip
    """The same samples as :func:`tar_shards`."""
    for shard, numbers in enumerate(np.array_split(np.arange(n), shards)):
        rows = [sample(int(i), int(i) % 3, size=size) for i in numbers]
        name = f"{prefix}-{shard:05d}-of-{shards:05d}.parquet"
        write_parquet(folder / name, rows, names=names, row_group=row_group)
    return folder
