"""What is drawn of networks that are no plain chain of operators."""

from __future__ import annotations

import numpy as np

from latency_tables.arch import Arch
from pipeline.report.drawing import blocks_of, cell_of, draw_cell, settings_of
from pipeline.spaces import load_space

VIT = load_space("autoformer", preset="micro", input_shape=(1, 8, 8), n_classes=10)
CELLS = load_space("nasbench201", preset="tiny", input_shape=(3, 8, 8), n_classes=10)
WIDTHS = load_space("mobilenetv2_widths", preset="tiny", input_shape=(1, 8, 8), n_classes=10)


def transformer(depth: int) -> Arch:
    return VIT.sample(np.random.default_rng(0)).replace(embed_dim=32, depth=depth)


def blocks(space, arch):
    factors = space.cost_table().factors
    values = space.cost_table().factor_values(space.cost_table().genes([arch]))[0]
    macs = {f.name: float(v[0]) for f, v in zip(factors, values, strict=True)}
    return blocks_of(space.positions(), space.decisions, arch, macs)


def test_a_transformers_blocks_say_heads_and_ratio_and_stop_at_its_depth() -> None:
    for depth in (2, 3):
        drawn = [b for b in blocks(VIT, transformer(depth)) if b.name.startswith("block")]
        assert len(drawn) == depth
        assert all("heads" in b.choice and "mlp ratio" in b.choice for b in drawn)
        assert all("32" not in b.choice for b in drawn)


def test_what_all_blocks_share_is_said_once() -> None:
    assert settings_of(VIT.positions(), transformer(2)) == (("embed_dim", "32"), ("depth", "2"))


def test_a_block_with_operator_and_width_is_coloured_by_its_operator() -> None:
    arch = WIDTHS.sample(np.random.default_rng(1)).replace(layer02="mb3_k5", layer02_width=0.6)
    block = next(b for b in blocks(WIDTHS, arch) if b.name == "layer02")
    assert (block.choice, block.tone) == ("mb3_k5, width 0.6", "mb3_k5")
    assert "mb6_k3" in block.choices


def test_an_identity_is_drawn_although_it_costs_nothing() -> None:
    arch = WIDTHS.sample(np.random.default_rng(1)).replace(layer02="identity")
    assert "layer02" in [b.name for b in blocks(WIDTHS, arch)]


def test_a_cell_is_drawn_without_the_edges_that_carry_nothing() -> None:
    arch = Arch.from_genes(CELLS.decisions, [0, 1, 2, 3, 4, 0])
    cell = cell_of(arch)
    assert list(cell) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    picture = draw_cell(cell, {"conv3x3": "op1"})
    assert picture is not None
    live = [operator for operator in cell.values() if operator != "none"]
    assert picture.count("<path") == len(live) == 4
    assert picture.count("<circle") == 4
    assert '"edge op1"' in picture
    assert settings_of(CELLS.positions(), arch) == ()


def test_operators_with_hostile_names_are_escaped() -> None:
    picture = draw_cell({(0, 1): "<script>alert(1)</script>"}, {})
    assert picture is not None
    assert "<script" not in picture


def test_spaces_without_a_cell_have_none_drawn() -> None:
    assert draw_cell(cell_of(transformer(2)), {}) is None
