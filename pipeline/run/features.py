"""``hilnas export --features``: the networks of a finished run as backbones.

Beside the ``subnet.onnx`` of a target come ``backbone.onnx``, whose outputs are feature maps, and
``backbone.json``, which describes them. The weights are those of ``subnet.onnx``: of the searched
supernet with calibrated batch norms, or of a network that was trained alone, in its folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from latency_tables.arch import Arch
from latency_tables.errors import RunError, UsageError
from latency_tables.files import sha256_file, write_json
from pipeline.run.retraining import choose_arch
from pipeline.run.targets import folder_targets, winner_of
from pipeline.search.targets import Target

if TYPE_CHECKING:
    from torch import nn

    from pipeline.data.dataset import ImageDataset
    from pipeline.export.compare import ParityReport
    from pipeline.export.features import FeatureMap
    from pipeline.export.onnx_file import ExportedModel
    from pipeline.run.context import RunContext
    from pipeline.run.job import Job

SCHEMA = 1
KIND = "hilnas-backbone"
MODEL, MANIFEST = "backbone.onnx", "backbone.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A network to export: for which target, with the weights in which file, to which folder.

    ``alone`` tells that the file holds this network only, with its batch norms as they should be.
    """

    target: Target
    arch: Arch
    weights: Path
    folder: Path
    alone: bool = False


def export_features(
    job: Job, *, arch: str | None = None, retrained: str | None = None
) -> dict[Path, dict[str, Any]]:
    """Write the backbones of a run whose search is done; gives each folder's ``backbone.json``.

    Args:
        job: the run.
        arch: a row of the printed front, counted from 1, or a JSON file; by default the winner of
            every target.
        retrained: folder in the run folder of a network that ``hilnas retrain`` has trained; then
            this one is taken.

    Raises:
        RunError: the run has no front yet, no winner, or no such retrained network.
        UsageError: no such row or file, or both ``arch`` and ``retrained``.
        CheckpointError: the retrained weights cannot be read, or are of another space.
        InvalidArchError: the architecture is not of the run's space.
        ExportError: the network has no feature maps, or cannot be exported.
        ParityError: torch and the exported file disagree.
    """
    if arch is not None and retrained is not None:
        raise UsageError("--retrained names a network already; --arch cannot choose another")
    written: dict[Path, dict[str, Any]] = {}
    with job.working() as context:
        chosen = [_retrained(context, retrained)] if retrained else _inherited(context, arch)
        for wanted in chosen:
            context.space.validate(wanted.arch)
            written[wanted.folder] = _export(context, wanted)
    return written


def _inherited(context: RunContext, given: str | None) -> list[_Wanted]:
    """The winners, or an architecture that was asked for, which counts as for all devices."""
    from pipeline.run.shifting import searched_weights

    def wanted(target: Target, arch: Arch) -> _Wanted:
        return _Wanted(
            target=target,
            arch=arch,
            weights=searched_weights(context, target),
            folder=context.folder.file(target.file(MODEL)).parent,
        )

    targets = folder_targets(context.folder, context.config)
    if given is None:
        winners = [(target, winner_of(context.folder, target)) for target in targets]
        own = [wanted(target, Arch.from_dict(point["arch"])) for target, point in winners if point]
        if own:
            return own
    arch, _, _ = choose_arch(context.folder, given)  # says what is missing
    return [wanted(targets[-1], arch)]


def _retrained(context: RunContext, name: str) -> _Wanted:
    """The network in a folder that ``hilnas retrain`` has written."""
    from pipeline.run.stages.retrain import SUMMARY, WEIGHTS

    folder = context.folder.file(name)
    if not (folder / SUMMARY).is_file():
        raise RunError(
            f"{folder} holds no retrained network", hint=f"hilnas retrain {context.folder.path}"
        )
    summary = json.loads((folder / SUMMARY).read_text())
    return _Wanted(
        target=folder_targets(context.folder, context.config)[-1],
        arch=Arch.from_dict(summary["arch"]),
        weights=folder / WEIGHTS,
        folder=folder,
        alone=True,
    )


def _network(context: RunContext, wanted: _Wanted, dataset: ImageDataset) -> nn.Sequential:
    """The network as it is exported."""
    from pipeline.run.stages.retrain import load_retrained
    from pipeline.supernet.scoring import materialise, recalibrate

    if wanted.alone:
        return load_retrained(context.space, wanted.arch, wanted.weights)
    supernet = context.searched_supernet(wanted.target)
    network = materialise(context.space, wanted.arch, supernet)
    recalibrate(network, context.eval_batches("calibration", dataset))
    return network


def _export(context: RunContext, wanted: _Wanted) -> dict[str, Any]:
    """Cut out, export, compare and describe one network."""
    from pipeline.export.features import backbone_of, export_backbone
    from pipeline.export.runtime_fit import choose_format
    from pipeline.run.stages.export import first_images, runtimes_of

    config, dataset = context.config.export, context.dataset_of(wanted.arch)
    with context.reporter.busy("cutting out the backbone"):
        network = _network(context, wanted, dataset)
        backbone = backbone_of(network, context.space.input_shape_of(wanted.arch))
        held_out = context.eval_batches("search-validation", dataset)
        images = first_images(held_out, config.parity_images)
    opset, ir_version = choose_format(config, runtimes_of(context, wanted.target))
    with context.reporter.busy(f"writing {MODEL}"):
        model, parity = export_backbone(
            backbone,
            images,
            wanted.folder / MODEL,
            opset=opset,
            ir_version=ir_version,
            tolerance=config.tolerance,
        )
    manifest = _manifest(context, wanted, model, backbone.maps, parity)
    _write(wanted.folder / MANIFEST, manifest)
    return manifest


def _manifest(
    context: RunContext,
    wanted: _Wanted,
    model: ExportedModel,
    maps: Sequence[FeatureMap],
    parity: Sequence[ParityReport],
) -> dict[str, Any]:
    from pipeline.export.features import N_MAPS
    from pipeline.export.manifest import current_versions
    from pipeline.export.onnx_file import INPUT_NAME
    from pipeline.run.stages.export import describe_data

    described = asdict(model) | {"name": model.path.name}
    described["operators"] = described.pop("operator_histogram")
    del described["path"]
    shape = [1, *context.space.input_shape_of(wanted.arch)]
    return {
        "schema_version": SCHEMA,
        "kind": KIND,
        "created_utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "model": described,
        "input": {"name": INPUT_NAME, "shape": shape, "dtype": "float32"},
        "features": [
            {
                "name": m.name,
                "after": m.after,
                "shape": [1, m.channels, m.height, m.width],
                "dtype": "float32",
                "channels": m.channels,
                "stride": [_whole(s) for s in m.stride],
                "parity": {"max_abs_diff": r.max_abs_diff, "allowed": r.allowed},
            }
            for m, r in zip(maps, parity, strict=True)
        ],
        "n_missing_features": N_MAPS - len(maps),
        "parity_images": parity[0].n_images,
        "tolerance": context.config.export.tolerance,
        "space": context.space.describe(),
        "space_id": context.space.space_id,
        "arch": dict(wanted.arch),
        "weights_sha256": sha256_file(wanted.weights),
        "dataset": describe_data(context),
        "preprocessing": context.dataset_of(wanted.arch).preprocessing.to_dict(),
        "seed": context.config.seed,
        "versions": current_versions(),
    }


def _whole(stride: float) -> int | float:
    return int(stride) if stride.is_integer() else stride


def _write(path: Path, manifest: dict[str, Any]) -> None:
    """Write ``backbone.json``; raises ExportError where a value tells where it was made."""
    from pipeline.export.hygiene import check_private

    check_private(manifest)
    write_json(path, manifest)


def render(written: dict[Path, dict[str, Any]], console: Console) -> None:
    """Print the maps of every backbone."""
    for folder, manifest in written.items():
        console.print(f"backbone: {escape(str(folder / MODEL))}")
        for m in manifest["features"]:
            down, across = m["stride"]
            stride = str(down) if down == across else f"{down}x{across}"
            console.print(
                f"  {m['name']}  after {escape(m['after']):<10} {m['channels']:>4} x "
                f"{m['shape'][2]} x {m['shape'][3]}, stride {stride}"
            )
        if manifest["n_missing_features"]:
            n = len(manifest["features"])
            console.print(f"  the network gives {n} of the 4 maps that most heads read")
