"""Seconds, memory and bytes of K-shot training against one-shot training, in the same run.

Run it with ``python -m tests.bench.kshot [--json] [--k 1 2 4 8] [--batch N] [--pixels N] ...``; it
uses a GPU where there is one. All train NAS-Bench-Macro with the same settings, images and number
format, through the engine's own step. In a round every one of them takes an *even* step (one path,
the weights move), with the same path, one after the other; the order turns from round to round. The
ratio is that of the same round, and the budget is 1.10 at K = 8. Then come *odd* steps (the codes
move), and the pieces: mixing the weights, handing gradients to the copies, the optimizer.

On a CPU the clock is that of the process, as others may be using the machine; with one thread that
is what a step costs. On a GPU it is the time until the device is done.

Bytes are arithmetic, for P parameters on the path, in tensors of 4 bytes: mixing reads K P and
reads and writes the mixture K - 1 times more; gradients read P and write P per copy; SGD with
momentum and decay reads and writes weights, momentum and gradients (8 P per copy). Peak memory is
that of a process of its own, above what it needed before its first network was made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.kshot.dictionary import KShotSupernet
from pipeline.kshot.merging import merge
from pipeline.randomness import numpy_generator
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies import load_strategy
from pipeline.training.config import OptimizerConfig, TrainConfig
from pipeline.training.engine import Run
from pipeline.training.ranks import ALONE
from pipeline.training.threads import torch_threads
from pipeline.training.timing import NO_TIMER
from tests.bench.shifting import Batch

BUDGET = {8: 1.10}
"""K → the even step may take so many times the one-shot step."""
PAPER = {
    1: (2.27, 17.5), 2: (2.28, 17.7), 4: (2.32, 17.9), 8: (2.37, 18.4), 12: (2.43, 18.9),
}  # fmt: skip
"""K → GPU hours per epoch and GB at 128 images per GPU: the paper's table 1, ImageNet, V100."""
MIB = 2**20


class Noise:
    """One batch that is made beforehand."""

    batches_per_epoch = 1000

    def __init__(self, space: Space, size: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(size, *space.input_shape, generator=generator)
        labels = torch.randint(space.n_classes, (size,), generator=generator)
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        self._batch = Batch(images=images, labels=labels.to(device))

    def batch(self, number: int, /) -> Batch:
        """The batch."""
        return self._batch


class Trained:
    """A run of the engine that takes the steps it is told to. ``k`` of 0 means one-shot."""

    def __init__(self, space: Space, k: int, given: argparse.Namespace, folder: Path) -> None:
        options = {"k": k, "groups": given.groups, "warmup_share": 0.0} if k else {}
        name = "kshot" if k else "spos"
        device = torch.device(given.device)
        config = TrainConfig(
            strategy=name, options=options, steps=1_000_000, batch_size=given.batch,
            optimizer=OptimizerConfig(lr=0.05), precision=given.precision, channels_last="on",
            threads=given.threads, blow_up_factor=None,
        )  # fmt: skip
        torch.manual_seed(0)
        first = space.supernet().to(device)
        strategy = load_strategy(name, space=space, supernet=first, options=options)
        self.space, self.device = space, device
        self.supernet: Supernet = getattr(strategy, "supernet", first)
        streams = {"train": Noise(space, given.batch, device)}
        self.run = Run(
            space, self.supernet, strategy, streams, config, folder / f"k{k}", 0, device,
            NO_TIMER, None, ALONE,
        )  # fmt: skip
        self.run.begin()

    def step(self, index: int) -> float:
        """Seconds of one step."""
        self.run.done = index
        return timed(self.run._take_step, self.device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work: of the device, or of this process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began
    began = time.process_time()
    work()
    return time.process_time() - began


def pieces(trained: Trained, index: int) -> dict[str, Any]:
    """What mixing, spreading gradients and the optimizer take for the path of an even step."""
    supernet, run = trained.supernet, trained.run
    if not isinstance(supernet, KShotSupernet):
        raise TypeError("only a dictionary mixes weights")
    arch = trained.space.sample(numpy_generator(0, "training", "step", index))
    own = supernet.subnet_parameters(arch)  # copy after copy
    n_tensors = len(own) // supernet.k
    copies = [own[i : i + n_tensors] for i in range(0, len(own), n_tensors)]
    code = supernet.code(arch)
    n = sum(t.numel() for t in copies[0])
    mixed = merge(code, copies)
    ones = [torch.ones_like(t) for t in mixed]
    gradient = timed(lambda: torch.autograd.backward(mixed, ones), trained.device)
    optimizer = run.optimizers["weights"]
    seconds = {
        "merge_s": least(lambda: merge(code, copies), trained.device),
        "gradients_s": gradient,
        "optimizer_s": least(lambda: optimizer.step(0.0), trained.device),
    }
    touched = [s["momentum_buffer"] for s in optimizer.optimizer.state.values()]
    memory = {
        "weights_mib": sum(p.numel() for p in supernet.parameters()) * 4 / MIB,
        "gradients_mib": supernet.k * n * 4 / MIB,
        "mixture_mib": n * 4 / MIB,
        "momentum_mib": sum(t.numel() for t in touched) * 4 / MIB,
    }
    optimizer.clear()
    k = supernet.k
    moved = {
        "merge_mib": (3 * k - 1) * n * 4 / MIB,
        "gradients_mib": 2 * k * n * 4 / MIB,
        "optimizer_mib": 8 * k * n * 4 / MIB,
    }
    return {"path_parameters": n, **seconds, "memory": memory, "moved": moved}


def least(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """The shortest of some runs."""
    return min(timed(work, device) for _ in range(times))


def compare(space: Space, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Even and odd steps of all K by turns, beside one-shot."""
    all_k = [0, *given.k]
    trained = {k: Trained(space, k, given, folder) for k in all_k}
    even: dict[int, list[float]] = {k: [] for k in all_k}
    odd: dict[int, list[float]] = {k: [] for k in given.k if k > 1}
    for number in range(given.rounds + 1):  # the first one warms up
        order = all_k[number % len(all_k) :] + all_k[: number % len(all_k)]
        for k in order:
            seconds = trained[k].step(2 * number)
            if number:
                even[k].append(seconds)
    for number in range(given.odd_rounds):
        for k, found in odd.items():
            found.append(trained[k].step(2 * number + 1))
    rows = []
    for k in given.k:
        ratios = [a / b for a, b in zip(even[k], even[0], strict=True)]
        row: dict[str, Any] = {
            "k": k,
            "even_s": statistics.median(even[k]),
            "one_shot_s": statistics.median(even[0]),
            "ratio": statistics.median(ratios),
            "of_sums": sum(even[k]) / sum(even[0]),
            "ratios": ratios,
            "odd_s": statistics.median(odd[k]) if odd.get(k) else None,
            "pieces": pieces(trained[k], 0) if k > 1 else None,
        }
        rows.append(row)
    return {"rows": rows}


def peak_of(k: int, given: argparse.Namespace, queue: Any) -> None:
    """In a process of its own: MiB that two even steps needed beyond what was there before."""
    with torch_threads(given.threads), tempfile.TemporaryDirectory() as folder:
        space = space_of(given)
        before = resident_mib()
        trained = Trained(space, k, given, Path(folder))
        for index in (0, 2):
            trained.step(index)
        if trained.device.type == "cuda":
            queue.put(torch.cuda.max_memory_allocated(trained.device) / MIB)
        else:
            queue.put(highest_mib() - before)


def resident_mib() -> float:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def highest_mib() -> float:
    """The most that this process has held; what it was started by counts in ru_maxrss, not here."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peaks(given: argparse.Namespace) -> dict[int, float]:
    """Peak memory in MiB by K, one-shot as 0."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for k in (0, *given.k):
        queue = context.Queue()
        process = context.Process(target=peak_of, args=(k, given, queue))
        process.start()
        found[k] = queue.get()
        process.join()
    return found


def space_of(given: argparse.Namespace) -> Space:
    """NAS-Bench-Macro at the size that was asked for."""
    shape = (3, given.pixels, given.pixels)
    return load_space("nasbench_macro", preset=given.preset, input_shape=shape, n_classes=10)


def report(found: dict[str, Any], given: argparse.Namespace) -> None:
    """Print the tables."""
    print(
        f"nasbench_macro {given.preset}, {given.pixels} px, batch {given.batch}, "
        f"{given.precision}, {given.device}; medians of {given.rounds} rounds"
    )
    print("K   even s  / one-shot   odd s   paper: epoch / K = 1")
    for row in found["rows"]:
        hours = PAPER.get(row["k"])
        paper = f"{hours[0] / PAPER[1][0]:.3f}" if hours else "-"
        odd = f"{row['odd_s']:7.3f}" if row["odd_s"] else "      -"
        print(
            f"{row['k']:<3} {row['even_s']:6.3f}  {row['ratio']:10.3f} {odd}   {paper}"
            f"     (all rounds together {row['of_sums']:.3f})"
        )
    print("\nK   merge ms  gradients ms  optimizer ms   MiB moved: merge, gradients, optimizer")
    for row in found["rows"]:
        if one := row["pieces"]:
            print(
                f"{row['k']:<3} {1e3 * one['merge_s']:8.2f}  {1e3 * one['gradients_s']:12.2f}  "
                f"{1e3 * one['optimizer_s']:12.2f}   "
                + ", ".join(f"{v:.0f}" for v in one["moved"].values())
            )
    print("\nK   MiB: weights, gradients, mixture, momentum so far   peak of a process   paper GB")
    for row in found["rows"]:
        one, k = row["pieces"], row["k"]
        own = ", ".join(f"{v:.1f}" for v in one["memory"].values()) if one else "-"
        peak = found["peak_mib"].get(k)
        shown = "-" if peak is None else f"{peak:.0f} (one-shot {found['peak_mib'][0]:.0f})"
        print(f"{k:<3} {own:48}   {shown:20}   {PAPER[k][1] if k in PAPER else '-'}")


def main() -> int:
    """Print the tables; 1 where the budget is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--preset", default="paper", help="width: paper, half, tiny")
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--odd-rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-peak", action="store_true", help="leave out peak memory")
    given = parser.parse_args()
    with torch_threads(given.threads), tempfile.TemporaryDirectory() as folder:
        found = compare(space_of(given), given, Path(folder))
    found["peak_mib"] = {} if given.no_peak else peaks(given)
    found["kept"] = all(r["ratio"] <= BUDGET[r["k"]] for r in found["rows"] if r["k"] in BUDGET)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        report(found, given)
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
