"""The latency model on synthetic spaces whose truth is known."""

import json
import time

import numpy as np
import pytest

from latency_tables.calibration import Calibration, Hyper, Training
from latency_tables.cost_table import CostTable, Factor
from latency_tables.errors import CorruptTableError, ForeignTableError, TableError
from latency_tables.features import Features
from latency_tables.model import LatencyModel
from latency_tables.ranking import kendall_tau
from latency_tables.ridge import Ridge


@pytest.fixture(scope="module")
def table(make_cost_table):
    return make_cost_table()


def draw(table, n, seed=0):
    """Genes (N, n_decisions) without repetition where the space allows it."""
    rng = np.random.default_rng(seed)
    sizes = [len(d.choices) for d in table.decisions]
    return np.unique(rng.integers(0, sizes, (2 * n, len(sizes))), axis=0)[rng.permutation(n)]


def truth(table, genes, seed=1):
    """Costs plus an effect of each choice that costs do not explain: additive, in ms."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(0, 0.15, (len(table.decisions), 3))
    own = effects[np.arange(genes.shape[1]), genes].sum(axis=1)
    return 4.0 + table.batch(genes)[:, :3] @ [0.2, 0.1, 0.3] + own


def noisy(latency, noise, seed=2):
    return latency * np.exp(np.random.default_rng(seed).normal(0, noise, len(latency)))


def fit(table, genes, latency, **options):
    return LatencyModel.fit(table, [table.arch(g) for g in genes], latency, **options)


def test_an_additive_truth_is_recovered(table):
    genes, fresh = draw(table, 80), draw(table, 300, seed=5)
    model = fit(table, genes, truth(table, genes))
    error = np.abs(model.predict_ms(fresh) / truth(table, fresh) - 1)
    assert error.max() < 1e-3
    assert model.diagnostics.kendall_tau > 0.99


def test_a_multiplicative_truth_is_fitted_on_the_logarithm(table):
    genes, fresh = draw(table, 80), draw(table, 300, seed=5)

    def multiplied(g):
        return np.exp(0.4 * truth(table, g))

    model = fit(table, genes, multiplied(genes))
    assert model.hyper.target == "log"
    assert np.abs(model.predict_ms(fresh) / multiplied(fresh) - 1).max() < 1e-2
    assert model.diagnostics.additive_gap > 1e-3


def test_few_samples_fall_back_to_costs(table):
    # 9 networks cannot pin down 16 free entries, but latencies follow costs
    genes, fresh = draw(table, 9), draw(table, 300, seed=5)
    costs = table.batch
    model = fit(table, genes, costs(genes)[:, :3].sum(axis=1))
    assert kendall_tau(model.predict_ms(fresh), costs(fresh)[:, :3].sum(axis=1)) > 0.7


@pytest.mark.parametrize("n", [12, 40, 150])
def test_intervals_cover_nine_of_ten_networks(table, n):
    covered = []
    for seed in range(12):
        genes, fresh = draw(table, n, seed), draw(table, 200, seed=100 + seed)
        model = fit(table, genes, noisy(truth(table, genes), 0.02, seed))
        found = model.predict_all(fresh)
        measured = noisy(truth(table, fresh), 0.02, seed + 50)
        covered.append(np.mean((found.low_ms <= measured) & (measured <= found.high_ms)))
    assert 0.83 <= np.mean(covered) <= 0.98


def test_intervals_hold_where_networks_are_as_many_as_columns(make_cost_table):
    # here an unrestrained fit interpolates and takes what it cannot explain for outliers
    table, covered = make_cost_table(n_blocks=20, n_choices=4), []
    effects = np.random.default_rng(0).normal(0, 0.1, (20, 4))

    def latency(genes, seed):
        return noisy(np.exp(effects[np.arange(20), genes].sum(axis=1)), 0.01, seed)

    for seed in range(8):
        rng = np.random.default_rng(seed)
        genes, fresh = rng.integers(0, 4, (66, 20)), rng.integers(0, 4, (300, 20))
        found = fit(table, genes, latency(genes, seed)).predict_all(fresh)
        measured = latency(fresh, seed + 50)
        covered.append(np.mean((found.low_ms <= measured) & (measured <= found.high_ms)))
    assert np.mean(covered) >= 0.83


def test_an_outlier_hardly_moves_the_predictions(table):
    genes, fresh = draw(table, 60), draw(table, 300, seed=5)
    latency = noisy(truth(table, genes), 0.005)
    spoilt = latency.copy()
    spoilt[7] *= 5
    clean, robust = fit(table, genes, latency), fit(table, genes, spoilt)
    assert robust.diagnostics.n_outliers >= 1
    moved = np.abs(robust.predict_ms(fresh) / clean.predict_ms(fresh) - 1)
    assert moved.mean() < 0.01


@pytest.mark.parametrize("n_columns", [5, 40])
@pytest.mark.parametrize("grouped", [False, True])
def test_leaving_out_in_closed_form_equals_leaving_out(n_columns, grouped):
    rng = np.random.default_rng(0)
    n, strength = 20, 0.3
    columns, target = rng.normal(size=(n, n_columns)), rng.normal(size=n)
    weights = rng.uniform(0.2, 2.0, n)
    groups = np.arange(n) // 3 if grouped else np.arange(n)
    closed = Ridge(columns, target, weights, groups).fit(strength)
    for group in np.unique(groups):
        rest = groups != group
        # the same problem written out: [1, X] with an unpenalised first coefficient
        x = np.column_stack([np.ones(n), columns])
        penalty = strength * np.diag([0.0] + [1.0] * n_columns)
        wx = x[rest] * weights[rest, None]
        beta = np.linalg.solve(wx.T @ x[rest] + penalty, wx.T @ target[rest])
        expected = target[~rest] - x[~rest] @ beta
        np.testing.assert_allclose(closed.loo[~rest], expected, rtol=1e-8, atol=1e-10)


def test_isomorphic_networks_are_left_out_together(make_cost_table):
    # random latencies, every network twice: leaving out one of a pair lets its twin answer
    table = make_cost_table(n_blocks=16)
    genes = np.repeat(draw(table, 20), 2, axis=0)
    latency = np.repeat(np.random.default_rng(0).uniform(1, 9, 20), 2)
    hyper = Hyper(target="latency", ridge=1e-8, stage_scale=0.3, choice_scale=0.3)
    for groups, honest in ((np.arange(40), False), (np.arange(40) // 2, True)):
        training = Training(genes=genes, latency_ms=latency, groups=groups)
        problem = Calibration(Features(table), training)
        ridge, strength = problem.ridge(hyper, np.ones(40))
        error = np.abs(ridge.fit(strength).loo / latency).mean()
        assert (error > 0.3) == honest, error


def test_the_latency_column_sums_to_the_prediction(table):
    genes, fresh = draw(table, 60), draw(table, 200, seed=5)
    model = fit(table, genes, truth(table, genes), stages={"first": ["block0", "block1"]})
    assert model.hyper.target == "latency"
    joined = model.with_latency_column(table)
    np.testing.assert_allclose(
        joined.column("latency_ms", fresh), model.predict_ms(fresh), rtol=1e-9
    )
    np.testing.assert_array_equal(joined.batch(fresh)[:, :4], table.batch(fresh))
    assert joined.minimum("latency_ms")[0] <= model.predict_ms(fresh).min()


def test_a_compiled_function_of_the_columns_is_that_function(table):
    features = Features(table, {"first": ["stem", "block0"], "last": ["block6", "block7"]})
    coefficients = np.random.default_rng(0).normal(size=len(features.names))
    genes = draw(table, 50)
    compiled = features.compile(2.5, coefficients, "value", "1")
    expected = 2.5 + features.matrix(genes) @ coefficients
    np.testing.assert_allclose(compiled.batch(genes)[:, 0], expected)


def test_decisions_that_no_factor_looks_at_are_compiled_too(table):
    blind = CostTable(table.decisions, table.columns, table.factors[:-1])
    features = Features(blind)
    coefficients = np.random.default_rng(0).normal(size=len(features.names))
    genes = draw(table, 50)
    compiled = features.compile(0.0, coefficients, "value", "1")
    np.testing.assert_allclose(compiled.batch(genes)[:, 0], features.matrix(genes) @ coefficients)


def test_a_latency_column_is_replaced_and_never_a_feature(table):
    genes = draw(table, 40)
    model = fit(table, genes, truth(table, genes))
    joined = model.with_latency_column(table)
    assert "latency_ms" not in Features(joined).names
    again = fit(joined, genes, 2 * truth(table, genes)).with_latency_column(joined)
    ratio = again.column("latency_ms", genes) / joined.column("latency_ms", genes)
    np.testing.assert_allclose(ratio, 2.0, rtol=1e-3)


def test_predictions_are_positive_even_where_the_fit_is_not(table):
    genes = draw(table, 60)
    latency = truth(table, genes)
    model = fit(table, genes, latency - 0.97 * latency.min())  # steep: reaches below zero
    found = model.predict_all(draw(table, 300, seed=5))
    assert (found.latency_ms >= model.floor_ms).all()
    assert (found.low_ms >= 0).all()
    assert not found.in_support[found.latency_ms == model.floor_ms].any()


def test_a_choice_that_was_never_seen_is_out_of_support(table):
    # the third choice of the last decision costs what the second does, so only it is new
    last = table.factors[-1]
    values = last.values[[0, 1, 1]]
    twin = Factor(name=last.name, labels=last.labels, values=values)
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
    model = fit(table, genes[order[100:300]], costs[order[100:300]])
    in_support = model.predict_all(genes[order]).in_support
    assert in_support[100:300].all()
    assert not in_support[[0, -1]].any()


def test_estimates_carry_source_model_and_sample_count(table):
    genes = draw(table, 30)
    model = fit(table, genes, truth(table, genes))
    estimates = model.predict([table.arch(g) for g in genes[:3]])
    assert {(e.source, e.key, e.n) for e in estimates} == {("predicted", model.model_hash, 30)}
    assert [e.latency_ms for e in estimates] == model.predict_ms(genes[:3]).tolist()
    assert model.predict([]) == []


def test_a_model_survives_json(table):
    genes = draw(table, 30)
    model = fit(table, genes, truth(table, genes), stages={"late": ["block6", "block7"]})
    copy = LatencyModel.from_dict(json.loads(json.dumps(model.to_dict())), table)
    fresh = draw(table, 50, seed=5)
    np.testing.assert_array_equal(copy.predict_ms(fresh), model.predict_ms(fresh))
    assert (copy.model_hash, copy.diagnostics) == (model.model_hash, model.diagnostics)


def test_a_model_of_another_cost_table_or_with_damage_is_refused(table, make_cost_table):
    genes = draw(table, 30)
    data = fit(table, genes, truth(table, genes)).to_dict()
    other = make_cost_table(seed=9)
    with pytest.raises(ForeignTableError, match="cost table"):
        LatencyModel.from_dict(data, other)
    with pytest.raises(ForeignTableError, match="cost table"):
        LatencyModel.from_dict(data, table).with_latency_column(other)
    for name, value in {"weights": [1.0], "genes": "x", "latency_ms": [-1.0] * 30}.items():
        with pytest.raises(CorruptTableError):
            LatencyModel.from_dict({**data, name: value}, table)


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan"), float("inf")])
def test_latencies_that_are_none_are_refused(table, latency):
    genes = draw(table, 10)
    with pytest.raises(TableError, match="network 3"):
        fit(table, genes, [1.0, 2.0, 3.0, latency, *[1.0] * 6])


def test_fewer_than_eight_different_networks_are_refused(table):
    genes = draw(table, 7)
    with pytest.raises(TableError, match="7 different networks are too few"):
        fit(table, np.repeat(genes, 3, axis=0), np.ones(21))
    with pytest.raises(TableError, match="1 different networks"):
        fit(table, draw(table, 20), np.ones(20), groups=["same"] * 20)


def test_equal_latencies_are_predicted_as_such(table):
    genes = draw(table, 20)
    model = fit(table, genes, np.full(20, 3.0))
    np.testing.assert_allclose(model.predict_ms(genes), 3.0)


def test_unknown_stage_factors_are_named(table):
    with pytest.raises(TableError, match="tail"):
        Features(table, {"late": ["tail"]})


def test_measurements_of_a_device_are_pooled_and_fitted(table, make_measurement):
    genes = draw(table, 20)
    latency = truth(table, genes)
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
    many = np.repeat(genes, 100, axis=0)
    model.predict_ms(many)
    predicted = time.process_time()
    assert fitted - start < 3.0  # CPU seconds; the budget is 1 s on a quiet machine
    assert len(many) / (predicted - fitted) > 20_000  # the budget, quiet: 50,000


def test_tau_is_that_of_kendall_with_ties():
    # 10 pairs: 7 agree, 1 disagrees, 1 tied in each: (7 - 1) / sqrt(9 * 9); scipy says the same
    assert kendall_tau([1, 2, 2, 4, 5], [3, 1, 4, 4, 5]) == pytest.approx(2 / 3)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall_tau([1, 1, 1], [1, 2, 3]) == 0.0
