"""The claims of the ShiftNAS paper at a scale that a CPU has time for.

Run it with ``python -m tests.bench.shiftnas --images CIFAR10.npz --out DIR``; ``--images`` may be
the folder of the Fashion-MNIST files, too. For a small transformer and a small convolutional space
it trains supernets of each kind with equal image passes and compares

* ``inherited``: accuracy by level for uniform architectures, uniform levels, shifted levels, and
  shifted levels with the generator; B at the end; what the generator chooses;
* ``sampling``: time to obtain an architecture of a level: trained generator, exact sampler,
  rejection with a cost table and (extrapolated) with a counter that runs the network. The same at
  published sizes is :mod:`tests.bench.sampler`;
* ``sufficiency``: tau of a subnet's score (loss with earlier weights minus loss now) and the fall
  of its loss by an epoch of fine-tuning, 30 subnets at four stages;
* ``retrained``: inherited accuracy beside that of training alone;
* ``level-step``, ``frequency``: three steps between levels, four q, with the generator;
* ``sandwich``: the sandwich rule with and without shift.

Every piece is kept in ``DIR``: a stopped study goes on where it was, trainings from their
checkpoints, and seeds come one after the other, so that a stopped study is balanced. ``--parts``
and ``--spaces`` choose, ``--summary`` only prints what is there, as Markdown. Runs over one ``DIR``
must have one scale. ``--full`` is 32 px, 42,500 images, 100 epochs and wants a GPU
(``--device cuda``).

An *image pass* is one image going forward and backward through one subnet. What comparing levels
and the generator cost comes on top and shows in the seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from latency_tables.files import write_json
from pipeline.training.threads import torch_threads
from tests.bench.shiftnas_study import tables
from tests.bench.shiftnas_study.methods import GENERATED, UNIFORM, Method, parts_of
from tests.bench.shiftnas_study.retrained import retrained
from tests.bench.shiftnas_study.sampling import sampling
from tests.bench.shiftnas_study.sufficiency import sufficiency
from tests.bench.shiftnas_study.world import SPACES, World

PARTS = (
    "inherited", "sampling", "sufficiency", "retrained", "level-step", "frequency", "sandwich",
)  # fmt: skip
NOT_SCALE = ("out", "spaces", "parts", "seeds", "first_seed", "device", "summary", "full")


def run(world: World, parts: dict[str, tuple[Method, ...]], wanted: list[str], seed: int) -> None:
    """Whatever is missing of one seed."""
    every = {m.name: m for methods in parts.values() for m in methods}
    for part in wanted:
        for method in parts.get(part, _needed(part, every)):
            _timed(f"{method.name}, training", seed, partial(world.train, method, seed))
            _timed(f"{method.name}, scoring", seed, partial(world.score, method, seed))
        if part == "sampling":
            _timed(part, seed, partial(sampling, world, every[GENERATED], seed))
        elif part == "sufficiency":
            _timed(part, seed, partial(sufficiency, world, every[UNIFORM], seed))
        elif part == "retrained":
            _timed(part, seed, partial(retrained, world, seed))


def _needed(part: str, every: dict[str, Method]) -> tuple[Method, ...]:
    """What must be trained for a part that trains no supernets of its own."""
    names = {"sampling": [GENERATED], "sufficiency": [UNIFORM]}
    return tuple(every[name] for name in names.get(part, []))


def _timed(what: str, seed: int, work: Callable[[], object]) -> None:
    began = time.monotonic()
    work()
    spent = time.monotonic() - began
    if spent > 0.1:  # else it was there already
        print(f"{what}, seed {seed}: {spent:.0f} s", file=sys.stderr, flush=True)


def arguments() -> argparse.ArgumentParser:
    """The options; those that are not in ``NOT_SCALE`` are the scale of a study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help=".npz, or Fashion-MNIST folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=["autoformer", "bignas"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--pixels", type=int, default=16)
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--update-every", type=int, default=20, help="q")
    parser.add_argument("--archs", type=int, default=8, help="subnets per level")
    parser.add_argument("--score-images", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=1024, help="images for B, batch norms")
    parser.add_argument("--stages", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--tau-archs", type=int, default=30)
    parser.add_argument("--tune-steps", type=int, help="of fine-tuning; an epoch where not given")
    parser.add_argument("--retrain-levels", type=int, default=4)
    parser.add_argument("--half-width", type=float, default=0.02, help="of a level, for sampling")
    parser.add_argument("--full", action="store_true", help="32 px, all images, 100 epochs")
    parser.add_argument("--summary", action="store_true", help="print what is there")
    return parser


def scaled(options: argparse.Namespace) -> argparse.Namespace:
    """Options with everything that follows from others."""
    if options.full:
        options.pixels, options.train_images, options.steps = 32, 42_500, 33_200
        options.update_every, options.archs, options.score_images = 100, 16, 3500
    if options.tune_steps is None:
        options.tune_steps = max(1, options.train_images // options.batch)
    return options


def require_same_scale(options: argparse.Namespace) -> None:
    """Write down the scale of a new study; end where it is another than that of ``--out``."""
    scale = {k: v for k, v in vars(options).items() if k not in NOT_SCALE}
    scale["images"] = options.images.name
    path = options.out / "study.json"
    if not path.is_file():
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(path, scale)
        return
    before = json.loads(path.read_text())
    changed = sorted(k for k in scale.keys() | before.keys() if scale.get(k) != before.get(k))
    if changed:
        told = ", ".join(f"{k} = {before.get(k)}, not {scale.get(k)}" for k in changed)
        sys.exit(f"{options.out} holds a study of another scale: {told}; choose another --out")


def main(given: list[str] | None = None) -> int:
    """Run the study, or print it."""
    options = scaled(arguments().parse_args(given))
    require_same_scale(options)
    with torch_threads(1):
        worlds = [World(name, options, options.out) for name in options.spaces]
        parts = parts_of(options)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for world in worlds:
                if not options.summary:
                    run(world, parts, options.parts, seed)
        for world in worlds:
            print(tables.report(world, parts), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
