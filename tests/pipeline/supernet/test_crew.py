"""Several ranks that score one search; here they are threads, tests/e2e has processes."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.errors import DataError, TrainingError
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import ByCrew, Crew, OneByOne, OneWorker, Scoring, Task
from pipeline.search.halving import Halving
from pipeline.search.journal import Journal, read_journal
from pipeline.search.run_search import make_searcher, search
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.crew import RankCrew, follow
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.tally import Tally
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet

CALIBRATION = [ToyStream(batch_size=8, seed=1).batch(i) for i in range(2)]
VALIDATION = [ToyStream(batch_size=4, seed=2).batch(i) for i in range(4)]
CONFIG = SearchConfig(population=7, parents=3, crossover=2, mutation=2, generations=2)
PATIENCE_S, FAILED = 60, "failed"


class Meeting:
    """What several threads share that stand for processes; a failure of one ends all."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = threading.Barrier(world)
        self.said: list[queue.Queue[str]] = [queue.Queue() for _ in range(world)]
        self.slots: list[Any] = [None] * world
        self.failure = ""


class ThreadRanks(Ranks):
    """One rank of a :class:`Meeting`; messages are JSON and bytes, as between processes."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.world = meeting, rank, meeting.world
        self.orders: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        self.orders.append(json.loads(text))
        for waiting in self.meeting.said[1:]:
            waiting.put(text)

    def hear(self) -> str:
        text = self.meeting.said[self.rank].get(timeout=PATIENCE_S)
        if text == FAILED:
            raise TrainingError(self.meeting.failure)
        return text

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self._share(json.dumps(value))]

    def first(self, data: bytes | None) -> bytes | None:
        found: bytes | None = self._share(data)[0]
        return found

    def fail(self, error: BaseException) -> None:
        self.meeting.failure = self.meeting.failure or f"rank {self.rank}: {error}"
        self.meeting.barrier.abort()
        for waiting in self.meeting.said:
            waiting.put(FAILED)

    def _share(self, value: Any) -> list[Any]:
        try:
            self.meeting.slots[self.rank] = value
            self.meeting.barrier.wait(PATIENCE_S)
            found = list(self.meeting.slots)
            self.meeting.barrier.wait(PATIENCE_S)
        except threading.BrokenBarrierError:
            raise TrainingError(self.meeting.failure) from None
        return found


class CountingScorer(Scorer):
    """Notes who was counted, and does something before the sixth count."""

    def __init__(self, *given: Any, act: Callable[[], None] | None = None, **more: Any) -> None:
        super().__init__(*given, **more)
        self.asked: list[Any] = []
        self.act, self.at = act, 6

    def tally(self, arch: Any, rung: int | None = None, before: Tally | None = None) -> Tally:
        self.asked.append((arch, rung))
        if self.act is not None and len(self.asked) == self.at:
            self.act()
        return super().tally(arch, rung, before)


def make_scorer(space: Space, supernet: Supernet, **more: Any) -> CountingScorer:
    rungs = [VALIDATION[:1], VALIDATION[1:2], VALIDATION[2:]]
    return CountingScorer(space, supernet, CALIBRATION, VALIDATION, rungs=rungs, **more)


@pytest.fixture(scope="module")
def space() -> Space:
    return toy_space()


class Team:
    """A leader's crew and the others, each following in a thread."""

    def __init__(self, space: Space, world: int, act: Callable[[], None] | None = None) -> None:
        self.space, self.act = space, act
        self.meeting = Meeting(world)
        self.ranks = [ThreadRanks(self.meeting, rank) for rank in range(world)]
        self.scorers: dict[int, CountingScorer] = {0: make_scorer(space, toy_supernet(space))}
        self.precisions: list[Precision] = []
        self.errors: list[BaseException] = []
        self.leader = RankCrew(self.ranks[0], self.scorers[0])

    def run(self, work: Callable[[Crew], Any]) -> Any:
        threads = [threading.Thread(target=self._follow, args=(ranks,)) for ranks in self.ranks[1:]]
        for thread in threads:
            thread.start()
        try:
            with self.ranks[0].together(), self.leader.working():
                return work(self.leader)
        finally:
            for thread in threads:
                thread.join(PATIENCE_S)
            assert not any(thread.is_alive() for thread in threads)

    def _follow(self, ranks: ThreadRanks) -> None:
        def make(layout: dict[str, Any], precision: Precision) -> Scorer:
            assert layout == {}
            self.precisions.append(precision)
            weights = toy_supernet(self.space, seed=ranks.rank)  # others than rank 0 has
            self.scorers[ranks.rank] = make_scorer(self.space, weights, act=self.act)
            return self.scorers[ranks.rank]

        torch.set_num_threads(1)
        try:
            with ranks.together():
                follow(ranks, make)
        except Exception as error:
            self.errors.append(error)


def searched(
    space: Space, path: Path, scoring: Callable[[Evaluator, Journal], Scoring]
) -> tuple[Evaluation, ...]:
    def never(arch: Any) -> Any:
        raise AssertionError("the evaluator scores nothing itself")

    score = make_scorer(space, toy_supernet(space)).score if scoring is one_by_one else never
    evaluator = Evaluator(space=space, cost_table=space.cost_table(), score=score)
    searcher = make_searcher(CONFIG, evaluator, seed=0)
    with Journal.open(path, {}) as journal:
        return search(searcher, evaluator, journal, scoring=scoring(evaluator, journal)).archive


def one_by_one(evaluator: Evaluator, journal: Journal) -> Scoring:
    return OneByOne(evaluator)


def by(team: Crew, halving: bool) -> Callable[[Evaluator, Journal], Scoring]:
    if halving:
        return lambda evaluator, journal: Halving(evaluator, team, journal, n_rungs=3)
    return lambda evaluator, _: ByCrew(evaluator, team)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("halving", [False, True])
def test_any_number_of_ranks_finds_the_same_to_the_last_bit(
    space: Space, tmp_path: Path, world: int, halving: bool
) -> None:
    alone = OneWorker(make_scorer(space, toy_supernet(space)))
    expected = searched(space, tmp_path / "alone", by(alone, halving))
    if not halving:
        assert searched(space, tmp_path / "plain", one_by_one) == expected
    team = Team(space, world)
    found = team.run(lambda all_: searched(space, tmp_path / "team", by(all_, halving)))
    assert found == expected
    kept = read_journal(tmp_path / "alone"), read_journal(tmp_path / "team")
    assert kept[0].scores == kept[1].scores
    assert kept[0].rungs == kept[1].rungs
    if not halving:
        assert (tmp_path / "alone").read_bytes() == (tmp_path / "team").read_bytes()


def test_the_ranks_share_the_work_and_no_candidate_is_scored_by_two(
    space: Space, tmp_path: Path
) -> None:
    team = Team(space, 2)
    found = team.run(lambda all_: searched(space, tmp_path / "team", by(all_, False)))
    shares = [team.scorers[rank].asked for rank in (0, 1)]
    assert len(found) == 21 == sum(map(len, shares)) == len({*shares[0], *shares[1]})
    assert abs(len(shares[0]) - len(shares[1])) <= CONFIG.generations + 1
    leader = team.scorers[0]
    assert leader.n_scored == 21
    assert leader.n_images == 21 * (16 + 16)
    assert leader.n_calibration_images == 21 * 16
    assert leader.seconds > 0


def test_a_candidate_stays_with_its_rank_so_its_statistics_are_calibrated_once(
    space: Space, tmp_path: Path
) -> None:
    team = Team(space, 2)
    team.run(lambda all_: searched(space, tmp_path / "team", by(all_, True)))
    first, second = ({arch for arch, _ in team.scorers[rank].asked} for rank in (0, 1))
    assert not first & second
    assert team.scorers[0].n_calibration_images == 21 * 16
    assert not team.scorers[0]._statistics
    assert not team.scorers[1]._statistics


def test_few_candidates_are_at_work_at_a_time(space: Space) -> None:
    rng = np.random.default_rng(0)
    tasks = [Task(arch=space.sample(rng)) for _ in range(9)]
    team = Team(space, 2)

    def work(all_: Crew) -> list[int]:
        begun = []
        for place, _ in all_.tallies(tasks):
            begun.append(place)
            if place == 0:  # the first four are done, nobody has begun the fifth
                assert sum(len(s.asked) for s in team.scorers.values()) == 4
        return begun

    assert team.run(work) == list(range(9))
    orders = [order for order in team.ranks[0].orders if order["order"] == "count"]
    assert [list(map(len, order["tasks"])) for order in orders] == [[2, 2], [2, 2], [1, 0]]


def test_new_weights_reach_all_ranks_when_they_are_told(space: Space) -> None:
    rng = np.random.default_rng(0)
    tasks = [Task(arch=space.sample(rng)) for _ in range(2)]
    team = Team(space, 2)

    def work(all_: Crew) -> tuple[Any, Any]:
        before = dict(all_.tallies(tasks))
        with torch.no_grad():
            for parameter in team.scorers[0].supernet.parameters():
                parameter.mul_(1.5 + torch.linspace(0, 1, parameter.numel()).view_as(parameter))
        team.leader.renew()
        return before, dict(all_.tallies(tasks))

    before, after = team.run(work)
    fresh = make_scorer(space, team.scorers[0].supernet)
    assert after == {place: fresh.tally(task.arch) for place, task in enumerate(tasks)}
    assert before[1] != after[1]


def test_all_ranks_score_in_the_format_of_rank_0(space: Space) -> None:
    team = Team(space, 2)
    team.scorers[0].precision = Precision(dtype="bf16")
    team.run(lambda all_: None)
    assert team.precisions == [Precision(dtype="bf16")]


def test_a_rank_that_fails_ends_all_and_the_journal_goes_on_from_there(
    space: Space, tmp_path: Path
) -> None:
    def fail() -> None:
        raise DataError("no images left")

    path, plain = tmp_path / "team", tmp_path / "plain"
    expected = searched(space, plain, one_by_one)
    team = Team(space, 2, act=fail)
    with pytest.raises(TrainingError, match="rank 1: no images left"):
        team.run(lambda all_: searched(space, path, by(all_, False)))
    assert [type(error) for error in team.errors] == [DataError]
    # rank 1 fails at its sixth candidate: one generation and a chunk are safe
    assert plain.read_bytes().startswith(path.read_bytes())
    assert sum(map(len, read_journal(path).scores)) == 7 + 4
    assert searched(space, path, one_by_one) == expected
    assert path.read_bytes() == plain.read_bytes()


def test_what_stops_rank_0_stops_the_others(space: Space) -> None:
    team = Team(space, 3)

    def work(all_: Crew) -> None:
        raise DataError("the table is gone")

    with pytest.raises(DataError, match="the table is gone"):
        team.run(work)
    assert {str(error) for error in team.errors} == {"rank 0: the table is gone"}
