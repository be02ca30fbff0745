"""Which candidates are worth a measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.arch import Arch
from latency_tables.estimate import Estimate
from pipeline.search.evaluation import Candidate, Evaluation, Score
from pipeline.search.limits import Limit
from pipeline.search.refinement import worth_measuring

BOARD = Limit(metric="latency_ms", bound=5.0, device="board")


def latency(centre, half, *, source="predicted", in_support=True):
    return Estimate(
        latency_ms=centre,
        low_ms=max(centre - half, 0.0),
        high_ms=centre + half,
        key="k",
        source=source,
        n=20,
        in_support=in_support,
    )


def evaluation(name, accuracy, faults=None, costs=None, **by_device):
    candidate = Candidate(
        arch=Arch({"net": name}), costs=costs or {}, latency=by_device, faults=faults or {}
    )
    return Evaluation(candidate=candidate, score=Score(accuracy=accuracy))


def names(evaluations, *limits, device="board", n=100, exclude=()):
    found = worth_measuring(evaluations, limits or (BOARD,), device, n=n, exclude=exclude)
    return [wanted.arch["net"] for wanted in found]


times = st.builds(
    latency,
    st.floats(0.5, 10),
    st.floats(0, 3),
    source=st.sampled_from(["predicted", "predicted", "predicted", "measured", "table"]),
    in_support=st.booleans(),
)
archives = st.lists(
    st.builds(
        lambda accuracy, board, other: (accuracy / 8, board, other),
        st.integers(0, 8),
        times,
        times,
    ),
    max_size=30,
).map(
    lambda rows: [
        evaluation(i, accuracy, board=board, other=other)
        for i, (accuracy, board, other) in enumerate(rows)
    ]
)
both = (BOARD, replace(BOARD, device="other", bound=4.0))


@given(archives, st.integers(0, 40))
def test_no_more_than_asked_for_and_nothing_twice(archive, n):
    found = names(archive, *both, n=n)
    assert len(found) <= n
    assert len(set(found)) == len(found)


@given(archives)
def test_what_was_measured_is_never_asked_for(archive):
    predicted = {e.arch["net"] for e in archive if e.latency["board"].source == "predicted"}
    assert set(names(archive, *both)) <= predicted


@given(archives, st.sets(st.integers(0, 30)))
def test_what_was_asked_before_is_not_asked_again(archive, before):
    exclude = [Arch({"net": i}) for i in before]
    assert not before & set(names(archive, *both, exclude=exclude))


@given(archives)
def test_the_same_archive_gives_the_same_answer(archive):
    assert names(archive, *both) == names(archive, *both)


@given(archives, st.integers(0, 10))
def test_a_smaller_budget_takes_the_first_of_a_larger_one(archive, n):
    assert names(archive, *both, n=n) == names(archive, *both)[:n]


def clear(e, archive):
    """Whether the interval says on which side of the limit and of the front a candidate lies.

    By definition over all pairs, for one device; ``archive`` may hold what certainly fails.
    """

    def interval(x):
        t = x.latency["board"]
        points = (t.latency_ms, t.latency_ms)
        return (t.low_ms, t.high_ms) if t.source == "predicted" else points

    low, high = interval(e)
    if low > 5.0:
        return True
    rivals = [
        interval(x)
        for x in archive
        if x is not e and x.accuracy >= e.accuracy and interval(x)[0] <= 5.0
    ]
    beaten = any(their_high < low for _, their_high in rivals)
    ahead = all(their_low >= high for their_low, _ in rivals)
    return not low <= 5.0 < high and (beaten or ahead)


@given(archives)
def test_what_is_clear_of_limit_and_front_is_never_asked_for(archive):
    alone = [
        replace(e, candidate=replace(e.candidate, latency={"board": e.latency["board"]}))
        for e in archive
    ]
    asked = set(names(alone))
    assert not [e for e in alone if clear(e, alone) and e.arch["net"] in asked]


@given(archives)
def test_predictions_outside_of_the_models_support_come_first(archive):
    supported = {e.arch["net"]: e.latency["board"].in_support for e in archive}
    found = [supported[name] for name in names(archive, *both)]
    assert found == sorted(found)


def test_the_most_accurate_of_equally_open_candidates_comes_first():
    archive = [
        evaluation("third", 0.7, board=latency(5.0, 0.5)),
        evaluation("first", 0.9, board=latency(5.0, 0.5)),
        evaluation("second", 0.8, board=latency(5.0, 0.5)),
    ]
    assert names(archive) == ["first", "second", "third"]


def test_the_more_open_of_equally_accurate_candidates_comes_first():
    archive = [
        evaluation("hardly", 0.9, board=latency(5.4, 0.5)),
        evaluation("half", 0.9, board=latency(5.01, 0.5)),
    ]
    assert names(archive)[0] == "half"


def test_behind_a_winner_that_is_sure_nothing_is_asked_for_the_limits_sake():
    archive = [
        evaluation("sure", 0.9, board=latency(3.0, 0.0, source="measured")),
        evaluation("open", 0.8, board=latency(5.0, 0.5)),
    ]
    assert names(archive) == []
    assert names([*archive, evaluation("better", 0.95, board=latency(5.0, 0.5))]) == ["better"]


def test_candidates_that_may_swap_places_on_the_front_are_asked_for_without_any_limit():
    archive = [
        evaluation("best", 0.9, board=latency(4.0, 0.5)),
        evaluation("perhaps", 0.8, board=latency(3.8, 0.5)),
        evaluation("on", 0.7, board=latency(2.0, 0.5)),
        evaluation("beaten", 0.6, board=latency(3.5, 0.5)),
    ]
    free = Limit(metric="macs", bound=1e9)
    for e in archive:
        e.costs["macs"] = 1e6
    assert names(archive, free) == ["perhaps"]


def test_a_limit_that_another_device_surely_breaks_leaves_nothing_to_decide():
    archive = [evaluation("a", 0.9, board=latency(5.0, 0.5), other=latency(9.0, 0.5))]
    assert names(archive, *both) == []


@pytest.mark.parametrize("field", ["faults", "costs"])
def test_what_cannot_win_for_other_reasons_is_not_asked_for(field):
    limits = (BOARD, Limit(metric="macs", bound=1e6))
    bad = {"faults": {"board": "OOM"}, "costs": {"macs": 2e6}}[field]
    kept = {"costs": {"macs": 1e6}, field: bad}
    archive = [
        evaluation("bad", 0.9, board=latency(5.0, 0.5), **kept),
        evaluation("good", 0.8, board=latency(5.0, 0.5), costs={"macs": 1e6}),
    ]
    assert names(archive, *limits) == ["good"]
