"""Run as a program: search a toy supernet, shift it, and die by SIGKILL at a given moment.

usage: shifted_run.py FOLDER MODE MOMENT COUNT, where MOMENT is

    learn       while the COUNT-th candidate of this process is learnt, its score journalled
    score       before the COUNT-th candidate of this process is scored
    save        while the COUNT-th state of this process is written, half of it on the disk
    saved       after the COUNT-th state was written
    never       not at all
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from pipeline.search.config import SearchConfig
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import OneByOne
from pipeline.search.journal import Journal
from pipeline.search.run_search import make_searcher, search
from pipeline.search.shifting import Shifting
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.supernet import shifting as torch_part
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.shifting import Shifter
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet


class Death:
    """Counts calls of one moment, and kills the process at one of them."""

    def __init__(self, moment: str, count: str) -> None:
        self.moment, self.left = moment, int(count)

    def __call__(self, moment: str) -> bool:
        """Whether this call is the one."""
        self.left -= moment == self.moment
        return moment == self.moment and self.left == 0

    def at(self, moment: str) -> None:
        """Die, if this call is the one."""
        if self(moment):
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, mode: Any, moment: str, count: str) -> None:
    """Search until the end, or until death."""
    torch.set_num_threads(1)
    death, path = Death(moment, count), Path(folder)
    write = torch_part.write_bytes

    def dying_write(target: Path, data: bytes) -> None:
        if death("save"):
            target.with_name(f".{target.name}.x.part").write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(target, data)
        death.at("saved")

    torch_part.write_bytes = dying_write
    space = toy_space()
    supernet = toy_supernet(space)
    scorer = Scorer(space, supernet, [ToyStream(seed=1).batch(0)], [ToyStream(seed=2).batch(0)])

    def score(arch: Any) -> Any:
        death.at("score")
        return scorer.score(arch)

    config = ShiftingConfig(mode=mode, batches=2, images_per_batch=16, lr=0.05, keep=4)
    settings = SearchConfig(
        population=4, parents=3, crossover=2, mutation=1, generations=3, shifting=config
    )
    evaluator = Evaluator(space=space, cost_table=space.cost_table(), score=score, supernet="toy")
    searcher = make_searcher(settings, evaluator, seed=0, repeat=True)
    shifter = Shifter(space, supernet, ToyStream(), config, seed=0)
    learn = Shifter.learn

    def dying_learn(self: Shifter, arch: Any, first: int) -> None:
        learn(self, arch, first)
        death.at("learn")

    Shifter.learn = dying_learn  # type: ignore[method-assign]
    with Journal.open(path / "search.jsonl", {}) as journal:
        around = Shifting(
            OneByOne(evaluator), evaluator, shifter, journal, config,
            path=path / "shifting.safetensors", identity={},
        )  # fmt: skip
        search(searcher, evaluator, journal, scoring=around, reassess=around.reassess)
    shifter.write_supernet(path / "shifted.safetensors", {})


if __name__ == "__main__":
    main(*sys.argv[1:])
