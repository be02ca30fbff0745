"""From the files of a run folder to what the report shows; whatever is missing is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import CostTable
from latency_tables.estimate import Estimate
from latency_tables.interchange import read_measurements
from latency_tables.macs_rank import MacsRank, macs_rank
from latency_tables.pooling import pool
from latency_tables.records import Measurement, Verdict
from pipeline.export.manifest import Manifest, load_manifest
from pipeline.report.drawing import blocks_of, settings_of
from pipeline.report.model import (
    Command,
    DeviceReport,
    Evaluated,
    FrontRow,
    LimitRow,
    MeasuredRow,
    ReportData,
    Retrained,
    SpaceSummary,
    StageTime,
    TablePoint,
    TrainingPoint,
    Winner,
    measured_row,
)
from pipeline.run.collect_levels import level_history
from pipeline.run.collect_own import own_networks, rows_of_limits
from pipeline.run.collect_rank import rank_evidence
from pipeline.run.folder import RunFolder
from pipeline.search.journal import read_journal
from pipeline.search.limits import METRIC_UNITS
from pipeline.search.targets import BOARDS


class _Files:
    """Reads each file of the folder once; None where it is not there."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.data = self._json("data.json")
        self.profile = self._json("profile.json")
        self.latency = self._json("latency.json")
        self.front = self._json("front.json")
        self.table = self._records("table.jsonl")
        self.measured = self._records("front.jsonl")
        self.manifest: Manifest | None = None
        if folder.file("manifest.json").exists():
            self.manifest = load_manifest(folder.file("manifest.json"))
        self.costs: CostTable | None = None
        if self.profile is not None:
            self.costs = CostTable.from_dict(self.profile["cost_table"])

    def _json(self, name: str) -> Any:
        path = self.folder.file(name)
        return json.loads(path.read_text()) if path.exists() else None

    def _records(self, name: str) -> list[Measurement]:
        path = self.folder.file(name)
        if not path.exists():
            return []
        return read_measurements(path)


def collect(folder: RunFolder, *, run_name: str, created_utc: str, strategy: str) -> ReportData:
    """Read a run folder. Raises the errors of whichever file is damaged."""
    files = _Files(folder)
    stamps = folder.stamps()
    hashes = {name: digest for stamp in stamps.values() for name, digest in stamp.outputs.items()}
    return ReportData(
        run_name=run_name,
        created_utc=created_utc,
        data=_data_rows(files.data),
        classes=tuple(files.data["classes"]) if files.data else (),
        space=_space(files),
        strategy=strategy,
        training=_training(folder),
        levels=level_history(_log_rows(folder)),
        evaluations=_evaluations(folder),
        front=_front(files),
        limits=_limits(files),
        devices=_devices(files),
        winner=_winner(files),
        own=own_networks(folder, files.latency, files.front),
        no_common=str((files.front or {}).get("reason", "")),
        retrained=_retrained(folder),
        order=rank_evidence(folder, hashes),
        stages=tuple(
            StageTime(name=name, seconds=stamp.seconds, status="done" if stamp.done else "pending")
            for name, stamp in stamps.items()
        ),
        versions=files.manifest.versions if files.manifest else {},
        hashes=hashes,
        commands=_commands(folder, files),
    )


def _data_rows(data: Any) -> dict[str, Any]:
    if data is None:
        return {}
    rows = {
        "name": data["name"],
        "images": data["images"],
        "input": "×".join(map(str, data["input_shape"])),
        "classes": len(data["classes"]),
    }
    rows.update({name: split["images"] for name, split in data["splits"].items()})
    return {**rows, "test images": data["test_split"]}


def _space(files: _Files) -> SpaceSummary | None:
    if files.profile is None:
        return None
    space = files.profile["space"]
    return SpaceSummary(
        name=space["name"],
        preset=space["preset"],
        n_architectures=files.profile["size"],
        n_decisions=len(files.profile["decisions"]),
        input_shape=tuple(space["input_shape"]),
    )


def _training(folder: RunFolder) -> tuple[TrainingPoint, ...]:
    rows = _log_rows(folder)
    return tuple(
        TrainingPoint(step=r["step"], loss=r["loss"]) for r in rows if r.get("loss") is not None
    )


def _log_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of ``train.jsonl``."""
    path = folder.file("train.jsonl")
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _evaluations(folder: RunFolder) -> tuple[Evaluated, ...]:
    path = folder.file("search.jsonl")
    if not path.exists():
        return ()
    journal = read_journal(path)
    return tuple(
        Evaluated(
            arch=candidate.arch,
            accuracy=score.accuracy,
            latency=candidate.latency,
            generation=generation,
            feasible=candidate.feasible,
        )
        for generation, (candidates, scores) in enumerate(
            zip(journal.generations, journal.scores, strict=True)
        )
        for candidate, score in zip(candidates, scores, strict=False)
        if score.complete
    )


def _estimates(found: dict[str, Any]) -> dict[str, Estimate]:
    return {device: Estimate.from_dict(e) for device, e in found.items()}


def _front(files: _Files) -> tuple[FrontRow, ...]:
    if files.front is None:
        return ()
    verdicts = {m.key: m.verdicts for m in files.measured}
    rows = []
    for index, point in enumerate(files.front["points"]):
        measured = _estimates(point["measured"])
        found: dict[tuple[str, str], Verdict] = {
            (v.code, v.severity): v for e in measured.values() for v in verdicts.get(e.key, ())
        }
        rows.append(
            FrontRow(
                arch=Arch.from_dict(point["arch"]),
                accuracy=point["accuracy"],
                predicted=_estimates(point["predicted"]),
                measured=measured,
                verdicts=tuple(found.values()),
                winner=index == files.front["winner"],
            )
        )
    return tuple(rows)


def _limits(files: _Files) -> tuple[LimitRow, ...]:
    if files.manifest is not None:
        return rows_of_limits(files.manifest)
    if files.latency is None:
        return ()
    return tuple(
        LimitRow(
            name=x["metric"], unit=METRIC_UNITS[x["metric"]], limit=x["bound"], device=x["device"]
        )
        for x in files.latency["limits"]
    )


def _devices(files: _Files) -> tuple[DeviceReport, ...]:
    if files.latency is None:
        return ()
    limits = {x["device"]: x for x in files.latency["limits"] if x["metric"] == "latency_ms"}
    identities = {d.name: d.identity for d in files.manifest.devices} if files.manifest else {}
    reports = []
    for name, about in files.latency["devices"].items():
        limit, runtime = limits.get(name), about["runtime"]
        reports.append(
            DeviceReport(
                name=name,
                fingerprint=about["device_fp"],
                identity=identities.get(name, {}),
                runtime=f"{runtime['name']} {runtime['version']} {runtime.get('provider', '')}",
                threads=about["threads"],
                cores=tuple(about["cores"]),
                limit_ms=None if limit is None else limit["bound"],
                limit_source="" if limit is None else limit["text"],
                table=_table_points(files, name),
                macs_rank=_macs_rank(files, name, about),
                measured=_measured_rows(files, name),
            )
        )
    return tuple(reports)


def _table_points(files: _Files, device: str) -> tuple[TablePoint, ...]:
    points = []
    for m in files.table:
        if m.device_name == device and m.ok and m.arch is not None and files.costs is not None:
            estimate = pool([m])
            points.append(
                TablePoint(
                    macs=files.costs.cost(m.arch, "macs"),
                    latency_ms=estimate.latency_ms,
                    low_ms=estimate.low_ms,
                    high_ms=estimate.high_ms,
                )
            )
    return tuple(points)


def _macs_rank(files: _Files, device: str, about: dict[str, Any]) -> MacsRank | None:
    """What the table's stage found; worked out now for a folder of an earlier version."""
    if "macs_rank" in about:
        return None if about["macs_rank"] is None else MacsRank.from_dict(about["macs_rank"])
    if files.costs is None:
        return None
    return macs_rank(files.costs, [m for m in files.table if m.device_name == device])


def _measured_rows(files: _Files, device: str) -> tuple[MeasuredRow, ...]:
    """The front first: it decides; then the networks of the table."""
    groups: Sequence[tuple[str, list[Measurement]]] = (
        ("front", files.measured),
        ("table", files.table),
    )
    return tuple(
        measured_row(f"{group} {number}", m)
        for group, records in groups
        for number, m in enumerate((r for r in records if r.device_name == device), start=1)
    )


def _retrained(folder: RunFolder) -> tuple[Retrained, ...]:
    """What ``hilnas retrain`` has left, by folder."""
    found = []
    for path in sorted(folder.path.glob("retrained*/retrain.json")):
        told = json.loads(path.read_text())
        settings, test = told["settings"], told["retrained"]["test"]
        weights = "fresh weights" if settings["start"] == "scratch" else "the supernet's weights"
        recipe = f"recipe {told['recipe']}" if told["recipe"] else "the run's settings"
        found.append(
            Retrained(
                name=path.parent.name,
                what=f"{told['chosen']}, {weights}, {recipe}",
                inherited_accuracy=told["inherited"]["test"],
                retrained_accuracy=test["value"],
                n_images=test["n_images"],
                steps=told["steps"],
            )
        )
    return tuple(found)


def _winner(files: _Files) -> Winner | None:
    manifest = files.manifest
    if manifest is None or files.costs is None:
        return None
    arch = manifest.architecture()
    searched, test = manifest.accuracy.search_validation, manifest.accuracy.test
    factors = files.costs.factor_values(files.costs.genes([arch]))[0]  # (n_factors, n_columns)
    column = [c.name for c in files.costs.columns].index("macs")
    macs = {f.name: float(factors[i, column]) for i, f in enumerate(files.costs.factors)}
    positions = [(f.name, f.labels) for f in files.costs.factors]
    decisions = [
        Decision(label=label, choices=tuple(choices))
        for label, choices in files.profile["decisions"].items()
    ]
    return Winner(
        arch=arch,
        blocks=blocks_of(positions, decisions, arch, macs),
        settings=settings_of(positions, arch),
        search_accuracy=searched.value if searched else 0.0,
        n_search_images=searched.n_images if searched else 0,
        test_accuracy=test.value if test else None,
        n_test_images=test.n_images if test else 0,
        macs=manifest.costs["macs"],
        params=manifest.costs["params"],
        size_bytes=manifest.model.size_bytes,
        latency={d.name: d.latency.estimate() for d in manifest.devices if d.latency is not None},
        onnx_sha256=manifest.model.sha256,
        opset=manifest.model.opset,
        ir_version=manifest.model.ir_version,
        parity_max_abs=manifest.parity.max_abs_diff,
        parity_n_images=manifest.parity.n_images,
    )


def _commands(folder: RunFolder, files: _Files) -> tuple[Command, ...]:
    if files.manifest is None:
        return (Command(text="hilnas run FOLDER", why="go on with this run"), *_own_checks(folder))
    boards = [f" --device {device.name}" for device in files.manifest.devices]
    on = next((board for board in boards if board != " --device local"), "")
    return (
        Command(
            text=f"hilnas check FOLDER{on}",
            why="check the exported file again" + (" on its device" if on else ""),
        ),
        Command(
            text=f"hilnas measure FOLDER/subnet.onnx{on} --measuring strict",
            why="measure it with the strict profile",
        ),
        Command(text="hilnas tables show", why="see what has been measured so far"),
        *_own_checks(folder),
    )


def _own_checks(folder: RunFolder) -> list[Command]:
    """How to check networks of single devices."""
    found = sorted(folder.path.glob(f"{BOARDS}/*/manifest.json"))
    return [
        Command(
            text=f"hilnas check FOLDER/{BOARDS}/{path.parent.name} --device {path.parent.name}",
            why=f"check the network of {path.parent.name} alone on its device",
        )
        for path in found
    ]
