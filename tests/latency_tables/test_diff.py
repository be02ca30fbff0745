"""Comparing tables: ratios with intervals, what moved, and why it may have."""

import numpy as np
import pytest

from latency_tables.diff import Side, compare_sides, read_side
from latency_tables.errors import TableError
from latency_tables.records import DeviceFingerprint
from latency_tables.store import Device, TableStore


def side(name, records, fingerprint=None):
    devices = () if fingerprint is None else (Device(name=name, fingerprint=fingerprint),)
    return Side(name=name, records=tuple(records), devices=devices)


def test_a_device_that_is_slower_throughout_is_said_so(make_measurement):
    a = side("a", [make_measurement(i, 1.0 + i) for i in range(20)])
    b = side("b", [make_measurement(i, 1.1 * (1.0 + i)) for i in range(1, 22)])
    found = compare_sides(a, b)
    assert (found.n_common, found.n_only_a, found.n_only_b) == (19, 1, 2)
    assert found.median_ratio == pytest.approx(1.1, rel=1e-4)
    assert found.median_low <= found.median_ratio <= found.median_high
    assert (found.kendall_tau, found.spearman) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (len(found.moved), len(found.stragglers)) == (19, 0)


def test_one_network_that_moved_is_named(make_measurement):
    latencies = [1.0 + i for i in range(20)]
    a = side("a", [make_measurement(i, ms) for i, ms in enumerate(latencies)])
    latencies[7] *= 1.3
    b = side("b", [make_measurement(i, ms) for i, ms in enumerate(latencies)])
    found = compare_sides(a, b)
    (moved,) = found.moved
    assert moved.net_id == make_measurement(7).net_id
    assert moved.low < 1.3 < moved.high
    assert [m.net_id for m in found.stragglers] == [moved.net_id]


def test_noise_moves_nothing(make_measurement):
    rng = np.random.default_rng(0)
    shifts = rng.uniform(-0.005, 0.005, (2, 30))
    a, b = (
        side("x", [make_measurement(i, 5.0 * (1 + d)) for i, d in enumerate(row)]) for row in shifts
    )
    assert compare_sides(a, b).moved == ()


def test_kernel_governor_clock_runtime_and_driver_are_named_where_they_differ(make_measurement):
    def of(kernel, governor, khz, version, driver):
        fingerprint = DeviceFingerprint(
            identity={"soc": "x", "kernel": kernel},
            state={"policies": [{"governor": governor, "current_khz": khz}], "load": 3.0},
        )
        runtime = {"name": "rknn", "version": version, "driver": driver}
        record = make_measurement(0, runtime=runtime, device_fp=fingerprint.fingerprint)
        return side("board", [record], fingerprint)

    found = compare_sides(
        of("6.1", "performance", 1800, "2.0", "0.9"), of("6.6", "schedutil", 408, "2.3", "0.9.8")
    )
    assert found.reasons["identity.kernel"] == ["6.1", "6.6"]
    assert found.reasons["state.policies.0.governor"] == ["performance", "schedutil"]
    assert found.reasons["state.policies.0.current_khz"] == [1800, 408]
    assert found.reasons["setting.runtime.version"] == ["2.0", "2.3"]
    assert found.reasons["runtime.driver"] == ["0.9", "0.9.8"]
    assert "identity.soc" not in found.reasons
    assert found.n_common == 1  # paired although the settings differ


def test_two_devices_or_two_settings_on_one_side_are_refused(make_measurement):
    one = side("a", [make_measurement(0)])
    with pytest.raises(TableError, match="2 devices"):
        compare_sides(
            one, side("b", [make_measurement(0), make_measurement(1, device_fp="x" * 64)])
        )
    mixed = side("b", [make_measurement(0, threads=1), make_measurement(0, threads=4)])
    with pytest.raises(TableError, match="2 settings"):
        compare_sides(one, mixed)


def test_the_setting_of_both_sides_is_compared_where_one_has_more(make_measurement):
    one = side("a", [make_measurement(0, 5.0)])
    both = side("b", [make_measurement(0, 6.0), make_measurement(0, 9.0, threads=1)])
    assert compare_sides(one, both).median_ratio == pytest.approx(1.2)


@pytest.fixture
def table(tmp_path, make_measurement, device):
    path = tmp_path / "tables.sqlite"
    with TableStore(path) as store:
        store.add_device("local", device)
        store.add_all(make_measurement(i, 2.0 + i, run=r) for i in range(3) for r in ("r1", "r2"))
    return path


def test_sides_are_files_devices_fingerprints_or_sessions(table, tmp_path, device):
    elsewhere = tmp_path / "elsewhere.sqlite"
    for text, n in (
        (str(table), 6), ("local", 6), (device.fingerprint[:8], 6), ("r2", 3), (f"{table}@r1", 3),
    ):  # fmt: skip
        assert len(read_side(text, table).records) == n
    assert len(read_side(f"{table}@local", elsewhere).records) == 6
    with pytest.raises(TableError, match="there are local, r1, r2"):
        read_side("r3", table)


def test_the_result_is_plain_json(table):
    import json

    found = compare_sides(read_side("r1", table), read_side("r2", table))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["n_common"], data["median_ratio"], len(data["networks"])) == (3, 1.0, 3)
