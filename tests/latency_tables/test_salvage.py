"""Salvaging: whole lines are kept, damaged ones are put aside with reasons."""

import json

import pytest

from latency_tables.errors import CorruptTableError
from latency_tables.interchange import MAX_LINE_BYTES, Header, write_table
from latency_tables.salvage import salvage_table
from latency_tables.store import Device, SpaceInfo, TableStore


@pytest.fixture
def table(tmp_path, make_measurement, device):
    path = tmp_path / "table.jsonl"
    space = SpaceInfo(space_id="space", name="tiny", cost_table_hash="h")
    header = Header(space=space, created="2026", tool_version="1", n_measurements=6)
    records = [make_measurement(i, 1.0 + i) for i in range(6)]
    write_table(path, header, [Device(name="local", fingerprint=device)], records)
    return path


@pytest.fixture
def store(tmp_path):
    with TableStore(tmp_path / "new.sqlite") as store:
        yield store


def rejected(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_before_and_after_a_damaged_one_are_kept(table, store):
    lines = table.read_bytes().splitlines(keepends=True)
    lines[3] = b"\xff\xfe\x1b[31m\n"
    lines[5] = b"x" * (3 * MAX_LINE_BYTES) + b"\n"
    table.write_bytes(b"".join(lines))
    found = salvage_table(store, table)
    assert (found.imported.n_new, store.count()) == (4, 4)
    assert [line.number for line in found.bad_lines] == [4, 6, 0]
    aside = rejected(found.rejected_file)
    assert [entry["line"] for entry in aside] == [4, 6, 0]
    assert "UTF-8" in aside[0]["reason"]
    assert "longer" in aside[1]["reason"]
    assert "\x1b" not in found.rejected_file.read_text()  # escaped


def test_a_file_cut_in_the_middle_of_a_line_loses_only_that_line(table, store):
    table.write_bytes(table.read_bytes()[:-40])
    found = salvage_table(store, table)
    assert (found.imported.n_new, [line.number for line in found.bad_lines]) == (5, [8, 0])


def test_a_whole_file_leaves_nothing_aside(table, store):
    found = salvage_table(store, table)
    assert (found.imported.n_new, found.bad_lines, found.rejected_file) == (6, (), None)
    assert list(table.parent.glob("*.rejected")) == []


@pytest.mark.parametrize("line", [0, 1])
def test_without_header_or_device_no_record_can_be_believed(table, store, line):
    lines = table.read_text().splitlines(keepends=True)
    lines[line] = "{}\n"
    table.write_text("".join(lines))
    with pytest.raises(CorruptTableError, match=f"no whole record; line {line + 1}"):
        salvage_table(store, table)
    assert (store.count(), store.devices(), store.spaces()) == (0, [], [])
