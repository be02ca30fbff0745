"""Tables as JSON lines."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.errors import CorruptTableError, ForeignTableError, TableError
from latency_tables.interchange import (
    Header,
    export_table,
    import_table,
    read_table,
    write_table,
)
from latency_tables.records import Failure, Measurement
from latency_tables.store import Device, SpaceInfo, TableStore

SPACE = SpaceInfo(space_id="space", name="tiny", cost_table_hash="h")
CREATED = "2026-11-22T12:00:00+00:00"


@pytest.fixture
def filled(tmp_path, make_measurement, device):
    with TableStore(tmp_path / "filled.sqlite") as store:
        with store.transaction():
            store.add_device("local", device)
            store.add_space(SPACE)
            store.add_all(make_measurement(i, 1.0 + i / 7) for i in range(5))
            store.add(make_measurement(0, 1.01, run="run-2"))
        yield store


@pytest.fixture
def empty(tmp_path):
    with TableStore(tmp_path / "empty.sqlite") as store:
        yield store


@pytest.fixture
def table(tmp_path, filled):
    path = tmp_path / "table.jsonl"
    export_table(filled, path, device="local", created=CREATED, tool_version="1")
    return path


def test_export_and_import_give_the_same_store_and_the_same_file(table, filled, empty, tmp_path):
    done = import_table(empty, table)
    assert (done.n_read, done.n_new, done.spaces) == (6, 6, (SPACE,))
    assert list(empty.measurements()) == list(filled.measurements())
    assert (empty.devices(), empty.space("space")) == (filled.devices(), SPACE)
    again = tmp_path / "again.jsonl"
    export_table(empty, again, device="local", created=CREATED, tool_version="1")
    assert again.read_bytes() == table.read_bytes()


@settings(max_examples=20, deadline=None)
@given(latencies=st.lists(st.floats(1e-3, 1e4), max_size=5))
def test_any_latencies_survive_writing_and_reading(
    latencies, make_measurement, device, tmp_path_factory
):
    path = tmp_path_factory.mktemp("table") / "table.jsonl"
    records = [make_measurement(i, ms) for i, ms in enumerate(latencies)]
    header = Header(space=SPACE, created=CREATED, tool_version="1", n_measurements=len(records))
    write_table(path, header, [Device(name="local", fingerprint=device)], records)
    entries = list(read_table(path))
    assert entries[0] == header
    assert [e for e in entries if isinstance(e, Measurement)] == records


def test_importing_again_adds_nothing(table, filled):
    done = import_table(filled, table)
    assert (done.n_read, done.n_new, filled.count()) == (6, 0, 6)


def test_tables_joined_by_cat_are_one_table(table, empty, tmp_path, make_measurement, device):
    other = replace(device, identity={"soc": "other"})
    second = tmp_path / "second.jsonl"
    header = Header(space=SPACE, created=CREATED, tool_version="1", n_measurements=1)
    record = make_measurement(9, device_fp=other.fingerprint)
    write_table(second, header, [Device(name="board", fingerprint=other)], [record])
    joined = tmp_path / "joined.jsonl"
    joined.write_bytes(table.read_bytes() + b"\n" + second.read_bytes())
    assert import_table(empty, joined).n_new == 7
    assert {line.device_name: line.n_records for line in empty.summaries()} == {
        "local": 6,
        "board": 1,
    }


def damage(path, line, change):
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("line", "change", "named"),
    [
        (4, lambda text: text.replace('"threads":2', '"threads":"two"'), "'threads' is 'two'"),
        (4, lambda text: text[: len(text) // 2] + "\n", "not JSON"),
        (4, lambda text: text.replace('"median_ns"', '"median_ms"'), "'median_ns' is missing"),
        (4, lambda _: '{"something": 1}\n', "neither a header"),
        (4, lambda text: text.replace('"space_id":"space"', '"space_id":"x"'), "'space_id'"),
        (2, lambda text: text.replace('"cores":2', '"cores":3'), "'device_fp'"),
        (1, lambda text: text.replace('"ns"', '"ms"'), "'units'"),
        (1, lambda text: text.replace('"units"', '"unit"'), "'units' is missing"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_imported(table, empty, line, change, named):
    damage(table, line, change)
    with pytest.raises(CorruptTableError, match=named) as caught:
        import_table(empty, table)
    at = line if line != 2 else 3  # a changed device is noticed at its first record
    assert f"{table}, line {at}:" in caught.value.message
    assert (empty.count(), empty.devices(), empty.space("space")) == (0, [], None)


def test_bytes_that_are_not_text_are_named(table, empty):
    table.write_bytes(table.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(CorruptTableError, match=r"line 9: not UTF-8"):
        import_table(empty, table)


def test_an_endless_line_is_not_read(table, empty):
    table.write_bytes(table.read_bytes() + b" " * 2**20 + b"x")
    with pytest.raises(CorruptTableError, match="line 9: longer"):
        import_table(empty, table)


def test_a_file_cut_at_the_end_of_a_line_is_noticed(table, empty):
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CorruptTableError, match="with 5 records; its header promises 6"):
        import_table(empty, table)
    assert empty.count() == 0


def test_an_empty_file_is_corrupt(tmp_path, empty):
    (tmp_path / "table.jsonl").write_text("")
    with pytest.raises(CorruptTableError, match="empty"):
        import_table(empty, tmp_path / "table.jsonl")


@pytest.mark.parametrize("first", ['{"format": "other/3"}', '{"device": {}}'])
def test_another_format_is_not_imported(tmp_path, empty, first):
    (tmp_path / "table.jsonl").write_text(first + "\n")
    with pytest.raises((ForeignTableError, CorruptTableError), match="line 1"):
        import_table(empty, tmp_path / "table.jsonl")


def test_a_table_of_another_device_or_space_is_refused_when_asked_to(table, empty, device):
    with pytest.raises(ForeignTableError, match="device"):
        import_table(empty, table, device_fp="other")
    with pytest.raises(ForeignTableError, match="space"):
        import_table(empty, table, space_id="other")
    assert import_table(empty, table, device_fp=device.fingerprint, space_id="space").n_new == 6


def test_failed_measurements_are_not_exported(filled, tmp_path, make_measurement):
    crash = Failure(code="OOM", message="", blames="candidate")
    filled.add(make_measurement(77, error=crash))
    assert export_table(filled, tmp_path / "t.jsonl", device="local") == 6
    assert "OOM" not in (tmp_path / "t.jsonl").read_text()


def test_export_asks_which_of_two_tables_is_meant(filled, tmp_path, make_measurement):
    filled.add(make_measurement(0, space_id="second"))
    with pytest.raises(TableError, match="2 tables fit"):
        export_table(filled, tmp_path / "t.jsonl", device="local")
    assert export_table(filled, tmp_path / "t.jsonl", device="local", space_id="second") == 1


def test_the_only_table_needs_no_name(filled, empty, tmp_path):
    assert export_table(filled, tmp_path / "t.jsonl") == 6
    with pytest.raises(TableError, match="any device"):
        export_table(empty, tmp_path / "none.jsonl")


def test_an_unknown_device_is_named(filled, tmp_path):
    with pytest.raises(TableError, match="'board'"):
        export_table(filled, tmp_path / "t.jsonl", device="board")
    assert not (tmp_path / "t.jsonl").exists()


def test_every_line_is_plain_json_with_units_in_the_header(table):
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    assert lines[0]["units"] == {"time": "ns", "memory": "bytes"}
    assert [next(iter(line)) for line in lines[1:]] == ["device", *["measurement"] * 6]
