"""What a run is made of between two steps: into a checkpoint and back.

A state is: weights, optimizer state, the average, batch counters, the strategy's state, recent
losses and the chosen precision. Nothing else outlives a step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latency_tables.errors import CheckpointError, DivergedError, RunChangedError
from pipeline.supernet.weights import check_tensors
from pipeline.training.checkpoint import Checkpoint, join_state, pack, split_state, unpack
from pipeline.training.ranks import Ranks

if TYPE_CHECKING:
    from pipeline.training.engine import Run

logger = logging.getLogger(__name__)


def settings_of(run: Run) -> dict[str, Any]:
    """What a resumed run must agree on, JSON-ready."""
    return {
        **run.config.numerics(),
        "space_id": run.space.space_id,
        "seed": run.seed,
        "device": run.device.type,
        "total_steps": run.total,
        **({} if run.teacher is None else {"teacher_sha256": run.teacher.sha256}),
        "batches_per_epoch": {k: s.batches_per_epoch for k, s in run.streams.items()},
    }


def check_settings(run: Run, saved: Mapping[str, Any]) -> None:
    """Raise RunChangedError where a checkpoint was made with other settings, naming them."""
    now = settings_of(run)
    changed = sorted(k for k in now.keys() | saved.keys() if now.get(k) != saved.get(k))
    if changed:
        shown = "; ".join(f"{k}: {saved.get(k)} then, {now.get(k)} now" for k in changed)
        raise RunChangedError(
            f"the checkpoints in {run.checkpoints.folder} belong to other settings ({shown})",
            hint="undo the change, or train into another run folder",
        )


def snapshot(run: Run) -> Checkpoint:
    """The state between two steps. Raises DivergedError where a tensor is not finite."""
    strategy, tensors = split_state(run.strategy.state_dict(), "strategy")
    tensors |= {f"weights/{k}": v for k, v in run.supernet.state_dict().items()}
    for name, optimizer in run.optimizers.items():
        for key, value in optimizer.state_tensors().items():
            tensors[f"optimizer/{name}/{key}"] = value
    if run.average is not None:
        tensors |= {f"average/{k}": v for k, v in run.average.tensors().items()}
    _refuse_non_finite(tensors, run.done)
    state = {
        "settings": settings_of(run),
        "precision": run.precision.to_dict(),
        "threads": torch.get_num_threads(),
        "ranks": run.ranks.world,
        "counters": run.counters,
        "n_images": run.n_images,
        "seconds": run.seconds,
        "logged": [run.logged_images, run.logged_seconds],
        "monitor": run.monitor.state_dict(),
        "strategy": strategy,
    }
    return Checkpoint(step=run.done, tensors=tensors, state=state)


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Take a state back. Raises CheckpointError where it does not fit the run."""
    state = checkpoint.state
    started_with = state.get("ranks", 1)
    if started_with != run.ranks.world and run.ranks.leads:
        logger.warning(
            "the run was started with %d processes and goes on with %d; the images of a step stay "
            "the same%s, the last bits may differ",
            started_with,
            run.ranks.world,
            "" if run.config.ranks.paths == "same" else ", the number of its paths does not",
        )
    if state["threads"] != torch.get_num_threads() and run.device.type == "cpu" and run.ranks.leads:
        logger.warning(
            "the run was started with %d threads and goes on with %d: the last bits may differ",
            state["threads"],
            torch.get_num_threads(),
        )
    weights = _below(checkpoint.tensors, "weights/")
    check_tensors(run.supernet, weights, f"checkpoint {checkpoint.step}")
    run.supernet.load_state_dict(weights)
    for name, optimizer in run.optimizers.items():
        optimizer.load_state_tensors(_below(checkpoint.tensors, f"optimizer/{name}/"))
    if run.average is not None:
        # one update per step
        run.average.load(_below(checkpoint.tensors, "average/"), checkpoint.step)
    run.strategy.load_state_dict(join_state(state["strategy"], checkpoint.tensors))
    run.monitor.load_state_dict(state["monitor"])
    run.counters |= state["counters"]
    run.n_images, run.seconds = state["n_images"], state["seconds"]
    run.logged_images, run.logged_seconds = state["logged"]
    run.done = run.saved = checkpoint.step
    if run.done > run.total:
        raise CheckpointError(f"checkpoint {run.done} lies beyond the last step {run.total}")


def shared(ranks: Ranks, checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint of rank 0 on every rank; the others need not see its folder.

    Sent as the length of a JSON text, the text, and a safetensors file: no pickle.
    """
    data = None
    if checkpoint is not None:
        if ranks.world == 1:
            return checkpoint
        text = json.dumps({"step": checkpoint.step, "state": checkpoint.state}).encode()
        data = len(text).to_bytes(8, "big") + text + pack(checkpoint.tensors)
    received = ranks.first(data)
    if checkpoint is not None:
        return checkpoint
    if received is None:
        raise CheckpointError("rank 0 has no state to share")
    end = 8 + int.from_bytes(received[:8], "big")
    said = json.loads(received[8:end])
    return Checkpoint(step=said["step"], tensors=unpack(received[end:]), state=said["state"])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _refuse_non_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """One wait for the device; the names are only looked for when something is wrong."""
    floats = {k: v for k, v in tensors.items() if v.is_floating_point()}
    if not floats or bool(torch.stack([v.isfinite().all() for v in floats.values()]).all()):
        return
    names = [k for k, v in floats.items() if not bool(v.isfinite().all())]
    raise DivergedError(
        f"{len(names)} tensors are not finite after step {step}, for example {names[0]}; "
        "the last good checkpoint is kept",
        hint="a lower train.optimizer.lr, some train.schedule.warmup_steps or train.clip_norm = 5",
    )
