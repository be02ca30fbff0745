"""Stage ``export``: every winner as a checked ONNX file with its manifest.

The network for all devices lies in the run folder, that of one device alone in ``boards/NAME``. A
network is cut out of the supernet, its batch norms are calibrated on the images that the
search used, and torch's exporter writes it. Test images are read here for the first time, by the
exported file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from latency_tables.arch import Arch
from latency_tables.errors import ExportError
from latency_tables.estimate import Estimate
from latency_tables.files import sha256_file
from latency_tables.interchange import read_measurements
from latency_tables.records import Measurement
from pipeline.data.batches import EvalBatches
from pipeline.data.dataset import ImageDataset
from pipeline.export.accuracy import onnx_accuracy
from pipeline.export.compare import ParityReport
from pipeline.export.golden import Golden, write_golden
from pipeline.export.manifest import (
    AccuracyBlock,
    AccuracyEntry,
    DeviceEntry,
    GoldenFile,
    LimitEntry,
    Manifest,
    ParityEntry,
    current_versions,
    model_file,
    write_manifest,
)
from pipeline.export.onnx_file import ExportedModel, check_size
from pipeline.export.parity import export_with_parity, torch_logits
from pipeline.export.reference_count import count_with_fvcore
from pipeline.export.runtime_fit import choose_format
from pipeline.run.context import RunContext
from pipeline.run.shifting import searched_weights
from pipeline.run.stage import Stage
from pipeline.run.targets import run_targets, winner_of
from pipeline.search.limits import METRIC_UNITS, Limit
from pipeline.search.targets import Target
from pipeline.supernet.scoring import materialise, recalibrate

FloatArray = npt.NDArray[np.float32]
LabelledArrays = tuple[FloatArray, npt.NDArray[np.int64]]


def run_export(context: RunContext) -> None:
    """Write ``subnet.onnx``, ``golden.npz`` and ``manifest.json`` of every winner.

    Raises:
        ParityError: torch and the exported file disagree.
        ExportError: the file cannot be written, or breaks the limit on its size.
    """
    targets = run_targets(context)
    for target in targets:
        point = winner_of(context.folder, target)
        if point is not None:
            if len(targets) > 1:
                context.reporter.say(f"  network for {target}:")
            _export(context, target, point)


def _export(context: RunContext, target: Target, point: dict[str, Any]) -> None:
    """Export the winner of one target; ``point`` is its entry in the front."""
    arch = Arch.from_dict(point["arch"])
    with context.reporter.busy("cutting out the winner"):
        network = materialise(context.space, arch, context.searched_supernet(target))
        recalibrate(network, context.eval_batches("calibration", context.dataset_of(arch)))
    score = point["score"]
    write_export(
        context,
        network,
        arch,
        measured={name: Estimate.from_dict(e) for name, e in point["measured"].items()},
        validation=AccuracyEntry(value=score["accuracy"], n_images=score["n_images"]),
        weights=searched_weights(context, target),
        to=context.folder.file(target.file("subnet.onnx")).parent,
        target=target,
    )


def write_export(
    context: RunContext,
    network: nn.Module,
    arch: Arch,
    *,
    measured: dict[str, Estimate],
    validation: AccuracyEntry | None,
    weights: Path,
    to: Path,
    target: Target | None = None,
    records: Mapping[tuple[str, str], Measurement] | None = None,
) -> Manifest:
    """Write ``subnet.onnx``, ``golden.npz`` and ``manifest.json`` of one network to a folder.

    Args:
        network: ready to be used: its batch norms are calibrated.
        arch: what it is in the run's space.
        measured: its latency by device.
        validation: its accuracy on images that did not train it.
        weights: the file that its weights come from.
        to: the folder.
        target: whose limits and measurements the manifest tells; by default those of all devices.
        records: the measurements behind ``measured`` by device name and key; by default those of
            the target's front.

    Raises:
        ParityError: torch and the exported file disagree.
        ExportError: the file cannot be written, or breaks the limit on its size.
    """
    dataset = context.dataset_of(arch)
    target = run_targets(context)[-1] if target is None else target
    runtimes = runtimes_of(context, target)
    with context.reporter.busy("writing subnet.onnx"):
        costs = _costs(context, arch, network)
        model, parity, golden = _write_model(context, network, dataset, runtimes, target, to)
    with context.reporter.bar("test images") as advance:
        batches = context.eval_batches("test", dataset)
        test = onnx_accuracy(
            to / "subnet.onnx",
            counted(arrays(batches), lambda done: advance(done, batches.n_images, "")),
        )
    manifest = Manifest(
        created_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        model=model_file(model, input_shape=dataset.input_shape, n_classes=context.space.n_classes),
        golden=golden,
        space=context.space.describe(),
        space_id=context.space.space_id,
        arch=dict(arch),
        weights_sha256=sha256_file(weights),
        dataset=describe_data(context),
        preprocessing=dataset.preprocessing.to_dict(),
        classes=list(context.dataset.class_names),
        costs=costs,
        accuracy=AccuracyBlock(search_validation=validation, test=AccuracyEntry.of(test)),
        parity=ParityEntry.of(parity, tolerance=context.config.export.tolerance),
        limits=[_limit(limit, costs, measured, model) for limit in target.limits],
        devices=_devices(context, target, measured, records),
        seed=context.config.seed,
        versions=current_versions(),
    )
    write_manifest(to / "manifest.json", manifest)
    context.reporter.say(
        f"  subnet.onnx: {model.size_bytes / 1024:.0f} KiB, opset {model.opset}, torch and "
        f"onnxruntime differ by {parity.max_abs_diff:.1e} at most; test accuracy {test.value:.2%}"
    )
    return manifest


def _write_model(
    context: RunContext,
    network: nn.Module,
    dataset: ImageDataset,
    runtimes: Sequence[dict[str, Any]],
    target: Target,
    to: Path,
) -> tuple[ExportedModel, ParityReport, GoldenFile]:
    """Export for the devices' runtimes, compare on real images, keep some as golden samples."""
    config = context.config.export
    images = first_images(context.eval_batches("search-validation", dataset), config.parity_images)
    opset, ir_version = choose_format(config, runtimes)
    model, parity = export_with_parity(
        network,
        images,
        to / "subnet.onnx",
        opset=opset,
        ir_version=ir_version,
        tolerance=config.tolerance,
    )
    for limit in target.limits:
        if limit.metric == "size_bytes":
            check_size(model, int(limit.bound))
    golden = images[: config.golden_images]
    sha256 = write_golden(
        to / "golden.npz",
        Golden(images=golden, logits=torch_logits(network, golden)),
    )
    return model, parity, GoldenFile(sha256=sha256, n_images=len(golden))


def counted(
    batches: Iterable[LabelledArrays], tell: Callable[[int], None]
) -> Iterator[LabelledArrays]:
    """Pass batches on and tell how many images have been."""
    done = 0
    for images, labels in batches:
        yield images, labels
        done += len(labels)
        tell(done)


def arrays(batches: EvalBatches) -> Iterator[LabelledArrays]:
    """Images (N, C, H, W) and labels (N,) of each batch as numpy arrays."""
    for batch in batches:
        yield batch.images.contiguous().cpu().numpy(), batch.labels.cpu().numpy()


def first_images(batches: EvalBatches, n: int) -> FloatArray:
    """The first ``n`` normalised images (n, C, H, W) of the batches."""
    found: list[FloatArray] = []
    for images, _ in arrays(batches):
        found.append(images[: n - sum(map(len, found))])
        if sum(map(len, found)) >= n:
            break
    return np.concatenate(found)


def _costs(context: RunContext, arch: Arch, network: nn.Module) -> dict[str, float]:
    """Costs from the table, and fvcore's count of the very network beside them.

    Raises:
        ExportError: the two disagree on the MACs, so one of them counts another network.
    """
    costs = context.cost_table.costs(arch)
    counted = count_with_fvcore(network, context.space.input_shape_of(arch))
    if counted.macs != costs["macs"]:
        raise ExportError(
            f"the cost table says {costs['macs']:,.0f} MACs, fvcore counts {counted.macs:,} on "
            "the network itself; please report this"
        )
    return {**costs, "macs_fvcore_with_batch_norm": float(counted.total)}


def describe_data(context: RunContext) -> dict[str, Any]:
    """Data set and splits, as a manifest tells them beside preprocessing and classes."""
    described = context.dataset.describe()
    for repeated in ("preprocessing", "classes"):
        described.pop(repeated)
    return {**described, **context.splits.describe()}


def _limit(
    limit: Limit, costs: dict[str, float], measured: dict[str, Estimate], model: ExportedModel
) -> LimitEntry:
    """One limit and what the exported network needs of it."""
    value: float | None
    if limit.metric == "latency_ms":
        estimate = measured.get(limit.device or "")
        value = None if estimate is None else estimate.latency_ms
    elif limit.metric == "size_bytes":
        value = float(model.size_bytes)
    else:
        value = costs.get(limit.metric)
    return LimitEntry(
        name=limit.metric,
        device=limit.device,
        limit=limit.bound,
        value=value,
        unit=METRIC_UNITS[limit.metric],
        kept=None if value is None else value <= limit.bound,
    )


def runtimes_of(context: RunContext, target: Target) -> list[dict[str, Any]]:
    """What the target's devices run; a network that is for none needs no table."""
    if not target.devices:
        return []
    latency = json.loads(context.folder.file("latency.json").read_text())
    return [latency["devices"][name]["runtime"] for name in target.devices]


def _devices(
    context: RunContext,
    target: Target,
    measured: dict[str, Estimate],
    records: Mapping[tuple[str, str], Measurement] | None,
) -> list[DeviceEntry]:
    """What was measured of the winner, on every device that answered."""
    if not measured:
        return []
    records = front_records(context, target) if records is None else records
    table_sha256 = sha256_file(context.folder.file("table.jsonl"))
    return [
        DeviceEntry.of(
            records[device.name, measured[device.name].key],
            device.measurer.fingerprint(),
            latency=measured[device.name],
            table_sha256=table_sha256,
        )
        for device in context.devices
        if device.name in measured
    ]


def front_records(context: RunContext, target: Target) -> dict[tuple[str, str], Measurement]:
    """Records behind the measured front, by device name and key."""
    return {
        (record.device_name, record.key): record
        for record in read_measurements(context.folder.file(target.file("front.jsonl")))
    }


def _outputs(context: RunContext) -> list[str]:
    """Files of every target that has a winner."""
    return [
        target.file(name)
        for target in run_targets(context)
        if winner_of(context.folder, target) is not None
        for name in ("subnet.onnx", "golden.npz", "manifest.json")
    ]


EXPORT = Stage(
    name="export",
    title="writing and checking the ONNX file",
    run=run_export,
    settings=lambda context: {
        "export": context.config.export.model_dump(mode="json"),
        "seed": context.config.seed,
    },
    needs=("data", "train", "table", "search"),
    outputs=(),
    further_outputs=_outputs,
)
