"""The front is measured again every few generations, and the search goes by what it hears."""

from __future__ import annotations

from collections import Counter

import pytest

from latency_tables.errors import DeviceError, LinkLostError, MeasurementError
from pipeline.search.config import SearchConfig
from pipeline.search.front import pareto_front
from pipeline.search.journal import read_journal
from pipeline.search.limits import Limit

SMALL = SearchConfig(population=12, parents=4, crossover=4, mutation=4, generations=5)
LATENCY = Limit(metric="latency_ms", bound=3.0, device="board")


class AgeingBoard:
    """A board that gets slower: ``factors`` holds one for each time it is asked."""

    def __init__(self, world, make_estimate, *factors, fails=lambda n: None):
        self.world, self.make_estimate = world, make_estimate
        self.factors, self.fails = factors, fails
        self.campaigns, self.answered, self.refits = [], [], []

    def submit(self, archs, *, campaign):
        self.campaigns.append((campaign, list(archs)))
        return tuple(archs)

    def collect(self, archs):
        n = len(self.answered)
        error = self.fails(n + 1)
        self.answered.append(list(archs))
        if error is not None:
            raise error
        factor = self.factors[min(n, len(self.factors) - 1)]
        return [self.make_estimate(factor * t) for t in self.world.latencies_ms(archs)]

    def refit(self, measured):
        self.refits.append({arch: e.latency_ms for arch, e in measured.items()})
        last = list(measured.items())[-1]
        factor = last[1].latency_ms / self.world.latencies_ms([last[0]])[0]

        def predictions(archs):
            times = self.world.latencies_ms(archs)
            return [self.make_estimate(factor * t, source="predicted") for t in times]

        return predictions


@pytest.fixture
def path(tmp_path):
    return tmp_path / "search.jsonl"


@pytest.fixture
def run(make_world, make_estimate):
    """A search whose front is measured every second generation: → result, board."""

    def run(path, *factors, config=SMALL, board=None, world=None, every=2, **options):
        world = world or make_world()
        board = board or AgeingBoard(world, make_estimate, *(factors or (1.0,)), **options)
        found = world.run(
            path, config, LATENCY, boards={"board": board}, refit={"board": board.refit},
            every=every,
        )  # fmt: skip
        return found, board

    return run


def test_the_front_is_measured_after_every_second_generation(run, path):
    _, board = run(path)
    assert [campaign for campaign, _ in board.campaigns] == [
        "front after generation 1", "front after generation 3", "front after generation 5",
    ]  # fmt: skip
    assert all(0 < len(archs) <= 10 for _, archs in board.campaigns)


def test_what_is_measured_is_the_front_of_that_time(run, path):
    told, board = run(path, config=SMALL.model_copy(update={"generations": 1}))
    assert board.campaigns[0][1] == [e.arch for e in pareto_front(told.archive)][:10]


def test_points_that_stay_on_the_front_are_measured_again_and_the_newest_answer_counts(run, path):
    found, board = run(path, 1.0, 1.1, 1.2)
    times = Counter(arch for _, archs in board.campaigns for arch in archs)
    assert max(times.values()) > 1
    factors = {}
    for factor, (_, archs) in zip((1.0, 1.1, 1.2), board.campaigns, strict=True):
        factors.update(dict.fromkeys(archs, factor))
    for e in found.archive:
        known = e.latency["board"]
        assert known.source == ("measured" if e.arch in factors else "predicted")
        if e.arch in factors:
            (expected,) = (factors[e.arch] * t for t in board.world.latencies_ms([e.arch]))
            assert known.latency_ms == pytest.approx(expected)


def test_a_board_that_became_slower_takes_the_front_out_of_the_limit(run, path):
    found, board = run(path, 1.5)
    measured = {a for _, archs in board.campaigns for a in archs}
    assert any(e.arch in measured and not e.feasible for e in found.archive)
    for e in found.archive:
        (truth,) = (1.5 * t for t in board.world.latencies_ms([e.arch]))
        assert e.feasible == (truth <= 3.0)


def test_a_search_killed_after_any_line_ends_with_the_same_journal_and_archive(run, tmp_path):
    factors = (1.0, 1.05, 1.1)
    quiet, quiet_board = run(tmp_path / "quiet", *factors)
    data = (tmp_path / "quiet").read_bytes()
    lines = data.splitlines(keepends=True)
    for n in range(0, len(lines) + 1):
        path = tmp_path / f"{n}.jsonl"
        path.write_bytes(b"".join(lines[:n]))
        asked = sum(b'"kind":"remeasurement"' in line for line in lines[:n])
        answered = sum(b'"kind":"measurement"' in line for line in lines[:n])
        whole = sum(len(archs) for _, archs in quiet_board.campaigns[:asked]) == answered
        left = factors[asked if whole else asked - 1 :] or factors[-1:]
        found, board = run(path, *left)  # the board's next answers are those it had to give
        assert found.archive == quiet.archive
        assert path.read_bytes() == data
        assert board.refits == quiet_board.refits  # a replayed generation knows nothing of later


def test_more_generations_go_on_as_if_they_had_been_planned(run, tmp_path):
    longer = SMALL.model_copy(update={"generations": 7})
    whole, _ = run(tmp_path / "whole", config=longer)
    run(tmp_path / "raised")
    raised, _ = run(tmp_path / "raised", config=longer)
    assert raised.archive == whole.archive
    assert (tmp_path / "raised").read_bytes() == (tmp_path / "whole").read_bytes()


def test_after_a_board_died_the_same_search_goes_on_and_asks_nothing_twice(
    run, make_world, tmp_path, make_estimate
):
    quiet, quiet_board = run(tmp_path / "quiet")
    world = make_world()
    board = AgeingBoard(
        world,
        make_estimate,
        1.0,
        fails=lambda n: LinkLostError("no sign of life") if n == 2 else None,
    )
    with pytest.raises(DeviceError, match="no sign of life"):
        run(tmp_path / "cut", board=board, world=world)
    found, _ = run(tmp_path / "cut", board=board, world=world)
    assert found.archive == quiet.archive
    assert [a for n, a in enumerate(board.answered) if n != 1] == quiet_board.answered


def test_a_fault_of_the_board_leaves_what_was_known(run, make_world, path, make_estimate):
    class Moody(AgeingBoard):
        def collect(self, archs):
            fault = MeasurementError("THROTTLED", "too hot", blames="board")
            return [fault, *super().collect(archs)[1:]]

    world = make_world()
    found, board = run(path, board=Moody(world, make_estimate, 1.0), world=world)
    silent = board.campaigns[0][1][0]
    (e,) = [e for e in found.archive if e.arch == silent]
    heard = [a for _, archs in board.campaigns for a in archs[1:]]
    assert e.latency["board"].source == ("measured" if silent in heard else "predicted")
    assert not any(e.candidate.faults for e in found.archive)
    assert all(e.feasible for e in found.archive)


def test_the_choice_is_on_disk_before_a_board_is_asked(run, make_world, path, make_estimate):
    class Watching(AgeingBoard):
        def submit(self, archs, *, campaign):
            chosen = read_journal(path).remeasurements
            assert list(archs) == chosen[max(chosen)]
            return super().submit(archs, campaign=campaign)

    world = make_world()
    _, board = run(path, board=Watching(world, make_estimate, 1.0), world=world)
    assert board.campaigns


def test_a_remeasurement_that_does_not_follow_its_generation_is_refused(run, tmp_path):
    run(tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (first, *_) = [i for i, line in enumerate(lines) if b'"kind":"remeasurement"' in line]
    path = tmp_path / "twice"
    path.write_bytes(b"".join([*lines[: first + 1], lines[first]]))
    with pytest.raises(Exception, match=r"remeasurement of generation 1 does not follow"):
        run(path)
