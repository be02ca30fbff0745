"""Settings of Supernet Shifting, without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Mode = Literal["accumulate", "immediate"]
Normalise = Literal["sum", "mean"]


class ShiftingConfig(BaseModel):
    """``[search.shifting]``: how the supernet follows the search; ``shifting = true`` is all of it.

    The defaults are those of the paper: 20 batches of 32 images (640 in all) per candidate, their
    gradients summed over the population, one step of SGD at 1e-4 per generation, the 50 best kept.

    >>> ShiftingConfig().n_images
    640
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = "accumulate"
    """"accumulate": one step per generation, after all of its candidates were scored.
    "immediate": one step per batch, right after the candidate was scored."""
    lr: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    """Learning rate."""
    batches: int = Field(default=20, ge=1, le=1_000_000)
    """Training batches that each candidate's gradient is the mean of."""
    images_per_batch: int = Field(default=32, ge=2, le=1_000_000)
    normalise: Normalise = "sum"
    """Gradients of a population are summed, or averaged: a step as many times smaller."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=4e-5, ge=0, allow_inf_nan=False)
    """Of tensors with more than one dimension."""
    initial: bool | None = None
    """Whether the first population is learnt, too. Where not given: not in mode "accumulate", whose
    paper only scores it, but in mode "immediate"."""
    keep: int = Field(default=50, ge=1, le=1_000_000)
    """How many of the best are scored once more with the final weights; the winner is one of
    them."""

    @property
    def n_images(self) -> int:
        """Training images per candidate."""
        return self.batches * self.images_per_batch

    @property
    def learns_first(self) -> bool:
        """Whether candidates of the first population are learnt.

        >>> ShiftingConfig().learns_first, ShiftingConfig(mode="immediate").learns_first
        (False, True)
        """
        return self.mode == "immediate" if self.initial is None else self.initial

    def lineage(self) -> dict[str, Any]:
        """What the weights depend on, JSON-ready: not how many are scored once more at the end."""
        return self.model_dump(mode="json", exclude={"keep"})


def _from_switch(value: object) -> object:
    """``true`` is every default, ``false`` is no shifting."""
    if isinstance(value, bool):
        return {} if value else None
    if isinstance(value, str):
        raise ValueError(f"true, false or a table such as {{lr = 1e-4}} is meant, not {value!r}")
    return value


ShiftingChoice = Annotated[ShiftingConfig | None, BeforeValidator(_from_switch)]
"""A section, or ``true`` or ``false`` in its place."""
