"""Shares of forms, priors of other devices, and solving again what was chosen."""

import time

import numpy as np
import pytest

from latency_tables.predictor import LatencyModel, blend
from latency_tables.predictor.blend import LEAST_SHARE
from tests.latency_tables.predictor.truths import (
    additive,
    draw,
    fit,
    interacting,
    mape,
    noisy,
    one_column,
    problem,
)


@pytest.fixture(scope="module")
def fresh(table):
    return draw(table, 300, seed=5)


# --- shares


def test_shares_sum_to_one_and_small_ones_are_dropped(table):
    dropped = 0
    for seed in range(8):
        genes, tried = draw(table, 30, seed), []
        latency = noisy(additive(table, genes), 0.03, seed)
        model = fit(table, genes, latency, progress=lambda *at, tried=tried: tried.append(at))
        shares = model.diagnostics.forms
        assert sum(shares.values()) == pytest.approx(1.0)
        assert min(shares.values()) >= LEAST_SHARE
        dropped += tried[-1][1] - len(shares)
    assert dropped > 0


def test_an_additive_truth_keeps_the_table_alone(table):
    genes = draw(table, 80)
    model = fit(table, genes, additive(table, genes))
    assert model.hyper.additive
    assert dict(model.diagnostics.forms) == {"table": 1.0}
    assert model.diagnostics.additive_gap == 0.0


def test_noise_alone_leaves_the_table_alone_more_often_than_not(table):
    alone = 0
    for seed in range(6):
        genes = draw(table, 60, seed)
        alone += fit(table, genes, noisy(additive(table, genes), 0.02, seed)).hyper.additive
    assert alone >= 4


def test_the_gap_of_the_additive_part_is_told_where_another_form_takes_part(table):
    genes = draw(table, 80)
    model = fit(table, genes, interacting(genes))
    assert not model.hyper.additive
    sums, predicted = model.additive.batch(genes)[:, 0], model.predict_ms(genes)
    gap = np.abs(sums / predicted - 1).mean()
    assert gap > 0.01
    assert model.diagnostics.additive_gap == pytest.approx(gap)


def test_predictions_are_the_mean_of_the_forms_by_their_shares(table, fresh):
    drawn = ((seed, draw(table, 20, seed)) for seed in range(20))
    blends = (blend.choose(problem(table, g, noisy(interacting(g), 0.05, s))) for s, g in drawn)
    chosen = next(one for one in blends if len(one.hyper.shares) > 1)
    columns = chosen.problem.features.matrix(fresh)
    table_ms = chosen.table.predict_raw_ms(columns)
    alone = {}
    for form in chosen.hyper.shares:
        hyper = blend.Hyper(
            shares={form: 1.0}, scales=chosen.hyper.scales, kernels=chosen.hyper.kernels
        )
        alone[form] = blend.solve(chosen.problem, hyper)
    for mean, parts in (
        (
            chosen.predict_raw_ms(fresh, columns, table_ms),
            {f: one.predict_raw_ms(fresh, columns, table_ms) for f, one in alone.items()},
        ),
        (chosen.left_out_ms, {f: one.left_out_ms for f, one in alone.items()}),
    ):
        expected = sum(chosen.hyper.shares[f] * part for f, part in parts.items())
        np.testing.assert_allclose(mean, expected, rtol=1e-6)


# --- priors: other devices


def another_device(seed):
    """Effects of choices that costs do not explain, and what another device says of them."""
    effects = np.random.default_rng(seed).normal(0, 0.3, (8, 3))
    noise = np.random.default_rng(seed + 100).normal(0, 0.1, (8, 3))
    return effects, 1.7 * effects * np.exp(noise)


def latency_of(effects, genes):
    return 6.0 + effects[np.arange(8), genes].sum(axis=1)


def test_a_device_whose_latencies_are_proportional_helps_where_networks_are_few(table, fresh):
    helped, alone, named = [], [], []
    for seed in range(5):
        effects, other = another_device(seed)
        genes = draw(table, 10, seed)
        latency, truth = noisy(latency_of(effects, genes), 0.02, seed), latency_of(effects, fresh)
        prior = one_column(table, other)
        model = fit(table, genes, latency, priors={"gpu": prior})
        named.append(model.diagnostics.priors)
        helped.append(mape(model.predict_ms(fresh), truth))
        alone.append(mape(fit(table, genes, latency).predict_ms(fresh), truth))
    assert named.count(("gpu",)) >= 4
    assert np.mean(helped) < 0.5 * np.mean(alone)


def test_a_model_of_another_device_is_a_prior(table, fresh):
    effects, other = another_device(0)
    known = draw(table, 120, seed=7)
    device = fit(table, known[:90], noisy(6.0 + latency_of(other, known[:90]), 0.01))
    genes = draw(table, 10)
    latency, truth = noisy(latency_of(effects, genes), 0.02), latency_of(effects, fresh)
    model = fit(table, genes, latency, priors={"gpu": device})
    assert model.diagnostics.priors == ("gpu",)
    alone = fit(table, genes, latency)
    assert mape(model.predict_ms(fresh), truth) < 0.6 * mape(alone.predict_ms(fresh), truth)


@pytest.mark.parametrize(("n", "at_most"), [(10, 1), (20, 0)])
def test_a_device_that_has_nothing_in_common_is_not_listened_to(table, fresh, n, at_most):
    listened, with_it, alone = 0, [], []
    for seed in range(5):
        effects, _ = another_device(seed)
        unrelated, _ = another_device(seed + 500)
        genes = draw(table, n, seed)
        latency, truth = noisy(latency_of(effects, genes), 0.02, seed), latency_of(effects, fresh)
        model = fit(table, genes, latency, priors={"tpu": one_column(table, unrelated)})
        listened += model.diagnostics.priors == ("tpu",)
        with_it.append(mape(model.predict_ms(fresh), truth))
        alone.append(mape(fit(table, genes, latency).predict_ms(fresh), truth))
    assert listened <= at_most
    assert np.mean(with_it) < 1.05 * np.mean(alone)


def test_the_additive_part_sums_to_the_table_with_priors_too(table, fresh):
    effects, other = another_device(0)
    genes = draw(table, 10)
    prior = one_column(table, other)
    given = problem(table, genes, noisy(latency_of(effects, genes), 0.02), priors={"gpu": prior})
    chosen = blend.choose(given)
    assert chosen.hyper.priors == ("gpu",)
    expected = chosen.table.predict_raw_ms(chosen.problem.features.matrix(fresh))
    joined = LatencyModel(chosen).with_latency_column(table)
    np.testing.assert_allclose(joined.column("latency_ms", fresh), expected, rtol=1e-9)


# --- refit


def test_solving_for_the_same_networks_gives_the_same_predictions(table, fresh):
    genes = draw(table, 60)
    for latency in (noisy(additive(table, genes), 0.02), interacting(genes)):
        model = fit(table, genes, latency)
        again = model.refit([table.arch(g) for g in genes], latency)
        np.testing.assert_allclose(again.predict_ms(fresh), model.predict_ms(fresh), rtol=1e-4)
        assert again.hyper == model.hyper


def test_solving_for_more_networks_learns_from_them_and_keeps_what_was_chosen(table, fresh):
    genes = draw(table, 150)
    latency, truth = noisy(additive(table, genes), 0.02), additive(table, fresh)
    model = fit(table, genes[:20], latency[:20])
    more = model.refit([table.arch(g) for g in genes], latency)
    assert more.hyper == model.hyper
    assert more.diagnostics.n == 150
    assert mape(more.predict_ms(fresh), truth) < 0.7 * mape(model.predict_ms(fresh), truth)


def test_measurements_are_solved_for_as_they_are_fitted(table, fresh, make_measurement):
    genes = draw(table, 40)
    records = [
        make_measurement(i, ms, arch=table.arch(g))
        for i, (g, ms) in enumerate(zip(genes, additive(table, genes), strict=True))
    ]
    model = LatencyModel.fit_measurements(table, records[:30])
    again = model.refit_measurements(records)
    assert again.diagnostics.n == 40
    expected = model.refit([table.arch(g) for g in genes], additive(table, genes))
    np.testing.assert_allclose(again.predict_ms(fresh), expected.predict_ms(fresh), rtol=1e-5)


def test_solving_again_is_fast(make_cost_table):
    table = make_cost_table(n_blocks=24, n_choices=4)
    genes = draw(table, 500)
    latency = noisy(table.batch(genes)[:, 0], 0.02)
    archs = [table.arch(g) for g in genes]
    model = fit(table, genes[:60], latency[:60])
    start = time.process_time()
    model.refit(archs, latency)
    assert time.process_time() - start < 3.0  # CPU seconds; the budget is 1 s on a quiet machine
