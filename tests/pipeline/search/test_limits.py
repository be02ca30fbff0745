import pytest
from pydantic import ValidationError

from latency_tables.errors import LimitBelowFastestError, LimitError, MissingLatencyError
from pipeline.search.config import LimitsConfig, SearchConfig
from pipeline.search.limits import (
    Limit,
    check_possible,
    feasible_by_cost,
    resolve_limits,
    violations_by_cost,
)


@pytest.mark.parametrize("text", ["40", "0%", "101%", "-3%", "fast", "40 ms", "nan%"])
def test_a_latency_text_that_is_no_quantile_is_refused(text):
    with pytest.raises(ValidationError, match="quantile of the built table"):
        LimitsConfig(latency=text)


def test_two_forms_of_latency_are_refused():
    with pytest.raises(ValidationError, match="latency_ms and fps limit the same thing"):
        LimitsConfig(latency_ms=5.0, fps=30)


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["latency_ms", "fps", "macs", "size_bytes"])
def test_a_limit_that_is_not_positive_and_finite_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        LimitsConfig(**{name: value})


def test_an_unknown_limit_is_refused():
    with pytest.raises(ValidationError, match="latency_seconds"):
        LimitsConfig(latency_seconds=1)


def test_more_children_than_places_are_refused():
    with pytest.raises(ValidationError, match="crossover \\+ mutation = 50 is more than"):
        SearchConfig(population=40)


def test_more_parents_than_candidates_are_refused():
    with pytest.raises(ValidationError, match="parents = 10 is more than population = 5"):
        SearchConfig(population=5, crossover=2, mutation=2)


def test_frames_per_second_become_milliseconds():
    (limit,) = resolve_limits({"rpi": LimitsConfig(fps=40)}, {})
    assert (limit.metric, limit.bound, limit.device) == ("latency_ms", 25.0, "rpi")


def test_a_quantile_is_resolved_against_the_table_of_its_own_device():
    configs = {"a": LimitsConfig(latency="25%"), "b": LimitsConfig(latency="100%")}
    limits = resolve_limits(configs, {"a": [4.0, 1.0, 2.0, 3.0, 5.0], "b": [10.0, 20.0]})
    assert [(x.device, x.bound) for x in limits] == [("a", 2.0), ("b", 20.0)]


def test_a_quantile_of_an_empty_table_names_the_command_that_builds_one():
    with pytest.raises(MissingLatencyError, match="hilnas tables build FILE"):
        resolve_limits({"rpi": LimitsConfig(latency="40%")}, {"rpi": []})


def test_every_limit_of_every_device_is_kept_apart():
    configs = {"a": LimitsConfig(latency_ms=5, macs=3e8), "b": LimitsConfig(size_bytes=1e6)}
    limits = resolve_limits(configs, {})
    assert [(x.device, x.metric) for x in limits] == [
        ("a", "latency_ms"), ("a", "macs"), ("b", "size_bytes"),
    ]  # fmt: skip


def test_feasibility_by_cost_agrees_with_the_costs_of_single_architectures(world):
    limits = [Limit(metric="macs", bound=20e6), Limit(metric="peak_memory_bytes", bound=120e3)]
    archs = world.everything()
    kept = feasible_by_cost(world.table, world.table.genes(archs), limits)
    expected = [
        world.table.cost(a, "macs") <= 20e6 and world.table.cost(a, "peak_memory_bytes") <= 120e3
        for a in archs
    ]
    assert kept.tolist() == expected
    assert 0 < sum(expected) < len(archs)


def test_the_violation_sums_the_relative_excess_over_the_limits(world):
    largest = world.table.maximum("macs")[1]
    limits = [
        Limit(metric="macs", bound=43e6 / 2),
        Limit(metric="params", bound=44e3 / 4),
        Limit(metric="latency_ms", bound=1e-9, device="board"),
    ]
    (violation,) = violations_by_cost(world.table, world.table.genes([largest]), limits)
    assert violation == pytest.approx(1.0 + 3.0)


def test_a_limit_on_a_cost_that_the_table_lacks_is_refused(world):
    with pytest.raises(LimitError, match="no column 'size_bytes'"):
        violations_by_cost(
            world.table, world.table.genes([]), [Limit(metric="size_bytes", bound=1.0)]
        )


def test_a_latency_limit_below_the_fastest_subnet_names_it(world, make_estimate):
    limit = Limit(metric="latency_ms", bound=5.0, device="rk3588-a")
    with pytest.raises(LimitBelowFastestError) as raised:
        check_possible([limit], world.table, {"rk3588-a": make_estimate(7.3)})
    text = str(raised.value)
    assert "limit 5 ms is below the fastest subnet (7.3 ms, measured" in text
    assert "on rk3588-a" in text
    assert "hilnas space profile" in text


def test_a_predicted_fastest_subnet_is_called_predicted(world, make_estimate):
    limit = Limit(metric="latency_ms", bound=5.0, device="rpi")
    with pytest.raises(LimitBelowFastestError, match="predicted"):
        check_possible([limit], world.table, {"rpi": make_estimate(6.0, source="predicted")})


def test_a_cost_limit_below_the_smallest_subnet_names_both_numbers(world):
    with pytest.raises(LimitBelowFastestError, match=r"900,000 MACs .*fewest.*1,000,000 MACs"):
        check_possible([Limit(metric="macs", bound=9e5)], world.table)


def test_limits_that_the_smallest_subnet_just_keeps_are_possible(world, make_estimate):
    limits = [
        Limit(metric="macs", bound=1e6),
        Limit(metric="latency_ms", bound=2.0, device="board"),
    ]
    check_possible(limits, world.table, {"board": make_estimate(2.0)})
