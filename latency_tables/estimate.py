"""A latency that remembers where it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from latency_tables.errors import TableError

Source = Literal["measured", "table", "predicted"]
"""measured: on the device, for this request; table: looked up; predicted: by a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One latency in milliseconds with its interval and provenance.

    Every latency travels as one of these until it is printed.

    ``key`` identifies the table record (or the model) behind the number, ``n`` the number of
    timed samples (or of training nets for a prediction), ``in_support`` is False where a model
    extrapolates.

    >>> latency = Estimate(
    ...     latency_ms=5.0, low_ms=4.8, high_ms=5.3, key="k", source="measured", n=90
    ... )
    >>> latency.keeps(5.5), latency.straddles(5.1)
    (True, True)
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    key: str
    source: Source
    n: int
    level: float = 0.9
    in_support: bool = True

    def __post_init__(self) -> None:
        values = (self.latency_ms, self.low_ms, self.high_ms)
        if not all(math.isfinite(v) for v in values) or self.latency_ms <= 0:
            raise TableError(f"a latency must be finite and positive, not {values} ms")
        if not self.low_ms <= self.latency_ms <= self.high_ms:
            raise TableError(f"a latency must lie inside its interval, not {values} ms")

    def keeps(self, limit_ms: float) -> bool:
        """Whether the central value keeps the limit."""
        return self.latency_ms <= limit_ms

    def straddles(self, limit_ms: float) -> bool:
        """Whether the interval leaves open on which side of the limit the network lies."""
        return self.low_ms <= limit_ms < self.high_ms

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` reads it back."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Estimate:
        """Read what :meth:`to_dict` wrote. Raises TableError naming unknown or missing fields."""
        try:
            return cls(**data)
        except TypeError as error:
            raise TableError(f"not an estimate: {error}") from None
