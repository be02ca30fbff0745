"""Time to obtain an architecture of a level: trained generator, exact sampler, rejection.

The measuring is that of :mod:`tests.bench.sampler`, which has the spaces of the papers at their
published size; here the generator is a trained one, so that it can be said what it hits, too. An
architecture is of a level if its MACs are within ``half_width`` of the level's target.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from latency_tables.sampler import RejectionSampler
from pipeline.generator.file import FILE_NAME, load_generator
from pipeline.search.operators import random_genes, sizes_of
from tests.bench.sampler import RARE, count_ms, draw_ms, fastest_ms
from tests.bench.shiftnas_study.methods import Method
from tests.bench.shiftnas_study.world import World, machine_name

N_AT_ONCE, N_SINGLE, N_REJECTION = 256, 10, 50


def sampling(world: World, method: Method, seed: int) -> dict[str, Any]:
    """Milliseconds per architecture and level, on the CPU, with the generator of one training."""
    return world.kept(
        world.folder(method, seed) / "sampling.json", lambda: _measure(world, method, seed)
    )


def _measure(world: World, method: Method, seed: int) -> dict[str, Any]:
    table, exact = world.space.cost_table(), world.levels.sampler
    loaded = load_generator(world.folder(method, seed) / FILE_NAME, world.space)
    rejection = RejectionSampler(table, "macs")
    sizes = sizes_of(table.decisions)
    look_up_ms = fastest_ms(
        lambda: table.column("macs", random_genes(np.random.default_rng(0), sizes, 20_000)), 20_000
    )
    fvcore_ms, rows = count_ms(world.space), []
    for target in world.levels.targets:
        low, high = (target * (1 + sign * world.scale.half_width) for sign in (-1, 1))
        share = exact.probability(low, high)
        level = loaded.level(target, clamp=True)
        drawn = loaded.generator.sample(level, N_AT_ONCE, seed=seed)
        costs = np.array([table.cost(arch, "macs") for arch in drawn])
        row: dict[str, Any] = {
            "target": target,
            "share": share,
            "generator_ms": fastest_ms(
                lambda level=level: [loaded.generator.argmax(level) for _ in range(N_SINGLE)],  # type: ignore[misc]
                N_SINGLE,
            ),
            "generator_many_ms": fastest_ms(
                lambda level=level: loaded.generator.sample(level, N_AT_ONCE, seed=0),  # type: ignore[misc]
                N_AT_ONCE,
            ),
            "hits": float(((costs >= low) & (costs <= high)).mean()),
            "argmax_off": table.cost(loaded.generator.argmax(level), "macs") / target - 1,
        }
        if share:
            row |= {
                "exact_ms": draw_ms(exact, low, high, N_SINGLE, 1),
                "exact_many_ms": draw_ms(exact, low, high, N_AT_ONCE, N_AT_ONCE),
                "rejection_ms": draw_ms(rejection, low, high, N_REJECTION, N_REJECTION)
                if share >= RARE
                else look_up_ms / share,
                "fvcore_ms_extrapolated": fvcore_ms / share,
            }
        rows.append(row)
    return {"rows": rows, "fvcore_ms": fvcore_ms, "machine": machine_name(torch.device("cpu"))}
