"""Images per second of supernet training against a loop as public code writes it.

Run it with ``python -m tests.bench.training [--json] [--space NAME] [--rounds N] [--ablation]``; it
uses a GPU where there is one. Both train the same supernet with the same optimizer settings, batch
size, augmentation and uniformly drawn paths on the same pictures (scikit-learn's digits, scaled):

* ours: ``pipeline.training.engine.train`` with the product's stream of batches;
* the rival: ``DataLoader`` with two workers, one Pillow picture at a time (pad and crop, mirror,
  normalise), fp32 NCHW, clipping and ``optimizer.step()`` as in a tutorial, ``loss.item()`` and the
  accuracy of the batch in every step. SGD runs as torch chooses by default.

Rounds alternate, so that other load meets both; the ratio is that of each pair. Every round trains
from scratch with a seed of its own and as many steps for both, and the losses of the second half
are compared: faster must not mean worse.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline.data.batches import TrainStream
from pipeline.data.config import AugmentConfig, DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.spos import SPOS
from pipeline.training.config import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from pipeline.training.engine import PARTS, Progress, train
from pipeline.training.precision import supports_bf16
from pipeline.training.threads import torch_threads
from pipeline.training.timing import Timing, timer_for

FLOOR = 1.5
"""The ratio that is promised, on a CPU."""
SPACES = {"shufflenetv2": 28, "nasbench_macro": 28}
"""Space → pixels. Both with the preset ``tiny``, which the starters for small data use."""
BATCH, PADDING = 64, 2
LR, DECAY, CLIP, SMOOTHING = 0.05, 4e-5, 5.0, 0.1
WARMUP = 5
"""Steps at the beginning that the clock does not count: workers and caches start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Speed and losses of one training; ``losses`` are means over tenths of the steps."""

    images_per_s: float
    cpu_s: float
    """Seconds of all cores, workers included, per 1,000 images: other load hardly changes them."""
    losses: tuple[float, ...]


class Pictures(Dataset[tuple[Tensor, int]]):
    """One picture at a time, changed at random, as data sets of tutorials do."""

    def __init__(self, data: ImageDataset) -> None:
        pixels = data.images.cpu().numpy()
        self.pictures = [Image.fromarray(pixels[i, 0]) for i in data.pool]
        self.labels = data.labels[torch.from_numpy(np.array(data.pool))].tolist()
        self.mean, self.std = data.mean[0], data.std[0]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: Any) -> tuple[Tensor, int]:
        picture = ImageOps.expand(self.pictures[index], PADDING)
        left, top = torch.randint(0, 2 * PADDING + 1, (2,)).tolist()
        width, height = self.pictures[index].size
        picture = picture.crop((left, top, left + width, top + height))
        if torch.rand(1).item() < 0.5:
            picture = ImageOps.mirror(picture)
        pixels = torch.from_numpy(np.array(picture))[None].float().div(255)
        return (pixels - self.mean) / self.std, self.labels[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What the rival does; each switch is one thing that our loop does otherwise."""

    pictures_one_by_one: bool = True
    channels_last: bool = False
    item_in_every_step: bool = True
    foreach: bool | None = None


TUTORIAL = Habits()


def rival(
    space: Space,
    supernet: Supernet,
    data: ImageDataset,
    device: torch.device,
    steps: int,
    seed: int,
    habits: Habits = TUTORIAL,
) -> Curve:
    """A single-path loop as public repositories have it."""
    layout = torch.channels_last if habits.channels_last else torch.contiguous_format
    supernet = supernet.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    decays = [p for p in supernet.parameters() if p.ndim > 1]
    kept = [p for p in supernet.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": DECAY}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        [g for g in groups if g["params"]], lr=LR, momentum=0.9, foreach=habits.foreach
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    source = pictures if habits.pictures_one_by_one else arrays
    batches, workers = source(data, device, seed), children_cpu_s()
    rng, losses, began, cpu = np.random.default_rng(seed), [], 0.0, 0.0
    for index, (images, labels) in zip(range(steps), batches, strict=False):
        if index == WARMUP:
            synchronise(device)
            began, cpu = time.perf_counter(), time.process_time()
        images, labels = images.to(device, memory_format=layout), labels.to(device)
        optimizer.zero_grad()
        logits = supernet(images, space.sample(rng))
        loss = criterion(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(supernet.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        if habits.item_in_every_step:
            losses.append(loss.item())
            (logits.argmax(1) == labels).float().mean().item()
        else:
            losses.append(loss.detach())
    synchronise(device)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    batches.close()  # the workers end, and their time is known
    n_images = BATCH * (steps - WARMUP)
    workers = (children_cpu_s() - workers) * (steps - WARMUP) / steps
    return Curve(
        images_per_s=n_images / seconds,
        cpu_s=1000 * (cpu + workers) / n_images,
        losses=tenths([float(x) for x in losses]),
    )


def children_cpu_s() -> float:
    """Processor seconds of the processes that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def pictures(data: ImageDataset, device: torch.device, seed: int) -> Generator[Any, None, None]:
    """Batches from two workers, for ever."""
    loader = DataLoader(
        Pictures(data), BATCH, shuffle=True, num_workers=2, pin_memory=device.type == "cuda",
        drop_last=True, generator=torch.Generator().manual_seed(seed),
        multiprocessing_context="fork", persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from loader


def arrays(data: ImageDataset, device: torch.device, seed: int) -> Generator[Any, None, None]:
    """Batches of the product's stream, for ever."""
    stream, number = stream_of(data, device, seed), 0
    while True:
        batch = stream.batch(number)
        yield batch.images, batch.labels
        number += 1


def stream_of(data: ImageDataset, device: torch.device, seed: int) -> TrainStream:
    """The product's stream with the augmentation of :class:`Pictures`."""
    augment = AugmentConfig(crop_padding=PADDING, flip=True)
    return TrainStream(data, data.pool, batch_size=BATCH, seed=seed, augment=augment, device=device)


def ours(
    space: Space,
    supernet: Supernet,
    data: ImageDataset,
    device: torch.device,
    steps: int,
    seed: int,
    *,
    warmup: int = WARMUP,
    **changes: Any,
) -> tuple[Curve, Timing]:
    """The engine, as ``hilnas train`` calls it; the last checkpoint is part of the time."""
    settings: dict[str, Any] = {
        "steps": steps,
        "batch_size": BATCH,
        "optimizer": OptimizerConfig(lr=LR, momentum=0.9, weight_decay=DECAY),
        "schedule": ScheduleConfig(kind="cosine"),
        "label_smoothing": SMOOTHING,
        "clip_norm": CLIP,
        "checkpoint": CheckpointConfig(seconds=0),
        "log_every": steps // 10,
    }
    config = TrainConfig(**(settings | changes))
    marks: dict[int, tuple[float, float]] = {}

    def mark(progress: Progress) -> None:
        if progress.step in (warmup, steps):
            synchronise(device)
            marks[progress.step] = time.perf_counter(), time.process_time()

    timer = timer_for(device, PARTS)
    with tempfile.TemporaryDirectory() as folder:
        train(
            space, supernet, SPOS(space), {"train": stream_of(data, device, seed)}, config,
            Path(folder), seed=seed, device=device, on_progress=mark, timer=timer,
        )  # fmt: skip
        lines = (Path(folder) / "train.jsonl").read_text().splitlines()
    losses = tuple(json.loads(line)["loss"] for line in lines)
    seconds, cpu = (b - a for a, b in zip(marks[warmup], marks[steps], strict=True))
    n_images = BATCH * (steps - warmup)
    curve = Curve(images_per_s=n_images / seconds, cpu_s=1000 * cpu / n_images, losses=losses)
    return curve, timer.timing()


def tenths(losses: list[float]) -> tuple[float, ...]:
    """Means over tenths of the steps."""
    size = len(losses) // 10
    return tuple(statistics.fmean(losses[i * size : (i + 1) * size]) for i in range(10))


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fresh(space: Space, seed: int) -> Supernet:
    """Equal weights for both."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return space.supernet()


def measure(name: str, device: torch.device, steps: int, rounds: int) -> dict[str, Any]:
    """Alternate both; ratios by pair, losses by seed."""
    pixels = SPACES[name]
    data = load_dataset(DataConfig(name="digits", image_size=pixels)).to(device)
    space = load_space(name, preset="tiny", input_shape=data.input_shape, n_classes=data.n_classes)
    mine: list[Curve] = []
    theirs: list[Curve] = []
    timing = None
    for seed in range(rounds):
        for first in (seed % 2 == 0, seed % 2 == 1):
            if first:
                curve, timing = ours(space, fresh(space, seed), data, device, steps, seed)
                mine.append(curve)
            else:
                theirs.append(rival(space, fresh(space, seed), data, device, steps, seed))
    ratios = [a.images_per_s / b.images_per_s for a, b in zip(mine, theirs, strict=True)]
    ends = [
        statistics.fmean(a.losses[5:]) - statistics.fmean(b.losses[5:])
        for a, b in zip(mine, theirs, strict=True)
    ]
    spread = statistics.stdev(ends) / len(ends) ** 0.5 if len(ends) > 1 else 0.0
    return {
        "space": name,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "images_per_s": statistics.median(c.images_per_s for c in mine),
        "rival_images_per_s": statistics.median(c.images_per_s for c in theirs),
        "cpu_s": statistics.median(c.cpu_s for c in mine),
        "rival_cpu_s": statistics.median(c.cpu_s for c in theirs),
        "cpu_ratio": statistics.median(
            b.cpu_s / a.cpu_s for a, b in zip(mine, theirs, strict=True)
        ),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "losses": [statistics.fmean(c.losses[i] for c in mine) for i in range(10)],
        "rival_losses": [statistics.fmean(c.losses[i] for c in theirs) for i in range(10)],
        "loss_difference": statistics.fmean(ends),
        "loss_difference_standard_error": spread,
        "parts": timing.to_dict()["parts"] if timing else [],
        "within_budget": statistics.median(ratios) >= FLOOR
        and statistics.fmean(ends) <= max(2 * spread, 0.02),
    }


VARIANTS: dict[str, Habits | dict[str, Any]] = {
    "rival": TUTORIAL,
    "rival, foreach SGD": Habits(foreach=True),
    "rival, losses left on the device": Habits(item_in_every_step=False),
    "rival, batches from our stream": Habits(pictures_one_by_one=False),
    "rival, channels_last": Habits(channels_last=True),
    "rival, all four": Habits(
        pictures_one_by_one=False, channels_last=True, item_in_every_step=False, foreach=True
    ),
    "ours, fp32 NCHW": {"precision": "fp32", "channels_last": "off"},
    "ours, bf16 channels_last": {"precision": "bf16", "channels_last": "on"},
    "ours": {},
}


def ablate(
    name: str, device: torch.device, steps: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Variants between the two: images per second and processor seconds per 1,000, medians."""
    data = load_dataset(DataConfig(name="digits", image_size=SPACES[name])).to(device)
    space = load_space(name, preset="tiny", input_shape=data.input_shape, n_classes=data.n_classes)
    found: dict[str, list[Curve]] = {}
    for seed in range(rounds):
        for variant, habits in VARIANTS.items():
            supernet = fresh(space, seed)
            if isinstance(habits, Habits):
                curve = rival(space, supernet, data, device, steps, seed, habits)
            elif habits.get("precision") == "bf16" and not supports_bf16(device):
                continue
            else:
                curve, _ = ours(space, supernet, data, device, steps, seed, **habits)
            found.setdefault(variant, []).append(curve)
    return {
        variant: (
            statistics.median(c.images_per_s for c in curves),
            statistics.median(c.cpu_s for c in curves),
        )
        for variant, curves in found.items()
    }


def compile_blocks(name: str, device: torch.device) -> dict[str, float]:
    """Steps with compiled blocks against eager ones, once all graphs are made, and their making.

    Paths are drawn at random, so graphs are made during the first steps; 100 of them use every
    operator of a small space.
    """
    data = load_dataset(DataConfig(name="digits", image_size=SPACES[name])).to(device)
    space = load_space(name, preset="tiny", input_shape=data.input_shape, n_classes=data.n_classes)
    found: dict[str, float] = {}
    for compile in (False, True):
        curve, timing = ours(
            space, fresh(space, 0), data, device, 130, 0, warmup=100, compile=compile,
            precision="fp32", channels_last="on",
        )  # fmt: skip
        key = "compiled" if compile else "eager"
        found[f"{key}_ms"] = 1000 * BATCH / curve.images_per_s
        found[f"{key}_all_s"] = timing.seconds
    return found


def render(found: dict[str, Any]) -> None:
    """Print one space."""
    low, high = min(found["ratios"]), max(found["ratios"])
    print(f"{found['space']} on {found['device']}, {found['threads']} threads")
    for name, key in (("ours", ""), ("rival", "rival_")):
        print(f"  {name:<7} {found[key + 'images_per_s']:8,.0f} images/s, "
              f"{found[key + 'cpu_s']:.2f} s of all cores per 1,000")  # fmt: skip
    print(f"  ratio   {found['ratio']:8.2f}  ({low:.2f} to {high:.2f} over {len(found['ratios'])} "
          f"pairs, {FLOOR} or more asked); of processor time {found['cpu_ratio']:.2f}")  # fmt: skip
    for name, losses in (("ours", found["losses"]), ("rival", found["rival_losses"])):
        print(f"  loss by tenths, {name:<6}", *(f"{loss:.3f}" for loss in losses))
    print(f"  second half, ours - rival {found['loss_difference']:+.4f} "
          f"± {found['loss_difference_standard_error']:.4f} (standard error)")  # fmt: skip
    for part in found["parts"]:
        print(f"    {part['part']:<10} {100 * part['share']:5.1f} %")


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; exit 1 where the ratio or the losses are not as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--space", choices=sorted(SPACES), action="append")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ablation", action="store_true", help="also time what lies between")
    parser.add_argument(
        "--compiled", action="store_true", help="only: compiled blocks against eager"
    )
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    with torch_threads(options.threads):
        for name in options.space or SPACES:
            if options.compiled:
                print(name, {k: round(v, 1) for k, v in compile_blocks(name, device).items()})
                continue
            result = measure(name, device, options.steps, options.rounds)
            if options.ablation:
                rounds = max(1, options.rounds // 2)
                result["ablation"] = ablate(name, device, options.steps, rounds)
            found.append(result)
            if not options.json:
                render(result)
                for variant, (rate, cpu) in result.get("ablation", {}).items():
                    print(f"    {variant:<34} {rate:8,.0f} images/s {cpu:7.2f} s per 1,000")
    if options.json and found:
        print(json.dumps(found))
    return 0 if all(result["within_budget"] for result in found) else 1


if __name__ == "__main__":
    sys.exit(main())
