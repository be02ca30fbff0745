"""CSV and Parquet: every record, typed columns, nothing that a spreadsheet would run."""

import csv
import json
from dataclasses import replace

import pytest

from latency_tables import tabular
from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from latency_tables.interchange import export_table
from latency_tables.store import SpaceInfo, TableStore


@pytest.fixture
def store(tmp_path, make_measurement, device):
    with TableStore(tmp_path / "tables.sqlite") as store:
        store.add_device("local", device)
        store.add_space(SpaceInfo(space_id="space", name="tiny", cost_table_hash="h"))
        archs = [Arch({"width": 8, "ratio": 1, "op": "=1+1"}), Arch({"width": 16, "ratio": 0.5})]
        store.add_all(make_measurement(i, 1.5 + i, arch=arch) for i, arch in enumerate(archs))
        yield store


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_holds_every_record_with_its_choices_in_nanoseconds_and_ms(store, tmp_path):
    assert export_table(store, tmp_path / "t.csv") == 2
    one, two = rows(tmp_path / "t.csv")
    assert (one["median_ns"], one["latency_ms"], one["threads"]) == ("1500000", "1.5", "2")
    assert (one["arch.width"], two["arch.width"], two["arch.op"]) == ("8", "16", "")
    assert [row["key"] for row in (one, two)] == [m.key for m in store.measurements()]


@pytest.mark.parametrize("text", ["=cmd|'/c calc'!A1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1"])
def test_no_text_of_a_csv_file_begins_like_a_formula(store, tmp_path, make_measurement, text):
    record = make_measurement(5, device_name=text, arch=Arch({text: text}))
    store.add(replace(record, provenance={"session_id": text, "utc": text}))
    export_table(store, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as stream:
        cells = [cell for line in csv.reader(stream) for cell in line]
    assert f"'{text}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_parquet_keeps_types_units_and_space(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert export_table(store, tmp_path / "t.parquet") == 2
    table = parquet.read_table(tmp_path / "t.parquet")
    types = {name: str(table.schema.field(name).type) for name in table.schema.names}
    assert (types["median_ns"], types["latency_ms"], types["key"]) == ("int64", "double", "string")
    assert (types["arch.width"], types["arch.ratio"], types["arch.op"]) == (
        "int64", "double", "string",
    )  # fmt: skip
    about = json.loads(table.schema.metadata[b"hilnas"])
    assert about["units"]["time"] == "ns"
    assert table.column("latency_ms").to_pylist() == [1.5, 2.5]


def test_parquet_is_written_in_groups(store, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(tabular, "ROWS_PER_GROUP", 1)
    export_table(store, tmp_path / "t.parquet")
    assert parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 2


def test_without_pyarrow_the_extra_is_named(store, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(tabular, "import_module", missing)
    with pytest.raises(UsageError) as caught:
        export_table(store, tmp_path / "t.parquet")
    assert "hilnas[parquet]" in caught.value.hint
    assert not (tmp_path / "t.parquet").exists()
