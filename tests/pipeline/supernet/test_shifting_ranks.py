"""Several ranks score a search whose supernet rank 0 shifts; here they are threads."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import ByCrew, Crew, OneWorker
from pipeline.search.journal import Journal
from pipeline.search.run_search import make_searcher, search
from pipeline.search.shifting import Shifting
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.crew import RankCrew
from pipeline.supernet.shifting import Shifter
from tests.pipeline.supernet.test_crew import Team, make_scorer
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet

SHIFTING = ShiftingConfig(batches=2, images_per_batch=16, lr=0.05, keep=4)
CONFIG = SearchConfig(
    population=5, parents=3, crossover=2, mutation=1, generations=2, shifting=SHIFTING
)


def searched(space: Space, supernet: Supernet, folder: Path, crew: Crew) -> tuple[Evaluation, ...]:
    def never(arch: object) -> None:
        raise AssertionError("the evaluator scores nothing itself")

    folder.mkdir()
    evaluator = Evaluator(space=space, cost_table=space.cost_table(), score=never, supernet="toy")
    shifter = Shifter(space, supernet, ToyStream(), SHIFTING, seed=0)
    with Journal.open(folder / "search.jsonl", {}) as journal:
        shifting = Shifting(
            ByCrew(evaluator, crew), evaluator, shifter, journal, SHIFTING,
            path=folder / "shifting.safetensors", identity={},
            on_step=lambda _: crew.renew() if isinstance(crew, RankCrew) else None,
        )  # fmt: skip
        return search(
            make_searcher(CONFIG, evaluator, seed=0, repeat=True),
            evaluator, journal, scoring=shifting, reassess=shifting.reassess,
        ).archive  # fmt: skip


def test_any_number_of_ranks_shifts_the_same_to_the_last_bit(tmp_path: Path) -> None:
    space = toy_space()
    alone = toy_supernet(space)
    worker = OneWorker(make_scorer(space, alone))
    expected = searched(space, alone, tmp_path / "alone", worker)
    team = Team(space, 2)
    shifted = team.scorers[0].supernet
    found = team.run(lambda crew: searched(space, shifted, tmp_path / "team", crew))
    assert not team.errors
    assert found == expected
    files = ("search.jsonl", "shifting.safetensors")
    for name in files:
        assert (tmp_path / "team" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert team.scorers[1].asked  # the other rank scored some, with weights that it was sent
    other = team.scorers[1].supernet.state_dict()
    assert all(torch.equal(v, other[k]) for k, v in shifted.state_dict().items())
