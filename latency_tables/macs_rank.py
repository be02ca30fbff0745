"""How well MACs alone order networks as a device does: Kendall's tau-b with its interval.

The lower it is, the less a search by MACs finds networks that are fast on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from latency_tables.cost_table import CostTable
from latency_tables.pooling import by_key, pool
from latency_tables.ranking import bootstrap, tau_b_of_rows
from latency_tables.records import Measurement

SPREAD = "networks of its latency table, chosen to spread over the cost range"
"""The networks that tables hold. They differ more in MACs than random ones, so that MACs order
them more easily."""

MIN_NETWORKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MacsRank:
    """tau(MACs, latency) on one device over ``n`` measured networks.

    ``low`` and ``high`` bound it in ``level`` of the bootstrap's resamples; ``over`` says which
    networks they are.
    """

    tau: float
    low: float
    high: float
    level: float
    n: int
    over: str = SPREAD

    def __str__(self) -> str:
        return f"{self.tau:.2f} ({self.level:.0%} interval {self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote."""
        return cls(**data)


def macs_rank(
    table: CostTable, records: Sequence[Measurement], *, seed: int = 0
) -> MacsRank | None:
    """Agreement of MACs and measured latency on one device; None below three networks.

    Args:
        table: costs of the space.
        records: usable measurements of one device in one setting; sessions of one network count
            once, pooled.
        seed: of the resamples.

    >>> from latency_tables.arch import Arch, Decision
    >>> from latency_tables.cost_table import Column, Factor
    >>> macs = np.array([[1e6], [2e6], [3e6]])
    >>> table = CostTable(
    ...     [Decision(label="block", choices=("k3", "k5", "k7"))],
    ...     [Column(name="macs", unit="MAC")],
    ...     [Factor(name="block", labels=("block",), values=macs)],
    ... )
    >>> macs_rank(table, []) is None
    True
    """
    archs, latencies_ms = [], []
    for found in by_key([m for m in records if m.ok and m.arch is not None]).values():
        arch = found[0].arch
        if arch is not None:
            archs.append(arch)
            latencies_ms.append(pool(found).latency_ms)
    if len(archs) < MIN_NETWORKS:
        return None
    macs = table.column("macs", table.genes(archs))
    interval = bootstrap(tau_b_of_rows, macs, latencies_ms, rng=np.random.default_rng(seed))
    return MacsRank(
        tau=interval.value,
        low=interval.low,
        high=interval.high,
        level=interval.level,
        n=len(archs),
    )
