import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.arch import Decision, check_arch
from pipeline.search.operators import (
    all_genes,
    archs_of,
    crossover,
    mutate,
    pairs,
    random_genes,
    sizes_of,
)

spaces = st.lists(st.integers(1, 5), min_size=1, max_size=30).map(
    lambda sizes: tuple(
        Decision(label=f"d{i}", choices=tuple(range(n))) for i, n in enumerate(sizes)
    )
)


@settings(max_examples=60, deadline=None)
@given(decisions=spaces, seed=st.integers(0, 2**32), probability=st.floats(0, 1))
def test_every_operator_stays_inside_the_space(decisions, seed, probability):
    rng = np.random.default_rng(seed)
    sizes = sizes_of(decisions)
    mothers, fathers = random_genes(rng, sizes, 7), random_genes(rng, sizes, 7)
    mutants = mutate(rng, mothers, sizes, probability)
    for genes in (mothers, mutants, crossover(rng, mothers, fathers)):
        for arch in archs_of(decisions, genes):
            check_arch(decisions, arch)


@settings(max_examples=60, deadline=None)
@given(decisions=spaces, seed=st.integers(0, 2**32))
def test_a_child_has_every_gene_from_one_of_its_parents(decisions, seed):
    rng = np.random.default_rng(seed)
    mothers, fathers = (random_genes(rng, sizes_of(decisions), 5) for _ in range(2))
    child = crossover(rng, mothers, fathers)
    assert ((child == mothers) | (child == fathers)).all()


def test_both_parents_give_half_of_the_genes():
    rng = np.random.default_rng(0)
    zeros, ones = np.zeros((200, 50), dtype=np.int64), np.ones((200, 50), dtype=np.int64)
    assert abs(crossover(rng, zeros, ones).mean() - 0.5) < 0.02


def test_mutation_redraws_genes_at_the_given_rate():
    rng = np.random.default_rng(0)
    genes = np.zeros((400, 50), dtype=np.int64)
    changed = (mutate(rng, genes, np.full(50, 4), 0.1) != 0).mean()
    assert abs(changed - 0.1 * 3 / 4) < 0.01


@given(seed=st.integers(0, 2**32), n_parents=st.integers(2, 12))
def test_two_parents_of_a_child_differ(seed, n_parents):
    first, second = pairs(np.random.default_rng(seed), n_parents, 20)
    assert (first != second).all()
    assert ((second >= 0) & (second < n_parents)).all()


def test_all_genes_lists_every_genome_once():
    sizes = np.array([2, 3, 1, 4])
    genes = all_genes(sizes)
    assert len(genes) == len(set(map(tuple, genes.tolist()))) == 24
    assert (genes < sizes).all()
    assert (genes >= 0).all()
