"""Bayesian regression against dense formulas: evidence, left-out predictions, leverage."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from latency_tables.predictor.regression import Regression

STRENGTHS = (0.05, 0.3, 4.0)


def drawn(n=12, p=5, seed=0):
    """Columns (n, p), targets (n,), weights (n,)."""
    rng = np.random.default_rng(seed)
    columns, weights = rng.normal(size=(n, p)), rng.uniform(0.2, 2.0, n)
    target = 3.0 + columns @ rng.normal(size=p) + 0.3 * rng.normal(size=n) / np.sqrt(weights)
    return columns, target, weights


def regression(columns, target, weights, groups=None, **options):
    groups = np.arange(len(target)) if groups is None else groups
    return Regression(target, weights, groups, **({"columns": columns} | options))


def dense_log_evidence(columns, target, weights, strength):
    """Targets under a normal of known noise and a vague intercept, noise integrated on a grid."""
    n = len(target)
    shape = columns @ columns.T / strength + np.diag(1.0 / weights)
    log_sigma = np.linspace(-3.0, 3.0, 400)
    each = [
        multivariate_normal.logpdf(target, cov=np.exp(2 * s) * shape + 1e4 * np.ones((n, n)))
        for s in log_sigma
    ]
    return float(logsumexp(each))  # flat in log σ: a sum over its grid


@pytest.mark.parametrize("p", [3, 20])
def test_evidence_is_the_marginal_likelihood_of_a_dense_normal(p):
    columns, target, weights = drawn(n=9, p=p)
    problems = [
        (columns, weights),
        (0.3 * columns, weights),
        (columns[:, :2], weights),
        (columns, np.ones_like(weights)),
    ]
    found = [regression(c, target, w).log_evidence(STRENGTHS) for c, w in problems]
    expected = [[dense_log_evidence(c, target, w, s) for s in STRENGTHS] for c, w in problems]
    difference = np.array(found) - np.array(expected)
    np.testing.assert_allclose(difference, difference[0, 0], atol=5e-3)
    assert np.ptp(expected) > 1.0  # there is something to tell apart


@pytest.mark.parametrize("grouped", [False, True])
def test_columns_and_their_gram_matrix_give_the_same(grouped):
    columns, target, weights = drawn(n=30, p=6)
    groups = np.arange(30) // (2 if grouped else 1)
    primal = regression(columns, target, weights, groups)
    dual = Regression(target, weights, groups, gram=columns @ columns.T)
    np.testing.assert_allclose(primal.log_evidence(STRENGTHS), dual.log_evidence(STRENGTHS))
    for strength in STRENGTHS:
        one, other = primal.solve(strength), dual.solve(strength)
        np.testing.assert_allclose(one.mean, other.mean)
        np.testing.assert_allclose(columns.T @ one.dual, columns.T @ other.dual)
        np.testing.assert_allclose(one.left_out, other.left_out)
        np.testing.assert_allclose(one.leverage, other.leverage)


def bordered(columns, weights, strength):
    """[1, X] and the normal matrix of a problem whose intercept is not penalised."""
    x = np.column_stack([np.ones(len(columns)), columns])
    return x, x.T @ (x * weights[:, None]) + strength * np.diag([0.0] + [1.0] * columns.shape[1])


@pytest.mark.parametrize("p", [5, 40])
def test_the_solution_solves_the_normal_equations(p):
    columns, target, weights = drawn(n=20, p=p)
    solution = regression(columns, target, weights).solve(0.3)
    x, normal = bordered(columns, weights, 0.3)
    expected = np.linalg.solve(normal, x.T @ (weights * target))
    np.testing.assert_allclose([solution.mean, *columns.T @ solution.dual], expected)


@pytest.mark.parametrize("p", [5, 40])
@pytest.mark.parametrize("grouped", [False, True])
def test_leaving_out_in_closed_form_equals_leaving_out(p, grouped):
    columns, target, weights = drawn(n=20, p=p)
    groups = np.arange(20) // 3 if grouped else np.arange(20)
    closed = regression(columns, target, weights, groups).solve(0.3)
    for group in np.unique(groups):
        rest = groups != group
        x, normal = bordered(columns[rest], weights[rest], 0.3)
        beta = np.linalg.solve(normal, x.T @ (weights[rest] * target[rest]))
        expected = beta[0] + columns[~rest] @ beta[1:]
        np.testing.assert_allclose(closed.left_out[~rest], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("p", [5, 40])
def test_leverage_is_the_diagonal_of_the_hat_matrix(p):
    columns, target, weights = drawn(n=20, p=p)
    x, normal = bordered(columns, weights, 0.3)
    hat = x @ np.linalg.solve(normal, (x * weights[:, None]).T)
    leverage = regression(columns, target, weights).solve(0.3).leverage
    np.testing.assert_allclose(leverage, np.diag(hat))


@pytest.mark.parametrize(
    "nothing",
    [{"columns": np.zeros((6, 0))}, {"columns": np.zeros((6, 9))}, {"gram": np.zeros((6, 6))}],
)
def test_without_columns_the_others_mean_is_predicted(nothing):
    _, target, weights = drawn(n=6)
    solution = Regression(target, weights, np.arange(6), **nothing).solve(1.0)
    assert solution.mean == pytest.approx(np.average(target, weights=weights))
    others = [np.average(np.delete(target, i), weights=np.delete(weights, i)) for i in range(6)]
    np.testing.assert_allclose(solution.left_out, others)
    np.testing.assert_allclose(solution.leverage, weights / weights.sum())


@pytest.mark.parametrize("p", [4, 30])
def test_a_constant_target_is_an_intercept(p):
    columns, _, weights = drawn(n=15, p=p)
    constant = regression(columns, np.full(15, 2.5), weights)
    solution = constant.solve(0.1)
    assert solution.mean == pytest.approx(2.5)
    np.testing.assert_allclose(columns.T @ solution.dual, 0.0, atol=1e-9)
    np.testing.assert_allclose(solution.left_out, 2.5)
    assert np.isfinite(constant.log_evidence(STRENGTHS)).all()
