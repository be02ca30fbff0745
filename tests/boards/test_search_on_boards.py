"""Search in the loop: every candidate is measured on an emulated board, a power cut included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from device_agents.measuring import connection
from device_agents.measuring.measurer import DeviceMeasurer, Progress
from device_agents.measuring.profiles import PROFILES, counted
from latency_tables.arch import Arch
from latency_tables.errors import DeviceError
from latency_tables.oracle import MeasureJob
from latency_tables.ranking import kendall_tau
from latency_tables.records import Measurement
from latency_tables.store import TableStore
from pipeline.config import DeviceConfig
from pipeline.run.background import background_sources
from pipeline.run.devices import RunDevice
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation, Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.in_loop import InLoop
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit
from pipeline.search.run_search import SearchResult, make_searcher, search, search_identity
from pipeline.spaces.base import net_id
from tests.boards.networks import space
from tests.boards.test_cut_links import journalled
from tests.boards.test_faults_on_boards import once
from tests.fakes.emulated_board.boot import EmulatedBoard

pytestmark = pytest.mark.board

NAME, BATCH = "emulated", 3
SMALL = SearchConfig(population=6, parents=3, crossover=2, mutation=2, generations=1)


@dataclass
class Job:
    """A search over a small real space whose accuracy is a formula; its files outlive a process."""

    folder: Path
    board: EmulatedBoard

    def __post_init__(self) -> None:
        self.space = space()
        self.scored: Counter[Arch] = Counter()

    def score(self, arch: Arch) -> Score:
        """Larger operators are better, in early layers more so."""
        self.scored[arch] += 1
        genes = arch.genes(self.space.decisions)
        accuracy = sum(gene / (index + 2) for index, gene in enumerate(genes)) / 8
        return Score(accuracy=accuracy, loss=1.0, n_images=100, bn_policy="none")

    def run(self, listen: Callable[[Progress], None] | None = None) -> SearchResult:
        """Search to the end, or to the board's."""
        table = self.space.cost_table()
        limit = Limit(metric="macs", bound=table.mean("macs"))
        evaluator = Evaluator(
            space=self.space, cost_table=table, limits=[limit], score=self.score, supernet="w"
        )
        searcher = make_searcher(SMALL, evaluator, seed=5)
        identity = search_identity(SMALL, evaluator, seed=5, space_id=self.space.space_id)
        with (
            TableStore(self.folder / "table.sqlite") as store,
            Journal.open(self.folder / "search.jsonl", identity) as journal,
        ):
            device = RunDevice(
                DeviceConfig(name=NAME, measuring="quick"),
                self.board.device(NAME),
                space=self.space,
                store=store,
                seed=0,
            )
            device.measurer.on_progress = listen
            journals = self.folder / "boards.jsonl"
            with background_sources([device], journal=journals, on_note=print) as sources:
                loop = InLoop(sources=sources, evaluator=evaluator, journal=journal)
                return search(searcher, evaluator, journal, in_loop=loop)

    def finished(self) -> list[str]:
        """Networks in the order in which the board finished them."""
        return [record.net_id for record in journalled(self.folder / "boards.jsonl")]


@pytest.fixture(autouse=True)
def three_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile of these searches: 20 runs in each of two rounds, three networks in a batch."""
    monkeypatch.setitem(PROFILES, "quick", replace(counted(20, 2), batch_size=BATCH))


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The board is switched on only after the search gave up: a reboot is not waited for."""
    monkeypatch.setattr(connection, "AWAY_S", 0.0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every network that boards are asked to measure, in order."""
    found: list[str] = []
    measure = DeviceMeasurer.measure

    def watched(self: DeviceMeasurer, jobs: Sequence[MeasureJob]) -> list[Measurement]:
        found.extend(job.net_id for job in jobs)
        return measure(self, jobs)

    monkeypatch.setattr(DeviceMeasurer, "measure", watched)
    return found


def latencies(archive: Sequence[Evaluation]) -> dict[Arch, float]:
    """Measured medians; fails where one is missing or only predicted."""
    assert {e.latency[NAME].source for e in archive} == {"measured"}
    return {e.arch: e.latency[NAME].latency_ms for e in archive}


def test_a_search_through_a_power_cut_measures_every_candidate_once_and_ranks_them_by_cost(
    victim: EmulatedBoard, tmp_path: Path, asked: list[str]
) -> None:
    job = Job(tmp_path, victim)
    cut = once(2, victim.power_cut)

    def cut_in_the_second_batch(progress: Progress) -> None:
        if len(asked) > BATCH:
            cut(progress)

    with pytest.raises(DeviceError, match=NAME):
        job.run(cut_in_the_second_batch)
    before_cut = job.finished()
    assert len(before_cut) == BATCH
    victim.start()
    asked.clear()
    found = job.run()

    wanted = {net_id(job.space, e.arch) for e in found.archive}
    assert len(found.archive) == SMALL.n_candidates
    assert Counter(job.finished()) == Counter(wanted)
    assert not set(before_cut) & set(asked)
    assert max(job.scored.values()) == 1

    times = latencies(found.archive)
    table = job.space.cost_table()
    macs = table.column("macs", table.genes(list(times)))
    assert kendall_tau(macs, list(times.values())) > 0.6
