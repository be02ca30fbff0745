"""Settings of a transfer, without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Weights = Literal["searched", "trained"]


class TransferConfig(BaseModel):
    """``[transfer]``: the supernet of another run, with a new classifier, in place of training.

    ``hilnas transfer RUN FILE`` writes ``source``, ``sha256`` and ``space_id``.

    >>> TransferConfig(source="runs/fashion-mnist").weights
    'searched'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """Folder of the other run; a relative path counts from the run file's folder."""
    weights: Weights = "searched"
    """"searched": the weights that its search shifted, where it did, else the trained ones.
    "trained": those in any case."""
    head_steps: int = Field(default=0, ge=0, le=100_000_000)
    """Steps of uniformly drawn paths in which the new classifier alone learns, by the rules of
    ``[train]``, before the first ranking. The paper has none."""
    head_only: bool = False
    """Whether the search trains the classifier alone; by default the whole network."""
    resample: Literal["resize", "learned"] = "resize"
    """How images get the size that the supernet knows. "resize": when they are read. "learned": by
    a layer in front of every network, which learns in the search (the paper found it worse)."""
    sha256: str | None = None
    """Content of the weights that are taken over."""
    space_id: str | None = None
    """The space of the other run: measurements there tell about latency here."""
