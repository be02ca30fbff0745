"""One architecture as one-hot vectors through which gradients flow.

In value a :class:`Policy` is an architecture: every decision has exactly one 1. Its gradient is
that of the soft probabilities it was drawn from (straight-through estimator; Jang et al.,
"Categorical Reparameterization with Gumbel-Softmax", 2017, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latency_tables.arch import Arch, Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """``one_hot[label]`` has shape (n_choices,), in the order of the decision's choices."""

    decisions: tuple[Decision, ...]
    one_hot: Mapping[str, Tensor]

    @property
    def arch(self) -> Arch:
        """The architecture that it stands for (waits for the device)."""
        return Arch(
            {d.label: d.choices[int(self.one_hot[d.label].argmax())] for d in self.decisions}
        )

    @classmethod
    def of(cls, arch: Mapping[str, object], decisions: Sequence[Decision]) -> Policy:
        """The policy of one architecture, without gradients.

        >>> policy = Policy.of({"a": 5}, [Decision(label="a", choices=(3, 5))])
        >>> policy.one_hot["a"].tolist(), policy.arch
        ([0.0, 1.0], Arch({'a': 5}))
        """
        return cls(
            decisions=tuple(decisions),
            one_hot={
                d.label: F.one_hot(
                    torch.tensor(d.choices.index(arch[d.label])),
                    len(d.choices),
                ).float()
                for d in decisions
            },
        )


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """``hard`` in value, exactly; ``soft`` in gradient. Both (..., n).

    >>> soft = torch.tensor([0.3, 0.7], requires_grad=True)
    >>> straight_through(torch.tensor([0.0, 1.0]), soft).tolist()
    [0.0, 1.0]
    """
    return hard.detach() + (soft - soft.detach())
