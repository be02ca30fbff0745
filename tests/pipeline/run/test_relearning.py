"""A latency model that learns from the records of what a search measured."""

from dataclasses import replace

import numpy as np
import pytest

from latency_tables import LatencyModel
from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import RunError
from latency_tables.pooling import pool
from latency_tables.store import TableStore
from pipeline.run.relearning import Relearning
from tests.latency_tables.conftest import measurement

DECISIONS = [Decision(label=f"block{i}", choices=("k3", "k5")) for i in range(5)]
TABLE = CostTable(
    DECISIONS,
    [Column(name="macs", unit="MAC")],
    [Factor(name=d.label, labels=(d.label,), values=np.array([[1e6], [3e6]])) for d in DECISIONS],
)
GENES = np.indices((2,) * 5).reshape(5, -1).T
SMALL, LARGE = GENES[GENES[:, 4] == 0], GENES[GENES[:, 4] == 1]


def record(genes, slow_ms=0.0):
    """The network of ``genes``; ``slow_ms`` slower than it seems where its last block is large."""
    number = int("".join(map(str, genes)), 2)
    latency = 2.0 + genes.sum() + slow_ms * genes[4]
    return replace(measurement(number, latency), arch=Arch.from_genes(DECISIONS, genes.tolist()))


@pytest.fixture
def store(tmp_path):
    with TableStore(tmp_path / "table.sqlite") as store:
        yield store


@pytest.fixture
def relearning(store):
    table = [record(genes) for genes in SMALL]
    return Relearning(
        model=LatencyModel.fit_measurements(TABLE, table),
        table=table,
        store=store,
        predictions=lambda model: model.predict,
    )


def measured(store, records):
    store.add_all(records)
    return {m.arch: pool([m], source="measured") for m in records}


def error(source, records):
    predicted = source([m.arch for m in records])
    return max(
        abs(p.latency_ms / m.latency_ms - 1) for p, m in zip(predicted, records, strict=True)
    )


def test_networks_that_nobody_measured_are_predicted_better_after_learning(relearning, store):
    seen, unseen = ([record(g, slow_ms=3.0) for g in part] for part in (LARGE[:8], LARGE[8:]))
    source = relearning(measured(store, seen))
    assert error(relearning.model.predict, unseen) > 0.2
    assert error(source, unseen) < 0.05


def test_the_model_is_the_one_that_all_records_together_give(relearning, store):
    seen = [record(g, slow_ms=3.0) for g in LARGE[:8]]
    source = relearning(measured(store, seen))
    model = relearning.model.relearn_measurements([*relearning.table, *seen])
    archs = [record(g).arch for g in GENES]
    assert source(archs) == model.predict(archs)


def test_of_several_sessions_the_one_that_the_journal_holds_counts(relearning, store):
    seen = [record(g, slow_ms=3.0) for g in LARGE[:8]]
    known = measured(store, seen)
    later = [
        replace(measurement(i, 9.0, run="run-2"), net_id=m.net_id, arch=m.arch)
        for i, m in enumerate(seen)
    ]
    alone = relearning(known)
    store.add_all(later)
    archs = [record(g).arch for g in GENES]
    assert relearning(known)(archs) == alone(archs)


def test_a_table_that_lost_a_record_is_told_with_its_name(relearning, store):
    lost = record(LARGE[0])
    with pytest.raises(RunError, match=r"table\.sqlite has lost the record"):
        relearning({lost.arch: pool([lost], source="measured")})
