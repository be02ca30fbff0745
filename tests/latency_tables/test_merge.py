"""Joining tables: a union that no order of the inputs changes."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latency_tables.errors import CorruptTableError, ForeignTableError, TableError, UsageError
from latency_tables.interchange import Header, read_measurements, write_table
from latency_tables.merge import merge_tables
from latency_tables.records import DeviceFingerprint, Failure
from latency_tables.remarks import MEASURED, Remark
from latency_tables.store import Device, SpaceInfo, TableStore

SPACE = SpaceInfo(space_id="space", name="tiny", cost_table_hash="h")


@pytest.fixture
def write(tmp_path, device):
    def to_file(name, records, *, fingerprint=device, **header):
        path = tmp_path / name
        about = Header(space=SPACE, created="2026", tool_version="1", **header)
        write_table(path, about, [Device(name="local", fingerprint=fingerprint)], records)
        return path

    return to_file


def contents(path):
    with TableStore(path, read_only=True) as store:
        return (
            list(store.measurements()),
            [(r.measurement, r.reason) for r in store.rejected()],
            store.devices(),
            store.spaces(),
            store.remarks(),
        )


# (network, session, latency in tenths of ms): few of each, so that keys and runs collide
RECORDS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.integers(10, 12)), max_size=6
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=RECORDS, second=RECORDS, third=RECORDS)
@pytest.mark.parametrize("ending", ["jsonl", "sqlite"])
def test_merging_is_commutative_associative_and_idempotent(
    ending, first, second, third, make_measurement, device, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("merge")
    header = Header(space=SPACE, created="2026", tool_version="1")
    paths = []
    for name, rows in zip("ABC", (first, second, third), strict=True):
        records = [make_measurement(n, ms / 10, run=run) for n, run, ms in rows]
        paths.append(folder / f"{name}.jsonl")
        write_table(paths[-1], header, [Device(name="local", fingerprint=device)], records)
    a, b, c = paths

    def merged(name, *inputs):
        out = folder / f"{name}.{ending}"
        merge_tables(out, inputs)
        return out

    def said(path):
        return path.read_bytes() if ending == "jsonl" else contents(path)

    whole = said(merged("abc", a, b, c))
    assert said(merged("cab", c, a, b)) == whole
    assert said(merged("ab_c", merged("ab", a, b), c)) == whole
    assert said(merged("a_bc", a, merged("bc", b, c))) == whole
    assert said(merged("abc", a, b, c)) == whole  # into itself
    assert said(merged("twice", folder / f"abc.{ending}", folder / f"abc.{ending}")) == whole


def test_counts_of_sessions_add_up_and_copies_count_once(write, tmp_path, make_measurement):
    one, two = (make_measurement(0, ms, run=run) for ms, run in ((5.0, "r1"), (5.2, "r2")))
    a, b = write("a.jsonl", [one]), write("b.jsonl", [one, two])
    found = merge_tables(tmp_path / "out.sqlite", [a, b])
    assert (found.n_read, found.n_records, found.n_copies, found.n_sessions) == (3, 2, 1, 2)
    with TableStore(tmp_path / "out.sqlite") as store:
        pooled = store.pooled(one.key)
        assert pooled.n == one.statistics.n_samples + two.statistics.n_samples
        assert [m.latency_ms for m in store.records(one.key)] == [5.0, 5.2]  # medians per session


def test_a_second_number_of_a_session_does_not_count_and_is_flagged_beyond_noise(
    write, tmp_path, make_measurement
):
    first = make_measurement(0, 5.0)
    a = write("a.jsonl", [first])
    b = write("b.jsonl", [make_measurement(0, 5.01), make_measurement(1, 3.0)])
    c = write("c.jsonl", [make_measurement(1, 4.0)])
    found = merge_tables(tmp_path / "out.sqlite", [a, b, c])
    assert sorted(second.drifted for second in found.seconds) == [False, True]
    kept, rejected, *_ = contents(tmp_path / "out.sqlite")
    assert (len(kept), len(rejected)) == (2, 2)
    assert sum("DRIFT" in reason for _, reason in rejected) == 1


def test_of_two_numbers_of_a_session_the_earlier_one_counts(write, tmp_path, make_measurement):
    late, early = (
        make_measurement(0, ms, provenance={"session_id": "r", "utc": utc})
        for ms, utc in ((5.0, "2026-11-22T11"), (6.0, "2026-11-22T10"))
    )
    merge_tables(tmp_path / "out.jsonl", [write("a.jsonl", [late]), write("b.jsonl", [early])])
    assert read_measurements(tmp_path / "out.jsonl") == [early]


def test_two_devices_of_one_name_are_refused_and_the_difference_is_named(
    write, tmp_path, make_measurement, device
):
    flashed = DeviceFingerprint(identity={"soc": "test", "cores": 2, "kernel": "6.12"})
    a = write("a.jsonl", [make_measurement(0)])
    theirs = make_measurement(0, device_fp=flashed.fingerprint)
    b = write("b.jsonl", [theirs], fingerprint=flashed)
    with pytest.raises(ForeignTableError, match=r"kernel \('6.12' and None\)") as caught:
        merge_tables(tmp_path / "out.jsonl", [a, b])
    assert "--keep-apart" in caught.value.hint
    assert not (tmp_path / "out.jsonl").exists()
    found = merge_tables(tmp_path / "out.jsonl", [a, b], keep_apart=True)
    assert (found.n_records, len(found.devices)) == (2, 2)


def test_a_space_with_two_cost_tables_is_refused(write, tmp_path, make_measurement, device):
    a = write("a.jsonl", [make_measurement(0)])
    b = tmp_path / "b.jsonl"
    other = Header(space=replace(SPACE, cost_table_hash="x"), created="", tool_version="")
    write_table(b, other, [Device(name="local", fingerprint=device)], [make_measurement(1)])
    with pytest.raises(ForeignTableError, match="cost table"):
        merge_tables(tmp_path / "out.jsonl", [a, b])


def test_a_damaged_input_leaves_the_output_as_it_was(write, tmp_path, make_measurement):
    out = write("out.jsonl", [make_measurement(0)])
    before = out.read_bytes()
    bad = write("bad.jsonl", [make_measurement(1)])
    bad.write_text(bad.read_text().replace("median_ns", "median"))
    with pytest.raises(CorruptTableError, match=r"bad\.jsonl, line 3"):
        merge_tables(out, [bad])
    assert out.read_bytes() == before


def test_what_the_output_held_before_stays(write, tmp_path, make_measurement):
    out = tmp_path / "out.sqlite"
    crash = Failure(code="OOM", message="", blames="candidate")
    with TableStore(out) as store:
        store.add_all([make_measurement(0), make_measurement(7, statistics=None, error=crash)])
        store.add_remark(_accepted(make_measurement(0)))
    merge_tables(out, [write("a.jsonl", [make_measurement(1)])])
    kept, rejected, _, _, remarks = contents(out)
    assert [m.net_id for m in kept] == [make_measurement(i).net_id for i in (0, 1)]
    assert [m.error["code"] for m, _ in rejected] == ["OOM"]
    assert [r.name for r in remarks] == ["signal"]


def _accepted(record):
    return Remark(
        device_fp=record.device_fp, space_id="space", setting="", kind="accepted",
        name="signal", value="I know why", utc="2026",
    )  # fmt: skip


def test_claims_and_acceptances_reach_the_merged_file(write, tmp_path, make_measurement):
    a = write("a.jsonl", [make_measurement(0)], labels=(MEASURED,))
    b = write("b.jsonl", [make_measurement(1)], accepted=(_accepted(make_measurement(0)),))
    merge_tables(tmp_path / "out.jsonl", [b, a])
    header = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert header["labels"] == [MEASURED]
    assert [remark["name"] for remark in header["accepted"]] == ["signal"]
    assert len(read_measurements(tmp_path / "out.jsonl")) == 2


def test_stores_without_any_table_make_no_file(tmp_path):
    TableStore(tmp_path / "empty.sqlite").close()
    with pytest.raises(TableError, match="no tables"):
        merge_tables(tmp_path / "out.jsonl", [tmp_path / "empty.sqlite"])
    assert not (tmp_path / "out.jsonl").exists()


def test_nothing_to_merge_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="nothing"):
        merge_tables(tmp_path / "out.jsonl", [])
