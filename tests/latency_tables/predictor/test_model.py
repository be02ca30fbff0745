"""The latency model on synthetic spaces whose truth is known: what its interface promises."""

import time

import numpy as np
import pytest

from latency_tables.cost_table import CostTable, Factor
from latency_tables.errors import TableError
from latency_tables.predictor import LatencyModel
from latency_tables.predictor.features import Features
from latency_tables.ranking import kendall_tau
from tests.latency_tables.predictor.truths import additive, draw, fit, mape, noisy


@pytest.fixture(scope="module")
def fresh(table):
    return draw(table, 300, seed=5)


def test_an_additive_truth_is_recovered(table, fresh):
    genes = draw(table, 80)
    model = fit(table, genes, additive(table, genes))
    error = np.abs(model.predict_ms(fresh) / additive(table, fresh) - 1)
    assert error.max() < 1e-3
    assert model.diagnostics.kendall_tau > 0.99
    assert model.diagnostics.loo_mape < 1e-3
    assert model.diagnostics.within_5 == 1.0


def test_a_multiplicative_truth_is_predicted_better_than_by_a_sum(table, fresh):
    genes = draw(table, 80)
    latency, truth = (np.exp(0.4 * additive(table, g)) for g in (genes, fresh))
    model = fit(table, genes, latency)
    assert max(model.diagnostics.forms, key=model.diagnostics.forms.get) == "log table"
    assert mape(model.predict_ms(fresh), truth) < 1e-2
    assert model.diagnostics.additive_gap > 1e-3


def test_few_samples_fall_back_to_costs(table, fresh):
    # 9 networks cannot pin down 16 free entries, but latencies follow costs
    genes = draw(table, 9)
    model = fit(table, genes, table.batch(genes)[:, :3].sum(axis=1))
    assert kendall_tau(model.predict_ms(fresh), table.batch(fresh)[:, :3].sum(axis=1)) > 0.7


def test_an_outlier_hardly_moves_the_predictions(table, fresh):
    genes = draw(table, 60)
    latency = noisy(additive(table, genes), 0.005)
    spoilt = latency.copy()
    spoilt[7] *= 5
    clean, robust = fit(table, genes, latency), fit(table, genes, spoilt)
    assert robust.diagnostics.n_outliers >= 1
    assert mape(robust.predict_ms(fresh), clean.predict_ms(fresh)) < 0.01


def test_isomorphic_networks_are_left_out_together(make_cost_table):
    # random latencies, every network twice: leaving out one of a pair lets its twin answer
    table = make_cost_table(n_blocks=16)
    genes = np.repeat(draw(table, 20), 2, axis=0)
    latency = np.repeat(np.random.default_rng(0).uniform(1, 9, 20), 2)
    dishonest = fit(table, genes, latency, groups=range(40))
    assert dishonest.diagnostics.loo_mape < 0.1
    for groups in (None, np.arange(40) // 2, [f"net-{i // 2}" for i in range(40)]):
        assert fit(table, genes, latency, groups=groups).diagnostics.loo_mape > 0.3


def test_the_latency_column_sums_to_the_prediction_of_a_table_alone(table, fresh):
    genes = draw(table, 60)
    stages = {"first": ["block0", "block1"]}
    model = fit(table, genes, additive(table, genes), stages=stages)
    assert model.hyper.additive
    joined = model.with_latency_column(table)
    np.testing.assert_allclose(
        joined.column("latency_ms", fresh), model.predict_ms(fresh), rtol=1e-12
    )
    np.testing.assert_array_equal(joined.batch(fresh)[:, :4], table.batch(fresh))
    assert joined.minimum("latency_ms")[0] <= model.predict_ms(fresh).min()


def test_a_latency_column_is_replaced_and_never_a_feature(table):
    genes = draw(table, 40)
    model = fit(table, genes, additive(table, genes))
    joined = model.with_latency_column(table)
    assert "latency_ms" not in Features(joined).names
    again = fit(joined, genes, 2 * additive(table, genes)).with_latency_column(joined)
    ratio = again.column("latency_ms", genes) / joined.column("latency_ms", genes)
    np.testing.assert_allclose(ratio, 2.0, rtol=1e-3)


def test_predictions_are_positive_even_where_the_fit_is_not(table):
    # fitted on slow networks whose latency falls so steeply that fast ones would be negative
    genes = draw(table, 400)
    costs = table.batch(genes)[:, 0]
    order = np.argsort(costs)
    fast, slow = genes[order[:100]], genes[order[-100:]]
    latency = costs[order[-100:]] - 0.95 * costs[order[-100]]
    model = fit(table, slow[:80], latency[:80])
    found = model.predict_all(fast)
    assert model.additive.batch(fast).min() < 0
    assert model.floor_ms == pytest.approx(0.25 * latency.min())
    assert (found.latency_ms == model.floor_ms).any()
    assert (found.latency_ms >= model.floor_ms).all()
    assert (found.low_ms >= 0).all()
    assert not found.in_support[found.latency_ms == model.floor_ms].any()


def test_a_choice_that_was_never_seen_is_out_of_support(table):
    # the third choice of the last decision costs what the second does, so only it is new
    last = table.factors[-1]
    twin = Factor(name=last.name, labels=last.labels, values=last.values[[0, 1, 1]])
    table = CostTable(table.decisions, table.columns, [*table.factors[:-1], twin])
    genes = draw(table, 60)
    genes[:, -1] %= 2
    model = fit(table, genes, table.batch(genes)[:, 0])
    unseen = genes.copy()
    unseen[:, -1] = 2
    assert model.predict_all(genes).in_support.all()
    assert not model.predict_all(unseen).in_support.any()


def test_costs_outside_of_the_training_networks_are_out_of_support(table):
    genes = draw(table, 400)
    costs = table.batch(genes)[:, 0]
    order = np.argsort(costs)
    middle = genes[order[170:230]]
    model = fit(table, middle, costs[order[170:230]])
    assert model.predict_all(middle).in_support.all()
    assert not model.predict_all(genes[order[[0, -1]]]).in_support.any()


def test_estimates_carry_source_model_and_sample_count(table):
    genes = draw(table, 30)
    model = fit(table, genes, additive(table, genes))
    estimates = model.predict([table.arch(g) for g in genes[:3]], level=0.8)
    assert {(e.source, e.key, e.n, e.level) for e in estimates} == {
        ("predicted", model.model_hash, 30, 0.8)
    }
    found = model.predict_all(genes[:3], level=0.8)
    assert [e.latency_ms for e in estimates] == found.latency_ms.tolist()
    assert [e.low_ms for e in estimates] == found.low_ms.tolist()
    assert [e.high_ms for e in estimates] == found.high_ms.tolist()
    assert model.predict([]) == []


@pytest.mark.parametrize("n", [40, 120])
def test_predictions_of_one_network_and_of_many_agree(table, fresh, n):
    genes = draw(table, n)
    model = fit(table, genes, noisy(additive(table, genes), 0.03))
    singly = [model.predict_ms(g[None])[0] for g in fresh[:20]]
    np.testing.assert_allclose(singly, model.predict_ms(fresh)[:20], rtol=1e-9)
    np.testing.assert_allclose(model.predict_all(fresh).latency_ms, model.predict_ms(fresh))


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan"), float("inf")])
def test_latencies_that_are_none_are_refused(table, latency):
    genes = draw(table, 10)
    with pytest.raises(TableError, match="network 3"):
        fit(table, genes, [1.0, 2.0, 3.0, latency, *[1.0] * 6])


def test_as_many_latencies_and_groups_as_networks_are_needed(table):
    genes = draw(table, 10)
    with pytest.raises(TableError, match="10 networks need as many"):
        fit(table, genes, np.ones(9))
    with pytest.raises(TableError, match="10 networks need as many"):
        fit(table, genes, np.ones(10), groups=range(9))


def test_fewer_than_eight_different_networks_are_refused(table):
    genes = draw(table, 7)
    with pytest.raises(TableError, match="7 different networks are too few"):
        fit(table, np.repeat(genes, 3, axis=0), np.ones(21))
    with pytest.raises(TableError, match="1 different networks"):
        fit(table, draw(table, 20), np.ones(20), groups=["same"] * 20)


def test_eight_different_networks_are_enough(table, fresh):
    genes = draw(table, 8)
    model = fit(table, genes, additive(table, genes))
    assert mape(model.predict_ms(fresh), additive(table, fresh)) < 0.2


@pytest.mark.parametrize("n", [20, 110])
def test_equal_latencies_are_predicted_as_such(table, n):
    genes = draw(table, n)
    model = fit(table, genes, np.full(n, 3.0))
    np.testing.assert_allclose(model.predict_ms(genes), 3.0, rtol=1e-3)


def test_measurements_of_a_device_are_pooled_and_fitted(table, make_measurement):
    genes = draw(table, 20)
    latency = additive(table, genes)
    records = [
        make_measurement(i, ms * factor, run=run, arch=table.arch(g))
        for i, (g, ms) in enumerate(zip(genes, latency, strict=True))
        for run, factor in (("a", 0.99), ("b", 1.0), ("c", 1.01))
    ]
    model = LatencyModel.fit_measurements(table, records)
    assert model.diagnostics.n == 20
    assert model.model_hash == fit(table, genes, [round(x * 1e6) / 1e6 for x in latency]).model_hash


def test_fitting_and_predicting_are_fast(make_cost_table):
    table = make_cost_table(n_blocks=24, n_choices=4)
    genes = draw(table, 500)
    latency = noisy(table.batch(genes)[:, 0], 0.02)
    archs = [table.arch(g) for g in genes]
    start = time.process_time()
    model = LatencyModel.fit(table, archs, latency)
    fitted = time.process_time()
    many = np.repeat(genes, 20, axis=0)
    model.predict_ms(many)
    predicted = time.process_time()
    assert fitted - start < 15.0  # CPU seconds
    assert len(many) / (predicted - fitted) > 2_000
