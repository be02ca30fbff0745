"""How many images does a candidate need? Order of subnets by the number of images, and halving.

Run it with ``python -m tests.bench.evaluation`` and the options of :mod:`tests.bench.ranking`;
supernets that were trained in its ``--out`` are used again, the first of ``--methods`` is taken.
Every subnet is scored once, image by image, and everything else is counted from that:

* *fixed*: all subnets on the same n images, every class equally often, as hilnas scores. tau with
  the order by all images, and with the true accuracies of NAS-Bench-Macro;
* *moving*: every subnet on n images of its own, as SPOS's code scores (the rival);
* *halving*: generations of 50 subnets, of which the better half goes on after each rung. How often
  the generation's best by all images is among those that reach the last rung, how much lower the
  best of those is otherwise, and with how many images.

Images are drawn ``--draws`` times; given is the mean, and the standard deviation over draws.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from numpy.typing import NDArray

from latency_tables.files import write_json
from latency_tables.ranking import kendall_tau
from pipeline.randomness import numpy_generator
from pipeline.search.halving import rung_ends
from pipeline.supernet.answers import answers_of
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.weights import load_supernet
from pipeline.training.threads import torch_threads
from tests.bench.ranking import Study, arguments_of_study, scaled

Right = NDArray[np.bool_]
GENERATION = 50
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Numbers of images, as shares of all."""
WAYS = ("itself", "fixed", "moving")
CALIBRATIONS = (None, 125)
"""Images that batch norms are calibrated on; None: all of the split."""
ENOUGH = 0.95
"""Of the tau of all images."""


def answers(study: Study, method: str, seed: int, n_calibration: int | None) -> Right:
    """Which images (archs, images) every subnet gets right; from the file if it is there."""
    name = f"answers-{len(study.archs)}-{n_calibration or 'all'}.npz"
    path = study.folder(method, seed) / name
    if path.is_file():
        with np.load(path) as stored:
            return np.asarray(stored["right"], dtype=np.bool_)
    supernet = load_supernet(study.space, study.folder(method, seed) / "supernet.safetensors")
    calibration = study.batches("calibration")
    few = calibration if n_calibration is None else study.batches("calibration", n_calibration)
    used = calibration if n_calibration is None else [few.batch(0)]
    scorer = Scorer(study.space, supernet, used, study.batches("scoring", 250))
    began = time.process_time()
    right = np.stack([answers_of(scorer, arch).right for arch in study.archs])
    print(f"{name}: {(time.process_time() - began) / len(right):.3f} CPU s per subnet", flush=True)
    np.savez_compressed(path, right=right)
    return right


def balanced(labels: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """n images, every class equally often (± 1), in random order within a class."""
    order = rng.permutation(len(labels))
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        turn[mine] = np.arange(len(mine))
    return order[np.argsort(turn[order], kind="stable")][:n]


def by_images(
    right: Right, labels: NDArray[np.int64], truth: NDArray[np.float64], draws: int
) -> list[dict[str, float]]:
    """tau by the number of images: with the order by all of them and with the truth."""
    n_all = right.shape[1]
    full = right.mean(axis=1)
    rows = []
    for n in [*(round(share * n_all) for share in SHARES), n_all]:
        found: dict[str, list[float]] = {"itself": [], "fixed": [], "moving": []}
        for draw in range(draws if n < n_all else 1):
            rng = numpy_generator(0, "draw", n, draw)
            same = right[:, balanced(labels, n, rng)].mean(axis=1)
            own = np.array([row[rng.choice(n_all, n, replace=False)].mean() for row in right])
            found["itself"].append(kendall_tau(same, full))
            found["fixed"].append(kendall_tau(same, truth))
            found["moving"].append(kendall_tau(own, truth))
        rows.append(
            {"images": n}
            | {k: float(np.mean(v)) for k, v in found.items()}
            | {f"{k}_sd": float(np.std(v)) for k, v in found.items()}
        )
    return rows


def halved(right: Right, labels: NDArray[np.int64], n_rungs: int, draws: int) -> dict[str, float]:
    """What successive halving keeps of generations of random subnets."""
    kept, lost, images = [], [], []
    n_all = right.shape[1]
    n_parts = 2 ** (n_rungs - 1)
    ends = [round(n_all * end / n_parts) for end in rung_ends(n_parts, n_rungs)]
    for draw in range(draws):
        rng = numpy_generator(0, "halving", draw)
        order = balanced(labels, n_all, rng)
        group = rng.permutation(len(right))[:GENERATION]
        going, seen = group, 0
        spent = 0
        for rung, end in enumerate(ends):
            spent += len(going) * (end - seen)
            seen = end
            if rung + 1 < n_rungs:
                counts = right[going][:, order[:end]].sum(axis=1)
                best = np.argsort(-counts, kind="stable")[: (len(going) + 1) // 2]
                going = going[np.sort(best)]
        accuracy = right.mean(axis=1)
        kept.append(accuracy[going].max() == accuracy[group].max())
        lost.append(accuracy[group].max() - accuracy[going].max())
        images.append(spent / GENERATION)
    return {
        "rungs": n_rungs,
        "images": float(np.mean(images)),
        "kept": float(np.mean(kept)),
        "lost": float(np.mean(lost)),
        "lost_most": float(np.max(lost)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Score, count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    arguments_of_study(parser)
    parser.add_argument("--draws", type=int, default=100)
    options = scaled(parser.parse_args(arguments))
    method, seed = options.methods[0], options.first_seed
    with torch_threads(1):
        study = Study(options)
        study.train(method, seed)
        calibrated = {n: answers(study, method, seed, n) for n in CALIBRATIONS}
    right = calibrated[None]
    labels = study.dataset.labels[study.splits.indices("scoring")].numpy()
    n_calibration = len(study.splits.indices("calibration"))
    print(f"{method}, {len(right)} subnets, {n_calibration} calibration images")
    print("images  tau with all      tau with truth    moving (rival)")
    rows = by_images(right, labels, study.truth, options.draws)
    for row in rows:
        told = "  ".join(f"{row[k]:.3f} ± {row[f'{k}_sd']:.3f}" for k in WAYS)
        print(f"{row['images']:6}  {told}")
    top = rows[-1]["fixed"]
    enough = next(r["images"] for r in rows if r["fixed"] >= ENOUGH * top)
    print(f"{enough} images keep {ENOUGH:.0%} of the tau of {rows[-1]['images']} ({top:.3f})")
    for n, found in calibrated.items():
        tau = kendall_tau(found.mean(axis=1), study.truth)
        print(f"calibrated on {n or n_calibration}: tau with truth {tau:.3f}")
    halvings = [halved(right, labels, n, options.draws) for n in (2, 3, 4)]
    for row in halvings:
        print(
            f"{row['rungs']} rungs: {row['images']:.0f} images per candidate; the best is kept in "
            f"{row['kept']:.0%} of {options.draws} generations, accuracy lost {row['lost']:.3%} on "
            f"average, {row['lost_most']:.2%} at most"
        )
    write_json(
        study.folder(method, seed) / "evaluation.json", {"images": rows, "halving": halvings}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
