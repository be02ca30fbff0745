"""Intervals cover what they say, and are wide where little is known."""

import numpy as np
import pytest

from latency_tables.predictor.features import Features
from latency_tables.predictor.hierarchical import fit as fit_table
from latency_tables.predictor.intervals import Intervals, Novelty
from tests.latency_tables.predictor.truths import additive, draw, fit, noisy, problem


def covered(found, measured):
    return float(np.mean((found.low_ms <= measured) & (measured <= found.high_ms)))


def relative_width(found):
    return (found.high_ms - found.low_ms) / found.latency_ms


@pytest.mark.parametrize(("n", "seeds"), [(12, 12), (40, 8), (150, 3)])
def test_intervals_cover_nine_of_ten_networks(table, n, seeds):
    shares = []
    for seed in range(seeds):
        genes, fresh = draw(table, n, seed), draw(table, 200, seed=100 + seed)
        model = fit(table, genes, noisy(additive(table, genes), 0.02, seed))
        measured = noisy(additive(table, fresh), 0.02, seed + 50)
        shares.append(covered(model.predict_all(fresh), measured))
    assert 0.83 <= np.mean(shares) <= 0.98


def test_intervals_hold_where_networks_are_as_many_as_columns(make_cost_table):
    # here an unrestrained fit interpolates and takes what it cannot explain for outliers
    table, shares = make_cost_table(n_blocks=20, n_choices=4), []
    effects = np.random.default_rng(0).normal(0, 0.1, (20, 4))

    def latency(genes, seed):
        return noisy(np.exp(effects[np.arange(20), genes].sum(axis=1)), 0.01, seed)

    for seed in range(6):
        rng = np.random.default_rng(seed)
        genes, fresh = rng.integers(0, 4, (66, 20)), rng.integers(0, 4, (300, 20))
        found = fit(table, genes, latency(genes, seed)).predict_all(fresh)
        shares.append(covered(found, latency(fresh, seed + 50)))
    assert np.mean(shares) >= 0.83


def test_levels_are_nested(table):
    genes, fresh = draw(table, 40), draw(table, 200, seed=5)
    model = fit(table, genes, noisy(additive(table, genes), 0.02))
    half, most, nearly_all = (model.predict_all(fresh, level=level) for level in (0.5, 0.9, 0.99))
    assert (most.low_ms <= half.low_ms).all()
    assert (half.high_ms <= most.high_ms).all()
    assert relative_width(half).mean() < 0.7 * relative_width(most).mean()
    assert (relative_width(most) <= relative_width(nearly_all)).all()


def test_networks_far_from_the_training_networks_are_novel(table):
    # blocks 4 to 7 hardly ever moved, so little is known of what their choices cost
    for seed in range(3):
        rng, genes = np.random.default_rng(seed), draw(table, 60, seed)
        genes[:, 4:][rng.random((60, 4)) < 0.9] = 0
        given = problem(table, genes, noisy(additive(table, genes), 0.02, seed))
        near, far = draw(table, 200, seed=5), draw(table, 200, seed=5)
        near[:, 4:], far[:, 4:] = 0, 1 + far[:, 4:] % 2
        novelty = Novelty(given, fit_table(given, "latency"))
        close, distant = (
            novelty.of(given.features.matrix(g), additive(table, g)).mean() for g in (near, far)
        )
        assert distant > 1.5 * close


def test_novel_networks_get_wider_intervals():
    rng = np.random.default_rng(0)
    left_out = rng.uniform(2, 8, 100)
    intervals = Intervals(left_out * (1 + rng.normal(0, 0.03, 100)), left_out, np.zeros(100))
    known, new = (intervals.half_widths(left_out, np.full(100, v), 0.9) for v in (0.0, 3.0))
    np.testing.assert_allclose(new, 2 * known)  # √(1 + novelty)
    remote = intervals.half_widths(left_out, np.full(100, 1e9), 0.9)
    assert np.isfinite(remote).all()
    assert (remote > new).all()


def test_the_noisy_half_of_a_device_gets_wider_intervals(table):
    genes, fresh = draw(table, 120), draw(table, 300, seed=5)
    truth = additive(table, genes)
    noise = np.where(truth < np.median(truth), 0.08, 0.005)
    latency = truth * np.exp(noise * np.random.default_rng(3).normal(size=len(truth)))
    found = fit(table, genes, latency).predict_all(fresh)
    width, true = relative_width(found), additive(table, fresh)
    slowest, fastest = true > np.quantile(true, 0.75), true < np.quantile(true, 0.25)
    assert width[fastest].mean() > 1.3 * width[slowest].mean()


def test_a_half_width_without_neighbours_is_the_conformal_quantile():
    # equal latencies' errors in a row of 99: the 90 % quantile of n is the ⌈0.9 (n + 1)⌉-th
    rng = np.random.default_rng(0)
    left_out = np.full(400, 5.0)
    latency = left_out * (1 + rng.uniform(-0.2, 0.2, 400))
    errors = np.sort(np.abs(latency / left_out - 1))
    own = Intervals(latency, left_out, np.zeros(400))
    found = own.half_widths(np.array([5.0]), np.zeros(1), 0.9)[0]
    assert errors[int(0.85 * 400)] < found < errors[int(0.95 * 400)]


def test_novelty_is_the_posterior_variance_in_units_of_the_noise(table):
    for n in (20, 60):  # fewer and more networks than columns
        genes, fresh = draw(table, n), draw(table, 50, seed=5)
        given = problem(table, genes, noisy(additive(table, genes), 0.02))
        fitted = fit_table(given, "latency", robust=False)
        scale = np.array(fitted.scales)[given.features.group]
        inverse_square = 1 / given.training.latency_ms**2
        weights = inverse_square / inverse_square.mean()
        training, asked = (
            given.standardised(Features(table).matrix(g)) * scale for g in (genes, fresh)
        )
        information = (training * weights[:, None]).T @ training
        information += fitted.strength * np.eye(len(scale))
        variance = np.einsum("np,pq,nq->n", asked, np.linalg.inv(information), asked)
        latency = np.linspace(2, 9, 50)
        expected = (variance + 1 / weights.sum()) / (latency**2 * inverse_square.mean())
        found = Novelty(given, fitted).of(given.features.matrix(fresh), latency)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
