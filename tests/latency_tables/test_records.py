"""Measurements and their parts: round trips, strictness, keys, intervals, pooling."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.arch import Arch
from latency_tables.errors import CorruptTableError, MissingLatencyError
from latency_tables.fields import parse_json
from latency_tables.keys import measurement_key
from latency_tables.pooling import pool
from latency_tables.records import DeviceFingerprint, Failure, Measurement, Statistics, Verdict

WARNING = Verdict(code="INTERFERENCE", severity="warn", evidence="12 switches")
FAULT = Verdict(code="THROTTLED", severity="fail", evidence="cooling state 2")
CRASH = Failure(code="RUN_CRASHED", message="signal 11", blames="candidate")

times = st.integers(-(2**40), 2**40)
maybe_times = st.none() | st.integers(0, 2**40)
statistics = st.builds(
    lambda ci, **fields: Statistics(ci_low_ns=min(ci), ci_high_ns=max(ci), **fields),
    ci=st.tuples(times, times),
    n_samples=st.integers(1, 10**6),
    n_rounds=st.integers(1, 20),
    **dict.fromkeys(
        ("median_ns", "min_ns", "p10_ns", "mean_ns", "std_ns", "mad_ns", "first_ns", "load_ns"),
        times,
    ),
    p90_ns=maybe_times,
    p95_ns=maybe_times,
    p99_ns=maybe_times,
    round_medians_ns=st.lists(times, max_size=5).map(tuple),
    warmup_runs=st.integers(0, 1000),
    converged=st.booleans(),
    ratio_to_reference=st.none() | st.floats(0.01, 100.0),
)
verdicts = st.builds(
    Verdict,
    code=st.sampled_from(["DRIFT", "TREND", "THROTTLED"]),
    severity=st.sampled_from(["fail", "warn"]),
    evidence=st.text(max_size=20),
)
measurements = st.builds(
    Measurement,
    net_id=st.text(min_size=1, max_size=64),
    arch=st.none()
    | st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5)).map(Arch),
    space_id=st.text(max_size=64),
    onnx_sha256=st.text(max_size=64),
    artefact_sha256=st.text(max_size=64),
    runtime=st.fixed_dictionaries({"name": st.just("ort"), "version": st.text(min_size=1)}),
    threads=st.integers(1, 64),
    cores=st.lists(st.integers(0, 64), max_size=4).map(tuple),
    device_name=st.text(max_size=10),
    device_fp=st.text(min_size=1, max_size=64),
    statistics=st.none() | statistics,
    peak_memory_bytes=st.none() | st.integers(0, 2**40),
    verdicts=st.lists(verdicts, max_size=2).map(tuple),
    error=st.none() | st.just(CRASH),
    provenance=st.dictionaries(
        st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3
    ),
)


@given(measurements)
def test_a_measurement_survives_json(record):
    assert Measurement.from_dict(parse_json(json.dumps(record.to_dict()))) == record


@given(measurements)
def test_a_measurement_has_a_latency_exactly_if_it_is_ok(record):
    if record.ok:
        low, high = record.interval_ms()
        assert 0 <= low <= record.latency_ms <= high
    else:
        assert record.why_not()
        with pytest.raises(MissingLatencyError):
            _ = record.latency_ms


def test_a_device_survives_json_and_its_state_does_not_change_its_fingerprint(device):
    copy = DeviceFingerprint.from_dict(json.loads(json.dumps(device.to_dict())))
    assert copy == device
    assert replace(device, state={"load": 9.0}).fingerprint == device.fingerprint
    assert replace(device, identity={"soc": "other"}).fingerprint != device.fingerprint


def changed(record, *path, value):
    data = json.loads(json.dumps(record.to_dict()))
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("threads",), "2", "'threads' is '2'"),
        (("threads",), 0, "'threads' is 0"),
        (("threads",), True, "'threads' is True"),
        (("threads",), 2.0, "'threads' is 2.0"),
        (("schema",), 2, "'schema' is 2"),
        (("net_id",), "", "'net_id'"),
        (("net_id",), "x" * 20_000, "'net_id'"),
        (("cores",), [0, -1], "'cores' is -1"),
        (("runtime",), {"name": "onnxruntime"}, "'runtime' lacks 'version'"),
        (("arch",), {"a": None}, "'arch'"),
        (("arch",), {"a": float("inf")}, "'arch'"),
        (("colour",), "red", "unknown fields: colour"),
        (("statistics", "median_ns"), 5.5, "statistics: field 'median_ns' is 5.5"),
        (("statistics", "median_ns"), 2**63, "'median_ns'"),
        (("statistics", "converged"), 1, "'converged' is 1"),
        (("statistics", "ci_low_ns"), 10**12, "'ci_low_ns' is above"),
        (("statistics", "ratio_to_reference"), float("nan"), "'ratio_to_reference'"),
        (("statistics", "ratio_to_reference"), 10**400, "'ratio_to_reference'"),
        (("verdicts",), [{"code": "X", "severity": "bad", "evidence": ""}], "fail, warn"),
        (("error",), {"code": "X", "message": "m", "blames": "me"}, "board, candidate, host"),
        (("provenance",), {"a": "x" * 300_000}, "'provenance' is 3000"),
    ],
)
def test_a_wrong_field_is_named(make_measurement, path, value, named):
    with pytest.raises(CorruptTableError, match=named.replace("[", r"\[")):
        Measurement.from_dict(changed(make_measurement(), *path, value=value))


def test_a_missing_field_is_named(make_measurement):
    data = make_measurement().to_dict()
    del data["device_fp"]
    with pytest.raises(CorruptTableError, match="'device_fp' is missing"):
        Measurement.from_dict(data)


@pytest.mark.parametrize("text", ["{", '{"a": NaN}', "[" * 100_000, "[1" + "0" * 5000 + "]"])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(CorruptTableError):
        parse_json(text)


@pytest.mark.parametrize("fields", [{"verdicts": (FAULT,)}, {"error": CRASH}, {"statistics": None}])
def test_a_failed_measurement_is_not_ok(make_measurement, fields):
    assert not make_measurement(**fields).ok


def test_a_time_that_is_not_positive_is_not_ok(make_measurement, make_statistics):
    assert not make_measurement(statistics=replace(make_statistics(), median_ns=0)).ok


def test_a_warning_keeps_a_measurement_ok(make_measurement):
    assert make_measurement(verdicts=(WARNING,)).ok


def test_everything_that_changes_a_latency_changes_the_key():
    base = {
        "net_id": "n",
        "runtime": {"name": "ort", "version": "1", "provider": "cpu", "graph_optimization": "all"},
        "threads": 2,
        "cores": (0, 1),
        "device_fp": "d",
    }
    others = [
        {"net_id": "m"},
        *({"runtime": base["runtime"] | {field: "other"}} for field in base["runtime"]),
        {"threads": 1},
        {"cores": (0,)},
        {"device_fp": "e"},
    ]
    keys = {measurement_key(**(base | other)) for other in [{}, *others]}
    assert len(keys) == 1 + len(others)


def test_order_of_cores_and_further_facts_about_the_runtime_do_not_change_the_key(make_measurement):
    one = make_measurement(cores=(0, 1))
    two = make_measurement(cores=(1, 0), runtime=one.runtime | {"delegated_operators": 3})
    assert one.key == two.key


def test_the_interval_shrinks_with_its_level(make_measurement):
    record = make_measurement()  # its 95 % interval is ±1 %
    assert record.interval_ms(0.95) == pytest.approx((4.95, 5.05))
    # half-widths of a normal interval: 1.645 and 1.960 standard deviations
    assert record.interval_ms(0.90)[1] == pytest.approx(5 + 0.05 * 1.644854 / 1.959964)


def test_a_warning_widens_the_interval_to_all_rounds(make_measurement, make_statistics):
    rounds = (4_000_000, 5_000_000, 7_000_000)
    quiet = make_measurement(statistics=make_statistics(round_medians_ns=rounds))
    loud = replace(quiet, verdicts=(WARNING,))
    assert quiet.interval_ms()[1] < 5.1
    assert loud.interval_ms() == (4.0, 7.0)


def test_sessions_that_disagree_widen_the_pooled_interval(make_measurement):
    sessions = [make_measurement(0, ms, run=f"run-{ms}") for ms in (5.0, 5.2, 6.0)]
    pooled = pool(sessions)
    assert (pooled.latency_ms, pooled.n, pooled.source) == (5.2, 270, "table")
    assert pooled.low_ms < 5.0 < 6.0 < pooled.high_ms


def test_pooling_ignores_what_failed_and_refuses_nothing(make_measurement):
    good, bad = make_measurement(0, 5.0), make_measurement(0, 50.0, verdicts=(FAULT,))
    assert pool([good, bad]).latency_ms == 5.0
    with pytest.raises(MissingLatencyError, match="THROTTLED"):
        pool([bad])
