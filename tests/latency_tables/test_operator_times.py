"""Times of operators are recovered from a few profiles, and become a column that is calibrated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latency_tables.arch import Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import CorruptTableError, SpaceError, TableError
from latency_tables.operator_groups import OperatorCosts, ProfileLine
from latency_tables.operator_times import (
    PROFILED_COLUMN,
    OperatorTimes,
    ProfiledNetwork,
    profiled_prior,
    with_profiled_values,
)
from latency_tables.predictor.features import Features
from tests.latency_tables.blocks import inverted, network, timed

SLOPES = {"Conv pointwise": 0.02, "Conv depthwise": 0.15}
PROFILED = [(16, 24, 40), (64, 16, 32), (48, 24, 80), (96, 40, 16)]
UNSEEN = (20, 56, 72, 88)


def truth(costs: OperatorCosts) -> float:
    """A depthwise convolution takes longer per MAC, and memory takes time."""
    return 800.0 + SLOPES[costs.kind] * costs.macs + 0.3 * (costs.read + costs.written)


def profiles(noise: float = 0.0, probe_ns: float = 0.0) -> list[ProfiledNetwork]:
    rng = np.random.default_rng(0)
    found = []
    for middles in PROFILED:
        graph = network(*middles, size=12)
        lines = timed(graph, truth)
        latency_ns = sum(line.ns for line in lines)
        lines = [
            replace(line, ns=line.ns * float(np.exp(rng.normal(0, noise))) + probe_ns)
            for line in lines
        ]
        found.append(ProfiledNetwork(graph=graph, lines=tuple(lines), latency_ns=latency_ns))
    return found


def section_truth(middle: int) -> float:
    return sum(line.ns for line in timed(network(middle, size=12), truth))


def errors(times: OperatorTimes) -> np.ndarray:
    found = [times.section_ns(inverted(8, middle, 12).sections[0]) for middle in UNSEEN]
    return np.array(found) / [section_truth(middle) for middle in UNSEEN] - 1.0


def test_times_of_sections_that_were_never_profiled_are_recovered() -> None:
    times = OperatorTimes.fit(profiles())
    assert np.abs(errors(times)).max() < 0.02
    assert times.report.held_out_error < 0.02


def test_noise_of_single_operators_averages_out() -> None:
    assert np.abs(errors(OperatorTimes.fit(profiles(noise=0.1)))).max() < 0.1


def test_what_profiling_adds_to_each_line_is_taken_off_where_the_latency_is_known() -> None:
    slowed = profiles(probe_ns=700.0)
    times = OperatorTimes.fit(slowed)
    assert times.report.probe_ns == pytest.approx(700.0)
    assert np.abs(errors(times)).max() < 0.02
    blind = OperatorTimes.fit(replace(one, latency_ns=None) for one in slowed)
    assert blind.report.probe_ns == 0.0
    assert errors(blind).min() > 0.05


def test_lines_that_were_interrupted_do_not_decide() -> None:
    given = []
    for i, one in enumerate(profiles(noise=0.02)):
        lines = list(one.lines)
        for at, times in ((i, 4.0), (i + 4, 3.0)):  # two of nine lines of every network
            lines[at] = replace(lines[at], ns=times * lines[at].ns)
        given.append(replace(one, lines=tuple(lines), latency_ns=None))
    assert np.abs(errors(OperatorTimes.fit(given))).max() < 0.03  # 0.08 without Huber weights


def test_more_work_never_takes_less_time() -> None:
    times = OperatorTimes.fit(profiles(noise=0.3))
    assert all((coefficients >= 0).all() for coefficients in times.coefficients.values())
    taken = [times.section_ns(inverted(8, m, 12).sections[0]) for m in (28, 60, 76, 100, 200)]
    assert taken == sorted(taken)


def slow_configuration(repeats: int, outlier: float = 1.0) -> float:
    """Time of a block that took twice what its costs say, ``repeats`` times, over its truth."""
    given, rng = profiles(noise=0.05), np.random.default_rng(1)
    for i in range(repeats):
        graph = network(28, size=12)
        factors = 2.0 * np.exp(rng.normal(0, 0.05, 3)) * (outlier if i == 0 else 1.0)
        lines = [
            replace(line, ns=line.ns * float(factor))
            for line, factor in zip(timed(graph, truth), factors, strict=True)
        ]
        given.append(ProfiledNetwork(graph=graph, lines=tuple(lines)))
    taken = OperatorTimes.fit(given).section_ns(inverted(8, 28, 12).sections[0])
    return taken / section_truth(28)


def test_a_configuration_that_is_slow_every_time_is_believed() -> None:
    assert slow_configuration(0) == pytest.approx(1.0, abs=0.1)
    assert slow_configuration(5) == pytest.approx(2.0, abs=0.2)


def test_one_interruption_does_not_move_a_configuration() -> None:
    assert slow_configuration(5, outlier=20.0) == pytest.approx(2.0, abs=0.2)


def test_the_report_tells_what_was_matched() -> None:
    given = profiles()
    stray = ProfileLine(name="ReorderOutput_token_3", op="ReorderOutput", ns=1e4)
    share = 1e4 / (1e4 + sum(line.ns for one in given for line in one.lines))
    given[0] = replace(given[0], lines=(*given[0].lines, stray))
    report = OperatorTimes.fit(given).report
    assert report.n_networks == 4
    assert report.n_observations == 4 * 9
    assert report.matched_share == pytest.approx(1.0 - share)
    assert report.unmatched == ("ReorderOutput_token_3",)


def test_profiles_that_name_nothing_of_their_networks_are_refused() -> None:
    line = ProfileLine(name="subgraph", op="Everything", ns=1e6)
    with pytest.raises(TableError, match="none of 1 lines"):
        OperatorTimes.fit([ProfiledNetwork(graph=network(16), lines=(line,))])


# -- the column ----------------------------------------------------------------------------------


def table() -> CostTable:
    return CostTable(
        [Decision(label="a", choices=("x", "y"))],
        [Column(name="macs", unit="MAC")],
        [
            Factor(name="stem", labels=(), values=np.array([3.0])),
            Factor(name="a", labels=("a",), values=np.array([[1.0], [2.0]])),
        ],
    )


def test_the_column_adds_up_over_factors() -> None:
    made = with_profiled_values(table(), {"stem": 0.1, "a": np.array([1 / 3, 2e-7])})
    assert made.batch([[1]])[0].tolist() == [5.0, 0.1 + 2e-7]
    assert made.table_hash != table().table_hash


@pytest.mark.parametrize(
    "values", [{"stem": 1.0}, {"stem": 1.0, "a": [1.0]}, {"stem": "x", "a": 1}]
)
def test_a_column_of_another_space_is_refused(values) -> None:
    with pytest.raises(CorruptTableError, match="do not fit the space"):
        with_profiled_values(table(), values)


def test_the_column_by_itself_is_a_table_of_the_same_decisions() -> None:
    made = with_profiled_values(table(), {"stem": 0.1, "a": [0.2, 0.4]})
    prior = profiled_prior(made)
    assert prior.decisions == made.decisions
    assert [column.name for column in prior.columns] == [PROFILED_COLUMN]
    genes = [[0], [1]]
    assert prior.column(PROFILED_COLUMN, genes).tolist() == pytest.approx([0.3, 0.5])
    with pytest.raises(SpaceError, match="profiled_ms"):
        profiled_prior(table())


def test_the_model_sees_the_column_as_a_cost_that_adds_up() -> None:
    made = with_profiled_values(table(), {"stem": 0.1, "a": [0.2, 0.4]})
    assert PROFILED_COLUMN in Features(made).names[:2]
