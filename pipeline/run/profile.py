"""What a space holds and costs, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from latency_tables.errors import TableError, UsageError
from latency_tables.levels import cost_levels
from latency_tables.predictor import LatencyModel
from latency_tables.predictor.features import LATENCY_COLUMN
from latency_tables.records import Measurement
from latency_tables.sampler import CostSampler, make_sampler
from latency_tables.store import TableStore
from pipeline.config import RunConfig, SpaceConfig
from pipeline.data.dataset import ImageDataset, load_dataset
from pipeline.randomness import numpy_generator
from pipeline.run.source import RunSource
from pipeline.search.config import LimitsConfig
from pipeline.search.limits import (
    COST_METRICS,
    Limit,
    check_possible,
    feasible_by_cost,
    resolve_limits,
)
from pipeline.search.operators import random_genes, sizes_of
from pipeline.spaces import load_space

if TYPE_CHECKING:
    from pipeline.spaces.base import Space

SCHEMA = 1
N_DRAWS = 20_000
"""Random genomes behind what no sampler counts: several limits at once, and peak memory."""

_SCALES = {"macs": (1e6, "M"), "params": (1e6, "M"), "size_bytes": (1024, "KiB"),
           "peak_memory_bytes": (1024, "KiB")}  # fmt: skip


def space_of(config: RunConfig, base: Path) -> Space:
    """The search space of a run file; reads the data set, whose image size it needs."""
    return space_for(load_dataset(config.data, seed=config.seed, base=base), config.space)


def space_for(dataset: ImageDataset, config: SpaceConfig) -> Space:
    """The search space for the images of a data set: a shipped one, or the user's own model."""
    if config.module is not None:
        if config.resample_to is not None:
            raise UsageError(
                "space.resample_to is for shipped spaces, not for a model of your own",
                hint=f"--set data.image_size={config.resample_to}",
            )
        from pipeline.spaces.own_model.module_file import space_in_file

        return space_in_file(
            Path(config.module),
            config.name,
            input_shape=dataset.input_shape,
            n_classes=dataset.n_classes,
        )
    channels, *size = dataset.input_shape
    side = config.resample_to
    space = load_space(
        config.name,
        preset=config.preset,
        input_shape=dataset.input_shape if side is None else (channels, side, side),
        n_classes=dataset.n_classes,
    )
    if side is None:
        return space
    from pipeline.spaces.resampled import resampled

    return resampled(space, (size[0], size[1]))


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
    samplers = {metric: make_sampler(table, metric, approximate=True) for metric in COST_METRICS}
    costs = {}
    for metric, sampler in samplers.items():
        smallest, cheapest = table.minimum(metric)
        largest, _ = table.maximum(metric)
        costs[metric] = {
            "min": smallest,
            "median": float(sampler.quantiles(0.5)),
            "max": largest,
            "cheapest": dict(cheapest),
        }
    kept = [
        _kept(samplers[limit.metric], limit) for limit in resolved if limit.metric != "latency_ms"
    ]
    share = float(feasible_by_cost(table, genes, resolved).mean())
    return {
        "schema": SCHEMA,
        "space": space.describe(),
        "space_id": space.space_id,
        "decisions": {d.label: list(d.choices) for d in space.decisions},
        "size": table.n_archs,
        "costs": costs,
        "limits": [str(limit) for limit in resolved],
        "kept": kept,
        "share_within_limits": kept[0]["share"] if len(kept) == 1 else share,
        "cost_table": table.to_dict(),
    }


def _kept(sampler: CostSampler, limit: Limit) -> dict[str, Any]:
    """How many networks keep one limit, and how near to it they come."""
    share = sampler.probability(high=limit.bound)
    return {
        "limit": str(limit),
        "networks": sampler.count(high=limit.bound),
        "share": share,
        "method": sampler.method,
        "exact": sampler.counts_are_exact,
        "largest": float(sampler.quantiles(share)),
    }


def level_table(sampler: CostSampler, n: int) -> list[dict[str, float]]:
    """``n`` levels of a cost between the tails of the space, and the share of each."""
    return [asdict(level) for level in cost_levels(sampler, n)]


def profile_source(source: RunSource, table_path: Path, *, n_levels: int = 0) -> dict[str, Any]:
    """:func:`profile_space` of a run file, and what the latency table knows of its devices.

    ``n_levels`` divides MACs, and the latency of every device that the table knows well enough to
    predict, into so many levels.
    """
    space = space_of(source.config, source.base)
    found = profile_space(space, [d.limits for d in source.config.device])
    del found["cost_table"]
    found["latency"], found["levels"] = {}, {}
    if n_levels:
        found["levels"]["macs"] = level_table(make_sampler(space.cost_table(), "macs"), n_levels)
    if not table_path.exists():
        return found
    with TableStore(table_path) as store:
        for device in source.config.device:
            records = [
                m
                for d in store.devices(device.name)
                for m in store.measurements(device_fp=d.device_fp, space_id=space.space_id)
            ]
            known = [m.latency_ms for m in records]
            if known:
                quantiles = np.quantile(known, (0, 0.5, 1)).tolist()
                limits = resolve_limits({device.name: device.limits}, {device.name: known})
                sampler = latency_sampler(space, records)
                bounds = [limit for limit in limits if limit.metric == "latency_ms"]
                found["latency"][device.name] = {
                    **dict(zip(("min", "median", "max"), quantiles, strict=True)),
                    "n": len(known),
                    "limits": [str(limit) for limit in bounds],
                    "kept": [_kept(sampler, limit) for limit in bounds] if sampler else [],
                }
                if sampler and n_levels:
                    found["levels"][f"latency_ms on {device.name}"] = level_table(sampler, n_levels)
    return found


def latency_sampler(space: Space, records: Sequence[Measurement]) -> CostSampler | None:
    """Counts networks by predicted latency; None where the records are too few to predict.

    The prediction is a sum over blocks, which is what can be counted.
    """
    table = space.cost_table()
    try:
        model = LatencyModel.fit_measurements(table, records, forms=("table",))
        return make_sampler(model.with_latency_column(table), LATENCY_COLUMN)
    except TableError:
        return None


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
    for kept in found["kept"]:
        console.print(_limit_line(kept))
    if len(found["kept"]) > 1:
        console.print(
            f"all of these limits: {found['share_within_limits']:.2%} of the networks keep them "
            f"(of {N_DRAWS:,} drawn)"
        )
    for latency in found.get("latency", {}).values():
        for kept in latency["kept"]:
            console.print(f"{_limit_line(kept)}, by prediction")
        if not latency["kept"]:
            for limit in latency["limits"]:
                console.print(f"limit {limit}")
    for name, levels in found.get("levels", {}).items():
        _print_levels(name, levels, console)
    if not found.get("latency"):
        console.print("no latency is known yet: [bold]hilnas tables build[/bold] measures some")


def _limit_line(kept: dict[str, Any]) -> str:
    how = ", estimated by draws" if kept["method"] == "rejection" else ""
    about = "" if kept["exact"] else "about "
    return (
        f"limit {kept['limit']}: {about}{_percent(kept['share'])} = {kept['networks']:.4g} "
        f"networks keep it{how}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _print_levels(name: str, levels: Sequence[dict[str, float]], console: Console) -> None:
    scale, unit = _SCALES.get(name, (1.0, "ms"))
    metric = name.partition(" ")[0]
    table = Table(box=None, title=f"levels of {name.replace(metric, metric.removesuffix('_ms'))}")
    for column in (f"from, {unit}", f"to, {unit}", "share of the networks"):
        table.add_column(column, justify="right")
    for level in levels:
        ends = (f"{level[end] / scale:,.4g}" for end in ("low", "high"))
        table.add_row(*ends, _percent(level["probability"]))
    console.print(table)
