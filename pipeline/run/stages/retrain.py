"""Stage ``retrain``: train one network of the front alone, and export it beside the inherited one.

It is not among the stages of the main job: ``hilnas retrain RUN`` runs it on a finished run. The
training loop is that of supernets, on a space of one architecture, with its checkpoints, log and
checks. Everything is written to a folder of its own in the run folder; the test images are read at
the end, by the exported file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latency_tables.arch import Arch
from latency_tables.errors import CheckpointError
from latency_tables.estimate import Estimate
from latency_tables.files import canonical_json, write_bytes, write_json
from pipeline.data.batches import TrainStream
from pipeline.data.config import AugmentConfig
from pipeline.data.raw import Indices
from pipeline.export.manifest import AccuracyEntry, Manifest
from pipeline.randomness import child_seed
from pipeline.retraining.alone import Alone, SpaceOfOne, regularise
from pipeline.retraining.config import RetrainConfig
from pipeline.run.context import RunContext
from pipeline.run.stage import Stage
from pipeline.run.stages.export import write_export
from pipeline.run.teacher import announce, open_teacher, teacher_sha256
from pipeline.run.training_bar import training_bar
from pipeline.spaces.base import Space
from pipeline.strategies.spos import SPOS
from pipeline.supernet.scoring import evaluate, materialise, recalibrate
from pipeline.training.checkpoint import UNREADABLE, pack, read_packed
from pipeline.training.engine import WEIGHTS_FILE, TrainResult, train
from pipeline.training.precision import Precision

WEIGHTS = "network.safetensors"
SUMMARY = "retrain.json"
SCHEMA = "hilnas.retrain/1"
OUTPUTS = (WEIGHTS, "train.jsonl", "subnet.onnx", "golden.npz", "manifest.json", SUMMARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """What is retrained, how, and in which folder of the run.

    ``point`` is its entry in ``front.json``; None where the architecture is from elsewhere.
    """

    name: str
    arch: Arch
    chosen: str
    point: dict[str, Any] | None
    recipe: str | None
    config: RetrainConfig

    def stage(self) -> Stage:
        """The stage that does it; a second one of the same name takes the first one's place."""
        return Stage(
            name=self.name,
            title=f"retraining {self.chosen}",
            run=partial(run_retrain, job=self),
            settings=self._settings,
            # fresh weights ask nothing of the supernet, but its accuracy is stated beside theirs
            needs=("data", "train", "table", "search"),
            outputs=tuple(f"{self.name}/{file}" for file in OUTPUTS),
            working=(f"{self.name}/checkpoints",),
        )

    def _settings(self, context: RunContext) -> dict[str, Any]:
        return {
            "train": self.config.numerics(),
            "teacher": teacher_sha256(self.config.teacher, context.base),
            "augment": _augment(context, self.config).model_dump(mode="json"),
            "arch": dict(self.arch),
            "space": context.space.describe(),
            "export": context.config.export.model_dump(mode="json"),
            "seed": context.config.seed,
        }


def run_retrain(context: RunContext, *, job: Retraining) -> None:
    """Train, export, and write ``retrain.json`` with both accuracies.

    Raises:
        UsageError: drop path or dropout that the network has no place for; a teacher that does not
            fit.
        DivergedError: the loss is not finite or blew up; the last good checkpoint is kept.
        ParityError: torch and the exported file disagree.
    """
    folder = context.folder.file(job.name)
    inherited = _inherited_accuracy(context, job)
    network, result = _train(context, job)
    dataset = context.dataset_of(job.arch)
    if job.config.batch_norm == "recalibrate":
        recalibrate(network, context.eval_batches("calibration", dataset))
    network.eval()
    metadata = {"schema": SCHEMA, "space_id": context.space.space_id, "arch": dict(job.arch)}
    packed = pack(network.state_dict(), {"hilnas": canonical_json(metadata)})
    write_bytes(folder / WEIGHTS, packed)
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)
    manifest = write_export(
        context,
        network,
        job.arch,
        measured=_measured(job),
        validation=_validation(context, job, network),
        weights=folder / WEIGHTS,
        to=folder,
    )
    write_json(folder / SUMMARY, _summary(context, job, result, manifest, inherited))


def load_retrained(space: Space, arch: Arch, path: Path) -> nn.Sequential:
    """The network that :func:`run_retrain` wrote, on the CPU in evaluation mode.

    Raises:
        CheckpointError: the file cannot be read, or is of another space or architecture.
    """
    again = "retrain the network: hilnas retrain RUN"
    try:
        told, tensors = read_packed(path)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint=again) from error
    expected = {"schema": SCHEMA, "space_id": space.space_id, "arch": dict(arch)}
    if told != expected:
        wrong = ", ".join(k for k in expected if told.get(k) != expected[k])
        raise CheckpointError(f"{path} holds another network: its {wrong} differs", hint=again)
    with torch.random.fork_rng(devices=[]):
        network = space.network(arch)
    network.load_state_dict(tensors)
    return network.eval()


def _train(context: RunContext, job: Retraining) -> tuple[nn.Sequential, TrainResult]:
    """Train from where the checkpoints are; gives the plain network with the final weights."""
    config, space = job.config, SpaceOfOne(context.space, job.arch)
    alone = _starting_network(context, job, space)
    shape = space.input_shape_of(job.arch)
    regularise(alone, drop_path=config.drop_path, dropout=config.dropout, input_shape=shape)
    teacher = open_teacher(context, config.teacher)
    announce(context, teacher)
    stream = _stream(context, config)
    context.reporter.say(
        f"  {job.chosen}: {_origin(config)}, {stream.n_images} images, "
        f"{config.total_steps(stream.batches_per_epoch)} steps of {config.batch_size}"
    )
    with training_bar(context, job.name) as show:
        try:
            result = train(
                space,
                alone,
                SPOS(space),
                {"train": stream},
                config,
                context.folder.file(job.name),
                seed=context.config.seed,
                device=context.torch_device,
                on_progress=show,
                teacher=teacher,
            )
        finally:
            stream.close()
    network = context.space.network(job.arch)
    network.load_state_dict(alone.network.state_dict())
    Precision(channels_last=True).place(network, context.torch_device)
    return network, result


def _starting_network(context: RunContext, job: Retraining, space: SpaceOfOne) -> Alone:
    """Fresh weights that follow from the run's seed, or the supernet's, calibrated."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(context.config.seed, "retrain"))
        alone = space.supernet()
    if job.config.start == "inherited":
        network = context.space.network(job.arch)
        source = context.searched_supernet().source_of(job.arch)
        context.space.inherit(network, job.arch, source)
        recalibrate(network, context.eval_batches("calibration", context.dataset_of(job.arch)))
        alone.network.load_state_dict(network.state_dict())
    return alone


def _stream(context: RunContext, config: RetrainConfig) -> TrainStream:
    # what is not test: the train split and the whole held-out pool
    indices: Indices = context.dataset.pool if config.all_data else context.splits.train
    return TrainStream(
        context.dataset,
        indices,
        batch_size=config.batch_size,
        seed=context.config.seed,
        augment=_augment(context, config),
        device=context.torch_device,
        workers=context.config.data.workers,
    )


def _augment(context: RunContext, config: RetrainConfig) -> AugmentConfig:
    return config.augment or context.config.data.augment


def _origin(config: RetrainConfig) -> str:
    weights = "fresh weights" if config.start == "scratch" else "the supernet's weights"
    return f"{weights}, {'train and held-out' if config.all_data else 'train'} split"


def _measured(job: Retraining) -> dict[str, Estimate]:
    """Latency does not depend on weights, so what was measured of the network still holds."""
    found = {} if job.point is None else job.point["measured"]
    return {name: Estimate.from_dict(estimate) for name, estimate in found.items()}


def _validation(context: RunContext, job: Retraining, network: nn.Module) -> AccuracyEntry | None:
    """Accuracy on the images that the search scored on; None where they were trained on."""
    if job.config.all_data:
        return None
    batches = context.eval_batches("search-validation", context.dataset_of(job.arch))
    accuracy, _, n_images = evaluate(network, batches, Precision())
    return AccuracyEntry(value=accuracy, n_images=n_images)


def _inherited_accuracy(context: RunContext, job: Retraining) -> dict[str, Any]:
    """Test accuracy of the same network with the supernet's weights, as its export has it."""
    network = materialise(context.space, job.arch, context.searched_supernet())
    dataset = context.dataset_of(job.arch)
    recalibrate(network, context.eval_batches("calibration", dataset))
    accuracy, loss, n_images = evaluate(network, context.eval_batches("test", dataset), Precision())
    return {"test": accuracy, "n_images": n_images, "loss": loss}


def _summary(
    context: RunContext,
    job: Retraining,
    result: TrainResult,
    manifest: Manifest,
    inherited: dict[str, Any],
) -> dict[str, Any]:
    accuracy = manifest.accuracy
    settings = job.config.model_dump(mode="json", exclude_none=True, exclude={"teacher"})
    return {
        "schema": SCHEMA,
        "chosen": job.chosen,
        "arch": dict(job.arch),
        "recipe": job.recipe,
        "settings": settings,
        "teacher_sha256": teacher_sha256(job.config.teacher, context.base),
        "steps": result.steps,
        "seconds": result.seconds,
        "precision": result.precision.to_dict(),
        "inherited": inherited,
        "retrained": accuracy.model_dump(mode="json"),
    }
