"""The timed loop, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from device_agents.board import timing
from device_agents.board.rounds import interleave
from device_agents.measuring.profiles import PROFILES, counted
from latency_tables.errors import UsageError


class Clock:
    """Time that passes only when a call is made."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "perf_counter_ns", made)
    return made


def taking(clock: Clock, durations: Iterator[int]) -> Callable[[], None]:
    def call() -> None:
        clock.now += next(durations)

    return call


def forever(value: int) -> Iterator[int]:
    while True:
        yield value


def test_a_block_lasts_its_time_and_has_its_samples(clock: Clock) -> None:
    call = taking(clock, forever(1000))
    assert timing.time_block(call, 10_000, 5, 1) == [1000] * 10
    assert timing.time_block(call, 0, 5, 1) == [1000] * 5


def test_several_calls_per_sample_give_their_mean(clock: Clock) -> None:
    durations = iter([100, 300] * 3)
    assert timing.time_block(taking(clock, durations), 0, 3, 2) == [200] * 3


def test_a_fast_network_is_timed_in_groups_of_calls(clock: Clock) -> None:
    plan = PROFILES["quick"].board_plan()
    assert timing.measure_net(taking(clock, forever(30_000)), plan)["calls_per_sample"] == 4
    assert timing.measure_net(taking(clock, forever(100_000)), plan)["calls_per_sample"] == 1


def test_the_warm_up_ends_when_blocks_agree(clock: Clock) -> None:
    def cooling() -> Iterator[int]:
        yield from (9000, 7000, 5000, 3000, 2000)
        yield from forever(1000)

    warm = timing.warm_up(
        taking(clock, cooling()), min_runs=3, cap_ns=10**9, block_ns=0, tolerance=0.01
    )
    assert (warm["steady"], warm["typical_ns"], warm["runs"]) == (True, 1000, 10)


def test_the_warm_up_of_a_network_that_never_settles_ends_at_its_cap(clock: Clock) -> None:
    def growing() -> Iterator[int]:
        duration = 1000
        while True:
            duration = duration * 11 // 10
            yield duration

    warm = timing.warm_up(
        taking(clock, growing()), min_runs=3, cap_ns=10**6, block_ns=0, tolerance=0.01
    )
    assert not warm["steady"]
    assert 10**6 <= clock.now < 2 * 10**6


def test_a_slow_slope_is_not_steady() -> None:
    assert not timing.is_steady([1000, 1003, 1006, 1009, 1012], 0.005)


def test_a_counted_plan_runs_exactly_its_counts(clock: Clock) -> None:
    done = timing.measure_net(taking(clock, forever(10)), counted(7, 1).board_plan())
    assert done["block_counts"] == [2, 2, 1, 1, 1]
    assert clock.now == 10 * (7 + 3)


def test_thinned_samples_keep_order_and_the_limit() -> None:
    blocks = [list(range(1000)), list(range(1000, 1500))]
    kept = timing.thin(blocks, 100)
    assert sum(map(len, kept)) <= 100
    assert kept[0] == sorted(kept[0])
    assert kept[1][0] == 1000


def test_the_reference_comes_first_last_and_between() -> None:
    order = interleave([str(i) for i in range(7)], 3)
    assert [i for i, name in enumerate(order) if name is None] == [0, 4, 8, 10]


@pytest.mark.parametrize(("runs", "rounds", "warmup"), [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_counts_below_one_are_refused(runs: int, rounds: int, warmup: int) -> None:
    with pytest.raises(UsageError):
        counted(runs, rounds, warmup_runs=warmup)


def test_a_sign_of_life_is_possible_before_each_block_and_never_inside(clock: Clock) -> None:
    signs: list[int] = []
    plan = counted(6, 1, warmup_runs=1).board_plan()
    timing.measure_net(taking(clock, forever(10)), plan, lambda: signs.append(clock.now))
    assert signs == [10, 30, 40, 50, 60]  # after one warm-up run and 0, 2, 3, 4, 5 timed ones
