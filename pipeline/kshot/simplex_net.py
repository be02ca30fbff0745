"""Simplex-net: from an architecture to its code, the weights with which K supernets are mixed.

Su et al., "K-shot NAS: Learnable Weight-Sharing for NAS with K-shot Supernets", 2021, equation 6
and figure 2:

    a, c        one-hots of the operators and of the sizes (widths), end to end
    π(a, c)     = softmax(W₃ ReLU(MLP_a(a) + MLP_c(c)) + b₃)  ∈  Δ^{K−1}
    MLP(v)      = W₂ ReLU(W₁ v + b₁) + b₂

Where the paper is silent: 256 hidden units; the branches are added; W₃ and b₃ start at zero, so
every architecture begins with exactly 1/K. The size branch takes all decisions between numbers
(widths, scales, depths, kernel sizes), the architecture branch the others; a space may have one of
them only. "random" draws all layers once, so that logits have a variance of about one, and never
trains them (the paper's ablation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from latency_tables.arch import Arch, Decision

CodeKind = Literal["learned", "fixed", "random"]
HIDDEN = 256


def is_size(decision: Decision) -> bool:
    """Whether a decision is between numbers.

    >>> is_size(Decision(label="width", choices=(0.5, 1.0)))
    True
    """
    return all(isinstance(choice, int | float) for choice in decision.choices)


class SimplexNet(nn.Module):
    """Codes λ of architectures.

    Args:
        decisions: those of the space.
        k: supernets that are mixed.
        hidden: units of the hidden layers.
        random: draw the output layer, too, and freeze all of them.

    >>> net = SimplexNet([Decision(label="layer1", choices=("k3", "k5"))], 4)
    >>> net([Arch({"layer1": "k5"})]).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def __init__(
        self, decisions: Sequence[Decision], k: int, *, hidden: int = HIDDEN, random: bool = False
    ) -> None:
        super().__init__()
        sizes = tuple(d for d in decisions if is_size(d))
        operators = tuple(d for d in decisions if not is_size(d))
        self.branches = nn.ModuleDict(
            {
                name: _Branch(members, hidden)
                for name, members in (("architecture", operators), ("sizes", sizes))
                if members
            }
        )
        self.output = nn.Linear(hidden, k)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if random:
            self._draw()
            self.requires_grad_(False)

    def forward(self, archs: Sequence[Arch]) -> Tensor:
        """Codes (n, K); rows are positive and sum to one."""
        # forward, not a call: where a supernet's modules are compiled, these are left alone
        hidden = torch.stack([branch.forward(archs) for branch in self.branches.values()]).sum(0)
        return self.output.forward(hidden.relu()).softmax(1)

    def _draw(self) -> None:
        """Weights that keep the variance: first layers see one 1 per decision."""
        n_branches = 0
        for branch in self.branches.values():
            if isinstance(branch, _Branch):
                nn.init.normal_(branch.first.weight, std=len(branch.decisions) ** -0.5)
                nn.init.kaiming_normal_(branch.second.weight, nonlinearity="relu")
                n_branches += 1
        nn.init.normal_(self.output.weight, std=(2 / n_branches / self.output.in_features) ** 0.5)


class _Branch(nn.Module):
    """A two-layer MLP over the one-hots of some decisions."""

    def __init__(self, decisions: tuple[Decision, ...], hidden: int) -> None:
        super().__init__()
        self.decisions = decisions
        self.first = nn.Linear(sum(len(d.choices) for d in decisions), hidden)
        self.second = nn.Linear(hidden, hidden)

    def forward(self, archs: Sequence[Arch]) -> Tensor:
        """(n, hidden)."""
        hidden: Tensor = self.second(self.first(self._one_hots(archs)).relu())
        return hidden

    def _one_hots(self, archs: Sequence[Arch]) -> Tensor:
        weight = self.first.weight
        rows = []
        for arch in archs:
            row, start = [0.0] * weight.shape[1], 0
            for decision in self.decisions:
                row[start + decision.index(arch[decision.label])] = 1.0
                start += len(decision.choices)
            rows.append(row)
        return torch.tensor(rows, dtype=weight.dtype, device=weight.device)
