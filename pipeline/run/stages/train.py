"""Stage ``train``: train the supernet."""

from __future__ import annotations

import torch

from latency_tables.files import write_json
from pipeline.data.batches import Batch, EvalBatches
from pipeline.randomness import child_seed
from pipeline.run.context import RunContext
from pipeline.run.stage import Stage
from pipeline.spaces.base import Supernet
from pipeline.strategies import load_strategy
from pipeline.training.engine import Progress, train
from pipeline.training.step import Stream


def fresh_supernet(context: RunContext) -> Supernet:
    """A supernet whose weights follow from the run's seed, on the training device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(context.config.seed, "supernet"))
        return context.space.supernet().to(context.torch_device)


class _OneBatch:
    """A stream with the same held-out batch under every number."""

    batches_per_epoch = 1

    def __init__(self, batches: EvalBatches) -> None:
        self._batches = batches

    def batch(self, number: int, /) -> Batch:
        """The batch."""
        return self._batches.batch(0)


def run_train(context: RunContext) -> None:
    """Train from where the checkpoints are; write ``supernet.safetensors`` and ``train.jsonl``."""
    config = context.config.train
    supernet = fresh_supernet(context)
    strategy = load_strategy(
        config.strategy,
        space=context.space,
        supernet=supernet,
        seed=context.config.seed,
        options=config.options,
    )
    stream = context.train_stream()
    streams: dict[str, Stream] = {"train": stream}
    for split, n_images in getattr(strategy, "splits", {}).items():
        streams[split] = _OneBatch(context.held_out_batch(n_images))
    with context.reporter.bar("training") as advance:

        def show(progress: Progress) -> None:
            context.give_way()
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
            advance(progress.step, progress.steps, loss)

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
            )
        finally:
            stream.close()
    candidates = strategy.candidates() if hasattr(strategy, "candidates") else []
    write_json(context.folder.file("candidates.json"), [dict(arch) for arch in candidates])
    context.reporter.say(
        f"  {result.steps} steps, {result.images_per_s:,.0f} images/s, "
        f"loss {result.final_loss or float('nan'):.3f}, {result.precision}"
    )


TRAIN = Stage(
    name="train",
    title="training the supernet",
    run=run_train,
    settings=lambda context: {
        "train": context.config.train.numerics(),
        "augment": context.config.data.augment.model_dump(mode="json"),
        "seed": context.config.seed,
        "space": context.space.describe(),
    },
    needs=("data",),
    outputs=("supernet.safetensors", "train.jsonl", "candidates.json"),
    working=("checkpoints",),
)
