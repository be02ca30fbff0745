"""How often gates are wrong, over seeds: healthy tables pass, random ones do not.

The healthy tables are synthetic devices: a launch cost per operator, a roofline of MACs and
activations, interactions that do not add up, noise of single networks.
"""

from dataclasses import replace

import numpy as np
import pytest

from latency_tables.gates import check
from latency_tables.signal_gates import additive, copies, signal

N_SEEDS = 40


@pytest.fixture(scope="module")
def tables(make_cost_table, make_measurement):
    def make(seed, n, *, noise=0.02, interaction=0.03, shuffled=False):
        rng = np.random.default_rng(seed)
        table = make_cost_table(seed=seed % 5)
        genes = rng.permutation(np.unique(rng.integers(0, 3, (2 * n, 8)), axis=0))[:n]
        costs = table.batch(genes)
        weights = rng.uniform(0.1, 1.0, 3)
        latency = costs[:, :3] @ weights + 5.0 * rng.uniform()
        pairs = rng.normal(0, interaction, (3, 3))[genes[:, 0], genes[:, 1]]
        latency = latency * np.exp(pairs + rng.normal(0, noise, n))
        if shuffled:
            latency = rng.permutation(latency)
        records = [
            make_measurement(i, ms, arch=table.arch(g), noise=max(noise, 1e-4))
            for i, (g, ms) in enumerate(zip(genes, latency, strict=True))
        ]
        return table, records

    return make


@pytest.mark.parametrize("n", [30, 40])
def test_healthy_tables_are_hardly_ever_refused(tables, n):
    refused = 0
    for seed in range(N_SEEDS):
        table, records = tables(seed, n)
        refused += not check(records, cost_table=table, claims_measured=True).passed
    assert refused <= 2


def test_healthy_tables_are_hardly_ever_refused_without_costs(tables):
    refused = sum(not check(tables(seed, 100)[1]).passed for seed in range(20))
    assert refused <= 1


@pytest.mark.parametrize("n", [30, 40])
def test_random_tables_are_refused_at_least_nineteen_times_in_twenty(tables, n):
    refused = 0
    for seed in range(100):
        table, records = tables(seed, n, shuffled=True)
        refused += not signal(records, table)[0]
    assert refused >= 95


def test_random_tables_are_refused_without_costs(tables):
    refused = sum(not signal(tables(seed, 100, shuffled=True)[1])[0] for seed in range(60))
    assert refused >= 57


def test_a_quiet_device_whose_latencies_add_up_is_not_taken_for_a_sum(tables):
    # R² alone reaches 0.99999 here: what is left is as large as the noise that the records report
    for seed in range(5):
        table, records = tables(seed, 60, noise=1e-4, interaction=0.0)
        assert additive(records, table)[:2] == (False, False)
        assert check(records, cost_table=table, claims_measured=True).passed


def test_sums_over_blocks_are_found_where_choices_alone_do_not_add_up(tables, make_statistics):
    table, records = tables(0, 60)
    genes = table.genes([m.arch for m in records])
    summed = [
        replace(m, statistics=make_statistics(ms, noise=0.0))
        for m, ms in zip(records, table.batch(genes)[:, 0], strict=True)
    ]
    assert additive(summed, table)[:2] == (False, True)


def test_many_free_entries_do_not_make_a_sum_of_a_measured_table(make_cost_table, make_measurement):
    # 33 entries and 48 networks: unadjusted, R² rises by itself
    table, rng = make_cost_table(n_blocks=16), np.random.default_rng(0)
    genes = rng.integers(0, 3, (48, 16))
    summed = table.batch(genes)[:, 0]
    latency = summed + rng.normal(0, 2e-5**0.5 * summed.std(), 48)  # true R²: 0.99998
    records = [
        make_measurement(i, ms, arch=table.arch(g), noise=0.004)
        for i, (g, ms) in enumerate(zip(genes, latency, strict=True))
    ]
    assert additive(records)[0]


def test_rows_filled_up_from_others_are_warned_about(tables):
    _, records = tables(0, 40)
    copied = [replace(m, statistics=records[i % 10].statistics) for i, m in enumerate(records)]
    passed, evidence = copies(copied)
    assert not passed
    assert "40 of 40" in evidence
    assert copies(records)[0]


def test_a_coarse_clock_is_not_taken_for_copies(tables, make_statistics):
    _, records = tables(0, 60)
    coarse = [
        replace(
            m,
            statistics=make_statistics(
                round(m.latency_ms), noise=0.0, min_ns=round(m.latency_ms) * 10**6
            ),
        )
        for m in records
    ]
    assert copies(coarse)[0]


def test_a_refusal_names_the_likely_cause(tables, make_statistics):
    table, records = tables(0, 60, shuffled=True)
    assert "wrong rows" in signal(records, table)[1]
    one_file = [replace(m, artefact_sha256="f" * 64) for m in records]
    assert "one fixed file" in signal(one_file, table)[1]
    constant = [replace(m, statistics=make_statistics(5.0)) for m in records]
    assert "constant" in signal(constant, table)[1]
    drifting = [
        replace(m, statistics=make_statistics(5.0 + i / 100))
        for i, m in enumerate(records)
    ]  # fmt: skip
    assert "drifts" in signal(drifting, table)[1]


def test_a_median_in_another_unit_than_its_minimum_is_refused(make_measurement, make_statistics):
    mixed = make_measurement(0, statistics=make_statistics(5.0, min_ns=5000))
    (gate,) = check([mixed]).refusals
    assert gate.name == "schema"
    assert "one unit" in gate.evidence
