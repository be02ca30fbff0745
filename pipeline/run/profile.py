"""What a space holds and costs, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from latency_tables.store import TableStore
from pipeline.config import RunConfig, SpaceConfig
from pipeline.data.dataset import ImageDataset, load_dataset
from pipeline.randomness import numpy_generator
from pipeline.run.source import RunSource
from pipeline.search.config import LimitsConfig
from pipeline.search.limits import COST_METRICS, check_possible, feasible_by_cost, resolve_limits
from pipeline.search.operators import random_genes, sizes_of
from pipeline.spaces import load_space

if TYPE_CHECKING:
    from pipeline.spaces.base import Space

SCHEMA = 1
N_DRAWS = 20_000
"""Random genomes behind medians and shares; minima and maxima are exact."""

_SCALES = {"macs": (1e6, "M"), "params": (1e6, "M"), "size_bytes": (1024, "KiB"),
           "peak_memory_bytes": (1024, "KiB")}  # fmt: skip


def space_of(config: RunConfig, base: Path) -> Space:
    """The search space of a run file; reads the data set, whose image size it needs."""
    return space_for(load_dataset(config.data, seed=config.seed, base=base), config.space)


def space_for(dataset: ImageDataset, config: SpaceConfig) -> Space:
    """The search space for the images of a data set: a shipped one, or the user's own model."""
    if config.module is not None:
        from pipeline.spaces.own_model.module_file import space_in_file

        return space_in_file(
            Path(config.module),
            config.name,
            input_shape=dataset.input_shape,
            n_classes=dataset.n_classes,
        )
    return load_space(
        config.name,
        preset=config.preset,
        input_shape=dataset.input_shape,
        n_classes=dataset.n_classes,
    )


def profile_space(space: Space, limits: Sequence[LimitsConfig]) -> dict[str, Any]:
    """Size, costs and the share of networks that keep the limits on costs, JSON-ready.

    Raises:
        LimitBelowFastestError: no network keeps one of the limits.
    """
    table = space.cost_table()
    fixed = [config.model_copy(update=dict.fromkeys(("latency", "latency_ms", "fps")))
             for config in limits]  # fmt: skip
    resolved = resolve_limits({f"device {i}": c for i, c in enumerate(fixed)}, {})
    check_possible(resolved, table, space=space.name)
    genes = random_genes(numpy_generator(0, "profile"), sizes_of(space.decisions), N_DRAWS)
    costs = {}
    for metric in COST_METRICS:
        values = table.column(metric, genes)
        smallest, cheapest = table.minimum(metric)
        largest, _ = table.maximum(metric)
        costs[metric] = {
            "min": smallest,
            "median": float(np.median(values)),
            "max": largest,
            "cheapest": dict(cheapest),
        }
    return {
        "schema": SCHEMA,
        "space": space.describe(),
        "space_id": space.space_id,
        "decisions": {d.label: list(d.choices) for d in space.decisions},
        "size": table.n_archs,
        "costs": costs,
        "limits": [str(limit) for limit in resolved],
        "share_within_limits": float(feasible_by_cost(table, genes, resolved).mean()),
        "cost_table": table.to_dict(),
    }


def profile_source(source: RunSource, table_path: Path) -> dict[str, Any]:
    """:func:`profile_space` of a run file, and what the latency table knows of its devices."""
    space = space_of(source.config, source.base)
    found = profile_space(space, [d.limits for d in source.config.device])
    del found["cost_table"]
    found["latency"] = {}
    if not table_path.exists():
        return found
    with TableStore(table_path) as store:
        for device in source.config.device:
            known = [
                m.latency_ms
                for d in store.devices(device.name)
                for m in store.measurements(device_fp=d.device_fp, space_id=space.space_id)
            ]
            if known:
                quantiles = np.quantile(known, (0, 0.5, 1)).tolist()
                limits = resolve_limits({device.name: device.limits}, {device.name: known})
                found["latency"][device.name] = {
                    **dict(zip(("min", "median", "max"), quantiles, strict=True)),
                    "n": len(known),
                    "limits": [str(x) for x in limits if x.metric == "latency_ms"],
                }
    return found


def render(found: dict[str, Any], console: Console) -> None:
    """Print a profile as a table."""
    space = found["space"]
    console.print(
        f"[bold]{space['name']}[/bold] ({space['preset']}), input "
        f"{'×'.join(map(str, space['input_shape']))}, {space['n_classes']} classes: "
        f"{len(found['decisions'])} decisions, {found['size']:.4g} networks"
    )
    table = Table(box=None)
    for column in ("cost", "unit", "cheapest", "median", "dearest"):
        table.add_column(column, justify="left" if column in ("cost", "unit") else "right")
    for metric, costs in found["costs"].items():
        scale, unit = _SCALES[metric]
        row = [f"{costs[k] / scale:,.3f}" for k in ("min", "median", "max")]
        table.add_row(metric.removesuffix("_bytes").replace("_", " "), unit, *row)
    for device, latency in found.get("latency", {}).items():
        row = [f"{latency[k]:,.3f}" for k in ("min", "median", "max")]
        table.add_row(f"latency on {device} ({latency['n']} measured)", "ms", *row)
    console.print(table)
    for limit in found["limits"]:
        console.print(f"limit {limit}")
    if found["limits"]:
        console.print(f"{found['share_within_limits']:.1%} of the networks keep these limits")
    for latency in found.get("latency", {}).values():
        for limit in latency["limits"]:
            console.print(f"limit {limit}")
    if not found.get("latency"):
        console.print("no latency is known yet: [bold]hilnas tables build[/bold] measures some")
