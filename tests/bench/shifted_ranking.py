"""What Supernet Shifting does to the order of subnets, and to what a search finds.

Run it with ``python -m tests.bench.shifted_ranking`` and the options of :mod:`tests.bench.ranking`,
over the same ``--out``: supernets that were trained there are used again. Each of them is searched
twice with SPOS's evolution under a limit on MACs (60 % of all subnets keep it), once with its
weights as they are, once shifting them (the paper's settings: 20 generations of 50, 20 batches of
32 images per candidate, one step of 1e-4 per generation). Reported are

* the true accuracy of the winner, and what it lacks to the best subnet within the limit;
* tau over the random subnets of :mod:`tests.bench.ranking`, with weights before and after;
* the paper's measures (section 4.3) on ten good subnets, the plain search's best, and twenty random
  ones within the limit: *global*, how many of the ten are among the ten best-scored of the thirty,
  and *local*, tau among the ten; "truly good" counts how many of the ten beat all twenty in truth.

Winners are chosen on images of their own, not on those that tau is measured with. For the paper's
Table 6 (short against full training) run both files again with two thirds of ``--epochs`` and
another ``--out``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latency_tables.arch import Arch
from latency_tables.files import write_json
from latency_tables.ranking import in_top, kendall_tau
from pipeline.data.batches import TrainStream
from pipeline.randomness import numpy_generator
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import OneByOne
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit
from pipeline.search.operators import all_genes, sizes_of
from pipeline.search.run_search import make_searcher, search
from pipeline.search.shifting import Shifting
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.shifting import Shifter
from pipeline.supernet.weights import load_supernet
from pipeline.training.threads import torch_threads
from tests.bench.ranking import PLAIN, Study, arguments_of_study, scaled

LIMIT, N_GOOD, N_RANDOM = 0.6, 10, 20
WAYS = ("plain", "shifted")


class Searches:
    """Searches the supernets of one study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        space = study.space
        table, genes = space.cost_table(), all_genes(sizes_of(space.decisions))
        macs = table.column("macs", genes)
        self.limit = Limit(metric="macs", bound=float(np.quantile(macs, LIMIT)))
        feasible = [table.arch(row) for row in genes[macs <= self.limit.bound]]
        self.best_truth = max(study.truth_of(arch) for arch in feasible)
        order = numpy_generator(0, "random twenty").permutation(len(feasible))
        self.random = [feasible[i] for i in order[:N_RANDOM]]

    def run(self, method: str, seed: int, way: str) -> dict[str, Any]:
        """One search (from the file, where it is there): winner, ten best, scores afterwards."""
        study, folder = self.study, self.study.folder(method, seed)
        path = folder / f"search-{way}.json"
        if path.is_file():
            return dict(json.loads(path.read_text()))
        supernet = load_supernet(study.space, folder / "supernet.safetensors")
        supernet = supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        scorer = Scorer(
            study.space, supernet, study.batches("calibration"), study.batches("search"),
            policy="recalibrate",
        )  # fmt: skip
        evaluator = Evaluator(
            space=study.space, cost_table=study.space.cost_table(), score=scorer.score,
            limits=[self.limit], supernet="trained", bn_policy="recalibrate",
        )  # fmt: skip
        config = SearchConfig(method="evolution", generations=study.options.generations)
        searcher = make_searcher(config, evaluator, seed=seed, repeat=way == "shifted")
        began = time.process_time()
        with Journal.open(folder / f"search-{way}.jsonl", {"way": way}) as journal:
            if way == "plain":
                archive = search(searcher, evaluator, journal).archive
            else:
                shifting = self._shifting(evaluator, scorer, journal, folder, seed)
                archive = search(
                    searcher, evaluator, journal, scoring=shifting, reassess=shifting.reassess
                ).archive
        best = sorted(archive, key=lambda e: -e.accuracy)
        found = {
            "winner": study.truth_of(best[0].arch),
            "top": [dict(e.arch) for e in _different(best)[:N_GOOD]],
            "cpu_s": time.process_time() - began,
            "scoring_s": scorer.seconds,
        }
        if way == "shifted":
            scorer.validation = study.batches("scoring", 500)
            found["scores"] = [scorer.score(arch).accuracy for arch in study.archs]
        scorer.validation = study.batches("scoring", 500)
        good = found["top"] if way == "plain" else self.run(method, seed, "plain")["top"]
        thirty = [Arch.from_dict(arch) for arch in good] + self.random
        found["thirty"] = [scorer.score(arch).accuracy for arch in thirty]
        found["thirty_truth"] = [study.truth_of(arch) for arch in thirty]
        write_json(path, found)
        return found

    def _shifting(
        self, evaluator: Evaluator, scorer: Scorer, journal: Journal, folder: Path, seed: int
    ) -> Shifting:
        study = self.study
        config = ShiftingConfig(lr=study.options.shift_lr)
        stream = TrainStream(
            study.dataset, study.train_images, batch_size=config.images_per_batch, seed=seed,
            name="shifting", channels_last=True,
        )  # fmt: skip
        shifter = Shifter(
            study.space, scorer.supernet, stream, config, seed=seed,
            label_smoothing=study.options.smoothing,
        )  # fmt: skip
        return Shifting(
            OneByOne(evaluator), evaluator, shifter, journal, config,
            path=folder / "shifting.safetensors", identity={"seed": seed},
        )  # fmt: skip


def _different(evaluations: list[Evaluation]) -> list[Evaluation]:
    """The first evaluation of every architecture."""
    return list({e.arch: e for e in reversed(evaluations)}.values())[::-1]


def summary(study: Study, searches: Searches) -> None:
    """Print what is there: mean over seeds, and each seed's tau."""
    print(f"\nlimit: {searches.limit}; the best subnet within it has {searches.best_truth:.2f} %")
    print(f"{'method':<12}{'weights':<9}{'winner %':>9}{'regret':>8}{'tau':>7}"
          f"{'global':>8}{'local':>7}{'truly good':>12}{'CPU s':>7}   tau by seed")  # fmt: skip
    for method in study.options.methods:
        for way in WAYS:
            rows = []
            for path in sorted(study.out.glob(f"{method}-*/search-{way}.json")):
                found = json.loads(path.read_text())
                scores = found.get("scores")
                if scores is None:
                    scored = json.loads((path.parent / "scores.json").read_text())
                    scores = scored["recalibrate"]["accuracy"]
                thirty, truth = found["thirty"], found["thirty_truth"]
                good = [True] * N_GOOD + [False] * N_RANDOM
                rows.append(
                    {
                        "winner": found["winner"],
                        "tau": kendall_tau(scores, study.truth),
                        "global": in_top(thirty, good, N_GOOD),
                        "local": kendall_tau(thirty[:N_GOOD], truth[:N_GOOD]),
                        "good": sum(t > max(truth[N_GOOD:]) for t in truth[:N_GOOD]),
                        "cpu": found["cpu_s"],
                    }
                )
            if rows:
                mean = {k: statistics.fmean(r[k] for r in rows) for k in rows[0]}
                each = " ".join(f"{r['tau']:.3f}" for r in rows)
                regret = searches.best_truth - mean["winner"]
                print(f"{method:<12}{way:<9}{mean['winner']:9.2f}{regret:8.2f}{mean['tau']:7.3f}"
                      f"{mean['global']:8.1f}{mean['local']:7.2f}{mean['good']:12.1f}"
                      f"{mean['cpu']:7.0f}   {each}")  # fmt: skip
    print(flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Search what was trained, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    arguments_of_study(parser)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--shift-lr", type=float, default=1e-4)
    options = scaled(parser.parse_args(arguments))
    options.methods = [m for m in options.methods if m != PLAIN]
    with torch_threads(1):
        study = Study(options)
        searches = Searches(study)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for method in options.methods:
                if options.summary:
                    continue
                study.train(method, seed)
                study.score(method, seed)
                for way in WAYS:
                    began = time.monotonic()
                    searches.run(method, seed, way)
                    print(f"{method} seed {seed} {way}: {time.monotonic() - began:.0f} s",
                          flush=True)  # fmt: skip
        summary(study, searches)
    return 0


if __name__ == "__main__":
    sys.exit(main())
