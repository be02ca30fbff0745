import json
from collections import Counter

import pytest

from latency_tables.arch import Arch
from latency_tables.errors import LimitError, MeasurementError, MissingLatencyError
from pipeline.search.evaluation import Candidate, Evaluation, Score
from pipeline.search.front import choose_winner, pareto_front
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit
from pipeline.search.measuring import LiveMeasurer

LIMIT = Limit(metric="latency_ms", bound=5.0, device="board")


def arch(name):
    return Arch({"block": name})


def names(points):
    return [str(p.arch["block"]) for p in points]


@pytest.fixture
def evaluation(make_estimate):
    def make(name, accuracy, latency_ms=None, *, macs=1e6, violation=0.0):
        latency = {}
        if latency_ms is not None:
            latency = {"board": make_estimate(latency_ms, source="predicted")}
        return Evaluation(
            candidate=Candidate(
                arch=arch(name), costs={"macs": macs}, latency=latency, violation=violation
            ),
            score=Score(accuracy=accuracy),
        )

    return make


class Board:
    """Measures what it is told, and counts; errors are given once per entry of a list."""

    def __init__(self, make_estimate, latencies):
        self.make_estimate, self.latencies = make_estimate, latencies
        self.asked = Counter()

    def __call__(self, archs):
        return [self.answer(str(a["block"])) for a in archs]

    def answer(self, name):
        value = self.latencies[name]
        if isinstance(value, list):
            value = value[min(self.asked[name], len(value) - 1)]
        self.asked[name] += 1
        return value if isinstance(value, Exception) else self.make_estimate(value)


@pytest.fixture
def board(make_estimate):
    return lambda **latencies: Board(make_estimate, latencies)


@pytest.fixture
def choose(journal_path):
    def choose(evaluations, board, *limits, **options):
        with Journal.open(journal_path, {}) as journal:
            measurer = LiveMeasurer(sources={"board": board} if board else {}, journal=journal)
            return choose_winner(evaluations, limits, measurer, **options)

    return choose


def board_fault(blames="board"):
    return MeasurementError("THROTTLED", "cores slowed down", blames=blames)


def test_the_front_holds_what_nothing_beats_in_accuracy_and_latency(evaluation):
    points = {"A": (1, 5), "B": (2, 3), "C": (4, 1), "D": (3, 4), "E": (5, 5)}  # both minimised
    archive = [evaluation(name, -x, y) for name, (x, y) in points.items()]
    assert names(pareto_front(archive)) == ["A", "B", "C"]


def test_an_infeasible_candidate_is_not_on_the_front(evaluation):
    archive = [evaluation("a", 0.9, 1.0, violation=0.1), evaluation("b", 0.5, 2.0)]
    assert names(pareto_front(archive)) == ["b"]


def test_without_devices_the_front_trades_accuracy_against_macs(evaluation):
    archive = [
        evaluation(name, accuracy, macs=macs)
        for name, accuracy, macs in (("a", 0.9, 3e6), ("b", 0.8, 4e6), ("c", 0.7, 1e6))
    ]
    assert names(pareto_front(archive)) == ["a", "c"]


def test_the_winner_is_the_most_accurate_subnet_that_keeps_the_limit_as_measured(
    evaluation, board, choose
):
    archive = [evaluation("a", 0.9, 4.9), evaluation("b", 0.8, 4.0), evaluation("c", 0.7, 3.0)]
    front = choose(archive, board(a=5.1, b=4.2, c=3.1), LIMIT)
    assert names([front.winner]) == ["b"]
    assert [p.verdict for p in front.points] == ["violates", "keeps", "keeps"]
    assert front.points[0].reasons == ("5.1 ms measured, limit 5 ms on board",)


def test_the_faster_of_two_equally_accurate_subnets_wins(evaluation, board, choose):
    archive = [evaluation("a", 0.9, 3.0), evaluation("b", 0.8, 3.9), evaluation("c", 0.8, 4.0)]
    front = choose(archive, board(a=5.5, b=4.5, c=4.0), LIMIT)
    assert names([front.winner]) == ["c"]


def test_where_the_front_fails_further_candidates_are_measured(evaluation, board, choose):
    archive = [
        evaluation("a", 0.9, 4.0), evaluation("b", 0.8, 3.9), evaluation("c", 0.7, 4.2),
        evaluation("d", 0.6, 4.1),
    ]  # fmt: skip
    front = choose(archive, board(a=5.5, b=5.4, c=5.2, d=4.8), LIMIT, front_size=2, extra=2)
    assert names([front.winner]) == ["d"]
    assert [(str(p.arch["block"]), p.on_front) for p in front.points] == [
        ("a", True), ("b", True), ("c", False), ("d", False),
    ]  # fmt: skip


def test_a_more_accurate_candidate_beside_the_front_gets_its_chance(evaluation, board, choose):
    # b is predicted slower and less accurate than a; a fails, c keeps, b is better than c
    archive = [evaluation("a", 0.9, 3.0), evaluation("b", 0.85, 3.5), evaluation("c", 0.5, 1.0)]
    front = choose(archive, board(a=5.2, b=3.4, c=1.0), LIMIT)
    assert names([front.winner]) == ["b"]


def test_predictions_are_corrected_by_what_was_measured(evaluation, board, choose):
    archive = [evaluation("a", 0.9, 4.0), evaluation("b", 0.8, 3.0), evaluation("c", 0.7, 2.4)]
    measured = board(a=8.0, c=4.7)  # twice as slow as predicted: b cannot keep the limit
    front = choose(archive, measured, LIMIT, front_size=1, extra=1)
    assert names([front.winner]) == ["c"]


def test_nothing_is_measured_that_cannot_win(evaluation, board, choose):
    archive = [evaluation("a", 0.9, 4.0), evaluation("b", 0.8, 4.5), evaluation("c", 0.85, 4.8)]
    measured = board(a=4.0)
    choose(archive, measured, LIMIT)
    assert measured.asked == {"a": 1}


def test_no_more_candidates_are_measured_than_allowed(evaluation, board, choose):
    archive = [evaluation(f"n{i}", 0.9 - i / 100, 4.0 + i / 100) for i in range(50)]
    measured = board(**{f"n{i}": 6.0 for i in range(50)})
    with pytest.raises(LimitError, match="none of the 10 subnets that were measured"):
        choose(archive, measured, LIMIT, front_size=4, extra=9)
    assert measured.asked.total() == 10  # the front has a single point


def test_a_limit_that_nothing_keeps_names_the_closest_measurement(evaluation, board, choose):
    archive = [evaluation("a", 0.9, 4.0), evaluation("b", 0.8, 3.0)]
    with pytest.raises(LimitError, match=r"the closest: 5\.3 ms measured, limit 5 ms on board"):
        choose(archive, board(a=7.0, b=5.3), LIMIT)


def test_a_fault_of_the_board_is_measured_again(evaluation, board, choose):
    archive = [evaluation("a", 0.9, 4.0), evaluation("b", 0.8, 3.0)]
    measured = board(a=[board_fault(), 4.1], b=3.1)
    front = choose(archive, measured, LIMIT)
    assert names([front.winner]) == ["a"]
    assert measured.asked == {"a": 2, "b": 1}


def test_progress_counts_answers_and_not_faults(evaluation, board, journal_path):
    archive, steps = [evaluation("a", 0.9, 4.0), evaluation("b", 0.8, 3.0)], []
    with Journal.open(journal_path, {}) as journal:
        LiveMeasurer(
            sources={"board": board(a=[board_fault(), 4.1], b=3.1)},
            journal=journal,
            on_progress=lambda *step: steps.append(step),
        ).measure([e.arch for e in archive])
    assert steps == [("board", 0, 2), ("board", 1, 2), ("board", 1, 2), ("board", 2, 2)]


def test_a_subnet_that_the_board_failed_to_measure_is_neither_winner_nor_guilty(
    evaluation, board, choose
):
    archive = [evaluation("a", 0.9, 4.0), evaluation("b", 0.8, 3.0)]
    front = choose(archive, board(a=board_fault(), b=3.1), LIMIT)
    assert names([front.winner]) == ["b"]
    assert [p.verdict for p in front.points] == ["unmeasured", "keeps"]


def test_a_board_that_measures_nothing_is_blamed_and_asked_again_next_time(
    evaluation, board, choose
):
    archive = [evaluation("a", 0.9, 4.0)]
    with pytest.raises(MeasurementError, match="could not be measured") as raised:
        choose(archive, board(a=board_fault()), LIMIT)
    assert (raised.value.blames, raised.value.retryable) == ("board", True)
    assert names([choose(archive, board(a=4.5), LIMIT).winner]) == ["a"]


def test_a_subnet_that_crashes_the_board_cannot_win(evaluation, board, choose):
    archive = [evaluation("a", 0.9, 4.0), evaluation("b", 0.8, 3.0)]
    measured = board(a=board_fault(blames="candidate"), b=3.0)
    front = choose(archive, measured, LIMIT)
    assert names([front.winner]) == ["b"]
    assert front.points[0].verdict == "failed"
    assert measured.asked["a"] == 1


def test_what_was_measured_before_a_kill_is_not_measured_again(
    evaluation, board, choose, journal_path
):
    archive = [evaluation("a", 0.9, 4.8), evaluation("b", 0.8, 4.0), evaluation("c", 0.7, 3.0)]
    whole = choose(archive, board(a=5.1, b=4.2, c=3.1), LIMIT)
    lines = journal_path.read_bytes().splitlines(keepends=True)
    for n in range(1, len(lines) + 1):
        journal_path.write_bytes(b"".join(lines[:n]))
        measured = board(a=5.1, b=4.2, c=3.1)
        assert choose(archive, measured, LIMIT) == whole
        assert measured.asked.total() == 3 - (n - 1)
        assert journal_path.read_bytes() == b"".join(lines)


def test_a_limit_of_a_device_that_is_not_measured_is_never_kept(evaluation, choose):
    with pytest.raises(MissingLatencyError, match="nothing measures on 'board'"):
        choose([evaluation("a", 0.9, 4.0)], None, LIMIT)


def test_without_devices_the_most_accurate_feasible_subnet_wins(evaluation, choose):
    archive = [evaluation("a", 0.9, macs=3e6), evaluation("b", 0.8, macs=1e6)]
    front = choose(archive, None, Limit(metric="macs", bound=4e6))
    assert names([front.winner]) == ["a"]
    assert front.objectives == ("accuracy", "macs")


def test_a_measured_interval_that_leaves_the_limit_open_is_marked(evaluation, board, choose):
    front = choose([evaluation("a", 0.9, 4.0)], board(a=4.8), LIMIT)
    assert front.winner.straddles == ("board",)


def test_the_front_file_shows_predicted_and_measured_side_by_side(
    evaluation, board, choose, tmp_path
):
    archive = [evaluation("a", 0.9, 4.9), evaluation("b", 0.8, 4.0)]
    choose(archive, board(a=5.1, b=4.2), LIMIT).write(tmp_path / "front.json")
    data = json.loads((tmp_path / "front.json").read_text())
    winner = data["points"][data["winner"]]
    assert data["schema"] == 1
    assert data["limits"][0]["bound"] == 5.0
    assert winner["arch"] == {"block": "b"}
    assert winner["predicted"]["board"]["latency_ms"] == 4.0
    assert winner["measured"]["board"]["latency_ms"] == 4.2
    assert winner["verdict"] == "keeps"
