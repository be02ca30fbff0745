"""The SQLite store: what it keeps, what it never serves, and what it survives."""

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from latency_tables import database
from latency_tables.errors import CorruptTableError, ForeignTableError, TableError, UsageError
from latency_tables.keys import setting_text
from latency_tables.records import Failure, Verdict
from latency_tables.remarks import MEASURED, Remark
from latency_tables.store import SpaceInfo, TableStore, default_table_path
from latency_tables.summaries import SUMMARY_SQL

FAULT = Verdict(code="THROTTLED", severity="fail", evidence="cooling state 2")
CRASH = Failure(code="RUN_CRASHED", message="signal 11", blames="candidate")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "tables.sqlite"


@pytest.fixture
def store(path):
    with TableStore(path) as store:
        yield store


def test_what_was_added_is_there_after_reopening(path, make_measurement):
    record = make_measurement(1, 5.0)
    with TableStore(path) as store:
        assert store.add(record)
    with TableStore(path) as store:
        assert list(store.measurements()) == [record]
        assert store.pooled(record.key).latency_ms == 5.0


def test_adding_again_changes_nothing(store, make_measurement):
    record = make_measurement()
    assert [store.add(record), store.add(record)] == [True, False]
    assert (store.count(), list(store.rejected())) == (1, [])


def test_sessions_of_a_network_are_pooled_and_the_newest_is_latest(store, make_measurement):
    records = [make_measurement(0, ms, run=f"run-{ms}") for ms in (5.0, 5.1, 5.9)]
    dated = [
        replace(r, provenance={**r.provenance, "utc": f"2026-11-2{day}T00:00:00+00:00"})
        for r, day in zip(records, (3, 1, 2), strict=True)
    ]
    assert store.add_all(dated) == 3
    assert store.pooled(dated[0].key).latency_ms == 5.1
    assert store.latest(dated[0].key) == dated[0]
    assert [r.run_id for r in store.records(dated[0].key)] == ["run-5.1", "run-5.9", "run-5.0"]


@pytest.mark.parametrize("fields", [{"verdicts": (FAULT,)}, {"error": CRASH}, {"statistics": None}])
def test_a_failed_measurement_is_kept_but_never_served(store, make_measurement, fields):
    record = make_measurement(**fields)
    assert not store.add(record)
    assert not store.add(record)
    assert (store.pooled(record.key), store.latest(record.key)) == (None, None)
    assert (list(store.measurements()), store.count()) == ([], 0)
    assert [(r.measurement, r.reason) for r in store.rejected()] == [(record, record.why_not())]


def test_a_second_number_in_one_run_is_kept_apart(store, make_measurement):
    first, second = make_measurement(0, 5.0), make_measurement(0, 9.0)
    assert [store.add(first), store.add(second)] == [True, False]
    assert store.pooled(first.key).latency_ms == 5.0
    assert [r.measurement for r in store.rejected()] == [second]


def test_records_are_found_by_device_space_and_setting(store, make_measurement):
    ours = make_measurement(0)
    store.add_all(
        [
            ours,
            make_measurement(1, device_fp="other board"),
            make_measurement(2, space_id="other space"),
            make_measurement(3, threads=1),
        ]
    )
    setting = setting_text(runtime=ours.runtime, threads=2, cores=(0, 1))
    found = store.measurements(device_fp=ours.device_fp, space_id="space", setting=setting)
    assert list(found) == [ours]


def test_many_keys_are_looked_up_at_once(store, make_measurement):
    records = [make_measurement(i, 1.0 + i) for i in range(1200)]
    store.add_all(records)
    found = store.pooled_all([r.key for r in records] + ["unknown"])
    assert {k: e.latency_ms for k, e in found.items()} == {r.key: r.latency_ms for r in records}


def test_summaries_count_networks_sessions_and_failures(store, make_measurement, device):
    store.add_device("local", device)
    store.add_space(SpaceInfo(space_id="space", name="tiny", cost_table_hash="h"))
    store.add_all([make_measurement(0), make_measurement(0, run="run-2"), make_measurement(1)])
    store.add(make_measurement(2, error=CRASH))
    (line,) = store.summaries()
    assert (line.device_name, line.space_name, line.threads) == ("local", "tiny", 2)
    assert (line.n_networks, line.n_records, line.n_rejected) == (2, 3, 1)
    assert line.runtime["version"] == "1.32.0"
    assert line.first_utc <= line.last_utc


def test_a_device_is_stored_once_under_its_identity(store, device):
    busy = replace(device, state={"load": 9.0})
    assert store.add_device("local", device) == store.add_device("renamed", busy)
    (known,) = store.devices()
    assert (known.name, known.fingerprint) == ("local", device)
    assert store.device(device.fingerprint) == known


def test_a_space_with_other_costs_is_refused(store):
    store.add_space(SpaceInfo(space_id="s", name="tiny", cost_table_hash="one"))
    with pytest.raises(ForeignTableError, match="one"):
        store.add_space(SpaceInfo(space_id="s", name="tiny", cost_table_hash="two"))


def test_a_failing_batch_leaves_nothing_behind(store, make_measurement):
    def records():
        yield make_measurement(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add_all(records())
    assert store.count() == 0
    assert store.add(make_measurement(1))


def test_a_full_disk_is_reported_and_keeps_what_was_stored(path, make_measurement):
    with TableStore(path) as store:
        store.add(make_measurement(0))
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(TableError, match=r"disk of .* is full"):
            store.add_all(make_measurement(i) for i in range(1, 200))
    with TableStore(path) as store:
        store.check()
        assert [m.latency_ms for m in store.measurements()] == [5.0]


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import measurement
from pathlib import Path
from latency_tables.store import TableStore
with TableStore(Path(sys.argv[2])) as store:
    for i in range(15):
        store.add(measurement(i, run=sys.argv[3]))
"""


def test_processes_that_create_and_write_at_once_lose_nothing(path, request):
    here = str(request.path.parent)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, here, str(path), f"run-{i}"])
        for i in range(3)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    with TableStore(path) as store:
        store.check()
        assert (store.count(), store.summaries()[0].n_networks) == (45, 15)


def test_threads_share_a_store(store, make_measurement):
    def write(start):
        for i in range(start, start + 5):
            store.add(make_measurement(i))

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 15


def test_two_hundred_thousand_rows_open_in_a_second(path, make_measurement):
    with TableStore(path) as store:
        store.add(make_measurement(0))
        with store.transaction() as connection:
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)"
                " INSERT INTO latencies (key, run_id, space_id, device_fp, setting, utc, body)"
                " SELECT printf('%064x', i), 'r', 's', 'd', setting, utc, '{}'"
                " FROM n, (SELECT setting, utc FROM latencies LIMIT 1)"
            )
    start = time.perf_counter()
    with TableStore(path) as store:
        assert store.pooled(make_measurement(0).key) is not None
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\x00" + b"\x00" * 20])
def test_an_empty_or_cut_file_is_corrupt(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(CorruptTableError, match="hilnas tables import"):
        TableStore(path)


def test_a_truncated_file_is_corrupt(path, make_measurement):
    with TableStore(path) as store:
        store.add_all(make_measurement(i) for i in range(100))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptTableError, match=str(path)):
        TableStore(path)


def test_overwritten_pages_are_corrupt(path, make_measurement):
    with TableStore(path) as store:
        store.add_all(make_measurement(i) for i in range(100))
    whole = bytearray(path.read_bytes())
    whole[8192 : 8192 * 3] = b"\xff" * 8192 * 2
    path.write_bytes(whole)
    with pytest.raises(CorruptTableError):
        TableStore(path)


def test_a_damaged_record_names_file_and_field(store, make_measurement):
    record = make_measurement()
    store.add(record)
    store._connection.execute("UPDATE latencies SET body = replace(body, '\"threads\"', '\"thr\"')")
    with pytest.raises(CorruptTableError, match=r"tables\.sqlite, record 1 .*'threads' is missing"):
        store.pooled(record.key)


def test_files_that_are_no_table_store_are_foreign_and_stay_as_they_are(path):
    path.parent.mkdir()
    path.write_text("latency,net\n")
    with pytest.raises(ForeignTableError, match="does not begin like SQLite"):
        TableStore(path)
    assert path.read_text() == "latency,net\n"


def test_a_database_of_another_program_is_foreign(path):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE latencies (key TEXT)")
    with pytest.raises(ForeignTableError, match="another program"):
        TableStore(path)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("PRAGMA user_version = 99", "schema version 99"),
        (
            "CREATE TRIGGER evil AFTER INSERT ON latencies BEGIN DELETE FROM latencies; END",
            "1 unknown",
        ),
        ("DROP TABLE rejected", "missing"),
    ],
)
def test_a_store_with_another_schema_is_foreign(path, statement, named):
    TableStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
    with pytest.raises(ForeignTableError, match=named):
        TableStore(path)


def test_reading_only_neither_creates_nor_changes(path, make_measurement):
    with pytest.raises(TableError, match="hilnas tables build"):
        TableStore(path, read_only=True)
    with TableStore(path) as store:
        store.add(make_measurement())
    with TableStore(path, read_only=True) as store:
        assert store.count() == 1
        with pytest.raises(TableError, match="readonly"):
            store.add(make_measurement(1))


def test_a_writer_that_waits_too_long_is_told_who_holds_the_file(
    path, make_measurement, monkeypatch
):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with (
        TableStore(path) as one,
        TableStore(path) as two,
        one.transaction(),
        pytest.raises(TableError, match="another process has kept"),
    ):
        two.add(make_measurement())


def test_a_place_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TableError, match="--table"):
        TableStore(tmp_path / "file" / "tables.sqlite")


def test_the_default_place_follows_the_environment(tmp_path):
    assert default_table_path({"XDG_DATA_HOME": str(tmp_path), "HOME": "/h"}).parent == (
        tmp_path / "hilnas"
    )
    assert default_table_path({"XDG_DATA_HOME": "relative", "HOME": "/h"}).parts[:2] == ("/", "h")
    with pytest.raises(UsageError):
        default_table_path({})


def version_1(path):
    """Make the store at ``path`` look as the first version wrote it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE remarks")
        connection.execute("DROP INDEX latencies_of_table")
        connection.execute(
            "CREATE INDEX latencies_of_table ON latencies (device_fp, space_id, setting, utc)"
        )
        connection.execute("PRAGMA user_version = 1")
        connection.commit()


def test_a_store_of_the_first_version_is_read_as_it_is_and_brought_up_to_date(
    path, make_measurement
):
    with TableStore(path) as store:
        store.add(make_measurement())
    version_1(path)
    with TableStore(path, read_only=True) as store:
        assert (store.count(), store.remarks(), len(store.summaries())) == (1, [], 1)
    with TableStore(path) as store:
        assert store.count() == 1
        store.add_remark(REMARK)
    with TableStore(path, read_only=True) as store:
        assert store.remarks() == [REMARK]


REMARK = Remark(
    device_fp="d", space_id="s", setting="", kind="accepted", name="signal", value="1", utc="2026"
)


def test_a_remark_replaces_the_one_of_the_same_name(store):
    store.add_remark(REMARK)
    later = replace(REMARK, value="2", utc="2027")
    store.add_remark(later)
    store.add_remark(replace(REMARK, kind="labels", name=MEASURED))
    assert store.remarks(kind="accepted") == [later]
    assert [r.kind for r in store.remarks(device_fp="d", space_id="s")] == ["accepted", "labels"]
    assert store.remarks(device_fp="other") == []


def test_a_summary_tells_device_sessions_claims_acceptances_and_model(
    store, make_measurement, device
):
    store.add_device("local", device)
    store.add_all(make_measurement(0, run=run) for run in ("r1", "r2"))
    ours = replace(REMARK, device_fp=device.fingerprint, space_id="space")
    store.add_remark(ours)
    store.add_remark(replace(ours, kind="labels", name=MEASURED))
    store.add_remark(replace(ours, kind="model", name="last", value='{"mape": 0.03}'))
    (line,) = store.summaries()
    assert (line.soc, line.n_sessions, line.labels) == ("test", 2, (MEASURED,))
    assert (line.accepted, line.model) == (("signal",), {"mape": 0.03})


def test_a_second_number_far_from_the_first_is_flagged_as_drift(store, make_measurement):
    store.add_all(make_measurement(0, ms) for ms in (5.0, 5.01, 9.0))
    near, far = (r.reason for r in store.rejected())
    assert "DRIFT" not in near
    assert "DRIFT: 9 ms after 5 ms" in far


@pytest.mark.bench
def test_summaries_of_two_hundred_thousand_rows_take_less_than_a_second(path, make_measurement):
    with TableStore(path) as store:
        fill(store, make_measurement(0), 200_000)
    start = time.perf_counter()
    with TableStore(path) as store:
        (line,) = store.summaries()
    assert time.perf_counter() - start < 1.0
    assert line.n_networks == 200_000


def test_listing_a_table_does_not_read_its_records(store, make_measurement):
    store.add(make_measurement(0))
    plan = store._connection.execute(f"EXPLAIN QUERY PLAN {SUMMARY_SQL}").fetchall()
    assert any("COVERING INDEX latencies_of_table" in row[3] for row in plan)


def fill(store, record, n):
    """``n`` rows that differ by key, with bodies of the usual size."""
    store.add(record)
    with store.transaction() as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO latencies (key, run_id, space_id, device_fp, setting, utc, body)"
            " SELECT printf('%064x', i), run_id, space_id, device_fp, setting, utc, body"
            " FROM n, (SELECT * FROM latencies LIMIT 1)",
            (n,),
        )
