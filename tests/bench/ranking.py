"""Does a supernet order subnets as training each of them alone does? Kendall's tau by method.

Run it with ``python -m tests.bench.ranking --images CIFAR10.npz --truth nas_bench_macro.csv.gz
--out DIR``. NAS-Bench-Macro's 6,561 subnets were all trained on CIFAR-10 by its authors; here a
supernet of that space is trained with each strategy on small pictures, random subnets are scored
with inherited weights on held-out images, and the two orders are compared. The rival,
:mod:`tests.bench.plain_spos`, meets the same images, subnets and number of image passes.

Every training and every scoring is kept in ``DIR``, so that a stopped study goes on where it was;
``--summary`` only prints what is there. The scale is set by ``--preset``, ``--train-images``,
``--epochs``, ``--archs`` and ``--score-images``; ``--full`` is that of the benchmark's authors
(full width, 32 px, 45,000 images, 120 epochs, all 6,561 subnets, 3,500 images) and wants a GPU.

An *image pass* is one image going forward and backward through one subnet. Strategies that train
several subnets per step take fewer steps, so that all methods spend the same number of passes;
what GreedyNAS spends on scoring comes on top and shows in the seconds.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latency_tables.arch import Arch
from latency_tables.files import write_json
from latency_tables.ranking import kendall_tau, spearman
from pipeline.data.batches import EvalBatches, OneBatch, TrainStream
from pipeline.data.config import AugmentConfig, DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset
from pipeline.data.splits import Splits
from pipeline.randomness import child_seed, numpy_generator
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.nasbench_macro import arch_of_genome
from pipeline.strategies import load_strategy
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.weights import load_supernet
from pipeline.training.config import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from pipeline.training.engine import train
from pipeline.training.threads import torch_threads
from tests.bench.plain_spos import PlainSupernet, plain_score, plain_train

BATCH, LR = 128, 0.05
METHODS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "spos": ("spos", 1, {}),
    "fairnas": ("fairnas", 3, {}),
    "greedynas": ("greedynas", 5, {"scoring_images": 200}),
    "sandwich": ("sandwich", 4, {}),
    "sumnas": ("sumnas", 3, {}),
}
"""Name → strategy, image passes per image of a step, options."""
PLAIN = "plain script"
WIDTHS = {"paper": 32, "half": 16, "tiny": 8}
SEARCH_IMAGES = 1000
"""Held-out images that searches choose winners on (:mod:`tests.bench.shifted_ranking`)."""
POLICIES = ("recalibrate", "batch")
ENOUGH = 0.546
"""tau of MACs over all subnets: a supernet below it is worth less than counting."""


class Study:
    """Images, subnets, their true accuracies; trained supernets by method and seed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.out.mkdir(parents=True, exist_ok=True)
        config = DataConfig(
            name="npz", path=str(options.images), image_size=options.pixels, heldout=0.1
        )
        self.dataset: ImageDataset = load_dataset(config, seed=0)
        self.splits: Splits = self.dataset.splits(
            config, seed=0,
            plan={
                "calibration": options.calibration_images, "scoring": options.score_images,
                "search": SEARCH_IMAGES,
            },
        )  # fmt: skip
        chosen = numpy_generator(0, "images").permutation(self.splits.train)
        self.train_images = np.sort(chosen[: options.train_images])
        self.space: Space = load_space(
            "nasbench_macro", preset=options.preset, input_shape=self.dataset.input_shape,
            n_classes=self.dataset.n_classes,
        )  # fmt: skip
        with gzip.open(options.truth, "rt", newline="") as stream:
            self._truth = {row["arch"]: float(row["mean_acc"]) for row in csv.DictReader(stream)}
        genomes = sorted(self._truth)
        order = numpy_generator(0, "subnets").permutation(len(genomes))[: options.archs]
        self.genomes = [genomes[i] for i in order]
        self.archs: list[Arch] = [arch_of_genome(self.space, g) for g in self.genomes]  # type: ignore[arg-type]
        self.truth = np.array([self._truth[g] for g in self.genomes])
        full = load_space("nasbench_macro", preset="paper", input_shape=(3, 32, 32), n_classes=10)
        genes = full.cost_table().genes(self.archs)
        self.macs = full.cost_table().column("macs", genes)

    def truth_of(self, arch: Arch) -> float:
        """Accuracy in per cent when trained alone."""
        return self._truth["".join(str(gene) for gene in arch.genes(self.space.decisions))]

    def batches(self, split: str, size: int = 250) -> EvalBatches:
        """Fixed batches of held-out images."""
        indices = self.splits.indices(split)
        return EvalBatches(self.dataset, indices, batch_size=size, channels_last=True)

    def folder(self, method: str, seed: int) -> Path:
        """Where a trained supernet lies."""
        return Path(self.out / f"{method.replace(' ', '-')}-{seed}")

    # -- training -------------------------------------------------------------------------------

    def fresh(self, seed: int) -> Supernet:
        """A supernet whose weights follow from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(seed, "supernet"))
            return self.space.supernet()

    def train(self, method: str, seed: int) -> dict[str, Any]:
        """Train a supernet (from its checkpoint, where there is one); what it cost."""
        folder = self.folder(method, seed)
        if (folder / "trained.json").is_file():
            return dict(json.loads((folder / "trained.json").read_text()))
        folder.mkdir(exist_ok=True)
        strategy_name, passes, settings = METHODS[method]
        per_epoch = len(self.train_images) // BATCH
        steps = round(self.options.epochs * per_epoch / passes)
        supernet = self.fresh(seed)
        strategy = load_strategy(
            strategy_name, space=self.space, supernet=supernet, seed=seed, options=settings
        )
        augment = AugmentConfig(crop_padding=self.options.pixels // 8, flip=True)
        streams: dict[str, Any] = {
            "train": TrainStream(
                self.dataset, self.train_images, batch_size=BATCH, seed=seed,
                augment=augment if self.options.augment else AugmentConfig(),
            )
        }  # fmt: skip
        for split, n_images in getattr(strategy, "splits", {}).items():
            streams[split] = OneBatch(self.batches("calibration", n_images))
        config = TrainConfig(
            strategy=strategy_name,
            options=settings,
            steps=steps,
            batch_size=BATCH,
            optimizer=OptimizerConfig(lr=self.options.lr, weight_decay=self.options.decay),
            schedule=ScheduleConfig(kind="cosine"),
            label_smoothing=self.options.smoothing,
            precision="fp32",
            channels_last="on",
            threads=1,
            clip_norm=self.options.clip,
            checkpoint=CheckpointConfig(seconds=60),
        )
        began = time.process_time()
        result = train(self.space, supernet, strategy, streams, config, folder, seed=seed)
        found = {
            "steps": result.steps,
            "image_passes": steps * BATCH * passes,
            "cpu_s": time.process_time() - began,
            "loss": result.final_loss,
        }
        write_json(folder / "trained.json", found)
        return found

    # -- scoring --------------------------------------------------------------------------------

    def score(self, method: str, seed: int) -> dict[str, Any]:
        """Accuracies and losses of the subnets by batch-norm policy (from the file if there)."""
        path = self.folder(method, seed) / "scores.json"
        if path.is_file():
            return dict(json.loads(path.read_text()))
        supernet = load_supernet(self.space, self.folder(method, seed) / "supernet.safetensors")
        supernet = supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found: dict[str, Any] = {}
        for policy in POLICIES:
            scorer = Scorer(
                self.space, supernet, self.batches("calibration"), self.batches("scoring", 500),
                policy=policy,
            )  # fmt: skip
            began = time.process_time()
            scores = [scorer.score(arch) for arch in self.archs]
            found[policy] = {
                "accuracy": [s.accuracy for s in scores],
                "loss": [s.loss for s in scores],
                "cpu_s": time.process_time() - began,
            }
        write_json(path, found)
        return found

    def plain(self, seed: int) -> dict[str, Any]:
        """The rival: trained and scored by its own code."""
        path = self.folder(PLAIN, seed) / "scores.json"
        if path.is_file():
            return dict(json.loads(path.read_text()))
        path.parent.mkdir(exist_ok=True)
        x, y = self._pixels(self.train_images)
        torch.manual_seed(seed)
        net = PlainSupernet(WIDTHS[self.options.preset], self.dataset.n_classes)
        began, bf16 = time.process_time(), self.options.plain_bf16
        plain_train(net, x, y, epochs=self.options.epochs, seed=seed, bf16=bf16)
        trained = time.process_time()
        x, y = self._pixels(self.splits.indices("scoring"))
        genomes = [[int(g) for g in genome] for genome in self.genomes]
        accuracy = [plain_score(net, x, y, genome, bf16) for genome in genomes]
        found = {
            "batch": {"accuracy": accuracy, "cpu_s": time.process_time() - trained},
            "cpu_s": trained - began,
        }
        write_json(path, found)
        return found

    def _pixels(self, indices: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """All pictures of a split, normalised as the data set is."""
        batches = EvalBatches(self.dataset, indices, batch_size=500)
        both = [(b.images, b.labels) for b in batches]
        return torch.cat([x for x, _ in both]), torch.cat([y for _, y in both])


def run(study: Study) -> None:
    """Train and score whatever is missing, seed by seed, so that a stopped study is balanced."""
    for seed in range(study.options.first_seed, study.options.first_seed + study.options.seeds):
        for method in study.options.methods:
            began = time.monotonic()
            if method == PLAIN:
                study.plain(seed)
            else:
                study.train(method, seed)
                study.score(method, seed)
            print(f"{method} seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


Row = tuple[str, str, Callable[[dict[str, Any]], Sequence[float] | None]]


def _rows(methods: Sequence[str]) -> list[Row]:
    """(method, by what, how to read it from the scores)."""
    rows: list[Row] = []
    for method in methods:
        rows.append((method, "accuracy, batch", lambda s: s["batch"]["accuracy"]))
        if method != PLAIN:
            rows.append((method, "accuracy, recalibrated", lambda s: s["recalibrate"]["accuracy"]))
            rows.append((method, "loss, batch", lambda s: [-x for x in s["batch"]["loss"]]))
            rows.append(
                (method, "loss, recalibrated", lambda s: [-x for x in s["recalibrate"]["loss"]])
            )
    return rows


def summary(study: Study) -> None:
    """Print tau and Spearman of what is there: mean over seeds, and each seed."""
    baseline = kendall_tau(study.macs, study.truth)
    print(f"\n{len(study.archs)} subnets, {study.options.score_images} images; "
          f"tau(MACs) = {baseline:.3f} on these, {ENOUGH} on all")  # fmt: skip
    print(f"{'method':<14}{'ordered by':<26}{'tau':>7}{'Spearman':>10}   seeds{'CPU s':>21}")
    for method, by, read in _rows([*study.options.methods]):
        taus, rhos, cpu = [], [], []
        for path in sorted(study.out.glob(f"{method.replace(' ', '-')}-*/scores.json")):
            scores = json.loads(path.read_text())
            values = read(scores)
            taus.append(kendall_tau(values, study.truth))
            rhos.append(spearman(values, study.truth))
            trained = path.with_name("trained.json")
            cpu.append(
                json.loads(trained.read_text())["cpu_s"] if trained.is_file() else scores["cpu_s"]
            )
        if taus:
            each = " ".join(f"{t:.3f}" for t in taus)
            means = f"{statistics.fmean(taus):7.3f}{statistics.fmean(rhos):10.3f}"
            print(f"{method:<14}{by:<26}{means}   {each:<18}{statistics.fmean(cpu):8.0f}")
    print(flush=True)


def arguments_of_study(parser: argparse.ArgumentParser) -> None:
    """The options that :class:`Study` reads."""
    parser.add_argument("--images", type=Path, required=True, help=".npz of CIFAR-10")
    parser.add_argument("--truth", type=Path, required=True, help="nas_bench_macro.csv.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=[PLAIN, "spos", "fairnas", "greedynas"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--preset", choices=sorted(WIDTHS), default="half")
    parser.add_argument("--pixels", type=int, default=16)
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--archs", type=int, default=500)
    parser.add_argument("--score-images", type=int, default=1000)
    parser.add_argument("--calibration-images", type=int, default=500)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--decay", type=float, default=4e-5)
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--clip", type=float, default=None)
    parser.add_argument("--augment", action="store_true", help="crop and mirror (not the rival)")
    parser.add_argument("--plain-bf16", action="store_true", help="the rival computes in bf16")
    parser.add_argument("--full", action="store_true", help="the authors' scale, for a GPU")
    parser.add_argument("--summary", action="store_true", help="print what is there")


def scaled(options: argparse.Namespace) -> argparse.Namespace:
    """Options at the authors' scale, where it is asked for."""
    if options.full:
        options.preset, options.pixels, options.train_images = "paper", 32, 45_000
        options.epochs, options.archs, options.score_images = 120, 6561, 3500
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the study, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    arguments_of_study(parser)
    options = scaled(parser.parse_args(arguments))
    with torch_threads(1):
        study = Study(options)
        if not options.summary:
            run(study)
        summary(study)
    return 0


if __name__ == "__main__":
    sys.exit(main())
