"""Seconds of a shifting search against those of a plain one, and against the arithmetic.

Run it with ``python -m tests.bench.shifting [--json] [--space NAME] [--pixels N] ...``. Both search
the same space with the same number of candidates, on the same images, in one process and by turns;
the plain one goes first in odd rounds and second in even ones. Each starts from the same fresh
supernet: its accuracy does not matter, its speed is that of a trained one. The time is that of
``search()``: proposing, journal, scoring, shifting, saving weights, final scores of the best.

The budget is 1.1 × (1 + 3 n_shift / (1.25 n_bn + n_val)), see docs/shifting.md. The numbers of
images are by default those of CIFAR-10 with a tenth of its images held out. ``pass`` is what one
image costs when it is learnt, in forward passes of scoring (3 by arithmetic), ``allowed`` what the
budget leaves for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.search.config import SearchConfig
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import OneByOne
from pipeline.search.journal import Journal
from pipeline.search.run_search import make_searcher, search
from pipeline.search.shifting import Overhead, Shifting
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.spaces import load_space
from pipeline.spaces.base import Space
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.shifting import Shifter
from pipeline.training.precision import Precision
from pipeline.training.threads import torch_threads

SPACES = {"nasbench_macro": ("paper", 16), "shufflenetv2": ("tiny", 28)}
"""Space → preset and pixels."""
N_BN, N_VAL, EVAL_BATCH = 1_666, 3_334, 128
LAYOUT = Precision(channels_last=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Noise: what an image shows does not change what it costs."""

    images: Tensor
    labels: Tensor


class Noise:
    """Training batches; a few that are made beforehand, as data in memory are nearly free."""

    batches_per_epoch = 8

    def __init__(self, space: Space, size: int) -> None:
        self._batches = [noise(space, size) for _ in range(self.batches_per_epoch)]

    def batch(self, number: int, /) -> Batch:
        """One of them."""
        return self._batches[number % len(self._batches)]


def noise(space: Space, n: int) -> Batch:
    """n random images with random labels."""
    images = torch.randn(n, *space.input_shape)
    return Batch(
        images=images.contiguous(memory_format=LAYOUT.memory_format),
        labels=torch.randint(space.n_classes, (n,)),
    )


def batches(space: Space, n_images: int) -> list[Batch]:
    """Batches as a run makes them: of nearly equal size, at most ``EVAL_BATCH``."""
    n = -(-n_images // EVAL_BATCH)
    sizes = [n_images // n + (i < n_images % n) for i in range(n)]
    return [noise(space, size) for size in sizes]


def run(space: Space, images: tuple[list[Batch], list[Batch]], config: SearchConfig) -> Overhead:
    """One search; ``scoring_s`` is all that was not shifting."""
    torch.manual_seed(0)
    supernet = space.supernet()
    LAYOUT.place(supernet, torch.device("cpu"))
    scorer = Scorer(space, supernet, *images)
    evaluator = Evaluator(
        space=space, cost_table=space.cost_table(), score=scorer.score, supernet="bench"
    )
    shifting = config.shifting
    searcher = make_searcher(config, evaluator, seed=0, repeat=shifting is not None)
    scoring, shifter, learnt = OneByOne(evaluator), None, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal.open(Path(folder) / "search.jsonl", {}) as journal,
    ):
        if shifting is None:
            began = time.perf_counter()
            search(searcher, evaluator, journal, scoring=scoring)
        else:
            stream = Noise(space, shifting.images_per_batch)
            shifter = Shifter(space, supernet, stream, shifting, seed=0, precision=LAYOUT)
            around = Shifting(
                scoring, evaluator, shifter, journal, shifting,
                path=Path(folder) / "shifting.safetensors", identity={},
            )  # fmt: skip
            began = time.perf_counter()
            search(searcher, evaluator, journal, scoring=around, reassess=around.reassess)
            learnt = around.n_learnt
        seconds = time.perf_counter() - began
    spent = 0.0 if shifter is None else shifter.seconds
    return Overhead(
        scoring_s=seconds - spent,
        shifting_s=spent,
        n_scored=scorer.n_scored,
        n_learnt=learnt,
        n_shift=0 if shifting is None else shifting.n_images,
        n_bn=sum(len(b.images) for b in images[0]),
        n_val=sum(len(b.images) for b in images[1]),
    )


def measure(
    name: str, pixels: int, rounds: int, population: int, n_bn: int, n_val: int
) -> dict[str, object]:
    """Pairs of a plain and a shifting search of as many candidates."""
    space = load_space(name, preset=SPACES[name][0], input_shape=(3, pixels, pixels), n_classes=10)
    images = batches(space, n_bn), batches(space, n_val)
    children = population // 2
    plain = SearchConfig(
        population=population, parents=children, crossover=children, mutation=children,
        generations=2,
    )  # fmt: skip
    shifting = plain.model_copy(update={"shifting": ShiftingConfig(keep=children)})
    ratios, passes, pairs = [], [], []
    for number in range(rounds + 1):  # the first one warms up
        order = (plain, shifting) if number % 2 else (shifting, plain)
        found = {config.shifting is not None: run(space, images, config) for config in order}
        without, with_ = found[False], found[True]
        if number:
            ratios.append((with_.scoring_s + with_.shifting_s) / without.scoring_s)
            unit = without.scoring_s / without.n_scored / (1.25 * with_.n_bn + with_.n_val)
            passes.append(with_.shifting_s / with_.n_learnt / with_.n_shift / unit)
            pairs.append({"plain": asdict(without), "shifting": asdict(with_)})
    one = Overhead(
        scoring_s=1, shifting_s=0, n_scored=1, n_learnt=1,
        n_shift=ShiftingConfig().n_images, n_bn=n_bn, n_val=n_val,
    )  # fmt: skip
    ratio = statistics.median(ratios)
    share = one.n_shift / (1.25 * n_bn + n_val)
    return {
        "space": name, "pixels": pixels, "ratio": ratio, "ratios": ratios,
        "arithmetic": one.arithmetic, "bound": one.bound, "kept": ratio <= one.bound,
        "pass": statistics.median(passes), "allowed": 3.3 + 0.1 / share, "pairs": pairs,
    }  # fmt: skip


def main() -> int:
    """Print the ratios; 1 where one is above the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--space", choices=SPACES)
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--population", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bn-images", type=int, default=N_BN)
    parser.add_argument("--validation-images", type=int, default=N_VAL)
    given = parser.parse_args()
    names = [given.space] if given.space else list(SPACES)
    with torch_threads(given.threads):
        found = [
            measure(
                name,
                given.pixels or SPACES[name][1],
                given.rounds,
                given.population,
                given.bn_images,
                given.validation_images,
            )
            for name in names
        ]
    if given.json:
        print(json.dumps(found, indent=2))
    for one in [] if given.json else found:
        print(
            f"{one['space']}, {one['pixels']} px: shifting / plain {one['ratio']:.2f} "
            f"(arithmetic {one['arithmetic']:.2f}, budget {one['bound']:.2f}); an image costs "
            f"{one['pass']:.1f} forward passes to learn (arithmetic 3, budget {one['allowed']:.1f})"
        )
    return 0 if all(one["kept"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
