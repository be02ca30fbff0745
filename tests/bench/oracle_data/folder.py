"""Read a folder of public latency files: every series of the spaces known here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bench.oracle_data import fbnet, hat, mnasnet, nb201, ofa_mbv3
from tests.bench.oracle_data.series import Columns, Series

Reads = Callable[[Columns], bool]
Reader = Callable[[Columns], list[Series]]
ADAPTERS: dict[str, tuple[Reads, Reader]] = {
    "nb201": (nb201.reads, nb201.read),
    "fbnet": (fbnet.reads, fbnet.read),
    "ofa": (ofa_mbv3.reads, ofa_mbv3.read),
    "mnasnet": (mnasnet.reads, mnasnet.read),
    "hat": (hat.reads, hat.read),
}
_SUFFIXES = (".parquet", ".csv", ".csv.gz")


def read_folder(folder: Path) -> tuple[list[Series], list[str]]:
    """Every series of a folder, and a line about each file that was skipped.

    Measurements of NAS-Bench-201 by index need the file that says which cell an index is.
    Raises FileNotFoundError where the folder holds no table at all.
    """
    paths = sorted(p for p in folder.iterdir() if p.name.endswith(_SUFFIXES))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {', '.join(_SUFFIXES)} file")
    files = {path.name: read_columns(path) for path in paths}
    cells = next((file for file in files.values() if nb201.reads(file)), None)
    found: list[Series] = []
    skipped = []
    for name, file in files.items():
        if nb201.reads_measured(file):
            if cells is None:
                skipped.append(f"{name}: no file says which cell an arch_idx is (op_e01..op_e23)")
            else:
                found += nb201.read_measured(file, cells)
            continue
        reader = next((read for reads, read in ADAPTERS.values() if reads(file)), None)
        if reader is None:
            skipped.append(f"{name}: columns of no known space")
            continue
        series = reader(file)
        found += series
        if not series:
            skipped.append(f"{name}: no column of latencies")
    return found, skipped


def read_columns(path: Path) -> Columns:
    """Columns of a Parquet or CSV file; missing numbers become NaN. Needs pyarrow."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    table = parquet.read_table(path) if path.name.endswith(".parquet") else csv.read_csv(path)
    columns = {}
    for name in table.column_names:
        column = table[name]
        if column.null_count and pa.types.is_floating(column.type):
            column = column.fill_null(float("nan"))
        if column.null_count and pa.types.is_integer(column.type):
            column = column.cast(pa.float64()).fill_null(float("nan"))
        columns[name] = np.asarray(column.to_numpy())
    return columns
