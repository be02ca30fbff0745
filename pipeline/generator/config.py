"""Settings of the generator and of its training."""

from __future__ import annotations

from pydantic import BaseModel, Field


class GeneratorConfig(BaseModel, extra="forbid", frozen=True):
    """Defaults are those with which the generator reaches its levels, see
    ``tests/bench/generator_accuracy.py``.

    >>> GeneratorConfig().temperature(0.0), GeneratorConfig().temperature(1.0)
    (5.0, 0.5)
    >>> GeneratorConfig().imitation_at(0.25)
    0.5
    """

    hidden: int = Field(default=64, ge=1)
    """Size of the LSTM and of its embeddings (the paper's)."""
    lr: float = Field(default=1e-2, gt=0)
    """Learning rate of the generator's Adam at its start."""
    temperature_start: float = Field(default=5.0, gt=0)
    """Gumbel-softmax temperature at the start; it falls exponentially. It shapes gradients only:
    draws follow the generator's probabilities at any temperature."""
    temperature_end: float = Field(default=0.5, gt=0)
    """Gumbel-softmax temperature at the end."""
    resource_weight: float = Field(default=1.0, gt=0)
    """First and smallest λ of the resource loss."""
    resource_tolerance: float = Field(default=0.02, gt=0)
    """λ grows while draws miss their targets by more than this share on average."""
    resource_draws: int = Field(default=3, ge=1)
    """Architectures per target in the resource loss of one step; there are two targets a level."""
    imitation: float = Field(default=1.0, ge=0)
    """First weight of the log-likelihood of architectures drawn uniformly from every level by the
    exact sampler; 0: the generator starts from nothing, as the paper's."""
    imitation_until: float = Field(default=0.5, gt=0, le=1)
    """Share of the training at which that weight, falling linearly, reaches 0."""
    imitation_draws: int = Field(default=8, ge=1)
    """Such architectures per level in one step."""
    spread: bool = True
    """Whether a subnet is asked for anywhere in its level; false: at the target of it, as in the
    paper, so that what lies between two targets is hardly trained."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the architectures' mean entropy in nats, which keeps draws diverse."""

    def temperature(self, progress: float) -> float:
        """Temperature at a share 0 … 1 of the training."""
        ratio = self.temperature_end / self.temperature_start
        return float(self.temperature_start * ratio**progress)

    def imitation_at(self, progress: float) -> float:
        """Weight of the imitation at a share 0 … 1 of the training."""
        return self.imitation * max(0.0, 1.0 - progress / self.imitation_until)
