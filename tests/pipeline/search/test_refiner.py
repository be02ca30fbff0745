"""Active refinement: what is measured takes the place of predictions, and survives kills."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

import pytest

from latency_tables import LatencyModel
from latency_tables.errors import DeviceError, LinkLostError, MeasurementError, UsageError
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Candidate, Evaluation, Score
from pipeline.search.journal import Journal, read_journal
from pipeline.search.learning import Learning
from pipeline.search.limits import Limit
from pipeline.search.refiner import Refiner, refined
from pipeline.search.run_search import make_searcher

TINY = SearchConfig(
    population=6, parents=3, crossover=2, mutation=2, generations=3, measure="refine"
)
SMALL = SearchConfig(
    population=20, parents=5, crossover=8, mutation=8, generations=5, measure="refine"
)
LATENCY = Limit(metric="latency_ms", bound=3.0, device="board")


class SlowBoard:
    """A board 1.2 times slower than predicted; after a refit predictions know by how much."""

    def __init__(self, world, make_estimate, *, factor=1.2, fails=lambda n: None):
        self.world, self.make_estimate = world, make_estimate
        self.factor, self.fails = factor, fails
        self.asked, self.campaigns, self.refits = Counter(), [], []
        self.n_collected = 0

    def latencies_ms(self, archs):
        return [self.factor * t for t in self.world.latencies_ms(archs)]

    def submit(self, archs, *, campaign):
        self.campaigns.append((campaign, len(archs)))
        return tuple(archs)

    def collect(self, ticket):
        self.n_collected += 1
        error = self.fails(self.n_collected)
        if error is not None:
            raise error
        self.asked.update(ticket)
        return [self.make_estimate(t, spread=0.01) for t in self.latencies_ms(ticket)]

    def refit(self, measured):
        self.refits.append(dict(measured))
        predicted = self.world.latencies_ms(list(measured))
        factor = median(e.latency_ms / t for e, t in zip(measured.values(), predicted, strict=True))

        def predictions(archs):
            times = self.world.latencies_ms(archs)
            return [self.make_estimate(factor * t, source="predicted", spread=0.1) for t in times]

        return predictions

    def refiner(self, *, budget=20):
        return lambda evaluator, journal: Refiner(
            sources={"board": self},
            learning=Learning(refit={"board": self.refit}, evaluator=evaluator),
            journal=journal,
            budget=budget,
        )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "search.jsonl"


@pytest.fixture
def run(make_world, make_estimate):
    """A search on a world and a board of its own: run(path, config) → result, world, board."""

    def run(path, config=TINY, *, world=None, board=None, **options):
        world = world or make_world()
        board = board or SlowBoard(world, make_estimate)
        found = world.run(path, config, LATENCY, refiner=board.refiner(**options))
        return found, world, board

    return run


def test_measured_latencies_and_the_refitted_model_judge_the_whole_archive(run, path):
    found, _, board = run(path)
    assert board.asked
    for e in found.archive:
        known = e.latency["board"]
        assert known.source == ("measured" if e.arch in board.asked else "predicted")
        (truth,) = board.latencies_ms([e.arch])
        assert known.latency_ms == pytest.approx(truth)
        assert e.feasible == (truth <= 3.0)


@pytest.mark.parametrize("budget", [1, 7, 40])
def test_no_more_is_measured_than_the_budget_allows_and_an_eighth_of_it_at_once(run, path, budget):
    _, _, board = run(path, budget=budget)
    left = budget
    for _, n in board.campaigns:
        assert 0 < n <= math.ceil(left / 8)
        left -= n
    assert left >= 0
    assert max(board.asked.values()) == 1


def test_after_a_refit_children_come_from_parents_that_really_keep_the_limit(
    make_world, tmp_path, make_estimate
):
    kept = {}
    for name, budget in (("predicted", 0), ("refined", 20)):
        world = make_world(n=8)
        board = SlowBoard(world, make_estimate, factor=1.5)
        found = world.run(
            tmp_path / name,
            SearchConfig(generations=6),
            Limit(metric="latency_ms", bound=5.0, device="board"),
            refiner=board.refiner(budget=budget),
        )
        last = [e.arch for e in found.archive if e.generation == 6]
        kept[name] = sum(t <= 5.0 for t in board.latencies_ms(last))
    assert kept["refined"] > 2 * kept["predicted"]


def test_a_refit_knows_all_measurements_so_far_in_the_order_asked(run, path):
    _, _, board = run(path)
    assert len(board.refits) >= 2
    for earlier, later in zip(board.refits, board.refits[1:], strict=False):
        assert list(later.items())[: len(earlier)] == list(earlier.items())
        assert len(later) > len(earlier)


def test_a_search_killed_after_any_line_ends_with_the_same_journal_and_archive(run, tmp_path):
    quiet, _, quiet_board = run(tmp_path / "quiet")
    data = (tmp_path / "quiet").read_bytes()
    lines = data.splitlines(keepends=True)
    assert sum(b'"kind":"refinement"' in line for line in lines) >= 3
    for n in range(len(lines) + 1):
        path = tmp_path / f"{n}.jsonl"
        path.write_bytes(b"".join(lines[:n]))
        found, _, board = run(path)
        assert found.archive == quiet.archive
        assert path.read_bytes() == data
        assert board.refits == quiet_board.refits  # a replayed generation knows nothing of later
        known = sum(b'"kind":"measurement"' in line for line in lines[:n])
        assert sum(board.asked.values()) == sum(quiet_board.asked.values()) - known


def test_more_generations_go_on_as_if_they_had_been_planned(run, tmp_path):
    longer = TINY.model_copy(update={"generations": 5})
    whole, _, _ = run(tmp_path / "whole", longer)
    run(tmp_path / "raised", TINY)
    raised, _, _ = run(tmp_path / "raised", longer)
    assert raised.archive == whole.archive
    assert (tmp_path / "raised").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_after_a_board_died_the_same_search_goes_on_and_asks_nothing_twice(
    run, make_world, tmp_path, make_estimate, dies_at
):
    quiet, _, _ = run(tmp_path / "quiet")
    world = make_world()
    board = SlowBoard(
        world,
        make_estimate,
        fails=lambda n: LinkLostError("no sign of life") if n == dies_at else None,
    )
    with pytest.raises(DeviceError, match="no sign of life"):
        run(tmp_path / "cut", world=world, board=board)
    found, _, _ = run(tmp_path / "cut", world=world, board=board)
    assert found.archive == quiet.archive
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "quiet").read_bytes()
    assert max(board.asked.values()) == 1
    assert max(world.scored.values()) == 1


def test_the_choice_is_on_disk_before_a_board_is_asked_and_answers_before_the_searcher(
    run, make_world, path, make_estimate
):
    world = make_world()

    class Watching(SlowBoard):
        def submit(self, archs, *, campaign):
            chosen = read_journal(path).refinements
            newest = chosen[max(chosen)]["board"]
            assert list(archs) == list(newest)
            return super().submit(archs, campaign=campaign)

        def refit(self, measured):
            journalled = read_journal(path).measurements
            assert all(("search", "board", arch) in journalled for arch in measured)
            return super().refit(measured)

    _, _, board = run(path, world=world, board=Watching(world, make_estimate))
    assert board.refits


def test_a_fault_of_the_board_leaves_the_prediction_and_is_paid_from_the_budget(
    run, make_world, path, make_estimate
):
    world = make_world()

    class Moody(SlowBoard):
        def collect(self, ticket):
            fault = MeasurementError("THROTTLED", "too hot", blames="board")
            return [fault, *super().collect(ticket)[1:]]

    moody = Moody(world, make_estimate, factor=1.0)  # learning changes nothing
    found, _, board = run(path, world=world, board=moody, budget=10)
    chosen = [a for wanted in read_journal(path).refinements.values() for a in wanted["board"]]
    assert len(chosen) == len(set(chosen)) == sum(n for _, n in board.campaigns) == 5
    assert Counter(e.latency["board"].source for e in found.archive)["measured"] == 1
    assert not any(e.candidate.faults for e in found.archive)


def test_a_network_that_cannot_run_on_the_board_is_not_feasible(
    run, make_world, path, make_estimate
):
    world = make_world()

    class Small(SlowBoard):
        def collect(self, ticket):
            own = MeasurementError("OOM", "out of memory", blames="candidate")
            return [own, *super().collect(ticket)[1:]]

    found, _, board = run(path, world=world, board=Small(world, make_estimate), budget=4)
    faulty = [e for e in found.archive if e.candidate.faults]
    assert len(faulty) == len(board.campaigns)
    assert not any(e.feasible for e in faulty)


def test_every_device_has_its_own_budget_and_learns_from_itself_alone(
    make_world, path, make_estimate
):
    world = make_world()
    boards = {
        "board": SlowBoard(world, make_estimate, factor=1.2),
        "other": SlowBoard(world, make_estimate, factor=0.9),
    }
    limits = [Limit(metric="latency_ms", bound=3.0, device=name) for name in boards]
    evaluator = world.evaluator(*limits, latency=dict.fromkeys(boards, world.latencies))
    found = world.run(
        path,
        TINY,
        *limits,
        evaluator=evaluator,
        refiner=lambda evaluator, journal: Refiner(
            sources=boards,
            learning=Learning(
                refit={name: board.refit for name, board in boards.items()}, evaluator=evaluator
            ),
            journal=journal,
            budget=5,
        ),
    )
    for name, board in boards.items():
        assert 0 < sum(board.asked.values()) <= 5
        for e in found.archive:
            (truth,) = board.latencies_ms([e.arch])
            assert e.latency[name].latency_ms == pytest.approx(truth)


def test_the_real_model_learns_what_its_table_could_not_tell(make_world, path, make_estimate):
    """The last block is 1.3 times slower on the board with 5x5 kernels, of which the table holds
    none; refitted, the model predicts candidates better that nobody measured."""
    world = make_world()
    table = [arch for arch in world.everything() if arch["block5"] != "k5"][::24]

    def truth(archs):
        slow = [1.3 if arch["block5"] == "k5" else 1.0 for arch in archs]
        noise = [
            1 + 0.03 * math.sin(hash_of(arch)) for arch in archs
        ]  # of the network, not of the run
        return [math.prod(x) for x in zip(slow, noise, world.latencies_ms(archs), strict=True)]

    def hash_of(arch):
        return sum(7.0**i * gene for i, gene in enumerate(arch.genes(world.decisions)))

    def refit(measured):
        archs, times = [*table, *measured], [e.latency_ms for e in measured.values()]
        return LatencyModel.fit(world.table, archs, [*truth(table), *times]).predict

    board = SlowBoard(world, make_estimate)
    board.latencies_ms, board.refit = truth, refit
    first = refit({})
    limit = Limit(metric="latency_ms", bound=5.5, device="board")
    evaluator = world.evaluator(limit, latency={"board": first})
    found = world.run(path, SMALL, limit, evaluator=evaluator, refiner=board.refiner(budget=20))
    left = [e.arch for e in found.archive if e.arch not in board.asked and e.arch["block5"] == "k5"]
    assert len(left) >= 10

    def mape(source):
        pairs = zip(source(left), truth(left), strict=True)
        return sum(abs(e.latency_ms / t - 1) for e, t in pairs) / len(left)

    assert mape(evaluator.latency["board"]) < 0.5 * mape(first)


def test_the_summary_compares_both_models_on_networks_that_neither_had_seen(
    run, path, world, make_estimate
):
    _, _, board = run(path)
    with Journal.open(path, read_identity(path)) as journal:
        summary = refined(journal, "board", world.latencies)
    assert summary.n == sum(board.asked.values())
    assert summary.table_mape == pytest.approx(1 - 1 / 1.2)
    first = board.campaigns[0][1]  # only these were chosen before anything was learnt
    assert summary.mape == pytest.approx((1 - 1 / 1.2) * first / summary.n)
    assert f"{summary.n} networks measured" in str(summary)


def read_identity(path):
    import json

    return json.loads(path.read_text().splitlines()[0])["record"]["identity"]


def test_a_refinement_that_does_not_follow_its_generation_is_refused(run, tmp_path):
    run(tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (first, *_) = [i for i, line in enumerate(lines) if b'"kind":"refinement"' in line]
    path = tmp_path / "twice"
    path.write_bytes(b"".join([*lines[: first + 1], lines[first]]))
    with pytest.raises(Exception, match=r"refinement of generation 0 does not follow"):
        run(path)


def test_a_searcher_takes_no_archive_of_other_candidates(world):
    searcher = make_searcher(TINY, world.evaluator(LATENCY), seed=0)
    stranger = Candidate(arch=world.table.minimum("macs")[1], costs={})
    with pytest.raises(UsageError, match="in order"):
        searcher.revise([Evaluation(candidate=stranger, score=Score(accuracy=0.5))])


def test_settings_of_refinement_make_another_search_only_where_they_are_used():
    def lineage(**settings):
        return SearchConfig(**settings).lineage()

    assert lineage() == lineage(refine_budget=7) == lineage(generations=3)
    assert lineage(measure="refine") != lineage(measure="refine", refine_budget=7)
