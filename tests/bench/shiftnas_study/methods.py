"""The trainings that are compared, by the part of the study that they belong to.

All spend the same number of image passes: a strategy with four subnets per step takes a quarter of
the steps, and compares levels four times as often, counted in steps.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

UNIFORM = "uniform architectures"
LEVELS = "uniform levels"
SHIFTED = "shifted, exact paths"
GENERATED = "shifted, generator"
SANDWICH = 4
"""Subnets in a step of the sandwich rule: the largest, the smallest, two between."""
LEVEL_STEPS = {"twice the step": 0.5, "half the step": 2.0}
"""Step from one level to the next, beside that of the other methods → share of their levels. The
paper's steps are 0.2, 0.1 and 0.05 GFLOPs, and 0.1 is its own."""
FREQUENCIES = (0.5, 5.0, 10.0)
"""q, in units of that of the other methods; the paper's are 50, 100, 500 and 1000, 100 its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to train a supernet; ``passes`` subnets see every image of a step."""

    name: str
    strategy: str
    options: dict[str, Any] = field(default_factory=dict)
    passes: int = 1

    @property
    def folder(self) -> str:
        """The name as a folder."""
        return self.name.replace(",", "").replace(" = ", "-").replace(" ", "-")


def parts_of(scale: argparse.Namespace) -> dict[str, tuple[Method, ...]]:
    """Trainings by part; equal names are the same training."""
    q, k = scale.update_every, scale.levels
    base: dict[str, Any] = {"levels": k, "update_every": q, "shift_images": scale.held_out}

    def shifted(name: str, *, paths: str = "generator", **changed: Any) -> Method:
        return Method(name=name, strategy="shiftnas", options=base | {"paths": paths} | changed)

    def sandwich(name: str, strategy: str, **options: Any) -> Method:
        return Method(name=name, strategy=strategy, options=options, passes=SANDWICH)

    uniform = Method(name=UNIFORM, strategy="spos")
    own = shifted(GENERATED)
    with_sandwich = base | {
        "paths": "exact", "sandwich": True, "n_random": SANDWICH - 2,
        "update_every": max(1, q // SANDWICH),
    }  # fmt: skip
    return {
        "inherited": (
            uniform,
            shifted(LEVELS, paths="exact", shift=False),
            shifted(SHIFTED, paths="exact"),
            own,
        ),
        "level-step": (
            own,
            *(
                shifted(f"{GENERATED}, {name}", levels=max(1, round(share * k)))
                for name, share in LEVEL_STEPS.items()
            ),
        ),
        "frequency": (
            own,
            *(
                shifted(f"{GENERATED}, q = {every}", update_every=every)
                for every in (max(1, round(f * q)) for f in FREQUENCIES)
            ),
        ),
        "sandwich": (
            sandwich("sandwich, uniform architectures", "sandwich", n_random=SANDWICH - 2),
            sandwich("sandwich, uniform levels", "shiftnas", **with_sandwich, shift=False),
            sandwich("sandwich, shifted", "shiftnas", **with_sandwich),
        ),
    }
