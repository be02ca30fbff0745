"""Which weights a candidate is sent without: the typed form of what ``synthetic.py`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latency_tables import synthetic
from latency_tables.errors import GraphError

LOCATION = "weights.bin"
"""File name under which a model without weights looks for them, beside itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightTensor:
    """One float32 tensor of the weight file."""

    name: str
    n_elements: int
    fan_in: int
    offset_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """How to make the weight file of a candidate.

    >>> tensor = WeightTensor(name="w", n_elements=8, fan_in=4, offset_bytes=0)
    >>> spec = WeightsSpec(seed=0, tensors=(tensor,))
    >>> WeightsSpec.from_dict(spec.to_dict()) == spec, spec.n_bytes, len(spec.synthesise())
    (True, 32, 32)
    """

    seed: int
    tensors: tuple[WeightTensor, ...]
    location: str = LOCATION

    @property
    def n_bytes(self) -> int:
        """Size of the weight file."""
        return synthetic.n_bytes(self.to_dict())

    def synthesise(self) -> bytes:
        """Content of the weight file."""
        return synthetic.synthesise(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The plain form that travels to the device."""
        return {
            "schema": synthetic.SCHEMA,
            "seed": self.seed,
            "location": self.location,
            "tensors": [[t.name, t.n_elements, t.fan_in, t.offset_bytes] for t in self.tensors],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WeightsSpec:
        """Read :meth:`to_dict`'s form. Raises GraphError."""
        try:
            plain = dict(data)
            synthetic.check(plain)
            tensors = tuple(
                WeightTensor(name=name, n_elements=n, fan_in=fan_in, offset_bytes=offset)
                for name, n, fan_in, offset in plain["tensors"]
            )
            return cls(seed=plain["seed"], tensors=tensors, location=plain["location"])
        except (KeyError, TypeError, ValueError) as error:
            raise GraphError(f"a specification of weights cannot be read: {error}") from None
