"""Made-up runs for the report's tests; nothing in here was measured."""

from __future__ import annotations

import math
import random
from typing import Any

from latency_tables.arch import Arch
from latency_tables.estimate import Estimate
from latency_tables.records import Verdict
from pipeline.report.model import (
    Block,
    Command,
    DeviceReport,
    Evaluated,
    FrontRow,
    LimitRow,
    MeasuredRow,
    OwnNetwork,
    ReportData,
    SpaceSummary,
    StageTime,
    TablePoint,
    TrainingPoint,
    Winner,
)

OPERATORS = ("k3", "k5", "k7", "xception")
LABELS = tuple(f"block{i:02d}" for i in range(1, 11))


def estimate(ms: float, source: Any = "measured", *, spread: float = 0.03) -> Estimate:
    return Estimate(
        latency_ms=ms, low_ms=ms * (1 - spread), high_ms=ms * (1 + spread), key="k",
        source=source, n=90,
    )  # fmt: skip


def full_report(*, devices: tuple[str, ...] = ("local",), **changes: Any) -> ReportData:
    """A finished run with everything filled in."""
    rng = random.Random(7)

    def arch() -> Arch:
        return Arch({label: rng.choice(OPERATORS) for label in LABELS})

    def one(device: int, ms: float) -> float:
        return ms * (1 + 1.7 * device)

    evaluations, front = [], []
    for i in range(450):
        ms = rng.uniform(0.21, 0.46)
        top = 0.972 - 0.09 * math.exp(-(ms - 0.19) * 14)
        accuracy = round((top - abs(rng.gauss(0, 0.016))) * 540) / 540
        latency = {
            name: estimate(one(d, ms), "predicted", spread=0.06) for d, name in enumerate(devices)
        }
        evaluations.append(
            Evaluated(
                arch=arch(),
                accuracy=accuracy,
                latency=latency,
                generation=i // 50,
                feasible=ms <= 0.34,
            )
        )
    for i in range(8):
        ms = 0.226 + 0.0145 * i
        front.append(
            FrontRow(
                arch=arch(),
                accuracy=0.97 - 0.085 * math.exp(-(ms - 0.19) * 14),
                predicted={
                    n: estimate(one(d, ms), "predicted", spread=0.06) for d, n in enumerate(devices)
                },
                measured={
                    n: estimate(one(d, ms * (1 + rng.gauss(0.01, 0.02))))
                    for d, n in enumerate(devices)
                },
                verdicts=(
                    Verdict(
                        code="INTERFERENCE",
                        severity="warn",
                        evidence="round 3: 12 involuntary switches",
                    ),
                )
                if i == 3
                else (),
                winner=i == 7,
            )
        )
    chosen = front[-1]
    blocks = (
        Block(name="stem", choice="fixed", choices=(), macs=9216),
        *(
            Block(name=label, choice=str(c), choices=OPERATORS, macs=rng.uniform(4e4, 4e5))
            for label, c in chosen.arch.items()
        ),
        Block(name="head", choice="fixed", choices=(), macs=199_168),
    )
    values: dict[str, Any] = dict(
        run_name="digits",
        created_utc="2026-11-22T12:34:56Z",
        data={
            "images": 1797, "train": 1078, "calibration": 90, "search validation": 269,
            "test": 360, "image": "8 × 8, grey",
        },
        classes=tuple(str(i) for i in range(10)),
        space=SpaceSummary(
            name="shufflenetv2", preset="tiny", n_architectures=4**10, n_decisions=10,
            input_shape=(1, 8, 8),
        ),
        strategy="spos",
        training=tuple(
            TrainingPoint(step=s, loss=2.3 * math.exp(-s / 180) + 0.35 + rng.gauss(0, 0.09))
            for s in range(0, 900, 2)
        ),
        evaluations=tuple(evaluations),
        front=tuple(front),
        limits=(
            *(
                LimitRow(
                    name="latency", unit="ms", limit=one(d, 0.34),
                    value=chosen.measured[n].latency_ms, device=n,
                )
                for d, n in enumerate(devices)
            ),
            LimitRow(name="size", unit="B", limit=1_000_000, value=611_374),
        ),
        devices=tuple(_device(name, one(d, 1.0), rng) for d, name in enumerate(devices)),
        winner=Winner(
            arch=chosen.arch, blocks=blocks, search_accuracy=chosen.accuracy, n_search_images=269,
            test_accuracy=344 / 360, n_test_images=360, macs=2_412_544, params=148_112,
            size_bytes=611_374, latency=dict(chosen.measured), onnx_sha256="ab12" * 16, opset=18,
            ir_version=8, parity_max_abs=2.6e-6, parity_n_images=64,
        ),
        stages=(
            StageTime(name="data", seconds=0.4), StageTime(name="profile", seconds=2.1),
            StageTime(name="table", seconds=31.0), StageTime(name="train", seconds=72.5),
            StageTime(name="search", seconds=24.0),
            StageTime(name="front", seconds=11.2), StageTime(name="export", seconds=5.1),
            StageTime(name="check", seconds=0, status="skipped", note="nothing changed"),
        ),
        versions={"hilnas": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.32.0"},
        hashes={"data": "cd34" * 16, "supernet": "ef56" * 16, "table": "0718" * 16},
        commands=(
            Command(text="hilnas check runs/digits", why="Check the exported files again:"),
            Command(text="hilnas run digits --set train.epochs=60", why="Train longer:"),
        ),
    )  # fmt: skip
    return ReportData(**{**values, **changes})


def boards_report(**changes: Any) -> ReportData:
    """A finished run for two boards, of which one has no network of its own."""
    devices = ("rpi4", "nuc")
    report = full_report(devices=devices)
    won = report.front[-1]
    own = OwnNetwork(
        device="rpi4", folder="boards/rpi4", arch=won.arch, search_accuracy=0.97,
        test_accuracy=0.96, n_test_images=360, latency=estimate(0.33), macs=2.1e6,
        size_bytes=600_000, limits=report.limits[:1],
    )  # fmt: skip
    none = OwnNetwork(
        device="nuc", folder="boards/nuc", reason="none of the 8 subnets keeps every limit"
    )
    return full_report(devices=devices, **{"own": (own, none), **changes})


def _device(name: str, factor: float, rng: random.Random) -> DeviceReport:
    table = []
    for _ in range(40):
        macs = rng.uniform(1.2e6, 5.6e6)
        ms = factor * (0.14 + macs / 1.9e7 + rng.gauss(0, 0.022))
        table.append(TablePoint(macs=macs, latency_ms=ms, low_ms=ms * 0.97, high_ms=ms * 1.03))
    rows = [
        MeasuredRow(
            what=f"table network {i + 1}", utc=f"2026-11-22T12:0{i // 6}:{i % 6}0Z",
            profile="quick", latency=estimate(p.latency_ms),
            verdicts=(Verdict(code="DRIFT", severity="warn", evidence="reference moved by 6.1 %"),)
            if i == 4 else (),
        )
        for i, p in enumerate(table[:16])
    ]  # fmt: skip
    rows.append(
        MeasuredRow(
            what="table network 17",
            utc="2026-11-22T12:03:00Z",
            profile="quick",
            latency=None,
            verdicts=(
                Verdict(code="THROTTLED", severity="fail", evidence="1.9 → 1.2 GHz in round 2"),
            ),
            reason="THROTTLED",
        )
    )
    return DeviceReport(
        name=name, fingerprint="9f" * 32,
        identity={"cpu": "x86-64, 2 cores", "kernel": "6.1", "memory_bytes": 8_000_000_000},
        runtime="onnxruntime 1.32.0", threads=1, cores=(0,), limit_ms=0.34 * factor,
        limit_source="40 % quantile of the table", table=tuple(table), measured=tuple(rows),
    )  # fmt: skip
