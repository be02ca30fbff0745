"""Cross-validation of the latency model on a table."""

import json

import numpy as np
import pytest

from latency_tables.errors import MissingLatencyError, TableError, UsageError
from latency_tables.evaluate import evaluate


@pytest.fixture(scope="module")
def table(make_cost_table):
    return make_cost_table()


@pytest.fixture(scope="module")
def records(table, make_measurement):
    def make(noise, *, n=45, sessions=("r1",), bad=()):
        rng = np.random.default_rng(0)
        genes = np.unique(rng.integers(0, 3, (2 * n, 8)), axis=0)[:n]
        return [
            make_measurement(
                i,
                float(ms * np.exp(rng.normal(0, 0.4 if run in bad else noise))),
                run=run,
                arch=table.arch(g),
            )
            for run in sessions
            for i, (g, ms) in enumerate(zip(genes, table.batch(genes)[:, 0], strict=True))
        ]

    return make


def test_a_quiet_additive_device_is_predicted_well(table, records):
    seen = []
    found = evaluate(table, records(0.005), folds=3, progress=lambda *step: seen.append(step))
    assert found.all.n == 45
    assert found.all.mape < 0.03
    assert found.all.within_10 == 1.0
    assert found.all.kendall_tau > 0.8
    assert found.all.coverage >= 0.7
    assert sum(third.n for third in found.terciles.values()) == 45
    assert (found.worst_session, found.without_worst) == (None, None)
    assert seen[-1] == (4, 4)
    json.dumps(found.to_dict(), allow_nan=False)


def test_noise_shows_in_every_figure(table, records):
    quiet, noisy = (evaluate(table, records(noise), folds=3).all for noise in (0.005, 0.2))
    assert noisy.mape > 3 * quiet.mape
    assert noisy.width > 3 * quiet.width
    assert noisy.kendall_tau < quiet.kendall_tau


def test_the_session_that_fits_worst_is_named_and_left_out(table, records):
    found = evaluate(table, records(0.005, sessions=("good", "bad", "fine"), bad=("bad",)), folds=3)
    assert found.worst_session == "bad"
    assert found.without_worst.mape < found.all.mape


def test_copies_of_one_measurement_stay_in_one_fold(table, make_measurement):
    # latencies of chance, each network there twice under two names: a split that lets one copy
    # teach the other would predict them well
    rng = np.random.default_rng(0)
    genes = rng.integers(0, 3, (40, 8))
    latency = rng.uniform(5, 15, 40)
    twins = [
        make_measurement(1000 * copy + i, float(latency[i]), arch=table.arch(genes[i]))
        for copy in range(2)
        for i in range(40)
    ]
    assert evaluate(table, twins, folds=5).all.kendall_tau < 0.4


def test_what_cannot_be_evaluated_is_said(table, records):
    with pytest.raises(UsageError, match="1 folds"):
        evaluate(table, records(0.01), folds=1)
    with pytest.raises(MissingLatencyError):
        evaluate(table, [])
    with pytest.raises(TableError, match="at least 8"):
        evaluate(table, records(0.01)[:9], folds=3)
