"""Arch and Decision."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.arch import Arch, Decision, check_arch
from latency_tables.errors import InvalidArchError

choices = st.one_of(
    st.text(max_size=8),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
)
archs = st.dictionaries(st.text(max_size=8), choices, max_size=6).map(Arch)


@given(archs)
def test_json_gives_the_same_architecture_back(arch):
    assert Arch.from_json(arch.to_json()) == arch


@given(archs)
def test_pickling_keeps_equality_and_hash(arch):
    # DataLoader workers and process pools send architectures this way
    copy = pickle.loads(pickle.dumps(arch))
    assert (copy, hash(copy)) == (arch, hash(arch))


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_labels_does_not_matter(labels):
    arch = Arch(dict.fromkeys(labels, 1))
    assert arch == Arch(dict.fromkeys("abcd", 1))
    assert hash(arch) == hash(Arch(dict.fromkeys("abcd", 1)))


@given(st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_genes_give_the_same_architecture_back(genes):
    decisions = [Decision(label=f"d{i}", choices=("x", "y", 3)) for i in range(3)]
    arch = Arch.from_genes(decisions, genes)
    assert list(arch.genes(decisions)) == genes


def test_a_decision_names_the_allowed_choices_when_it_refuses():
    with pytest.raises(InvalidArchError, match="'k3', 'k5'"):
        Decision(label="block", choices=("k3", "k5")).index("k9")


@pytest.mark.parametrize("choices", [(), ("k3", "k3")])
def test_a_decision_without_choices_or_with_equal_ones_is_refused(choices):
    with pytest.raises(InvalidArchError):
        Decision(label="block", choices=choices)


@pytest.mark.parametrize("genes", [[0], [0, 2], [0, -1], [0, 0, 0]])
def test_genes_outside_of_the_decisions_are_refused(genes):
    decisions = [Decision(label=label, choices=("x", "y")) for label in "ab"]
    with pytest.raises(InvalidArchError):
        Arch.from_genes(decisions, genes)


def test_check_arch_names_missing_and_unknown_labels():
    decisions = [Decision(label="a", choices=(1, 2))]
    with pytest.raises(InvalidArchError, match="missing: a; unknown: b"):
        check_arch(decisions, Arch({"b": 1}))
    check_arch(decisions, Arch({"a": 2}))


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": true}', '{"a": null}', '{"a": [1]}'])
def test_what_is_not_an_architecture_is_refused(text):
    with pytest.raises(InvalidArchError):
        Arch.from_json(text)


def test_replacing_a_choice_leaves_the_original_alone():
    arch = Arch({"a": 1, "b": 2})
    assert arch.replace(a=3) == Arch({"a": 3, "b": 2})
    assert arch["a"] == 1
