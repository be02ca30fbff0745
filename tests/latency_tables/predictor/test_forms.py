"""The forms of predictor, each on a truth that it is made for."""

import numpy as np
import pytest

from latency_tables.arch import Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.predictor import bottleneck, hierarchical
from latency_tables.predictor.features import LIVE, Features
from latency_tables.predictor.hierarchical import PLAIN
from latency_tables.predictor.problem import folds_of
from tests.latency_tables.predictor.truths import (
    additive,
    draw,
    fit,
    interacting,
    mape,
    noisy,
    problem,
    with_live,
)


@pytest.fixture(scope="module")
def fresh(table):
    return draw(table, 300, seed=5)


def columns_of(table, genes):
    return Features(table).matrix(genes)


# --- hierarchical


def test_a_plain_look_up_table_wins_where_costs_are_noise_and_choices_are_everything(table):
    likeliest = []
    for seed in range(8):
        effects = np.random.default_rng(seed).uniform(0, 1, (8, 3))
        genes = draw(table, 60, seed)
        latency = noisy(2 + effects[np.arange(8), genes].sum(axis=1), 0.01, seed)
        likeliest.append(hierarchical.fit(problem(table, genes, latency), "latency").scales)
    assert likeliest.count(PLAIN) >= 6


def live_error(table, fresh, n, told):
    """The fitted table and its error where latency follows what lives of pairs of blocks."""
    lively = with_live(table)

    def truth(genes):
        return 1 + 0.1 * lively.column("live_macs", genes) + 0.05 * table.column("macs", genes)

    given, genes = with_live(table, told=told), draw(table, n)
    fitted = hierarchical.fit(problem(given, genes, noisy(truth(genes), 0.01)), "latency")
    return fitted, mape(fitted.predict_raw_ms(columns_of(given, fresh)), truth(fresh))


@pytest.mark.parametrize("n", [20, 40])
def test_live_columns_are_used_where_latency_follows_them(table, fresh, n):
    (told, with_them), (_, without) = (live_error(table, fresh, n, told) for told in (True, False))
    assert told.scales[LIVE] > 0
    assert with_them < 0.2 * without


def test_fewer_than_twenty_networks_do_not_look_at_live_columns(table, fresh):
    told, with_them = live_error(table, fresh, 19, True)
    _, without = live_error(table, fresh, 19, False)
    assert not any(scales[LIVE] for scales in told.kept)
    assert with_them == pytest.approx(without)


def test_outliers_get_less_than_half_their_weight(table):
    genes = draw(table, 40)
    latency = noisy(additive(table, genes), 0.01)
    latency[[3, 17]] *= [3.0, 0.4]
    weights = hierarchical.fit(problem(table, genes, latency), "latency").weights
    assert (weights[[3, 17]] < 0.5).all()
    assert np.delete(weights, [3, 17]).mean() > 0.85


# --- bottleneck


WORK = ("macs_pointwise", "macs_depthwise", "macs_spatial", "activation_elements", "params")


def device_of_two_halves(seed):
    """A table with independent operators and work, and its latencies: the slower of the two."""
    rng = np.random.default_rng(seed)
    decisions = [Decision(label=f"b{i}", choices=tuple("abcde")) for i in range(8)]
    columns = [Column(name=name, unit="1") for name in ("n_operators", *WORK)]
    factors = []
    for decision in decisions:
        costs = [rng.uniform(2, 8, (5, 1)), np.exp(rng.uniform(0, 3, (5, 5)))]
        values = np.concatenate(costs, axis=1)
        factors.append(Factor(name=decision.label, labels=(decision.label,), values=values))
    table = CostTable(decisions, columns, factors)

    def halves(genes):
        return 0.3 + 0.1 * table.column("n_operators", genes), table.column(WORK[0], genes)

    launching, working = halves(draw(table, 300, seed=50))
    balance = np.median(launching / working)  # half of the networks are bound by either

    def latency(genes):
        launching, working = halves(genes)
        return np.maximum(launching, balance * working)

    return table, latency


def test_a_bottleneck_is_found_and_predicted_far_better_than_by_the_table_alone():
    errors, shares = [], []
    for seed in range(6):
        table, truth = device_of_two_halves(seed)
        genes, fresh = draw(table, 20, seed), draw(table, 300, seed=50)
        model = fit(table, genes, noisy(truth(genes), 0.01, seed))
        alone = mape(model.additive.batch(fresh)[:, 0], truth(fresh))
        errors.append([mape(model.predict_ms(fresh), truth(fresh)), alone])
        shares.append(model.diagnostics.forms.get("bottleneck", 0.0))
    blended, alone = np.mean(errors, axis=0)
    assert blended < 0.65 * alone
    assert np.median(shares) > 0.5


def test_a_cost_table_that_does_not_tell_operators_has_no_bottleneck():
    table, truth = device_of_two_halves(1)
    work = [Factor(name=f.name, labels=f.labels, values=f.values[..., 1:]) for f in table.factors]
    blind = CostTable(table.decisions, table.columns[1:], work)
    assert bottleneck.applies(Features(table))
    assert not bottleneck.applies(Features(blind))
    genes, told = draw(table, 20), {}
    for name, given in (("seeing", table), ("blind", blind)):
        model = fit(given, genes, truth(genes), progress=lambda *at, n=name: told.update({n: at}))
    assert told == {"seeing": (4, 4), "blind": (3, 3)}
    assert "bottleneck" not in model.diagnostics.forms


# --- process and boosted residuals


def test_choices_that_multiply_are_predicted_better_than_by_the_table(table, fresh):
    genes = draw(table, 120)
    model = fit(table, genes, noisy(interacting(genes), 0.01))
    forms = model.diagnostics.forms
    assert forms.get("process", 0.0) + forms.get("boosted", 0.0) > 0.5
    truth = interacting(fresh)
    assert mape(model.predict_ms(fresh), truth) < 0.5 * mape(
        model.additive.batch(fresh)[:, 0], truth
    )


@pytest.mark.parametrize(("n", "expected"), [(99, 4), (100, 5)])
def test_residuals_are_boosted_from_a_hundred_networks(table, n, expected):
    genes, told = draw(table, n), []
    fit(table, genes, noisy(additive(table, genes), 0.01), progress=lambda *at: told.append(at))
    assert told == [(done, expected) for done in range(expected + 1)]


def test_members_of_a_group_share_a_fold():
    groups = np.array([5, 1, 5, 2, 2, 3, 1, 4])
    folds = folds_of(groups, 3)
    assert set(folds.tolist()) == {0, 1, 2}
    for group in set(groups.tolist()):
        assert len(set(folds[groups == group].tolist())) == 1
    assert folds_of(np.array([7, 8]), 10).max() == 1  # no more folds than groups
