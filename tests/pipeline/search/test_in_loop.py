"""Search in the loop: what boards measure takes the place of predictions, and survives kills."""

from __future__ import annotations

from collections import Counter

import pytest

from latency_tables.errors import DeviceError, LinkLostError, MeasurementError
from pipeline.search.config import SearchConfig
from pipeline.search.limits import Limit

SMALL = SearchConfig(
    population=20, parents=5, crossover=8, mutation=8, generations=3, measure="all"
)
LATENCY = Limit(metric="latency_ms", bound=3.0, device="board")


class FakeBoard:
    """Answers with ``factor`` × the predicted latency; remembers what it was asked, and when."""

    def __init__(self, world, make_estimate, *, factor=1.0, fails=lambda n: None):
        self.world, self.make_estimate = world, make_estimate
        self.factor, self.fails = factor, fails
        self.asked, self.refits = Counter(), []
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

    def refit(self, measured):
        """After one measurement predictions know by what factor the board is slower."""
        self.refits.append(list(measured))

        def predictions(archs):
            times = self.world.latencies_ms(archs)
            return [self.make_estimate(self.factor * t, source="predicted") for t in times]

        return predictions


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
            SearchConfig(generations=6, measure="all"),
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


# -- a budget of measurements ---------------------------------------------------------------------


def budgeted(n, **settings):
    return SMALL.model_copy(update={"measure_budget": n, **settings})


def test_while_the_budget_lasts_candidates_are_measured_then_the_model_answers(
    world, path, make_estimate
):
    board = FakeBoard(world, make_estimate, factor=1.2)
    found = world.run(
        path, budgeted(30), LATENCY, boards={"board": board}, refit={"board": board.refit}
    )
    assert sum(board.asked.values()) == len(board.asked) == 30
    sources = [e.latency["board"].source for e in found.archive]
    assert Counter(sources) == {"measured": 30, "predicted": 50}
    for e in found.archive:  # the model has learnt how slow the board is
        (truth,) = (board.factor * world.latencies_ms([e.arch])[0],)
        assert e.latency["board"].latency_ms == pytest.approx(truth)
        assert e.feasible == (truth <= 3.0)


def test_a_budget_that_ends_in_a_generation_measures_the_first_in_the_order_asked(
    world, path, make_estimate
):
    board = FakeBoard(world, make_estimate)
    found = world.run(
        path, budgeted(30), LATENCY, boards={"board": board}, refit={"board": board.refit}
    )
    second = [e for e in found.archive if e.generation == 1]
    sources = [e.latency["board"].source for e in second]
    assert sources == ["measured"] * 10 + ["predicted"] * 10
    assert [e.latency["board"].source for e in found.archive[:20]] == ["measured"] * 20


def test_models_learn_from_everything_measured_so_far_and_from_nothing_later(
    world, path, make_estimate
):
    board = FakeBoard(world, make_estimate)
    found = world.run(
        path, budgeted(30), LATENCY, boards={"board": board}, refit={"board": board.refit}
    )
    asked = [e.arch for e in found.archive]
    assert board.refits == [asked[:20], asked[:30]]


def test_without_a_budget_nothing_is_learnt_and_everything_is_measured(world, path, make_estimate):
    board = FakeBoard(world, make_estimate)
    world.run(path, SMALL, LATENCY, boards={"board": board}, refit={"board": board.refit})
    assert board.refits == []
    assert len(board.asked) == 80


def test_a_budgeted_search_killed_after_any_line_ends_with_the_same_journal_and_archive(
    make_world, tmp_path, make_estimate
):
    small = SearchConfig(
        population=6, parents=3, crossover=2, mutation=2, generations=2, measure="all",
        measure_budget=8,
    )  # fmt: skip

    def run(path):
        world = make_world()
        board = FakeBoard(world, make_estimate, factor=1.2)
        options = {"boards": {"board": board}, "refit": {"board": board.refit}, "every": 2}
        return world.run(path, small, LATENCY, **options), board

    quiet, quiet_board = run(tmp_path / "quiet")
    data = (tmp_path / "quiet").read_bytes()
    lines = data.splitlines(keepends=True)
    assert any(b'"kind":"remeasurement"' in line for line in lines)
    for n in range(len(lines) + 1):
        path = tmp_path / f"{n}.jsonl"
        path.write_bytes(b"".join(lines[:n]))
        found, board = run(path)
        assert found.archive == quiet.archive
        assert path.read_bytes() == data
        assert board.refits == quiet_board.refits
        known = sum(b'"kind":"measurement"' in line for line in lines[:n])
        assert sum(board.asked.values()) == sum(quiet_board.asked.values()) - known


def test_every_board_has_a_budget_of_its_own(make_world, path, make_estimate):
    world = make_world()
    boards = {name: FakeBoard(world, make_estimate) for name in ("board", "other")}
    limits = [Limit(metric="latency_ms", bound=3.0, device=name) for name in boards]
    evaluator = world.evaluator(*limits, latency=dict.fromkeys(boards, world.latencies))
    world.run(path, budgeted(25), *limits, evaluator=evaluator, boards=boards)
    assert [sum(board.asked.values()) for board in boards.values()] == [25, 25]


def test_a_failed_measurement_is_paid_from_the_budget_and_not_held_against_the_candidate(
    world, path, make_estimate
):
    class Moody(FakeBoard):
        def collect(self, ticket):
            fault = MeasurementError("THROTTLED", "too hot", blames="board")
            return [fault, *super().collect(ticket)[1:]]

    board = Moody(world, make_estimate)
    found = world.run(
        path, budgeted(30), LATENCY, boards={"board": board}, refit={"board": board.refit}
    )
    sources = Counter(e.latency["board"].source for e in found.archive)
    assert sources == {"measured": 28, "predicted": 52}
    assert all(e.feasible for e in found.archive)


def test_a_budget_is_refused_where_nothing_reads_it():
    with pytest.raises(ValueError, match="use refine_budget"):
        SearchConfig(measure="refine", measure_budget=10)
    with pytest.raises(ValueError, match='set measure = "all"'):
        SearchConfig(measure_budget=10)


def test_a_budget_makes_another_search_only_where_it_is_given():
    assert "measure_budget" not in SearchConfig(measure="all").lineage()
    with_budget = SearchConfig(measure="all", measure_budget=10)
    assert with_budget.lineage() != SearchConfig(measure="all").lineage()
