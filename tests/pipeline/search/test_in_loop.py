"""Search in the loop: what boards measure takes the place of predictions, and survives kills."""

from __future__ import annotations

from collections import Counter

import pytest

from latency_tables.errors import DeviceError, LinkLostError, MeasurementError
from pipeline.search.config import SearchConfig
from pipeline.search.limits import Limit

SMALL = SearchConfig(population=20, parents=5, crossover=8, mutation=8, generations=3)
LATENCY = Limit(metric="latency_ms", bound=3.0, device="board")


class FakeBoard:
    """Answers with ``factor`` × the predicted latency; remembers what it was asked, and when."""

    def __init__(self, world, make_estimate, *, factor=1.0, fails=lambda n: None):
        self.world, self.make_estimate = world, make_estimate
        self.factor, self.fails = factor, fails
        self.asked = Counter()
        self.n_collected = 0
        self.scored_when_submitted = []

    def submit(self, archs, *, campaign):
        self.scored_when_submitted.append(sum(self.world.scored.values()))
        return campaign, tuple(archs)

    def collect(self, ticket):
        self.n_collected += 1
        error = self.fails(self.n_collected)
        if error is not None:
            raise error
        _, archs = ticket
        self.asked.update(archs)
        return [self.make_estimate(self.factor * t) for t in self.world.latencies_ms(archs)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "search.jsonl"


def test_every_candidate_is_measured_and_judged_by_what_was_measured(world, path, make_estimate):
    board = FakeBoard(world, make_estimate, factor=1.5)
    found = world.run(path, SMALL, LATENCY, boards={"board": board})
    assert set(board.asked) == {e.arch for e in found.archive}
    for evaluation in found.archive:
        measured = evaluation.latency["board"]
        assert measured.source == "measured"
        assert evaluation.feasible == (measured.latency_ms <= 3.0)
    assert any(not e.feasible for e in found.archive)


def test_boards_get_a_generation_before_the_host_scores_it(world, path, make_estimate):
    board = FakeBoard(world, make_estimate)
    world.run(path, SMALL, LATENCY, boards={"board": board})
    assert board.scored_when_submitted == [0, 20, 40, 60]


def test_the_searcher_learns_from_measurements(make_world, tmp_path, make_estimate):
    """With a board 1.5 times slower than predicted, children come from parents that really keep
    the limit, so later generations hold more such candidates than a search by predictions."""
    kept = {}
    for name, boards in (("predicted", False), ("measured", True)):
        world = make_world(n=8)
        board = FakeBoard(world, make_estimate, factor=1.5)
        found = world.run(
            tmp_path / name,
            SearchConfig(generations=6),
            Limit(metric="latency_ms", bound=4.0, device="board"),
            boards={"board": board} if boards else None,
        )
        last = [e.arch for e in found.archive if e.generation == 6]
        kept[name] = sum(1.5 * t <= 4.0 for t in world.latencies_ms(last))
    assert kept["measured"] > 2 * kept["predicted"]


@pytest.mark.parametrize("dies_at", [1, 2, 4])
def test_after_a_board_died_the_same_search_goes_on_and_asks_nothing_twice(
    make_world, tmp_path, make_estimate, dies_at
):
    quiet_world = make_world()
    quiet = quiet_world.run(
        tmp_path / "quiet", SMALL, LATENCY, boards={"board": FakeBoard(quiet_world, make_estimate)}
    )
    world = make_world()

    def fails(n):
        return LinkLostError("no sign of life") if n == dies_at else None

    board = FakeBoard(world, make_estimate, fails=fails)
    with pytest.raises(DeviceError, match="no sign of life"):
        world.run(tmp_path / "cut", SMALL, LATENCY, boards={"board": board})
    found = world.run(tmp_path / "cut", SMALL, LATENCY, boards={"board": board})
    assert found.archive == quiet.archive
    assert max(board.asked.values()) == 1
    assert max(world.scored.values()) == 1


def test_a_fault_of_the_board_leaves_the_prediction(world, path, make_estimate):
    class Moody(FakeBoard):
        def collect(self, ticket):
            fault = MeasurementError("THROTTLED", "too hot", blames="board")
            return [fault, *super().collect(ticket)[1:]]

    found = world.run(path, SMALL, LATENCY, boards={"board": Moody(world, make_estimate)})
    sources = [e.latency["board"].source for e in found.archive]
    assert Counter(sources)["predicted"] == 4  # the first of every generation
    assert not any(e.candidate.faults for e in found.archive)


def test_a_network_that_cannot_run_on_the_board_is_not_feasible(world, path, make_estimate):
    class Small(FakeBoard):
        def collect(self, ticket):
            own = MeasurementError("OOM", "out of memory", blames="candidate")
            return [own, *super().collect(ticket)[1:]]

    found = world.run(path, SMALL, LATENCY, boards={"board": Small(world, make_estimate)})
    assert [e.feasible for e in found.archive if e.candidate.faults] == [False] * 4
