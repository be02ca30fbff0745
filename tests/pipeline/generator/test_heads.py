from __future__ import annotations

import pytest

from latency_tables.arch import Decision
from latency_tables.errors import SpaceError
from pipeline.generator.heads import check_heads, head_names
from tests.pipeline.generator.tables import space_of


def test_a_transformer_has_the_four_heads_of_the_paper() -> None:
    names = head_names(space_of("autoformer", "tiny", 224).decisions)
    assert set(names.values()) == {"embed_dim", "depth", "block_heads", "block_mlp_ratio"}
    assert names["block07_heads"] == names["block03_heads"]


@pytest.mark.parametrize(("name", "most"), [("bignas", 12), ("attentivenas", 13)])
def test_a_mobile_network_has_about_the_ten_heads_of_the_paper(name: str, most: int) -> None:
    px = 320 if name == "bignas" else 288
    names = head_names(space_of(name, "paper", px).decisions)
    assert 10 <= len(set(names.values())) <= most
    assert names["mb5_kernel"] == names["mb6_kernel"]


def test_operators_share_a_head_only_where_they_are_the_same_ones() -> None:
    decisions = [
        Decision(label="layer1", choices=("k3", "k5")),
        Decision(label="layer2", choices=("k5", "k3")),
        Decision(label="layer3", choices=("k3", "k5")),
    ]
    names = head_names(decisions)
    assert names["layer1"] == names["layer3"] != names["layer2"]


def test_numbers_share_a_head_where_there_are_equally_many() -> None:
    decisions = [
        Decision(label="s1_width", choices=(16, 24)),
        Decision(label="s2_width", choices=(64, 72)),
        Decision(label="s3_width", choices=(112, 120, 128)),
    ]
    names = head_names(decisions)
    assert names["s1_width"] == names["s2_width"] != names["s3_width"]


def test_a_space_may_give_its_own_heads() -> None:
    decisions = [Decision(label=x, choices=(1, 2)) for x in "ab"]
    assert check_heads(decisions, {"a": "x", "b": "x", "other": "y"}) == {"a": "x", "b": "x"}


def test_heads_that_do_not_fit_are_refused() -> None:
    decisions = [Decision(label="a", choices=(1, 2)), Decision(label="b", choices=(1, 2, 3))]
    with pytest.raises(SpaceError, match="'b' has no head"):
        check_heads(decisions, {"a": "x"})
    with pytest.raises(SpaceError, match="'x' of the generator has 2 outputs, but 'b' has 3"):
        check_heads(decisions, {"a": "x", "b": "x"})
