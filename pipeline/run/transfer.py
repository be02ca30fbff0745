"""``hilnas transfer``: which run a supernet comes from, and the settings that follow from that.

The space, and the size and colours of the images, are the source's; what else the run file says
holds. The resolved settings are kept in the run folder like those of any run, so that ``hilnas run
FOLDER`` goes on with them, with or without the source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_tables.errors import CheckpointError, ConfigError, RunError, UsageError
from latency_tables.files import sha256_file
from pipeline.config import RunConfig, run_config_of
from pipeline.run.folder import RunFolder
from pipeline.run.source import LOCK, RunSource, read_source
from pipeline.spaces import SPACES
from pipeline.supernet.transfer_config import TransferConfig

if TYPE_CHECKING:
    from pipeline.run.context import RunContext
    from pipeline.spaces.base import Space, Supernet

LEARNING_RATE = 0.01
"""Of shifting in a transfer: at the paper's 1e-4 a new classifier hardly moves, see
docs/benchmarks.md."""
_UNKNOWN = "?"
"""In place of the source while the run file is read, which decides what paths count from."""


def read_transfer(run: Path, target: str, overrides: Sequence[str] = ()) -> RunSource:
    """Settings of a transfer: those of ``target``, with what follows from the source run.

    Args:
        run: folder of a run whose supernet is trained.
        target: run file, starter or run folder with the new data set.
        overrides: ``key=value``, as for ``hilnas run``.

    Raises:
        UsageError: ``run`` is no run folder, or its space cannot be transferred.
        RunError: its supernet is not trained yet.
        CheckpointError: its weights are not those that it trained.
        ConfigError: the settings are wrong, or contradict the source.
    """
    space = source_space(run)
    refused = [o for o in overrides if o.strip().startswith(("space.", "space="))]
    if refused:
        raise ConfigError(
            f"--set {refused[0]}: the space of a transfer is the source's, {space['name']} "
            f"({space['preset']})",
            hint="leave it out, or train anew: hilnas run",
        )
    if (Path(target) / LOCK).is_file():
        raise UsageError(
            f"{target} is a run folder; a transfer is given a run file or a starter",
            hint=f"hilnas run {target}, to go on with it",
        )
    found = read_source(target, [*overrides, f'transfer.source="{_UNKNOWN}"'])
    transfer = found.config.transfer
    if transfer is None:
        raise ConfigError("the run file has no table [transfer] that could be filled in")
    if found.config.train.warm_start is not None:
        raise ConfigError(
            "train.warm_start is for training; a transfer takes its weights from the source run",
            hint=f"without warm_start, or: hilnas run {target}",
        )
    told = transfer.model_copy(
        update={
            "source": os.path.relpath(run, found.base),
            "sha256": sha256_file(source_weights(run, transfer)),
            "space_id": space["space_id"],
        }
    )
    return replace(found, config=_adapted(found.config, told, space), module=None)


def default_folder(found: RunSource, run: Path) -> Path:
    """``runs/TARGET-from-RUN``."""
    return Path("runs") / f"{found.name}-from-{run.resolve().name}"


def source_space(run: Path) -> dict[str, Any]:
    """Description and id of the space that a finished run has trained in.

    Raises:
        UsageError: no run folder, or a space that cannot be transferred.
        RunError: no trained supernet.
    """
    folder = RunFolder(run)
    if not folder.file(LOCK).is_file():
        raise UsageError(f"{run} is no run folder", hint="hilnas transfer RUN FILE|STARTER")
    stamp = folder.stamps().get("train")
    if stamp is None or not stamp.done:
        raise RunError(f"{run} has no trained supernet yet", hint=f"hilnas run {run}")
    try:
        profile = json.loads(folder.file("profile.json").read_text())
        space = {**profile["space"], "space_id": profile["space_id"]}
        known = space["name"] in SPACES
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder.file('profile.json')} cannot be read ({error})", hint=f"hilnas run {run}"
        ) from None
    if not known:
        raise UsageError(
            f"{run} searched {space['name']!r}, a model of your own; only shipped spaces can be "
            "given another classifier",
            hint="train.warm_start = that run's folder, in a run file of the same model",
        )
    return space


def source_weights(run: Path, transfer: TransferConfig) -> Path:
    """The weights to take over: what the run's search made of its supernet, if it did.

    Raises:
        CheckpointError: the file is missing, or not the one that the run wrote.
    """
    folder = RunFolder(run)
    stamps = folder.stamps()
    stage, name = "train", "supernet.safetensors"
    search = stamps.get("search")
    if transfer.weights == "searched" and search is not None and search.done:
        front = json.loads(folder.file("front.json").read_text())
        if "weights" in front:
            stage, name = "search", str(front["weights"]["file"])
    path = folder.file(name)
    written = stamps[stage].outputs.get(name)
    if not path.is_file() or (written is not None and sha256_file(path) != written):
        raise CheckpointError(
            f"{path} is {'damaged' if path.is_file() else 'missing'}", hint=f"hilnas run {run}"
        )
    return path


def _adapted(config: RunConfig, transfer: TransferConfig, space: dict[str, Any]) -> RunConfig:
    """The settings, with the source's space and image size and a search that shifts."""
    channels, height, width = space["input_shape"]
    if transfer.resample == "learned" and height != width:
        raise ConfigError(
            f"learned resampling is for supernets of square images, not {height}×{width}",
            hint="without transfer.resample",
        )
    data = config.model_dump(mode="json", exclude_none=True)
    data["space"] = {"name": space["name"], "preset": space["preset"]}
    learned = transfer.resample == "learned"
    if learned:
        data["space"]["resample_to"] = height
    data["transfer"] = transfer.model_dump(mode="json", exclude_none=True)
    if config.data.image_size is None and height == width and not learned:
        data["data"]["image_size"] = height
    data["data"].setdefault("channels", channels)
    search, given = data["search"], config.search.shifting
    usual = {"mode": "immediate", "lr": LEARNING_RATE}
    if given is None and "shifting" not in config.search.model_fields_set:
        search["shifting"] = usual
    elif given is not None:
        said = given.model_fields_set
        search["shifting"].update({k: v for k, v in usual.items() if k not in said})
    return run_config_of(data)


def refuse_early(context: RunContext) -> None:
    """Find weights that do not fit before anything is measured.

    Raises:
        UsageError: the source was never looked at: the run file was given to another command.
        CheckpointError: the weights do not fit the space for these images.
    """
    from pipeline.supernet.transfer import check_fits

    transfer = context.config.transfer
    if transfer is None:
        return
    if transfer.sha256 is None:
        raise UsageError(
            "a run file with a table [transfer] is no run of its own",
            hint=f"hilnas transfer {transfer.source} FILE",
        )
    stamp = context.folder.stamps().get("train")
    if stamp is None or not stamp.done:
        check_fits(context.space, space_of_source(source_folder(context)))


def source_folder(context: RunContext) -> Path:
    """The run that the supernet comes from."""
    if context.config.transfer is None:
        raise UsageError("this run takes no supernet over")
    return context.base / Path(context.config.transfer.source).expanduser()


def space_of_source(run: Path) -> Space:
    """The space that a run has trained in.

    Raises:
        CheckpointError: this version makes another space of the same name.
    """
    from pipeline.spaces import load_space

    told = source_space(run)
    space = load_space(
        told["name"],
        preset=told["preset"],
        input_shape=tuple(told["input_shape"]),
        n_classes=told["n_classes"],
    )
    if space.space_id != told["space_id"]:
        raise CheckpointError(
            f"{run} was made by another version: its space is {told['space_id']}, that of this "
            f"version {space.space_id}",
            hint="train it again",
        )
    return space


def load_source(context: RunContext) -> Supernet:
    """The supernet to take over.

    Raises:
        CheckpointError: it cannot be read, is not the one that the transfer was begun with, or is
            made of several supernets.
    """
    from pipeline.supernet.weights import load_supernet

    transfer, run = context.config.transfer, source_folder(context)
    if transfer is None:
        raise UsageError("this run takes no supernet over")
    path = source_weights(run, transfer)
    if sha256_file(path) != transfer.sha256:
        raise CheckpointError(
            f"{path} is not what it was when this transfer began",
            hint=f"hilnas transfer {run} FILE, to begin anew",
        )
    supernet = load_supernet(space_of_source(run), path)
    if supernet.layout():
        raise CheckpointError(
            f"{path} holds several supernets, of which none is for all networks",
            hint="a source that was trained with another strategy than fewshot or kshot",
        )
    return supernet


def moved_parameters(context: RunContext) -> Collection[str] | None:
    """What the search may train: what is new, where that was asked for; None for all."""
    from pipeline.supernet.transfer import new_in

    transfer = context.config.transfer
    return new_in(context.space) if transfer is not None and transfer.head_only else None
