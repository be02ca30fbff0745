"""Designs: nested, free of repetitions, spread over choices and costs, and better than chance."""

from itertools import pairwise

import numpy as np
import pytest

from latency_tables import LatencyModel
from latency_tables.arch import Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.design import CHOICE_SCALE, RIDGE, Design
from latency_tables.sampler import RejectionSampler, make_sampler


def itself(arch):
    return arch


@pytest.fixture(scope="module")
def table():
    return costs(8, 4)


def costs(n_blocks, n_choices):
    """A chain whose later blocks are dearer, with two costs that differ in proportion."""
    rng = np.random.default_rng(3)
    columns = [Column(name="macs", unit="MAC"), Column(name="activation_elements", unit="1")]
    decisions = [Decision(label=f"b{i}", choices=tuple(range(n_choices))) for i in range(n_blocks)]
    factors = [
        Factor(
            name=d.label,
            labels=(d.label,),
            values=np.sort(rng.uniform(1, 5, (n_choices, 2)), axis=0) * (i + 1),
        )
        for i, d in enumerate(decisions)
    ]
    return CostTable(decisions, columns, factors)


def design(table, **how):
    return Design(make_sampler(table, "macs"), identify=how.pop("identify", itself), **how)


@pytest.mark.parametrize("criterion", ["D", "V"])
def test_a_design_begins_with_the_cheapest_and_the_dearest_network(table, criterion):
    first, second, *_ = design(table, criterion=criterion).take(5)
    assert (first, second) == (table.minimum("macs")[1], table.maximum("macs")[1])


def test_the_first_networks_of_a_design_are_the_shorter_design(table):
    assert design(table, seed=5).take(70)[:20] == design(table, seed=5).take(20)


def test_a_design_goes_on_after_its_own_first_networks_in_whatever_order_they_come(table):
    whole = design(table, seed=5).take(70)
    for order in (whole[:40], whole[:40][::-1]):
        assert design(table, seed=5, known=order).take(30) == whole[40:]


def test_seeds_give_different_designs(table):
    assert design(table, seed=1).take(20)[2:] != design(table, seed=2).take(20)[2:]


def test_networks_of_one_name_are_chosen_once(table):
    def halves(arch):
        return tuple(arch.values())[:4]

    chosen = design(table, identify=halves).take(60)
    assert len({halves(arch) for arch in chosen}) == len(chosen) == 60


def test_networks_that_are_known_or_to_be_avoided_are_not_chosen(table):
    chosen = design(table).take(12)
    other = design(table, known=chosen[:6], avoid=chosen[6:]).take(12)
    assert not set(other) & set(chosen)


@pytest.mark.parametrize("seed", range(8))
def test_every_choice_is_seen_early(table, seed):
    chosen = table.genes(design(table, seed=seed).take(20))  # 4 choices; 5 times each on average
    assert all((chosen == choice).any(axis=0).all() for choice in range(4))


def test_a_choice_that_nothing_known_has_comes_next(table):
    genes = np.random.default_rng(0).integers(0, 4, (40, 8))
    genes[:, 5] = genes[:, 5] % 3
    cheapest, dearest = table.minimum("macs")[1], table.maximum("macs")[1]
    known = [cheapest, *(table.arch(g) for g in genes)]
    assert design(table, known=known, avoid=[dearest]).take(1)[0]["b5"] == 3


@pytest.mark.parametrize("seed", range(5))
def test_the_whole_cost_range_is_covered(table, seed):
    macs = np.sort(table.column("macs", table.genes(design(table, seed=seed).take(20))))
    assert np.diff(macs).max() < 0.3 * np.ptp(macs)


def test_variance_follows_from_the_information_matrix(table):
    made = design(table, seed=2)
    chosen = made.take(25)
    x, query = made._matrix(table.genes(chosen)), made._matrix(table.genes(chosen[:3]))
    information = RIDGE * np.eye(x.shape[1]) + x.T @ x
    expected = np.einsum("np,pn->n", query, np.linalg.solve(information, query.T))
    assert made.variance(table.genes(chosen[:3])) == pytest.approx(expected, rel=1e-8)


def log_det(made, table, archs):
    x = made._matrix(table.genes(archs))
    return np.linalg.slogdet(RIDGE * np.eye(x.shape[1]) + x.T @ x)[1]


def test_a_d_optimal_design_has_more_information_than_random_ones(table):
    made = design(table, criterion="D")
    ours = log_det(made, table, made.take(20))
    rng = np.random.default_rng(0)
    others = [
        log_det(made, table, [table.arch(g) for g in rng.integers(0, 4, (20, 8))])
        for _ in range(50)
    ]
    assert ours > max(others)


def test_gain_is_by_how_much_the_mean_variance_shrinks(table):
    made = design(table, criterion="V")
    made.take(10)
    spread = made._drawn(-1)
    arch = table.arch([3, 0, 1, 2, 3, 0, 1, 2])
    genes = table.genes([arch])
    before, gain = made.variance(spread).mean(), made.gain(genes)[0]
    made._learn(arch, genes[0])
    assert before - made.variance(spread).mean() == pytest.approx(gain, rel=1e-6)


def test_a_tiny_space_is_given_whole_and_then_ends():
    table = costs(3, 3)
    chosen = design(table).take(100)
    assert len(set(chosen)) == len(chosen) == 27


def test_spaces_too_large_to_enumerate_have_designs():
    table = costs(20, 4)
    chosen = design(table).take(30)
    macs = table.column("macs", table.genes(chosen))
    assert macs[:2] == pytest.approx([table.minimum("macs")[0], table.maximum("macs")[0]])
    assert len(set(chosen)) == 30


def test_a_sampler_that_only_estimates_is_good_enough():
    table = costs(12, 4)
    sampler = RejectionSampler(table, "macs")
    chosen = Design(sampler, identify=itself).take(20)
    assert chosen == Design(sampler, identify=itself).take(20)
    assert len(set(chosen)) == 20


def test_a_cost_that_never_differs_does_no_harm():
    decisions = [Decision(label=x, choices=(0, 1, 2)) for x in "abcdef"]
    columns = [Column(name="macs", unit="MAC"), Column(name="n_operators", unit="1")]
    rows = np.array([[0.1, 1.0], [0.2, 1.0], [0.4, 1.0]])
    table = CostTable(
        decisions, columns, [Factor(name=x, labels=(x,), values=rows) for x in "abcdef"]
    )
    made = design(table)
    assert np.abs(made._matrix(table.genes(made.take(9)))).max() < 5


def test_a_model_learns_more_about_all_costs_from_a_design_than_from_chance():
    table = costs(10, 4)
    sampler = make_sampler(table, "macs")
    rng = np.random.default_rng(7)
    edges = np.linspace(table.minimum("macs")[0], table.maximum("macs")[0], 11)
    held = np.concatenate([sampler.sample(rng, lo, hi, 20) for lo, hi in pairwise(edges)])
    truth = truth_of(table)
    errors = {"design": [], "chance": []}
    for seed in range(6):
        chosen = {
            "design": design(table, seed=seed).take(20),
            "chance": [table.arch(g) for g in np.random.default_rng(seed).integers(0, 4, (20, 10))],
        }
        for name, archs in chosen.items():
            model = LatencyModel.fit(table, archs, truth(table.genes(archs)))
            errors[name].append(np.abs(model.predict_ms(held) / truth(held) - 1).mean())
    assert np.mean(errors["design"]) < 0.85 * np.mean(errors["chance"])


def truth_of(table):
    """Latencies that costs explain in part: every choice has a rate of its own."""
    rates = np.random.default_rng(11).lognormal(0, 0.3, (10, 4))

    def latency(genes):
        parts = table.factor_values(genes)[:, :, 0]
        return 1.0 + (parts * np.take_along_axis(rates, genes.T, axis=1).T).sum(axis=1) * 0.01

    return latency


def test_choices_are_scaled_as_the_model_has_them(table):
    made = design(table)
    x = made._matrix(table.genes([table.arch([0] * 8), table.arch([1] * 8)]))
    assert np.abs(x[0] - x[1]).min() >= 0
    assert np.isclose(np.abs(x[0] - x[1])[2:], CHOICE_SCALE).sum() == 16
