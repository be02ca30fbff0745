"""Columns of the latency model, and linear functions of them as cost tables."""

import numpy as np
import pytest

from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import TableError
from latency_tables.predictor.features import CHOICES, LIVE, PHYSICS, PRIORS, STAGES, Features
from tests.latency_tables.predictor.truths import draw, one_column, with_live

STAGED = {"first": ["stem", "block0"], "last": ["block6", "block7"]}


def random_prior(table, seed=0):
    return one_column(table, np.random.default_rng(seed).uniform(0, 1, (8, 3)))


def checked(features, table, intercept=2.5):
    """Compile random coefficients and hold the sum against the columns."""
    coefficients = np.random.default_rng(0).normal(size=len(features.names))
    genes = draw(table, 50)
    compiled = features.compile(intercept, coefficients, "value", "1")
    expected = intercept + features.matrix(genes) @ coefficients
    np.testing.assert_allclose(compiled.batch(genes)[:, 0], expected)
    return compiled


def test_a_compiled_function_of_the_columns_is_that_function(table):
    compiled = checked(Features(table, STAGED), table)
    scopes = [(f.name, f.labels) for f in table.factors]
    assert [(f.name, f.labels) for f in compiled.factors[: len(scopes)]] == scopes


def test_live_columns_and_priors_are_compiled_too(table):
    lively = with_live(table)
    told = {"same scopes": random_prior(table), "one factor": pairwise(table)}
    compiled = checked(Features(lively, STAGED, told), lively)
    assert [f.name for f in compiled.factors[: len(lively.factors)]] == [
        f.name for f in lively.factors
    ]


def pairwise(table):
    """A latency of two decisions at once, in a factor that the cost table does not have."""
    pair = tuple(d.label for d in table.decisions[:2])
    values = np.random.default_rng(1).uniform(0, 1, (3, 3, 1))
    factor = Factor(name="pair", labels=pair, values=values)
    return CostTable(table.decisions, [Column(name="latency_ms", unit="ms")], [factor])


def test_decisions_that_no_factor_looks_at_are_compiled_too(table):
    blind = CostTable(table.decisions, table.columns, table.factors[:-1])
    checked(Features(blind), table, intercept=0.0)


def test_columns_are_grouped_by_what_they_tell(table):
    features = Features(with_live(table), STAGED, {"other": random_prior(table)})
    groups = {
        g: [n for n, at in zip(features.names, features.group, strict=True) if at == g]
        for g in range(5)
    }
    assert groups[PHYSICS] == ["macs", "activation_elements", "n_operators"]
    assert len(groups[STAGES]) == 6
    assert groups[STAGES][3] == "last:macs"
    assert len(groups[CHOICES]) == 24
    assert groups[LIVE] == ["live_macs"]
    assert groups[PRIORS] == ["prior:other"]


def test_columns_hold_what_their_names_say(table):
    lively, genes = with_live(table), draw(table, 20)
    prior = random_prior(table)
    features = Features(lively, STAGED, {"other": prior})
    columns = dict(zip(features.names, features.matrix(genes).T, strict=True))
    np.testing.assert_allclose(columns["macs"], lively.column("macs", genes))
    np.testing.assert_allclose(columns["live_macs"], lively.column("live_macs", genes))
    np.testing.assert_allclose(columns["prior:other"], prior.batch(genes)[:, 0])
    np.testing.assert_array_equal(columns["b3=c1"], genes[:, 3] == 1)
    own = lively.factor_values(genes)[:, [0, 1], 0].sum(axis=1)
    np.testing.assert_allclose(columns["first:macs"], own)


def test_a_latency_column_and_maxima_are_no_features(table):
    values = [np.zeros(f.values.shape[:-1]) for f in table.factors]
    joined = table.with_column("latency_ms", "ms", values)
    assert Features(joined).names == Features(table).names
    assert "activation_peak_bytes" not in Features(table).names


def test_unknown_stage_factors_are_named(table):
    with pytest.raises(TableError, match="tail"):
        Features(table, {"late": ["tail"]})


def test_a_prior_of_two_columns_or_of_other_decisions_is_refused(table, make_cost_table):
    with pytest.raises(TableError, match="prior 'gpu'"):
        Features(table, priors={"gpu": table})
    other = make_cost_table(n_blocks=5)
    with pytest.raises(TableError, match="prior 'gpu'"):
        Features(table, priors={"gpu": one_column(other, np.zeros((5, 3)))})


def test_choices_that_no_training_network_has_are_unseen(table):
    seen = [np.array([True, True, True]) for _ in table.decisions]
    seen[2] = np.array([True, False, True])
    genes = np.zeros((2, 8), dtype=np.int64)
    genes[1, 2] = 1
    assert Features(table).unseen(genes, seen).tolist() == [False, True]
