"""Repair against exhaustive search, in spaces that are small enough for it."""

import itertools
import math

import numpy as np
import pytest
import torch

from latency_tables.arch import Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.cost_to_go import CostToGo
from latency_tables.errors import LimitError, SpaceError, TableTooWideError
from pipeline.generator.activity import active_decisions
from pipeline.generator.generator import ArchitectureGenerator
from pipeline.generator.repair import Repairer, Window, _Walk
from pipeline.spaces import load_space

LEVEL = torch.tensor([0.3, 0.7])


def opinionated(space, seed=0, scale=0.5):
    """A generator whose choices are far from equally likely."""
    torch.manual_seed(seed)
    generator = ArchitectureGenerator(space.decisions, n_levels=2)
    for head in generator.heads:
        torch.nn.init.normal_(head.weight, std=scale)
        torch.nn.init.normal_(head.bias, std=scale)
    return generator


@pytest.fixture(scope="module", params=["nasbench_macro", "autoformer"])
def space(request):
    """A chain of blocks, and a transformer with shared width and a depth."""
    preset = {"nasbench_macro": "tiny", "autoformer": "micro"}[request.param]
    return load_space(request.param, preset=preset, input_shape=(1, 8, 8), n_classes=10)


@pytest.fixture(scope="module")
def genomes(space):
    """All of them, (N, n_decisions), every network once."""
    rows = itertools.product(*(range(len(d.choices)) for d in space.decisions))
    table = space.cost_table()
    archs = dict.fromkeys(space.canonical(table.arch(row)) for row in rows)
    return table.genes(list(archs))


@pytest.fixture(scope="module")
def log_probabilities(space, genomes):
    """A function of a generator: log-probabilities of all networks, of what means something."""
    active = active_decisions(space, [space.cost_table().arch(row) for row in genomes])

    def found(generator):
        with torch.no_grad():
            each = generator.decision_log_probabilities(torch.from_numpy(genomes), LEVEL)
        return (each * active).sum(dim=1).numpy()

    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_most_probable_network_of_the_window_is_found(space, genomes, log_probabilities, seed):
    generator, table = opinionated(space, seed), space.cost_table()
    macs, log_p = table.column("macs", genomes), log_probabilities(generator)
    repairer = Repairer(space, generator, table)
    for share in (0.1, 0.5, 0.9):
        high = float(np.quantile(macs, share))
        inside = (macs >= 0.95 * high) & (macs <= high)
        window = Window(column="macs", low=0.95 * high, high=high)
        outside = table.arch(genomes[np.flatnonzero(~inside)[0]])  # something to be repaired
        found = repairer.repair(LEVEL, window, proposal=outside)[0]
        assert found.log_probability == pytest.approx(log_p[inside].max(), abs=1e-4)
        assert found.cost == table.cost(found.arch, "macs")
        assert found.how == "beam"
        assert space.canonical(found.arch) == found.arch


def test_no_window_is_ever_left(space):
    table = space.cost_table()
    repairer = Repairer(space, opinionated(space, 7), table)
    low, high = table.minimum("macs")[0], table.maximum("macs")[0]
    rng = np.random.default_rng(0)
    n = 0
    for top in rng.uniform(low, high, 40):
        window = Window(column="macs", low=top * 0.99, high=top)
        try:
            found = repairer.repair(LEVEL, window, n=5)
        except LimitError:
            continue
        n += 1
        assert all(window.low <= table.cost(r.arch, "macs") <= window.high for r in found)
    assert n > 10


def test_several_networks_come_in_the_order_of_their_probability(space):
    repairer = Repairer(space, opinionated(space), space.cost_table())
    macs = space.cost_table().mean("macs")
    window = Window(column="macs", low=0.8 * macs, high=1.2 * macs)
    outside = space.cost_table().minimum("macs")[1]
    found = repairer.repair(LEVEL, window, n=6, proposal=outside)
    values = [r.log_probability for r in found]
    assert values == sorted(values, reverse=True)
    assert len({r.arch for r in found}) == 6


@pytest.mark.parametrize("n", [1, 4])
def test_a_proposal_inside_the_window_stays_as_it_is(space, n):
    generator, table = opinionated(space, 3), space.cost_table()
    proposal = space.canonical(generator.argmax(LEVEL))
    cost = table.cost(proposal, "macs")
    window = Window(column="macs", low=0.5 * cost, high=4 * cost)
    found = Repairer(space, generator, table).repair(LEVEL, window, n=n)
    assert (found[0].arch, found[0].hamming, found[0].how) == (proposal, 0, "proposal")
    assert len({one.arch for one in found}) == len(found) == n
    assert all(one.hamming > 0 for one in found[1:])


def test_the_distance_counts_decisions_that_differ_from_the_proposal(space):
    generator = opinionated(space)
    proposal = space.canonical(generator.argmax(LEVEL))
    low = space.cost_table().minimum("macs")[0]
    window = Window(column="macs", low=low, high=1.05 * low)
    found = Repairer(space, generator, space.cost_table()).repair(LEVEL, window)[0]
    expected = sum(found.arch[d.label] != proposal[d.label] for d in space.decisions)
    assert found.hamming == expected > 0


def test_decisions_beyond_the_depth_neither_count_nor_differ():
    space = load_space("autoformer", preset="micro", input_shape=(3, 8, 8), n_classes=10)
    generator, table = opinionated(space), space.cost_table()
    shallow = space.decisions[1].choices[0]
    window = Window(column="macs", low=0.0, high=table.minimum("macs")[0] * 1.02)
    found = Repairer(space, generator, table).repair(LEVEL, window)[0]
    assert found.arch["depth"] == shallow
    inactive = ~active_decisions(space, [found.arch])[0]
    assert inactive.any()
    full = float(generator.log_probability([found.arch], LEVEL).detach())
    assert found.log_probability > full


def test_the_beam_adds_up_what_the_generator_says_of_decisions_that_mean_something(space):
    table, generator = space.cost_table(), opinionated(space, 4)
    macs = table.mean("macs")
    window = Window(column="macs", low=0.2 * macs, high=1.5 * macs)
    genes, log_p = Repairer(space, generator, table)._beam(LEVEL, window, {})
    archs = [table.arch(row) for row in genes]
    with torch.no_grad():
        expected = generator.log_probability(archs, LEVEL, active=active_decisions(space, archs))
    assert len(genes) > 20
    assert log_p == pytest.approx(expected.numpy(), abs=1e-4)


def test_further_limits_are_kept_too(space, genomes, log_probabilities):
    table = space.cost_table()
    generator = opinionated(space, 2)
    repairer = Repairer(space, generator, table)
    macs, params = table.column("macs", genomes), table.column("params", genomes)
    high = float(np.quantile(macs, 0.6))
    window = Window(column="macs", low=0.8 * high, high=high)
    inside = (macs >= window.low) & (macs <= high)
    free = repairer.repair(LEVEL, window, proposal=table.minimum("macs")[1])[0]
    bound = 0.999 * table.cost(free.arch, "params")  # the best one has to go
    inside &= params <= bound
    cheapest = table.minimum("macs")[1]
    found = repairer.repair(LEVEL, window, at_most={"params": bound}, proposal=cheapest)[0]
    assert table.cost(found.arch, "params") <= bound
    log_p = log_probabilities(generator)
    assert found.log_probability == pytest.approx(log_p[inside].max(), abs=1e-4)


def test_a_limit_that_is_no_sum_is_kept_by_a_last_look(space):
    table = space.cost_table()
    macs = table.mean("macs")
    window = Window(column="macs", low=0.5 * macs, high=1.5 * macs)
    repairer = Repairer(space, opinionated(space), table)
    bound = table.cost(repairer.repair(LEVEL, window)[0].arch, "peak_memory_bytes") * 0.999
    found = repairer.repair(LEVEL, window, at_most={"peak_memory_bytes": bound})
    assert table.cost(found[0].arch, "peak_memory_bytes") <= bound


def test_what_no_table_says_is_asked_of_the_caller(space):
    table = space.cost_table()
    macs = table.mean("macs")
    window = Window(column="macs", low=0.8 * macs, high=1.2 * macs)
    repairer = Repairer(space, opinionated(space), table)
    first, second = repairer.repair(LEVEL, window, n=2)
    refused = tuple(table.genes([first.arch])[0])

    def accept(genes):
        return np.array([tuple(row) != refused for row in genes])

    assert repairer.repair(LEVEL, window, accept=accept)[0].arch == second.arch
    with pytest.raises(LimitError, match=r"none of \d+ architectures .* keeps the other limits"):
        repairer.repair(LEVEL, window, accept=lambda genes: np.zeros(len(genes), dtype=bool))


def test_an_empty_window_is_told_with_the_range(space):
    repairer = Repairer(space, opinionated(space), space.cost_table())
    with pytest.raises(LimitError, match="the space reaches from"):
        repairer.repair(LEVEL, Window(column="macs", low=1.0, high=2.0))
    with pytest.raises(SpaceError, match="from low to high"):
        Window(column="macs", low=2.0, high=1.0)


def test_where_the_beam_ends_empty_draws_are_ranked(space, monkeypatch):
    table, generator = space.cost_table(), opinionated(space)
    macs = table.mean("macs")
    window = Window(column="macs", low=0.9 * macs, high=1.1 * macs)
    repairer = Repairer(space, generator, table)
    exact = repairer.repair(LEVEL, window)[0]

    def too_wide(*_, **__):
        raise TableTooWideError(2_000_000, 1_000_000, ["a"])

    monkeypatch.setattr("pipeline.generator.repair.CostToGo", too_wide)
    generator.argmax = lambda level: table.minimum("macs")[1]  # outside of the window
    found = Repairer(space, generator, table).repair(LEVEL, window)
    assert found[0].how == "draws"
    assert window.low <= found[0].cost <= window.high
    assert found[0].log_probability <= exact.log_probability + 1e-4


def test_walking_step_by_step_gives_the_generator_s_own_probabilities(space):
    generator = opinionated(space, 5)
    archs = generator.sample(LEVEL, 3, seed=0)
    genes = np.array([a.genes(space.decisions) for a in archs])
    expected = generator.decision_log_probabilities(torch.from_numpy(genes), LEVEL)
    walk = _Walk(generator, LEVEL)
    parents = np.zeros(3, dtype=np.int64)
    for step in range(genes.shape[1]):
        logits = walk.log_probabilities(step)[parents if step == 0 else np.arange(3)]
        found = logits[np.arange(3), genes[:, step]]
        assert found == pytest.approx(expected[:, step].detach().numpy(), abs=1e-5)
        walk.take(step, parents if step == 0 else np.arange(3), genes[:, step])


# -- the bounds behind it ------------------------------------------------------------------


def test_bounds_of_a_prefix_are_those_of_its_completions(space, genomes):
    table = space.cost_table()
    costs, macs = CostToGo(table, "macs"), table.column("macs", genomes)
    for taken in range(genomes.shape[1] + 1):
        prefix = genomes[len(genomes) // 3][:taken]
        same = macs[(genomes[:, :taken] == prefix).all(axis=1)]
        settled = costs.base + sum(costs.settled(i, prefix[None])[0] for i in range(taken))
        least, most = costs.following(taken - 1, prefix[None])
        assert settled + least[0] == pytest.approx(same.min())
        assert settled + most[0] == pytest.approx(same.max())


def test_couplings_over_too_many_decisions_are_refused():
    labels = [f"d{i}" for i in range(12)]
    decisions = [Decision(label=x, choices=tuple(range(4))) for x in labels]
    values = np.zeros((4, 4, 1))
    ends = [
        Factor(name=x, labels=(x, y), values=values)
        for x, y in zip(labels[:6], labels[6:], strict=True)
    ]
    table = CostTable(decisions, [Column(name="macs", unit="MAC")], ends)
    with pytest.raises(TableTooWideError, match="16384"):
        CostToGo(table, "macs", max_entries=10_000)
    assert math.isclose(CostToGo(table, "macs").base, 0.0)


def test_only_costs_that_add_up_have_bounds(space):
    with pytest.raises(SpaceError, match="is no cost that adds up"):
        CostToGo(space.cost_table(), "activation_peak_bytes")
