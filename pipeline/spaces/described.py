"""What spaces have in common that a name, a preset and options define."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from latency_tables.arch import Arch, Decision, check_arch
from latency_tables.files import sha256_json


class DescribedSpace:
    """Identity, sampling and checking; see :class:`pipeline.spaces.base.Space` for the methods."""

    def __init__(
        self,
        *,
        name: str,
        preset: str,
        options: Mapping[str, Any],
        input_shape: tuple[int, int, int],
        n_classes: int,
        decisions: tuple[Decision, ...],
    ) -> None:
        self.name, self.preset, self.options = name, preset, dict(options)
        self.input_shape, self.n_classes = input_shape, n_classes
        self.decisions = decisions

    def describe(self) -> dict[str, Any]:
        """Everything that defines the space."""
        return {
            "name": self.name,
            "preset": self.preset,
            "options": self.options,
            "input_shape": list(self.input_shape),
            "n_classes": self.n_classes,
        }

    @cached_property
    def space_id(self) -> str:
        """Content hash of :meth:`describe`."""
        return sha256_json(self.describe())[:16]

    def input_shape_of(self, arch: Arch) -> tuple[int, int, int]:
        """The same for every architecture, unless a space searches the resolution."""
        return self.input_shape

    def sample(self, rng: np.random.Generator) -> Arch:
        """One architecture, every genome equally likely."""
        genes = [int(rng.integers(len(d.choices))) for d in self.decisions]
        return Arch.from_genes(self.decisions, genes)

    def validate(self, arch: Arch) -> None:
        """Raise InvalidArchError unless ``arch`` is of this space."""
        check_arch(self.decisions, arch)
