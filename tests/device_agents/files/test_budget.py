"""Limits are judged with the interval: kept, broken, or not to be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from device_agents.files.budget import judge, outcome, parse_limit, require
from latency_tables.errors import BudgetMissedError, InconclusiveError, UsageError
from latency_tables.records import Measurement, Statistics, Verdict

STATISTICS = Statistics(
    n_samples=500,
    n_rounds=5,
    median_ns=5_000_000,
    min_ns=4_500_000,
    p10_ns=4_600_000,
    mean_ns=5_100_000,
    std_ns=100_000,
    mad_ns=50_000,
    p90_ns=6_000_000,
    p95_ns=7_000_000,
    p99_ns=None,
    ci_low_ns=4_900_000,
    ci_high_ns=5_200_000,
    round_medians_ns=(5_000_000,) * 5,
    first_ns=9_000_000,
    load_ns=1_000_000,
    warmup_runs=3,
    converged=True,
)


def measured(**changes: Any) -> Measurement:
    record = Measurement(
        net_id="a",
        arch=None,
        space_id="",
        onnx_sha256="0" * 64,
        artefact_sha256="0" * 64,
        runtime={"name": "onnxruntime", "version": "1"},
        threads=1,
        cores=(0,),
        device_name="board",
        device_fp="1" * 64,
        statistics=STATISTICS,
        peak_memory_bytes=10_000_000,
        verdicts=(),
        error=None,
        provenance={},
    )
    return replace(record, **changes)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("latency_ms<=5.2", "pass"),
        ("latency_ms<=5.1999", "inconclusive"),
        ("latency_ms<=4.9", "inconclusive"),
        ("latency_ms<=4.8999", "fail"),
        ("throughput>=192.3", "pass"),
        ("throughput>=200", "inconclusive"),
        ("throughput>=205", "fail"),
        ("p90_ms<=6.24", "pass"),
        ("p90_ms<=6", "inconclusive"),
        ("p90_ms<=5.8", "fail"),
        ("p99_ms<=1000", "inconclusive"),
        ("min_ms<=5", "pass"),
        ("peak_memory_mb<=10", "pass"),
        ("peak_memory_mb<=9.9", "fail"),
        ("peak_memory_bytes<=9999999", "fail"),
    ],
)
def test_a_limit_is_judged_by_both_ends_of_the_interval(limit: str, expected: str) -> None:
    assert [one.outcome for one in judge([parse_limit(limit)], measured())] == [expected]


def test_a_wrong_answer_breaks_every_limit() -> None:
    wrong = (Verdict(code="WRONG_ANSWER", severity="fail", evidence=""),)
    limits = [parse_limit("latency_ms<=100"), parse_limit("peak_memory_mb<=100")]
    found = judge(limits, measured(verdicts=wrong))
    assert [one.outcome for one in found] == ["fail", "fail"]


def test_a_measurement_that_is_not_valid_proves_nothing() -> None:
    hot = (Verdict(code="THROTTLED", severity="fail", evidence=""),)
    for limit in ("latency_ms<=100", "latency_ms<=1"):
        (found,) = judge([parse_limit(limit)], measured(verdicts=hot))
        assert found.outcome == "inconclusive"
        assert "THROTTLED" in found.reason


def test_a_warning_does_not_change_the_judgement() -> None:
    warned = (Verdict(code="DRIFT", severity="warn", evidence=""),)
    (found,) = judge([parse_limit("latency_ms<=100")], measured(verdicts=warned))
    assert found.outcome == "pass"


def test_memory_that_was_not_measured_is_inconclusive() -> None:
    (found,) = judge([parse_limit("peak_memory_mb<=1")], measured(peak_memory_bytes=None))
    assert found.outcome == "inconclusive"


def test_the_worst_outcome_counts() -> None:
    limits = [parse_limit(t) for t in ("latency_ms<=9", "p99_ms<=9", "peak_memory_mb<=1")]
    found = judge(limits, measured())
    assert outcome(found) == "fail"
    with pytest.raises(BudgetMissedError, match="peak_memory_mb<=1: measured 10"):
        require(found)
    with pytest.raises(InconclusiveError, match="too few independent runs for p99") as unsure:
        require(found[:2])
    assert unsure.value.hint is not None
    assert "--measuring strict" in unsure.value.hint
    require(found[:1])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("latency<=5", "is not one of latency_ms<=X"),
        ("latency_ms", "is not one of"),
        ("latency_ms>=5", "can only be limited with <="),
        ("throughput<=5", "can only be limited with >="),
        ("latency_ms<=five", "not a positive number"),
        ("latency_ms<=-1", "not a positive number"),
        ("latency_ms<=inf", "not a positive number"),
        ("latency_ms<5", "can only be limited with <="),
    ],
)
def test_a_limit_that_makes_no_sense_is_explained(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_limit(text)


def test_the_judgement_is_json() -> None:
    (found,) = judge([parse_limit("latency_ms <= 5.5")], measured())
    assert found.to_dict() == {
        "limit": "latency_ms<=5.5",
        "metric": "latency_ms",
        "relation": "<=",
        "bound": 5.5,
        "outcome": "pass",
        "value": 5.0,
        "low": 4.9,
        "high": 5.2,
        "reason": "measured 5, interval 4.9 … 5.2",
    }
