"""Matrix mapping: one-hot choices become masks over what a choice switches on.

Zhang et al., "ShiftNAS: Improving One-shot NAS via Probability Shift", 2023, the map p' = M pᵀ.

    p   one-hot vector of a decision, (n,), candidates from small to large
    M   cumulative matrix (n, n): M[g, j] = 1 where g ≤ j
    p'  one entry per group, (n,); group g is what candidate g has beyond candidate g - 1
    m   mask over units (channels, heads, taps of a kernel, blocks): the entry of each unit's group

So m[u] = Σ_j [unit u is part of candidate j] · p_j, and backward ∂L/∂p_j = Σ_{g ≤ j} ∂L/∂p'_g.
Where two decisions set a size together (the hidden width of an MLP follows from its ratio and the
embedding dimension), the mask is that sum over pairs of candidates: for one decision's gradient
the groups are those of the other's current choice.

Masks stand where a unit is *read*: on the columns of the weights that read it, or on γ and β of
the layer norm that does. So each unit has exactly one factor on its way, which matters for units
that are switched off (a product of two zeros has no gradient), and nothing of 0 enters a batch
norm. A branch that depth switches on and off is multiplied as a whole; a kernel ring by ring.

The sliced pass runs a supernet's own ``forward`` with these weights: on what is active the factor
is exactly 1, so logits are those of ``forward`` to the last bit, and gradients reach the choices
through active units only. The dense pass runs everything at full size, so that units that are off
have a gradient too; whatever is normalised sees active entries only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from latency_tables.arch import Arch, Choice
from pipeline.spaces.entangled import Part, leading

if TYPE_CHECKING:
    from pipeline.spaces.policy import Policy

Sizes = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""How many units each candidate has; by two decisions: one row per candidate of the first."""


class Gates:
    """The masks of one policy; ``like`` says where, and in which number format.

    >>> from latency_tables.arch import Decision
    >>> from pipeline.spaces.policy import Policy
    >>> policy = Policy.of({"heads": 2}, [Decision(label="heads", choices=(1, 2, 3))])
    >>> Gates(policy, like=torch.zeros(1)).mask(3, (1, 2, 3), "heads").tolist()
    [1.0, 1.0, 0.0]
    """

    def __init__(self, policy: Policy, like: Tensor) -> None:
        self.arch: Arch = policy.arch
        self.choices = {d.label: d.choices for d in policy.decisions}
        self._one_hot = {
            label: policy.one_hot[label].to(device=like.device, dtype=like.dtype)
            for label in self.choices
        }
        self._certain = torch.ones(1, device=like.device, dtype=like.dtype)
        self._masks: dict[tuple[object, ...], Tensor] = {}

    def searches(self, label: str) -> bool:
        """Whether there is such a decision."""
        return label in self._one_hot

    def chosen(self, label: str) -> Tensor:
        """Entry of the chosen candidate, a scalar of value 1."""
        return self.entry(label, self.arch[label])

    def entry(self, label: str, choice: Choice) -> Tensor:
        """Entry of a candidate, a scalar."""
        return self._one_hot[label][self.choices[label].index(choice)]

    def mask(self, positions: int | tuple[int, ...], sizes: Sizes, *labels: str) -> Tensor:
        """1 for the units whose position lies below the chosen size, (n_units,).

        Call it with autocast off: 16-bit gradients of choices would lose most of their digits.

        Args:
            positions: of every unit; a number n stands for 0 … n - 1.
            sizes: of every candidate of the one or two decisions ``labels``. A label that is not
                searched has one candidate.
        """
        key = (positions, sizes, labels)
        if key not in self._masks:
            mask = _reaches(positions, sizes, self._certain.device, self._certain.dtype)
            for label in reversed(labels):
                mask = mask @ self._one_hot.get(label, self._certain)
            self._masks[key] = mask
        return self._masks[key]

    def masks(self, n_units: int, sizes: Sizes, *shared: str, each: Sequence[str]) -> Tensor:
        """:meth:`mask` for each of several decisions with the same candidates, (n, n_units).

        Args:
            sizes: as in :meth:`mask`, by the decision ``shared`` first if there is one.
        """
        reaches = _reaches(n_units, sizes, self._certain.device, self._certain.dtype)
        for label in shared:
            reaches = self._one_hot[label] @ reaches
        return torch.stack([self._one_hot[label] for label in each]) @ reaches.T


@lru_cache(maxsize=4096)
def _reaches(
    positions: int | tuple[int, ...], sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Whether a candidate has a unit, (n_units, n) or (n_units, n, n'): M's rows, unit by unit."""
    with torch.inference_mode(False):
        table = torch.tensor(sizes)
        units = torch.arange(positions) if isinstance(positions, int) else torch.tensor(positions)
        units = units.reshape(-1, *(1,) * table.ndim)
        return (units < table).to(device=device, dtype=dtype)


def run_aside(
    module: nn.Module,
    inputs: tuple[Any, ...],
    *,
    weights: Mapping[str, Tensor],
    statistics_of: Mapping[str, Tensor],
    part: Part = leading,
) -> Tensor:
    """Run ``module`` with other weights, and move its running statistics as a part of it would.

    Args:
        statistics_of: buffers of the part, of which the shapes are read; buffers that it lacks, and
            entries beyond its own, stay as they are.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    output: Tensor = functional_call(module, {**buffers, **weights}, inputs, tie_weights=False)
    with torch.no_grad():
        for name, wanted in statistics_of.items():
            if not module.get_submodule(name.rpartition(".")[0]).training:
                continue  # writing would spoil what other passes saved for backward
            moved = part(buffers[name], *wanted.shape)
            part(module.get_buffer(name), *wanted.shape).copy_(moved)
    return output


class Masked:
    """Weights of a supernet times masks; the supernet itself stays as it is."""

    def __init__(self, supernet: nn.Module) -> None:
        self.supernet = supernet
        self.weights: dict[str, Tensor] = {}

    def multiply(self, name: str, mask: Tensor, axis: int = 0) -> None:
        """Multiply a parameter: by a vector along ``axis``, by a scalar, or by taps (k, k)."""
        weight = self.weights.get(name)
        if weight is None:
            weight = cast("Tensor", attrgetter(name)(self.supernet))
        if mask.ndim == 1:
            mask = mask.reshape(-1, *(1,) * (weight.ndim - axis - 1))
        self.weights[name] = weight * mask

    def multiply_vectors(self, names: Sequence[str], masks: Tensor) -> None:
        """Multiply vectors of one length (n,) by a mask (n,), or by one each, (len(names), n or 1).

        Together, because an operator on a small tensor costs as much as on a larger one.
        """
        vectors = torch.stack([attrgetter(name)(self.supernet) for name in names])
        self.weights |= dict(zip(names, (vectors * masks).unbind(), strict=True))

    def run(self, x: Tensor, arch: Arch) -> Tensor:
        """``supernet(x, arch)`` with these weights."""
        logits: Tensor = functional_call(self.supernet, self.weights, (x, arch), tie_weights=False)
        return logits
