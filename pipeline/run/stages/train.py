"""Stage ``train``: train the supernet."""

from __future__ import annotations

from pathlib import Path

import torch

from latency_tables.files import write_json
from pipeline.data.batches import OneBatch
from pipeline.generator.file import FILE_NAME as GENERATOR_FILE
from pipeline.randomness import child_seed
from pipeline.run.context import RunContext
from pipeline.run.held_out import HeldOutTurns
from pipeline.run.level_costs import latency_costs, latency_settings, trained_device
from pipeline.run.stage import Stage
from pipeline.run.teacher import announce, open_teacher, teacher_sha256
from pipeline.run.timings import report_timing, stage_timer
from pipeline.run.training_bar import training_bar
from pipeline.spaces.base import Supernet
from pipeline.strategies import load_strategy
from pipeline.supernet.warm_start import read_weights, warm_start, weights_sha256
from pipeline.training.config import TrainConfig
from pipeline.training.engine import PARTS, train
from pipeline.training.step import HeldOut, Stream


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
    """Find what cannot be used (teacher, weights, device) before anything is measured."""
    stamp = context.folder.stamps().get("train")
    if stamp is not None and stamp.done:
        return
    open_teacher(context, context.config.train.teacher)
    trained_device(context)
    weights = weights_of(context)
    if weights is not None:
        read_weights(weights)


def settings_of(context: RunContext) -> TrainConfig:
    """The settings of training, with the content of the weights in place of where they lie."""
    config, path = context.config.train, weights_of(context)
    if path is None:
        return config
    return config.model_copy(update={"warm_start": f"sha256:{weights_sha256(path)}"})


def held_out_stream(context: RunContext, wanted: int | HeldOut) -> Stream:
    """Held-out images for a strategy: one batch of them, or batches that take turns."""
    if isinstance(wanted, int):
        return OneBatch(context.held_out_batch(wanted))
    return HeldOutTurns(context, wanted.n_images, batch_size=context.config.train.batch_size)


def further_outputs(context: RunContext) -> tuple[str, ...]:
    """The generator, where the strategy has written one."""
    return (GENERATOR_FILE,) if context.folder.file(GENERATOR_FILE).exists() else ()


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
        latency=latency_costs(context),
    )
    supernet = getattr(strategy, "supernet", supernet)
    teacher = open_teacher(context, config.teacher)
    announce(context, teacher)
    stream = context.train_stream()
    streams: dict[str, Stream] = {"train": stream}
    for split, wanted in getattr(strategy, "splits", {}).items():
        streams[split] = held_out_stream(context, wanted)
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
    if hasattr(strategy, "summary"):
        context.reporter.say(f"  {strategy.summary()}")
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
        **latency_settings(context),
        "seed": context.config.seed,
        "space": context.space.describe(),
    },
    needs=("data",),
    outputs=("supernet.safetensors", "train.jsonl", "candidates.json"),
    further_outputs=further_outputs,
    working=("checkpoints",),
    on_all_ranks=True,
)
