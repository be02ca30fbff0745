"""What a transfer is worth beside training from scratch, on one CPU in some minutes.

Run it with ``python -m tests.bench.transfer --source FILE --target FILE [--json]``; both are .npz
files that ``hilnas`` reads, or a folder of the Fashion-MNIST files. It prints

* three rows as in the paper's Table 5 (Zhang et al., 2024), all on the target's images: the winner
  of the source run ("same architecture"), the winner of a search on a supernet that was trained
  from scratch ("new supernet"), and the winner of ``hilnas transfer``; each retrained alone by the
  same rules. Times are CPU seconds of this process for getting the architecture, source run not
  included;
* accuracy over time: the mean over the same subnets, of a supernet in training and of one that was
  taken over and learns candidates drawn at random, with the clock stopped while they are scored.

One space, one seed for everything, limits on MACs only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from device_agents.inventory import read_inventory
from latency_tables.arch import Arch
from pipeline.data.batches import TrainStream
from pipeline.randomness import numpy_generator
from pipeline.retraining.config import retrain_config
from pipeline.run.context import RunContext
from pipeline.run.job import Job
from pipeline.run.progress import Reporter
from pipeline.run.retraining import retrain
from pipeline.run.scoring import make_scorer
from pipeline.run.shifting import make_shifter
from pipeline.run.source import read_source
from pipeline.run.stages.train import fresh_supernet
from pipeline.run.transfer import load_source, read_transfer
from pipeline.spaces.base import Supernet
from pipeline.strategies.spos import SPOS
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.transfer import take_over
from pipeline.training.engine import train

RUN_FILE = """
seed = {seed}
[data]
{data}
heldout = 0.3
heldout_max = 1500
[data.augment]
crop_padding = 2
[space]
name = "{space}"
preset = "tiny"
[train]
strategy = "spos"
steps = {steps}
batch_size = 64
clip_norm = 1.0
precision = "fp32"
threads = 1
[train.optimizer]
kind = "sgd"
lr = 0.1
[[device]]
name = "local"
limits = {{ macs = {macs} }}
[latency]
samples = 10
remeasure = 1
[search]
population = {population}
parents = 5
crossover = {half}
mutation = {half}
generations = {generations}
"""


class Bench:
    """Runs in one working folder, by the same settings but for the images."""

    def __init__(self, options: argparse.Namespace, home: Path) -> None:
        self.options, self.home = options, home

    def settings(self, role: str, data: Path, size: str = "") -> Path:
        """Write the run file for some images."""
        named = "fashion-mnist" if data.is_dir() else "npz"
        lines = [f'name = "{named}"', f'path = "{data.resolve()}"', size]
        path = self.home / f"{role}.toml"
        o = self.options
        path.write_text(
            RUN_FILE.format(
                data="\n".join(lines), seed=o.seed, space=o.space, steps=o.steps, macs=o.macs,
                population=o.population, half=o.population // 2, generations=o.generations,
            )
        )  # fmt: skip
        return path

    def job(self, found: Any, name: str) -> Job:
        """A run in the working folder."""
        return Job.of(
            found,
            out=self.home / name,
            table_path=self.home / "tables.sqlite",
            inventory=read_inventory(work_dir=self.home / "work"),
            reporter=Reporter(quiet=True),
        )

    def retrained(self, job: Job, arch: Path | None) -> float:
        """Test accuracy of one network, trained alone."""
        config = retrain_config(None, job.source.config.train, [f"steps={self.options.steps}"], {})
        told = retrain(job, config, arch=None if arch is None else str(arch), recipe=None,
                       name="retrained" if arch is None else "retrained-same")  # fmt: skip
        return float(told["retrained"]["test"]["value"])


def timed(work: Any) -> float:
    """CPU seconds of a call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def rows(bench: Bench, source: Job, new: Job, moved: Job) -> list[dict[str, Any]]:
    """The three ways to an architecture for the target's images."""
    new.run(until="table")
    moved.run(until="table")
    scratch = {stage: timed(lambda s=stage: new.run(until=s)) for stage in ("train", "search")}
    over = {stage: timed(lambda s=stage: moved.run(until=s)) for stage in ("train", "search")}
    winner = winner_of(source)
    (bench.home / "source.json").write_text(winner.to_json())
    found = [
        (
            "same architecture",
            winner,
            {"train": 0.0, "search": 0.0},
            new,
            bench.home / "source.json",
        ),
        ("new supernet", winner_of(new), scratch, new, None),
        ("transfer", winner_of(moved), over, moved, None),
    ]
    with new.context() as context:
        macs = {name: context.cost_table.cost(arch, "macs") for name, arch, *_ in found}
    return [
        {
            "way": name,
            "macs": macs[name],
            "retrained_accuracy": bench.retrained(job, arch),
            "train_s": seconds["train"],
            "search_s": seconds["search"],
        }
        for name, _, seconds, job, arch in found
    ]


def winner_of(job: Job) -> Arch:
    """The architecture that a search named."""
    front = json.loads(job.folder.file("front.json").read_text())
    return Arch.from_dict(front["points"][front["winner"]]["arch"])


class Clock:
    """CPU seconds, without those that :meth:`point` takes."""

    def __init__(self, context: RunContext, supernet: Supernet, n_subnets: int) -> None:
        rng = numpy_generator(context.config.seed, "bench", "subnets")
        self._archs = [context.space.sample(rng) for _ in range(n_subnets)]
        self._scorer: Scorer = make_scorer(context, supernet)
        self._spent, self._began = 0.0, time.process_time()
        self.points: list[dict[str, float]] = []

    def point(self, label: float) -> None:
        """Score the subnets as the weights are now."""
        self._spent += time.process_time() - self._began
        scores = [self._scorer.score(arch).accuracy for arch in self._archs]
        self.points.append(
            {"seconds": self._spent, "after": label, "accuracy": float(np.mean(scores))}
        )
        self._began = time.process_time()


def scratch_curve(job: Job, n_subnets: int) -> list[dict[str, float]]:
    """A supernet in training; ``after`` counts steps."""
    with job.context() as context, tempfile.TemporaryDirectory() as scratch:
        supernet = fresh_supernet(context)
        config, clock = context.config.train, Clock(context, supernet, n_subnets)
        steps = int(config.steps or 0)

        def seen(progress: Any) -> None:
            if progress.step % max(1, steps // 6) == 0:
                clock.point(progress.step)

        with closing(context.train_stream()) as stream:
            train(context.space, supernet, SPOS(context.space), {"train": stream}, config,
                  Path(scratch), seed=context.config.seed, on_progress=seen)  # fmt: skip
        return clock.points


def transfer_curve(job: Job, lr: float, n_subnets: int, n: int) -> list[dict[str, float]]:
    """A supernet that was taken over and learns ``n`` random candidates; ``after`` counts them."""
    with job.context() as context:
        shifting = context.config.search.shifting
        assert shifting is not None
        shifting = shifting.model_copy(update={"lr": lr})
        search = context.config.search.model_copy(update={"shifting": shifting})
        context.config = context.config.model_copy(update={"search": search})
        supernet = fresh_supernet(context)
        take_over(supernet, context.space, load_source(context))
        clock = Clock(context, supernet, n_subnets)
        scorer = make_scorer(context, supernet)
        stream = TrainStream(
            context.dataset, context.splits.train, batch_size=shifting.images_per_batch,
            seed=context.config.seed, augment=context.config.data.augment,
        )  # fmt: skip
        shifter = make_shifter(context, supernet, stream, scorer.precision)
        rng = numpy_generator(context.config.seed, "bench", "candidates")
        clock.point(0)
        for number in range(1, n + 1):
            arch = context.space.sample(rng)
            scorer.score(arch)
            shifter.learn(arch, number * shifting.batches)
            if number % max(1, n // 6) == 0:
                clock.point(number)
        stream.close()
        return clock.points


def show(found: dict[str, Any]) -> None:
    """Print rows and curves."""
    print("way                  M MACs  retrained  training, s  search, s")
    for row in found["rows"]:
        print(f"{row['way']:<18} {row['macs'] / 1e6:8.2f}  {row['retrained_accuracy']:9.1%}"
              f"  {row['train_s']:11.0f}  {row['search_s']:9.0f}")  # fmt: skip
    for name, points in found["curves"].items():
        print(f"{name}: " + ", ".join(
            f"{p['seconds']:.0f} s {p['accuracy']:.1%}" for p in points))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--space", default="nasbench_macro")
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--macs", type=float, default=1.2e6)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 1e-2])
    parser.add_argument("--subnets", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp())
    home = options.home or Path(tempfile.mkdtemp())
    home.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, home)
    size = f"image_size = {options.image_size}\nchannels = 3"
    source_file, target_file = (
        bench.settings("source", options.source, size),
        bench.settings("target", options.target),
    )
    source = bench.job(read_source(str(source_file)), "source")
    source.run(until="search")
    new = bench.job(read_source(str(target_file), [f"data.image_size={options.image_size}",
                                                   "data.channels=3"]), "new")  # fmt: skip
    best = options.lr[-1]
    moved = bench.job(read_transfer(home / "source", str(target_file),
                                    [f"search.shifting.lr={best}"]), "transfer")  # fmt: skip
    n = options.population * (1 + options.generations)
    found: dict[str, Any] = {
        "curves": {
            "from scratch": scratch_curve(new, options.subnets),
            **{
                f"transfer, lr {lr:g}": transfer_curve(moved, lr, options.subnets, n)
                for lr in options.lr
            },
        },
    }
    print(json.dumps(found), file=sys.stderr, flush=True)
    found["rows"] = rows(bench, source, new, moved)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
