"""Latencies from two emulated boards of different speed: ratios and ranks, never milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement
from tests.boards.conftest import FAST, SLOW, Boot, FirstDay, Measure
from tests.boards.networks import sampled_jobs
from tests.fakes.emulated_board.boot import EmulatedBoard

pytestmark = pytest.mark.board

FACTOR = 2 ** (SLOW - FAST)


def medians(records: Sequence[Measurement]) -> dict[str, float]:
    """Median by network; fails where one was not measured."""
    assert [record.error for record in records] == [None] * len(records)
    return {
        record.net_id: float(record.statistics.median_ns)
        for record in records
        if record.statistics is not None
    }


def ranked(times: dict[str, float]) -> list[str]:
    """Networks, the fastest first."""
    return sorted(times, key=times.__getitem__)


def test_the_probe_says_what_the_board_is_and_what_it_cannot_know(
    first_day: FirstDay,
) -> None:
    said = first_day.said["probe"].json
    assert (said["machine"], said["cpu_parts"]) == ("aarch64", ["0x41:0xd0b"])
    assert (said["cpu_count"], said["policies"], said["thermal_zones"]) == (1, [], [])
    assert said["libc"] == "glibc 2.36"


def test_a_board_without_a_governor_is_measured_with_a_warning(
    six_fast: list[Measurement],
) -> None:
    for record in six_fast:
        assert "UNCONTROLLED_GOV" in {verdict.code for verdict in record.verdicts}
        assert record.ok


def test_each_subnet_takes_exactly_as_much_longer_as_the_clock_says(
    six_fast: list[Measurement], six_slow: list[Measurement]
) -> None:
    fast, slow = medians(six_fast), medians(six_slow)
    for name, time in fast.items():
        assert slow[name] / time == pytest.approx(FACTOR, rel=0.02)


def test_both_boards_rank_the_subnets_alike_and_as_they_were_made(
    six_fast: list[Measurement], six_slow: list[Measurement], six_jobs: Sequence[MeasureJob]
) -> None:
    made = [job.net_id for job in six_jobs]
    assert ranked(medians(six_fast)) == ranked(medians(six_slow)) == made


def test_ratios_to_the_reference_network_do_not_depend_on_the_board(
    six_fast: list[Measurement], six_slow: list[Measurement]
) -> None:
    for fast, slow in zip(six_fast, six_slow, strict=True):
        assert fast.statistics is not None
        assert slow.statistics is not None
        assert fast.statistics.ratio_to_reference == pytest.approx(
            slow.statistics.ratio_to_reference, rel=0.02
        )


def test_another_start_of_the_same_board_gives_the_same_latencies(
    six_fast: list[Measurement],
    victim: EmulatedBoard,
    measurer_of: Measure,
    six_jobs: Sequence[MeasureJob],
) -> None:
    again = medians(measurer_of(victim).measure(six_jobs[3:4]))
    known = medians(six_fast)
    for name, time in again.items():
        assert time == pytest.approx(known[name], rel=0.01)


@pytest.mark.long
def test_thirty_subnets_have_the_same_ranks_and_exact_ratios_on_both_boards(
    boot: Boot, measurer_of: Measure
) -> None:
    jobs = sampled_jobs(30)
    fast, slow = (medians(measurer_of(boot(shift)).measure(jobs)) for shift in (FAST, SLOW))
    for name, time in fast.items():
        assert slow[name] / time == pytest.approx(FACTOR, rel=0.02)
    order = ranked(fast)
    for first, second in pairwise(order):
        if fast[second] > 1.01 * fast[first]:  # closer ones are equal as far as can be told
            assert slow[second] > slow[first]
