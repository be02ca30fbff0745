"""What training alone gains over inherited weights, by level; the paper finds about nothing.

A subnet of some levels is trained from fresh weights for as many steps as the supernets, with the
same settings; its accuracy stands beside what it inherits from every method's supernet.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np

from latency_tables.arch import Arch
from pipeline.spaces.base import Space
from pipeline.training.engine import CHECKPOINTS
from tests.bench.shiftnas_study.world import World


def levels_looked_at(world: World) -> list[int]:
    """Numbers of evenly spaced levels, the lowest and the highest among them."""
    n = min(world.scale.retrain_levels, len(world.levels))
    return sorted({int(i) for i in np.linspace(0, len(world.levels) - 1, n).round()})


def retrained(world: World, seed: int) -> dict[int, dict[str, Any]]:
    """Accuracy of the first subnet of every level that is looked at, trained alone."""
    found = {}
    for level in levels_looked_at(world):
        folder = world.folder(f"alone-level-{level + 1}", seed)
        found[level] = world.kept(
            folder / "retrained.json",
            lambda level=level, folder=folder: _retrained(world, seed, level, folder),  # type: ignore[misc]
        )
    return found


def _retrained(world: World, seed: int, level: int, folder: Path) -> dict[str, Any]:
    arch = world.archs[level][0]
    one, network = world.alone(arch, seed, folder, steps=world.scale.steps)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    score = world.scorer(cast("Space", one), network).score(Arch({}))
    return {"arch": dict(arch), "accuracy": score.accuracy}
