"""``hilnas retrain``: which network of a finished run, how, and what came of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from latency_tables.arch import Arch
from latency_tables.errors import RunError, UsageError
from pipeline.retraining.config import RetrainConfig
from pipeline.run.folder import RunFolder
from pipeline.run.source import write_lock

if TYPE_CHECKING:
    from pipeline.run.job import Job

DEFAULT_NAME = "retrained"
_NAME = re.compile(r"retrained[a-z0-9-]*")


def retrain(
    job: Job, config: RetrainConfig, *, arch: str | None, recipe: str | None, name: str
) -> dict[str, Any]:
    """Retrain one network of a finished run; gives what ``retrain.json`` holds.

    Args:
        arch: a row of the printed front, counted from 1, or a JSON file; None for the winner.
        recipe: where ``config`` comes from, for the record.
        name: folder inside the run folder.

    Raises:
        RunError: the run has no front yet.
        UsageError: no such row, file or name.
        InvalidArchError: the architecture is not of the run's space.
    """
    from pipeline.run.stage import run_stages
    from pipeline.run.stages.report import write_report
    from pipeline.run.stages.retrain import SUMMARY, Retraining

    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a folder called {name!r}: its name must begin with 'retrained', then small letters, "
            "digits and '-'",
            hint="--name retrained-long",
        )
    found, chosen, point = choose_arch(job.folder, arch)
    asked = Retraining(
        name=name, arch=found, chosen=chosen, point=point, recipe=recipe, config=config
    )
    with job.working() as context:
        context.space.validate(found)
        run_stages((asked.stage(),), context)
        write_lock(job.folder.file(name), job.source)  # so that 'hilnas check' finds the images
        if job.folder.file("report.html").exists():
            write_report(context)
    summary: dict[str, Any] = json.loads(job.folder.file(f"{name}/{SUMMARY}").read_text())
    return summary


def choose_arch(folder: RunFolder, given: str | None) -> tuple[Arch, str, dict[str, Any] | None]:
    """The architecture, what to call it, and its entry in the front if it is there.

    Raises:
        RunError: the run has no front yet.
        UsageError: no such row or file.
    """
    path = folder.file("front.json")
    if not path.is_file():
        raise RunError(
            f"{folder.path} has no front yet, so there is nothing to retrain",
            hint=f"hilnas run {folder.path}",
        )
    front = json.loads(path.read_text())
    points: Sequence[dict[str, Any]] = front["points"]
    if given is None:
        if front["winner"] is None:
            raise RunError(
                f"{path} names no network: {front.get('reason', 'the search found none')}",
                hint=f"--arch {folder.path}/boards/NAME/manifest.json, the network of one device",
            )
        point = points[front["winner"]]
        return Arch.from_dict(point["arch"]), "the winner", point
    if given.isdigit():
        if not 1 <= int(given) <= len(points):
            raise UsageError(f"the front has the rows 1 to {len(points)}, not {given}")
        # in the order in which 'hilnas run' prints them
        point = sorted(points, key=lambda p: float(p["accuracy"]), reverse=True)[int(given) - 1]
        return Arch.from_dict(point["arch"]), f"row {given} of the front", point
    arch = _read_arch(Path(given))
    same = [point for point in points if Arch.from_dict(point["arch"]) == arch]
    return arch, Path(given).name, same[0] if same else None


def _read_arch(path: Path) -> Arch:
    """An architecture from JSON: choices by label, alone or under the key ``arch``."""
    try:
        data = json.loads(path.read_text())
        return Arch.from_dict(data.get("arch", data))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{path} is neither a row of the front nor a JSON file of choices: {error}",
            hint="--arch 2, or --arch a manifest.json",
        ) from None


def render(summary: dict[str, Any], folder: Path, console: Console) -> None:
    """Print both accuracies and what to do next."""
    before, after = summary["inherited"], summary["retrained"]["test"]
    gain = 100 * (after["value"] - before["test"])
    console.print(
        f"test accuracy: {before['test']:.2%} inherited, {after['value']:.2%} retrained "
        f"({gain:+.2f} points, {after['n_images']} images)"
    )
    console.print(f"network: {escape(str(folder / 'subnet.onnx'))}")
    console.print(f"check it with:  hilnas check {escape(str(folder))}")


def measure_on_devices(job: Job, folder: Path) -> None:
    """Check the exported network on every device of the run, and print what was measured."""
    from device_agents.files.budget import require
    from pipeline.run.device_checking import check_run_on_device
    from pipeline.run.device_checking import render as render_check

    for device in job.source.config.device:
        report = check_run_on_device(
            folder, job.inventory.find(device.name), with_data=False, measuring=device.measuring
        )
        render_check(report, Console())
        require(report.judgements)
