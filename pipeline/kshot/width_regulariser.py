"""Width regulariser: similar widths get similar codes, others different ones.

Su et al., "K-shot NAS: Learnable Weight-Sharing for NAS with K-shot Supernets", 2021, equations 13
to 16. Under one architecture, with λ_i the code of widths c_i:

    similar:  d(c_i, c_k) = ‖c_i − c_k‖₁ < d₀
    P(c_i | c_k) = e^{λ_i·λ_k / τ} / (e^{λ_i·λ_k / τ} + Σ_j e^{λ_i·λ_j / τ})
    r_c = mean of −log P over all similar pairs i ≠ k

==============  ====================================================================
denominator     j runs over
==============  ====================================================================
"corrected"     those that are not similar to c_i (the default)
"literal"       all but k, as printed: c_i itself among them, so P stays below 1/2
                even where codes could not be better
==============  ====================================================================

Our reading. Widths count as shares of their largest choice, so coefficients of 0.2 ... 1.0 are
taken as they are; genes that change nothing are those of the canonical form. The paper gives no d₀:
here it is a share of the mean distance of two random widths. Such pairs are hardly ever similar, so
paths come in groups of four with one architecture: one drawn at random, a near copy (a few genes
one step away) and two more drawn at random. Where no pair is similar r_c is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latency_tables.arch import Arch, Decision
from pipeline.kshot.simplex_net import is_size
from pipeline.spaces.base import Space

Denominator = Literal["corrected", "literal"]
GROUP = 4
"""Paths that share an architecture."""
STEPS_AWAY = 3
"""At most so many genes of a near copy differ."""


def width_regulariser(
    codes: Tensor,
    distances: Tensor,
    *,
    threshold: float,
    temperature: float = 0.3,
    denominator: Denominator = "corrected",
) -> Tensor:
    """r_c (scalar) of some paths.

    Args:
        codes: λ (n, K).
        distances: (n, n); infinite between different architectures.
        threshold: d₀; pairs that are closer are similar.
        temperature: τ.

    Widths 0 and 1 are similar, and their codes are as good as can be:

    >>> codes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> distances = torch.tensor([[0.0, 0.2, 9.0], [0.2, 0.0, 9.0], [9.0, 9.0, 0.0]])
    >>> for denominator in ("corrected", "literal"):
    ...     r_c = width_regulariser(codes, distances, threshold=1, denominator=denominator)
    ...     print(f"{r_c:.6f}")
    0.035052
    0.710827
    """
    logits = codes @ codes.T / temperature  # (n, n)
    same = distances.isfinite()
    itself = torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    similar = (distances < threshold) & ~itself
    losses = []
    for i, k in similar.nonzero().tolist():
        if denominator == "literal":
            against = same[i].clone()
            against[k] = False
        else:
            against = same[i] & ~similar[i] & ~itself[i]
        against[k] = True  # the term of the pair itself
        losses.append(logits[i][against].logsumexp(0) - logits[i, k])
    return torch.stack(losses).mean() if losses else codes.sum() * 0.0


class WidthPaths:
    """Paths whose widths are near to and far from each other, and how far they are.

    Args:
        space: with decisions between numbers.
        share: d₀ as a share of the mean distance of two random widths.

    >>> from pipeline.spaces import load_space
    >>> space = load_space(
    ...     "mobilenetv2_widths", preset="paper", input_shape=(3, 224, 224), n_classes=1000
    ... )
    >>> round(WidthPaths(space, share=0.25).threshold, 2)  # 24 widths, mean distance 24 · 0.32
    1.92
    """

    def __init__(self, space: Space, *, share: float) -> None:
        self.space = space
        self.sizes = tuple(d for d in space.decisions if is_size(d))
        self._values = {d.label: _shares(d) for d in self.sizes}
        self.threshold = share * math.fsum(_mean_distance(v) for v in self._values.values())

    def sample(self, rng: np.random.Generator, n: int) -> list[Arch]:
        """``n`` paths: groups of four as the module says; what is left over is uniform."""
        archs: list[Arch] = []
        while n - len(archs) >= GROUP:
            first = self.space.sample(rng)
            others = [self.space.sample(rng) for _ in range(GROUP - 2)]
            archs += [first, self._near(first, rng)]
            archs += [first.replace(**{d.label: o[d.label] for d in self.sizes}) for o in others]
        return [*archs, *(self.space.sample(rng) for _ in range(n - len(archs)))]

    def distances(self, archs: Sequence[Arch]) -> Tensor:
        """d (n, n) on the CPU; infinite where anything but sizes differs."""
        canonical = [self.space.canonical(arch) for arch in archs]
        points = np.array(
            [
                [self._values[d.label][d.index(arch[d.label])] for d in self.sizes]
                for arch in canonical
            ]
        )
        operators = [
            tuple(choice for label, choice in arch.items() if label not in self._values)
            for arch in canonical
        ]
        apart = np.abs(points[:, None] - points[None]).sum(axis=2)
        for i, one in enumerate(operators):
            for j, other in enumerate(operators):
                if one != other:
                    apart[i, j] = math.inf
        return torch.from_numpy(apart)

    def _near(self, arch: Arch, rng: np.random.Generator) -> Arch:
        """Some sizes one step up or down."""
        several = [d for d in self.sizes if len(d.choices) > 1]
        n = int(rng.integers(1, min(STEPS_AWAY, len(several)) + 1))
        changed = {}
        for index in rng.choice(len(several), size=n, replace=False):
            decision = several[int(index)]
            gene = decision.index(arch[decision.label])
            steps = [g for g in (gene - 1, gene + 1) if 0 <= g < len(decision.choices)]
            changed[decision.label] = decision.choices[steps[int(rng.integers(len(steps)))]]
        return arch.replace(**changed)


def _shares(decision: Decision) -> list[float]:
    values = [float(choice) for choice in decision.choices]
    largest = max(abs(value) for value in values) or 1.0
    return [value / largest for value in values]


def _mean_distance(values: Sequence[float]) -> float:
    return sum(abs(a - b) for a in values for b in values) / len(values) ** 2
