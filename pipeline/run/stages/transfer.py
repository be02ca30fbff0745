"""Stage ``train`` of a transfer: the supernet of another run, with a new classifier.

It writes what training writes, so that everything after it takes it for a trained supernet.
"""

from __future__ import annotations

from typing import Any

from latency_tables.files import write_json, write_text
from pipeline.run.context import RunContext
from pipeline.run.stage import Stage
from pipeline.run.stages.train import fresh_supernet
from pipeline.run.teacher import announce, open_teacher, teacher_sha256
from pipeline.run.training_bar import training_bar
from pipeline.run.transfer import load_source, source_folder, space_of_source
from pipeline.spaces.base import Supernet
from pipeline.supernet.transfer import HeadWarmUp, check_fits, take_over
from pipeline.supernet.weights import save_supernet
from pipeline.training.config import TrainConfig
from pipeline.training.engine import train


def run_transfer(context: RunContext) -> None:
    """Take the weights over, warm the classifier up where asked; write ``supernet.safetensors``.

    Raises:
        CheckpointError: the weights cannot be read, or do not fit.
        DivergedError: the loss of the warm-up is not finite or blew up.
    """
    source = load_source(context)
    supernet = fresh_supernet(context)
    check_fits(context.space, space_of_source(source_folder(context)))
    taken = take_over(supernet, context.space, source)
    context.reporter.say(f"  {taken.summary()}")
    if _head_steps(context):
        _warm_up(context, supernet)
    else:
        save_supernet(context.space, supernet, context.folder.file("supernet.safetensors"))
        write_text(context.folder.file("train.jsonl"), "")
    write_json(context.folder.file("candidates.json"), [])


def _warm_up(context: RunContext, supernet: Supernet) -> None:
    """Train the classifier from where the checkpoints are."""
    for parameter in supernet.parameters():
        parameter.requires_grad_(False)
    strategy = HeadWarmUp(context.space, supernet)
    for parameter in strategy.classifier.values():
        parameter.requires_grad_(True)
    teacher = open_teacher(context, context.config.train.teacher)
    announce(context, teacher)
    stream = context.train_stream()
    with training_bar(context, "new classifier") as show:
        try:
            result = train(
                context.space,
                supernet,
                strategy,
                {"train": stream},
                _config(context),
                context.folder.path,
                seed=context.config.seed,
                device=context.torch_device,
                on_progress=show,
                teacher=teacher,
            )
        finally:
            stream.close()
    context.reporter.say(
        f"  classifier: {result.steps} steps, loss {result.final_loss or float('nan'):.3f}"
    )


def _head_steps(context: RunContext) -> int:
    transfer = context.config.transfer
    return 0 if transfer is None else transfer.head_steps


def _config(context: RunContext) -> TrainConfig:
    """The rules of ``[train]``, for the steps of the warm-up."""
    settings = context.config.train.model_dump(exclude={"epochs", "steps", "options", "strategy"})
    return TrainConfig.model_validate({**settings, "steps": _head_steps(context)})


def _settings(context: RunContext) -> dict[str, Any]:
    transfer = context.config.transfer
    found = {
        "sha256": None if transfer is None else transfer.sha256,
        "seed": context.config.seed,
        "space": context.space.describe(),
    }
    if not _head_steps(context):
        return found
    return {
        **found,
        "train": _config(context).numerics(),
        "teacher": teacher_sha256(context.config.train.teacher, context.base),
        "augment": context.config.data.augment.model_dump(mode="json"),
        "window": context.config.data.window,
    }


TRANSFER = Stage(
    name="train",
    title="taking a supernet over",
    run=run_transfer,
    settings=_settings,
    needs=("data",),
    outputs=("supernet.safetensors", "train.jsonl", "candidates.json"),
    working=("checkpoints",),
)
