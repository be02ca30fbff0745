"""Latencies of the run's own table, for strategies that train by levels of latency."""

from __future__ import annotations

import json
from typing import Any

from latency_tables import LatencyModel
from latency_tables.cost_table import CostTable
from latency_tables.errors import ConfigError
from latency_tables.files import sha256_json
from pipeline.run.context import RunContext
from pipeline.strategies import latency_device


def trained_device(context: RunContext) -> str | None:
    """The device whose latencies the strategy needs, if it needs any.

    Raises:
        ConfigError: it is none of the run's.
    """
    device = latency_device(context.config.train.options)
    known = [d.name for d in context.config.device]
    if device is not None and device not in known:
        raise ConfigError(
            f"train.options.cost = 'latency:{device}': this run has the devices "
            f"{', '.join(known) or 'none'}",
            hint=f'cost = "latency:{known[0]}"' if known else "a [[device]] of that name",
        )
    return device


def latency_settings(context: RunContext) -> dict[str, Any]:
    """What training depends on of the stage ``table``: nothing where it needs no latency.

    Raises:
        RunError: the table is not built yet.
    """
    device = trained_device(context)
    if device is None:
        return {}
    context.folder.outputs_hash("table")  # raises where it has not run
    about = _about(context, device)
    return {
        "latency": {
            "device": device,
            "device_fp": about["device_fp"],
            "model_sha256": sha256_json(about["model"]),
        }
    }


def latency_costs(context: RunContext) -> CostTable | None:
    """The space's costs with the additive latencies of that device; ranks hear them from rank 0."""
    device = trained_device(context)
    if device is None:
        return None
    data = None
    if context.ranks.leads:
        data = json.dumps(_about(context, device)["model"]).encode()
    model = LatencyModel.from_dict(json.loads(context.ranks.first(data) or b""), context.cost_table)
    return model.with_latency_column(context.cost_table)


def _about(context: RunContext, device: str) -> dict[str, Any]:
    devices = json.loads(context.folder.file("latency.json").read_text())["devices"]
    about: dict[str, Any] = devices[device]
    return about
