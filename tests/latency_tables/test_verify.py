"""Verifying: damage is a finding with its place, gates are run per table, nothing is changed."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from latency_tables.errors import TableError, UsageError
from latency_tables.interchange import Header, export_table, import_table, write_table
from latency_tables.remarks import MEASURED
from latency_tables.store import Device, SpaceInfo, TableStore
from latency_tables.verify import accept_gates, verify

SPACE = SpaceInfo(space_id="space", name="tiny", cost_table_hash="h")


@pytest.fixture(scope="module")
def records(make_cost_table, make_measurement):
    table, rng = make_cost_table(), np.random.default_rng(0)
    genes = rng.permutation(np.unique(rng.integers(0, 3, (150, 8)), axis=0))[:110]
    latency = table.batch(genes)[:, 0]
    noisy = latency * np.exp(rng.normal(0, 0.005, 110))

    def of(kind="honest"):
        chosen = {"honest": noisy, "sums": latency, "shuffled": rng.permutation(noisy)}[kind]
        return [
            make_measurement(i, ms, arch=table.arch(g), noise=0.005)
            for i, (g, ms) in enumerate(zip(genes, chosen, strict=True))
        ]

    return of


@pytest.fixture
def store_of(tmp_path, device):
    def make(found):
        path = tmp_path / "tables.sqlite"
        with TableStore(path) as store:
            store.add_device("local", device)
            store.add_space(SPACE)
            store.add_all(found)
        return path

    return make


@pytest.fixture
def file_of(tmp_path, device):
    def make(found, **header):
        path = tmp_path / "table.jsonl"
        about = Header(
            space=SPACE, created="2026", tool_version="1", n_measurements=len(found), **header
        )
        write_table(path, about, [Device(name="local", fingerprint=device)], found)
        return path

    return make


def failed(checked):
    return {gate.name for gate in checked.report.gates if not gate.passed}


def test_an_honest_table_is_usable_in_both_forms(records, store_of, file_of):
    for path in (store_of(records()), file_of(records())):
        found = verify(path)
        assert (found.refused, found.problems, len(found.tables)) == (False, (), 1)
        assert (found.tables[0].n_networks, failed(found.tables[0])) == (110, set())


def test_shuffled_latencies_are_refused_with_a_likely_cause(records, store_of):
    found = verify(store_of(records("shuffled")))
    (gate,) = found.tables[0].report.refusals
    assert gate.name == "signal"
    assert "no architecture signal" in gate.evidence
    assert "likely cause" in gate.evidence
    assert found.refused


def test_sums_are_warned_about_and_refused_where_they_are_claimed_to_be_measured(records, file_of):
    warned = verify(file_of(records("sums")))
    assert (warned.refused, failed(warned.tables[0])) == (False, {"additive"})
    claimed = verify(file_of(records("sums"), labels=(MEASURED,)))
    assert [gate.name for gate in claimed.tables[0].report.refusals] == ["additive"]
    assert not verify(file_of(records(), labels=(MEASURED,))).refused


def test_the_claim_survives_import_and_export(records, file_of, tmp_path):
    with TableStore(tmp_path / "new.sqlite") as store:
        import_table(store, file_of(records("sums"), labels=(MEASURED,)))
        export_table(store, tmp_path / "again.jsonl")
    assert verify(tmp_path / "new.sqlite").refused
    assert verify(tmp_path / "again.jsonl").refused


def test_an_acceptance_is_recorded_with_evidence_and_travels(records, store_of, tmp_path):
    path = store_of(records("shuffled"))
    found = verify(path, accept={"signal"})
    assert not found.refused
    with TableStore(path) as store:
        (remark,) = accept_gates(store, found, "2026-11-22")
        assert store.summaries()[0].accepted == ("signal",)
        export_table(store, tmp_path / "out.jsonl")
    assert "no architecture signal" in remark.value
    header = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert header["accepted"] == [remark.to_dict()]
    again = verify(tmp_path / "out.jsonl")
    assert again.refused  # whoever uses it decides anew
    assert again.tables[0].accepted_before == ("signal",)


def test_an_unknown_gate_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no gate is called magic"):
        verify(tmp_path / "nothing.jsonl", accept={"magic"})


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(TableError, match=r"nothing\.jsonl"):
        verify(tmp_path / "nothing.jsonl")


def test_every_damaged_line_is_found_and_the_whole_ones_are_judged(records, file_of):
    path = file_of(records())
    lines = path.read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace('"threads":2', '"threads":0')
    lines[9] = lines[9].replace('"median_ns":', '"median_ms":')
    lines[11] = lines[11].replace('"n_samples":90', '"n_samples":91')
    path.write_text("".join(lines))
    found = verify(path)
    places = [problem.split(": ")[0].split(", ")[-1] for problem in found.problems[:3]]
    assert places == ["line 5", "line 10", "line 12"]
    assert "'sha256'" in found.problems[2]
    assert "promises 110" in found.problems[3]
    assert (found.refused, found.tables[0].n_networks) == (True, 107)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE latencies SET key = 'k' WHERE id = 3", "record 3 of latencies: column 'key'"),
        ("UPDATE latencies SET run_id = 'other' WHERE id = 1", "column 'run_id'"),
        ("UPDATE latencies SET setting = '{}' WHERE id = 1", "column 'setting'"),
        ("UPDATE latencies SET body = '{' WHERE id = 2", "record 2 of latencies: not JSON"),
        ("UPDATE devices SET device_fp = 'other'", "device 'local': stored as other"),
        ("DELETE FROM devices", "is not known"),
    ],
)
def test_a_row_that_says_something_else_than_its_record_is_found(records, store_of, change, named):
    path = store_of(records()[:10])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    found = verify(path)
    assert found.refused
    assert any(named in problem for problem in found.problems)


def test_a_damaged_store_is_a_finding(records, store_of):
    path = store_of(records())
    whole = bytearray(path.read_bytes())
    whole[8192:20480] = b"\xff" * 12288
    path.write_bytes(whole)
    found = verify(path)
    assert found.refused
    assert "damaged" in found.problems[0]


def test_each_setting_is_a_table_of_its_own(records, store_of):
    one_thread = [replace(m, threads=1) for m in records("shuffled")]
    found = verify(store_of([*records(), *one_thread]))
    assert sorted(table.report.passed for table in found.tables) == [False, True]


def test_numbers_that_contradict_each_other_in_a_session_are_listed(
    records, file_of, make_measurement
):
    first, *rest = records()
    again = make_measurement(0, first.latency_ms * 1.2, arch=first.arch, noise=0.005)
    found = verify(file_of([first, *rest, again]))
    (second,) = found.tables[0].seconds
    assert second.drifted
    assert found.tables[0].n_records == 110


def test_records_of_another_device_are_refused_when_asked(records, store_of, device):
    path = store_of(records())
    assert not verify(path, device_fp=device.fingerprint).refused
    found = verify(path, device_fp="e" * 64)
    assert [gate.name for gate in found.tables[0].report.refusals] == ["device"]
