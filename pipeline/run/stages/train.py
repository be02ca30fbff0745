"""Stage ``train``: train the supernet."""

from __future__ import annotations

from pathlib import Path

import torch

from latency_tables.files import write_json
from pipeline.data.batches import OneBatch
from pipeline.randomness import child_seed
from pipeline.run.context import RunContext
from pipeline.run.stage import Stage
from pipeline.run.teacher import announce, open_teacher, teacher_sha256
from pipeline.run.timings import report_timing, stage_timer
from pipeline.run.training_bar import training_bar
from pipeline.spaces.base import Supernet
from pipeline.strategies import load_strategy
from pipeline.supernet.warm_start import read_weights, warm_start, weights_sha256
from pipeline.training.config import TrainConfig
from pipeline.training.engine import PARTS, train
from pipeline.training.step import Stream


def fresh_supernet(context: RunContext) -> Supernet:
    """A supernet whose weights follow from the run's seed, on the training device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(context.config.seed, "supernet"))
        return context.space.supernet().to(context.torch_device)


def weights_of(context: RunContext) -> Path | None:
    """The file or folder that ``train.warm_start`` names, counted from the run file's folder."""
    given = context.config.train.warm_start
    return None if given is None else context.base / Path(given).expanduser()


def refuse_early(context: RunContext) -> None:
    """Find a teacher or weights that cannot be used before anything is measured or trained."""
    stamp = context.folder.stamps().get("train")
    if stamp is not None and stamp.done:
        return
    open_teacher(context, context.config.train.teacher)
    weights = weights_of(context)
    if weights is not None:
        read_weights(weights)


def settings_of(context: RunContext) -> TrainConfig:
    """The settings of training, with the content of the weights in place of where they lie."""
    config, path = context.config.train, weights_of(context)
    if path is None:
        return config
    return config.model_copy(update={"warm_start": f"sha256:{weights_sha256(path)}"})


def run_train(context: RunContext) -> None:
    """Train from where the checkpoints are; write ``supernet.safetensors`` and ``train.jsonl``."""
    config = settings_of(context)
    supernet = fresh_supernet(context)
    weights = weights_of(context)
    if weights is not None:
        context.reporter.say(f"  {warm_start(supernet, weights).summary()}")
    strategy = load_strategy(
        config.strategy,
        space=context.space,
        supernet=supernet,
        seed=context.config.seed,
        options=config.options,
    )
    supernet = getattr(strategy, "supernet", supernet)
    teacher = open_teacher(context, config.teacher)
    announce(context, teacher)
    stream = context.train_stream()
    streams: dict[str, Stream] = {"train": stream}
    for split, n_images in getattr(strategy, "splits", {}).items():
        streams[split] = OneBatch(context.held_out_batch(n_images))
    timer = stage_timer(context, PARTS)
    with training_bar(context, "training") as show:
        try:
            result = train(
                context.space,
                supernet,
                strategy,
                streams,
                config,
                context.folder.path,
                seed=context.config.seed,
                device=context.torch_device,
                on_progress=show,
                timer=timer,
                teacher=teacher,
                ranks=context.ranks,
            )
        finally:
            stream.close()
    if not context.ranks.leads:
        return
    candidates = strategy.candidates() if hasattr(strategy, "candidates") else []
    write_json(context.folder.file("candidates.json"), [dict(arch) for arch in candidates])
    context.reporter.say(
        f"  {result.steps} steps, {result.images_per_s:,.0f} images/s, "
        f"loss {result.final_loss or float('nan'):.3f}, {result.precision}"
    )
    report_timing(context, "train", timer)


TRAIN = Stage(
    name="train",
    title="training the supernet",
    run=run_train,
    settings=lambda context: {
        "train": settings_of(context).numerics(),
        "teacher": teacher_sha256(context.config.train.teacher, context.base),
        "augment": context.config.data.augment.model_dump(mode="json"),
        # which images are mixed decides the batches; left out where all are, as in most sets
        **({"window": context.config.data.window} if context.config.data.window else {}),
        "seed": context.config.seed,
        "space": context.space.describe(),
    },
    needs=("data",),
    outputs=("supernet.safetensors", "train.jsonl", "candidates.json"),
    working=("checkpoints",),
    on_all_ranks=True,
)
