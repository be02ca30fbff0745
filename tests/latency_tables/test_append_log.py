"""Logs that only grow: torn ends are dropped, other damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.append_log import AppendLog, read_log
from latency_tables.errors import RunError


def write(path: Path, n: int) -> None:
    with AppendLog.open(path) as log:
        for index in range(n):
            log.append({"n": index})


def numbers(path: Path) -> list[int]:
    return [line.record["n"] for line in read_log(path)]


@given(cut=st.integers(min_value=1, max_value=30))
def test_a_torn_last_line_is_dropped_and_overwritten(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    write(path, 3)
    path.write_bytes(path.read_bytes()[:-cut])
    write(path, 1)
    assert numbers(path) == [0, 1, 0]


def test_damage_in_the_middle_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, 3)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"n":1', b'"n":7')
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RunError, match="line 2 is damaged: the checksum is wrong"):
        AppendLog.open(path)


def test_a_log_that_is_absent_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        read_log(tmp_path / "none.jsonl")
