"""B, the distribution of ShiftNAS over levels of cost, and the three ways a gradient reaches it.

Zhang et al., "ShiftNAS: Improving One-shot NAS via Probability Shift", 2023, equation 8, and
algorithms 1 and 2 of its appendix. Nothing here knows of networks.

| symbol | here | meaning |
|---|---|---|
| B | ``logits`` (K,) | logits of the K levels, 0 at the beginning |
| p | ``probabilities`` | softmax(B) |
| q | ``every`` | steps from one update of B to the next |
| w_t, w_{t−1} | | weights now, and q steps before |
| L_k | ``now``, ``before`` | loss of level k with either of them |
| Δ_k | | L_k(w_{t−1}) − L_k(w_t): positive where the loss still falls |

**The sign.** Equation 8 says ∇B = ∇_B L(w_t) − ∇_B L(w_{t−1}), algorithm 2 the opposite, and then
``optimizer_B.step()``. Of L(B) = Σ p_k L_k the gradient is ∂L/∂B_k = p_k (L_k − L̄), so equation 8
is ∇B_k = p_k (Δ̄ − Δ_k), whose *descent* raises the levels that still improve, as the text wants;
algorithm 2's quantity is a score to be *ascended*. Here it is equation 8.

A level is discrete, and the paper does not say how its gradient reaches B:

* stratified, the default: the losses of all K levels and the closed form above; no sampling noise;
* score: one level drawn by Gumbel-softmax, its loss times its straight-through probability;
* pathwise, algorithm 2 literally: through the level's one-hot vector, the generator and the
  network; see :mod:`pipeline.strategies.shiftnas`.

**The learning rate.** Adam moves a logit by about its rate in every update. The paper's 1e-3 meets
5,625 updates and can move B by 5.6; a short run would leave B uniform. So it is 5 / updates,
and never below 1e-3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.spaces.policy import straight_through

PAPER_RATE = 1e-3
REACH = 5.0
"""How far B can move in a whole run, in logits."""


class LevelDistribution:
    """p = softmax(B) over K levels; uniform at first.

    >>> levels = LevelDistribution(4)
    >>> levels.probabilities().tolist(), round(levels.entropy(), 4)
    ([0.25, 0.25, 0.25, 0.25], 1.3863)
    """

    def __init__(self, n_levels: int) -> None:
        self.logits = nn.Parameter(torch.zeros(n_levels, dtype=torch.float64))

    def probabilities(self) -> Tensor:
        """p (K,), float64, without gradient."""
        return self.logits.detach().softmax(dim=0)

    def entropy(self) -> float:
        """Entropy of p in nats: ln K where it is uniform, 0 where one level is all."""
        return float(torch.special.entr(self.probabilities()).sum())

    def draw(self, rng: np.random.Generator) -> int:
        """A level, with probability p_k (the largest of B plus Gumbel noise)."""
        return int(np.argmax(self.logits.detach().numpy() + gumbel(rng, len(self.logits))))

    def relaxed(self, noise: np.ndarray, temperature: float = 1.0) -> Tensor:
        """The drawn level as a vector (K,): one-hot in value, softmax((B + noise) / temperature)
        in gradient, which reaches ``logits``."""
        soft = ((self.logits + torch.from_numpy(noise)) / temperature).softmax(dim=0)
        hard = torch.zeros_like(soft)
        hard[int(soft.argmax())] = 1.0
        return straight_through(hard, soft)


def gumbel(rng: np.random.Generator, n: int) -> np.ndarray:
    """Standard Gumbel noise (n,)."""
    return rng.gumbel(size=n)


def stratified_gradient(logits: Tensor, before: Tensor, now: Tensor) -> Tensor | None:
    """Equation 8 for the losses (K,) of all levels with w_{t−1} and w_t.

    None unless all are finite. Of two levels the first still improves; its gradient is negative, so
    descent raises it.

    >>> found = stratified_gradient(torch.zeros(2), torch.tensor([1.1, 1.0]), torch.ones(2))
    >>> [round(x, 6) for x in found.tolist()]
    [-0.025, 0.025]
    """
    delta = (before - now).to(logits.dtype).to(logits.device)
    if not bool(delta.isfinite().all()):
        return None
    p = logits.detach().softmax(dim=0)
    return p * ((p * delta).sum() - delta)


def score_gradient(
    distribution: LevelDistribution, noise: np.ndarray, before: float, now: float
) -> Tensor | None:
    """Equation 8 for the losses of the one level that ``noise`` draws; None unless both are finite.

    The loss is multiplied by the straight-through probability of that level, which is 1 in value.
    """
    if not np.isfinite([before, now]).all():
        return None
    value = distribution.relaxed(noise).max() * (now - before)
    (gradient,) = torch.autograd.grad(value, distribution.logits)
    return gradient


def difference(now: Tensor, before: Tensor) -> Tensor | None:
    """Equation 8 for two gradients of B (K,); None unless all of it is finite."""
    found = now - before
    return found if bool(found.isfinite().all()) else None


def is_due(done: int, n_steps: int, *, every: int, freeze: float) -> bool:
    """Whether B is updated after ``done`` steps: every q-th, once its freeze is over.

    >>> [done for done in range(1, 21) if is_due(done, 20, every=4, freeze=0.4)]
    [12, 16, 20]
    """
    return done % every == 0 and done > freeze * n_steps


def planned_updates(n_steps: int, *, every: int, freeze: float) -> int:
    """How often B is updated in a whole run.

    The paper: 500 epochs of 1,250 steps, the first 50 epochs frozen, q = 100.

    >>> planned_updates(500 * 1250, every=100, freeze=0.1)
    5625
    """
    return max(0, n_steps // every - int(freeze * n_steps // every))


def learning_rate_of(n_updates: int) -> float:
    """Adam's rate for B: 5 / updates, at least the paper's.

    >>> learning_rate_of(5625), learning_rate_of(200)
    (0.001, 0.025)
    """
    return max(PAPER_RATE, REACH / max(1, n_updates))
