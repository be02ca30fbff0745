"""Run as a program: one rank of two, through the cases of test_distributed.py.

usage: rank_worker.py FOLDER RANK CASE ...     each case joins through a file and has a run folder
       rank_worker.py FOLDER elastic           started by torchrun

A case leaves what it noted (``CASE-R.json``) and its weights (``CASE-R.end.safetensors``).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from latency_tables.arch import Arch
from latency_tables.errors import DataError, HilnasError
from pipeline.spaces.base import Space
from pipeline.strategies import load_strategy
from pipeline.strategies.spos import SPOS
from pipeline.training import engine
from pipeline.training.config import CheckpointConfig, OptimizerConfig, RanksConfig, ScheduleConfig
from pipeline.training.distributed import JoinedRanks, join
from pipeline.training.engine import TrainResult, train
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks
from pipeline.training.step import Step, Strategy, Update
from tests.pipeline.training.toys import ToyBatch, ToyStream, toy_config, toy_space, toy_supernet

STEPS = 2
MORE_STEPS = 5
SMALL_STEPS: Mapping[str, Mapping[str, Any]] = {
    "greedynas": {"drawn": 4, "trained": 2, "epsilon_start": 0.0, "epsilon_end": 0.0},
    "sumnas": {"inner_steps": 2},
    "sandwich": {"n_random": 1},
    "kshot": {"k": 2, "groups": 4, "warmup_share": 0.0, "hidden": 8},
    "attentivenas": {"attentive": 1, "candidates": 2},
    "shiftnas": {"paths": "exact", "levels": 3, "update_every": 1, "freeze": 0.0},
    "shiftnas:pathwise": {"gradient": "pathwise", "levels": 3, "update_every": 1, "freeze": 0.0},
}
"""Options that keep a step short; of a strategy with several cases, by strategy:case."""


SPLITS = ("train", "scoring", "b-update")


class WideStream(ToyStream):
    """The same batches in float64."""

    def batch(self, number: int, /) -> ToyBatch:
        batch = super().batch(number)
        return ToyBatch(images=batch.images.double(), labels=batch.labels)


def small_strategy(name: str, space: Space, supernet: Any) -> Strategy:
    return load_strategy(
        name.partition(":")[0], space=space, supernet=supernet, options=SMALL_STEPS.get(name, {})
    )


def wide_config(**changes: Any) -> Any:
    """A few steps of SGD with momentum and decay at a constant rate."""
    settings: dict[str, Any] = {
        "steps": STEPS,
        "optimizer": OptimizerConfig(lr=0.05, momentum=0.9, weight_decay=1e-2, decay="all"),
        "schedule": ScheduleConfig(kind="constant"),
        "checkpoint": CheckpointConfig(seconds=0),
    }
    return toy_config(**(settings | changes))


def wide_train(
    folder: Path,
    joined: Ranks,
    strategy: str | Callable[[Space], Strategy],
    *,
    start: int = 0,
    **changes: Any,
) -> tuple[TrainResult, Any, Strategy]:
    """Train in float64; returns the result, the supernet and the strategy."""
    space = toy_space()
    supernet = toy_supernet(space, seed=start).double()
    made = (
        small_strategy(strategy, space, supernet) if isinstance(strategy, str) else strategy(space)
    )
    supernet = getattr(made, "supernet", supernet)  # made of several
    streams = {split: WideStream(seed=i) for i, split in enumerate(SPLITS)}
    result = train(
        space, supernet, made, streams, wide_config(**changes), folder, seed=0, ranks=joined
    )
    return result, supernet, made


class Case:
    """One case on one rank: the run's folder, the ranks and what is noted beside it."""

    def __init__(self, run: Path, ranks: Ranks) -> None:
        self.run, self.ranks, self.facts = run, ranks, dict[str, Any]()
        self.weights: dict[str, dict[str, torch.Tensor]] = {}

    def write(self, stem: Path) -> None:
        """``stem`` is FOLDER/CASE-RANK."""
        stem.with_suffix(".json").write_text(json.dumps(self.facts, default=torch.Tensor.tolist))
        for name, weights in self.weights.items():
            plain = {k: v.detach().contiguous() for k, v in weights.items()}
            save_file(plain, stem.with_suffix(f".{name}.safetensors"))


def trained(case: Case, strategy: str, **ranks: Any) -> None:
    """One strategy; rank 1 begins with other weights, which must not matter."""
    config = RanksConfig(**ranks)
    _, supernet, made = wide_train(
        case.run, case.ranks, strategy, ranks=config, start=case.ranks.rank
    )
    case.weights["end"] = dict(supernet.named_parameters())
    case.facts["state"] = made.state_dict()
    case.facts["files"] = sorted(p.name for p in case.run.iterdir())


def counted(case: Case) -> None:
    """FairNAS, with a list of all that is reduced."""
    reduced: list[tuple[str, int]] = []
    original = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append((str(tensor.dtype), tensor.numel()))
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counting
    try:
        ranks = RanksConfig(batch_norm="rank")
        wide_train(case.run, case.ranks, "fairnas", ranks=ranks)
    finally:
        dist.all_reduce = original
    case.facts["reduced"] = reduced


class OwnPath(SPOS):
    """Step 0 trains all paths; then rank r trains choice r of every layer."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.after_first: dict[str, torch.Tensor] = {}

    def path(self, choice: int) -> Arch:
        return Arch.from_genes(self.space.decisions, [choice] * len(self.space.decisions))

    def updates(self, step: Step) -> Iterator[Update]:
        choices: Sequence[int] = range(3) if step.index == 0 else [step.ranks.rank]
        batch = step.batch()
        yield Update(losses=[partial(step.loss, self.path(c), batch) for c in choices])
        if step.index == 0:
            self.after_first = {k: p.detach().clone() for k, p in step.supernet.named_parameters()}


def own_path(case: Case) -> None:
    """Paths by rank; keeps the weights after the first step, too."""
    ranks = RanksConfig(paths="per_rank")
    _, supernet, made = wide_train(case.run, case.ranks, OwnPath, ranks=ranks)
    case.weights["end"] = dict(supernet.named_parameters())
    assert isinstance(made, OwnPath)
    case.weights["first"] = made.after_first


class Misbehaving(SPOS):
    """Does something on rank 1 in step 2."""

    def __init__(self, space: Space, act: Callable[[], float | None], *, extra: int = 0) -> None:
        super().__init__(space)
        self.act, self.extra, self.last = act, extra, -1

    def updates(self, step: Step) -> Iterator[Update]:
        arch, batch, factor = self.sample(step.rng), step.batch(), 1.0
        bad = step.ranks.rank == 1 and step.index == 2
        if bad:
            factor = self.act() or 1.0
        for _ in range(1 + self.extra * bad):
            yield Update(losses=[lambda: step.loss(arch, batch) * factor])
        self.last = step.index


def fails(case: Case, act: Callable[[], float | None], *, extra: int = 0, **ranks: Any) -> None:
    """Note how the run ends on this rank."""
    made = Misbehaving(toy_space(), act, extra=extra)
    try:
        wide_train(
            case.run,
            case.ranks,
            lambda _: made,
            steps=MORE_STEPS,
            log_every=4,
            ranks=RanksConfig(**ranks),
        )
    except (HilnasError, KeyboardInterrupt) as error:
        case.facts["error"] = type(error).__name__
        case.facts["message"] = str(error)
    case.facts["last"] = made.last


def raise_data_error() -> None:
    raise DataError("no images left", hint="more images")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def undivided(case: Case) -> None:
    """A batch of 15 for two."""
    space = toy_space()
    try:
        train(
            space, toy_supernet(space), SPOS(space), {"train": ToyStream(batch_size=15)},
            toy_config(), case.run, seed=0, ranks=case.ranks,
        )  # fmt: skip
    except HilnasError as error:
        case.facts |= {"error": type(error).__name__, "message": error.message, "hint": error.hint}


def chosen(case: Case) -> None:
    """Only rank 0 may choose the precision."""

    def choose(*args: Any, **kwargs: Any) -> tuple[Precision, dict[str, float]]:
        if not case.ranks.leads:
            raise AssertionError("another rank timed formats")
        return Precision(channels_last=True), {}

    original, engine.choose = engine.choose, choose
    try:
        result, _, _ = wide_train(case.run, case.ranks, "spos", channels_last="auto")
    finally:
        engine.choose = original
    case.facts["precision"] = str(result.precision)


def stopped_and_gone_on(case: Case) -> None:
    """Ctrl-C on rank 1 in step 2, then the same run again, with fresh ranks."""
    fails(case, partial(signal.raise_signal, signal.SIGINT), paths="per_rank")


def whole(case: Case) -> None:
    """The same steps without an interruption."""
    fails(case, lambda: None, paths="per_rank")


OWN = ("spos", "fairnas", "sandwich", "greedynas", "sumnas", "shiftnas", "shiftnas:pathwise")
CASES: dict[str, Callable[[Case], None]] = {
    **{f"same-{name}": partial(trained, strategy=name) for name in (*OWN, "attentivenas", "kshot")},
    **{f"own-{name}": partial(trained, strategy=name, paths="per_rank") for name in OWN},
    "counted": counted,
    "own_path": own_path,
    "chosen": chosen,
    "undivided": undivided,
    "whole": whole,
    "stopped": stopped_and_gone_on,
    "stopped_again": whole,
    "for_one": stopped_and_gone_on,
    "not_a_number": partial(fails, act=lambda: float("nan")),
    "raising": partial(fails, act=raise_data_error),
    "raising_between_batch_norms": partial(fails, act=raise_data_error, batch_norm="global"),
    "two_ways": partial(fails, act=lambda: None, extra=1, batch_norm="rank"),
    "killed": partial(fails, act=die),
}
FOLDERS = {"stopped_again": "stopped"}
"""Cases that go on in the folder of another one."""


def run_cases(folder: Path, rank: int, names: Sequence[str]) -> None:
    for name in names:
        store = dist.FileStore(str(folder / f"{name}.store"), 2)
        ranks = JoinedRanks(store, rank=rank, world=2, time_limit=timedelta(seconds=180))
        case = Case(folder / FOLDERS.get(name, name), ranks)
        CASES[name](case)
        case.write(folder / f"{name}-{rank}")
        ranks.close()


def run_elastic(folder: Path) -> None:
    """Under torchrun: rank 1 dies in step 3 of its first life."""
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    ranks = join(local_rank=int(os.environ["LOCAL_RANK"]), cuda=False, attempt=attempt)

    class Dying(SPOS):
        def updates(self, step: Step) -> Iterator[Update]:
            yield from super().updates(step)
            if attempt == 0 and step.ranks.rank == 1 and step.index == 3:
                die()

    every = CheckpointConfig(seconds=0, steps=2)
    wide_train(
        folder,
        ranks,
        Dying,
        steps=MORE_STEPS,
        checkpoint=every,
        ranks=RanksConfig(paths="per_rank"),
    )
    ranks.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "elastic":
        run_elastic(Path(sys.argv[1]))
    else:
        # Ctrl-C as in the foreground; a shell's background job starts with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_cases(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
