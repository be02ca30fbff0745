"""Gates: each one on a table that it must refuse or warn about, and on an honest one."""

from dataclasses import replace

import numpy as np
import pytest

from latency_tables.arch import Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import GateError, UsageError
from latency_tables.gates import GATES, check, enforce
from latency_tables.records import Failure


@pytest.fixture(scope="module")
def table(make_cost_table):
    return make_cost_table()


@pytest.fixture(scope="module")
def genes(table):
    rng = np.random.default_rng(0)
    return np.unique(rng.integers(0, 3, (60, 8)), axis=0)[:50]


@pytest.fixture(scope="module")
def honest_ms(table, genes):
    noise = np.random.default_rng(1).normal(0, 0.005, len(genes))
    return table.batch(genes)[:, 0] * np.exp(noise)


@pytest.fixture(scope="module")
def records(table, genes, make_measurement):
    def of(latency, **fields):
        rows = zip(genes, latency, strict=True)
        return [
            make_measurement(i, ms, arch=table.arch(g), **({"noise": 0.005} | fields))
            for i, (g, ms) in enumerate(rows)
        ]

    return of


def failed(report):
    return {gate.name for gate in report.gates if not gate.passed}


def test_an_honest_table_passes_every_gate(records, honest_ms, table, device):
    report = check(records(honest_ms), cost_table=table, device_fp=device.fingerprint)
    assert failed(report) == set()
    assert tuple(gate.name for gate in report.gates) == GATES
    assert enforce(records(honest_ms)).passed


def test_latencies_that_do_not_follow_the_architecture_are_refused(records, honest_ms, table):
    # one fixed network timed for every row: drift moves the numbers, the architecture does not
    drift = 5.0 * (1 + 0.05 * np.sin(np.arange(len(honest_ms))))
    for latency in (drift, np.random.default_rng(3).permutation(honest_ms)):
        report = check(records(latency), cost_table=table)
        assert failed(report) & {"signal"}
        with pytest.raises(GateError, match="signal"):
            enforce(records(latency), cost_table=table)


def test_a_weak_signal_is_enough(records, honest_ms, table):
    noise = np.random.default_rng(3).normal(0, honest_ms.std(), len(honest_ms))
    assert "signal" not in failed(check(records(honest_ms + noise), cost_table=table))


def test_shuffled_tables_are_let_through_as_rarely_as_promised(records, honest_ms, table):
    rng = np.random.default_rng(0)
    let_through = sum(
        "signal" not in failed(check(records(rng.permutation(honest_ms)), cost_table=table))
        for _ in range(20)
    )
    assert let_through <= 4  # 5 % of 20; more than 4 has a chance of 0.3 %


def test_without_costs_networks_must_differ_more_than_repeats(records, honest_ms, make_statistics):
    assert "signal" not in failed(check(records(honest_ms)))
    noise = np.random.default_rng(0).normal(0, 0.02, (len(honest_ms), 3))
    rounds = np.round(5e6 * np.exp(noise)).astype(int)
    same_network = [
        replace(
            m, statistics=make_statistics(np.median(r) / 1e6, round_medians_ns=tuple(r.tolist()))
        )
        for m, r in zip(records(honest_ms), rounds, strict=True)
    ]
    assert "signal" in failed(check(same_network))


def test_rounds_that_move_all_networks_together_are_not_taken_for_noise(
    records, honest_ms, make_statistics
):
    warmer = [
        replace(m, statistics=make_statistics(ms, noise=0.2))  # every second round is 20 % slower
        for m, ms in zip(records(honest_ms), honest_ms, strict=True)
    ]
    assert "signal" not in failed(check(warmer))


def test_too_few_networks_cannot_be_told_and_pass(records):
    report = check(records(np.full(50, 5.0))[:7])
    assert "signal" not in failed(report)
    assert "too few" in next(g.evidence for g in report.gates if g.name == "signal")


def test_one_file_under_many_names_is_refused(records, honest_ms):
    same = [replace(m, artefact_sha256="f" * 64) for m in records(honest_ms)]
    assert failed(check(same)) == {"duplicates"}


def test_isomorphic_networks_may_share_a_file(make_measurement):
    twins = [make_measurement(0, run=run, artefact_sha256="f") for run in ("a", "b")]
    assert failed(check(twins)) == set()


@pytest.mark.parametrize("field", ["median_ns", "min_ns", "mean_ns"])
def test_times_that_are_not_positive_are_refused(make_measurement, field):
    record = make_measurement()
    bad = replace(record, statistics=replace(record.statistics, **{field: -84}))
    report = check([bad])
    assert "positive" in failed(report)
    assert "-84 ns" in report.refusals[0].evidence


@pytest.mark.parametrize(
    "fields", [{"runtime": {"name": "ort"}}, {"device_fp": ""}, {"threads": 0}, {"net_id": ""}]
)
def test_records_without_runtime_version_device_threads_or_network_are_refused(
    make_measurement, fields
):
    assert "schema" in failed(check([make_measurement(**fields)]))


def test_records_of_another_device_are_refused(make_measurement, device):
    ours, theirs = make_measurement(0), make_measurement(1, device_fp="e" * 64)
    assert failed(check([ours], device_fp=device.fingerprint)) == set()
    assert failed(check([theirs], device_fp=device.fingerprint)) == {"device"}
    assert failed(check([ours, theirs])) == {"device"}


def test_records_of_several_settings_are_refused(make_measurement):
    assert failed(check([make_measurement(0), make_measurement(1, threads=1)])) == {"device"}


def test_whole_milliseconds_are_warned_about(records, honest_ms, make_statistics):
    rounded = [
        replace(m, statistics=make_statistics(ms, noise=0.0, min_ns=int(ms) * 10**6))
        for m, ms in zip(records(honest_ms), np.round(honest_ms), strict=True)
    ]
    report = check(rounded)
    assert "resolution" in failed(report)
    assert "1000000 ns" in next(g.evidence for g in report.warnings if g.name == "resolution")
    assert report.passed


def test_sums_of_blocks_are_warned_about(table, genes, records, honest_ms):
    exact = table.batch(genes)[:, 0]
    assert failed(check(records(exact), cost_table=table)) == {"additive"}
    assert "additive" not in failed(check(records(honest_ms), cost_table=table))


def test_more_work_that_is_faster_is_warned_about(make_measurement):
    costs = np.array([[1.0], [2.0], [3.0]])
    table = CostTable(
        [Decision(label="block", choices=("k3", "k5", "k7"))],
        [Column(name="macs", unit="MAC")],
        [Factor(name="block", labels=("block",), values=costs)],
    )

    def with_latencies(latencies):
        return [make_measurement(i, ms, arch=table.arch([i])) for i, ms in enumerate(latencies)]

    assert "monotone" in failed(check(with_latencies([3.0, 2.0, 1.0]), cost_table=table))
    assert "monotone" not in failed(check(with_latencies([1.0, 2.0, 3.0]), cost_table=table))
    within_noise = with_latencies([1.01, 1.005, 1.0])
    assert "monotone" not in failed(check(within_noise, cost_table=table))


def test_numeric_choices_are_ordered_without_a_cost_table(make_measurement):
    wrong = [make_measurement(i, 10.0 - i) for i in range(5)]  # the choice is the number itself
    assert "monotone" in failed(check(wrong))


def test_accepting_a_refusal_is_written_down(records, honest_ms, table):
    same = [replace(m, artefact_sha256="f" * 64) for m in records(honest_ms)]
    report = enforce(same, cost_table=table, accept={"duplicates", "signal"})
    assert report.accepted == ("duplicates",)  # signal did not need it
    assert [gate.name for gate in report.warnings] == ["duplicates"]
    assert report.to_dict()["accepted"] == ["duplicates"]


def test_accepting_an_unknown_gate_names_the_gates():
    with pytest.raises(UsageError, match="monotone"):
        check([], accept={"magic"})


def test_failed_measurements_are_not_judged(make_measurement):
    crash = Failure(code="OOM", message="", blames="candidate")
    bad = make_measurement(1, device_fp="other", statistics=None, error=crash)
    assert failed(check([make_measurement(0), bad])) == set()
