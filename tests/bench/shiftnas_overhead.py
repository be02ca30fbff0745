"""What moving B costs: ShiftNAS against the same training with ``shift = false``.

Run it with ``python -m tests.bench.shiftnas_overhead [--json] [--space NAME] [--rounds N]``. Both
train the same subnets on the same batches, level by level, exact paths: the rate of B is so small
that it stays uniform, so nothing but the updates of B differs. Rounds alternate, so that other load
meets both, and CPU seconds are compared, which other load changes less.

K levels are compared every q steps: 2K forward passes on a batch of the run's size. A training step
is one forward and one backward pass, about three forward passes, so 2K / 3q of training time is
expected; that and one percent is promised at q = 100. B is moved every 10 steps here: at q = 100
the difference would be a twentieth of the seconds, and lost in their noise. An update costs the
same at any q, so the share at q = 100 is a tenth of what is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pipeline.data.batches import TrainStream
from pipeline.data.config import DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset
from pipeline.spaces import load_space
from pipeline.spaces.base import Space
from pipeline.strategies import load_strategy
from pipeline.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from pipeline.training.engine import train
from pipeline.training.threads import torch_threads

LEVELS, EVERY, PAPERS_EVERY = 8, 10, 100
EXPECTED = 2 * LEVELS / (3 * PAPERS_EVERY)
PROMISED = EXPECTED + 0.01
SPACES = {"autoformer": "micro", "bignas": "tiny", "nasbench_macro": "tiny"}
BATCH, STEPS, PIXELS = 64, 100, 16


def seconds_of(space: Space, data: ImageDataset, *, shift: bool, seed: int, steps: int) -> float:
    """CPU seconds of one training, everything in it but the making of the space."""
    torch.manual_seed(seed)
    supernet = space.supernet()
    options = {
        "levels": LEVELS, "update_every": EVERY, "freeze": 0.0, "paths": "exact", "shift": shift,
        "shift_lr": 1e-12,
    }  # fmt: skip
    strategy = load_strategy("shiftnas", space=space, supernet=supernet, seed=seed, options=options)
    config = TrainConfig(
        strategy="shiftnas",
        options=options,
        steps=steps,
        batch_size=BATCH,
        optimizer=OptimizerConfig(lr=0.05),
        precision="fp32",
        channels_last="on",
        threads=1,
        checkpoint=CheckpointConfig(seconds=0),
    )
    streams = {
        split: TrainStream(data, data.pool, batch_size=BATCH, seed=seed, name=split)
        for split in ("train", "b-update")
    }
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        train(space, supernet, strategy, streams, config, Path(folder), seed=seed)
        return time.process_time() - began


def main() -> None:
    """Alternate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--space", choices=SPACES, default="nasbench_macro")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    data = load_dataset(DataConfig(name="digits", image_size=PIXELS))
    space = load_space(
        asked.space, preset=SPACES[asked.space], input_shape=data.input_shape, n_classes=10
    )
    with torch_threads(1):
        seconds_of(space, data, shift=True, seed=0, steps=EVERY)  # caches
        pairs = []
        for seed in range(asked.rounds):
            order = (True, False) if seed % 2 else (False, True)
            found = {
                s: seconds_of(space, data, shift=s, seed=seed, steps=asked.steps) for s in order
            }
            pairs.append((found[True], found[False]))
    shares = [(on / off - 1) * EVERY / PAPERS_EVERY for on, off in pairs]
    share = statistics.median(shares)
    result = {
        "space": asked.space, "levels": LEVELS, "update_every": EVERY, "steps": asked.steps,
        "rounds": asked.rounds, "seconds_shifting": [on for on, _ in pairs],
        "seconds_without": [off for _, off in pairs], "overheads": shares, "overhead": share,
        "expected": EXPECTED, "promised": PROMISED, "kept": share <= PROMISED,
    }  # fmt: skip
    if asked.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{asked.space}: moving B every {PAPERS_EVERY} steps takes {share:.1%} of the training "
        f"time, {share * PAPERS_EVERY:.2f} steps per update (median of {asked.rounds} pairs, "
        f"{min(shares):.1%} to {max(shares):.1%}; {asked.steps} steps, measured every {EVERY}, "
        f"K = {LEVELS}); 2K / 3q = {EXPECTED:.1%}, promised {PROMISED:.1%}: "
        f"{'kept' if share <= PROMISED else 'NOT kept'}"
    )


if __name__ == "__main__":
    main()
