"""How well MACs order networks as a device does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.macs_rank import MacsRank, macs_rank
from tests.latency_tables.conftest import measurement

DECISION = Decision(label="block", choices=tuple(f"c{i}" for i in range(40)))
MACS = np.arange(1.0, 41.0)[:, None] * 1e6
TABLE = CostTable(
    [DECISION],
    [Column(name="macs", unit="MAC")],
    [Factor(name="block", labels=("block",), values=MACS)],
)


def records(latencies_ms):
    """One record per network, of rising MACs."""
    return [
        replace(measurement(i, ms), arch=Arch({"block": f"c{i}"}))
        for i, ms in enumerate(latencies_ms)
    ]


def test_tau_of_macs_and_latency_follows_the_definition():
    # of six pairs one is discordant: (5 - 1) / 6
    found = macs_rank(TABLE, records([1.0, 2.0, 4.0, 3.0]))
    assert found.tau == pytest.approx(2 / 3)
    assert (found.n, found.level) == (4, 0.95)


def test_the_interval_holds_tau_and_narrows_with_more_networks():
    noise = np.random.default_rng(0).normal(0, 8, 40)
    wide = macs_rank(TABLE, records((20 + np.arange(40) + noise)[::4]))
    narrow = macs_rank(TABLE, records(20 + np.arange(40) + noise))
    for found in (wide, narrow):
        assert found.low <= found.tau <= found.high
        assert found.low < found.high
    assert narrow.high - narrow.low < wide.high - wide.low


def test_sessions_of_one_network_count_once():
    once = records([1.0, 2.0, 4.0, 3.0])
    again = [replace(m, provenance={**m.provenance, "session_id": "later"}) for m in once]
    assert macs_rank(TABLE, [*once, *again]).n == 4


def test_two_networks_have_no_order_to_speak_of():
    assert macs_rank(TABLE, records([1.0, 2.0])) is None


def test_the_same_seed_gives_the_same_interval_and_json_reads_back():
    found = macs_rank(TABLE, records([1.0, 3.0, 2.0, 5.0, 4.0]), seed=3)
    assert found == macs_rank(TABLE, records([1.0, 3.0, 2.0, 5.0, 4.0]), seed=3)
    assert MacsRank.from_dict(found.to_dict()) == found
