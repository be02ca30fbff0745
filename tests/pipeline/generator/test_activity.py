from __future__ import annotations

import numpy as np

from latency_tables.arch import Arch, Decision
from pipeline.generator.activity import active_decisions
from tests.pipeline.generator.tables import space_of


def inactive(space_name: str, preset: str, px: int, arch: Arch) -> set[str]:
    space = space_of(space_name, preset, px)
    active = active_decisions(space, [arch])[0]
    return {d.label for d, on in zip(space.decisions, active.tolist(), strict=True) if not on}


def test_blocks_beyond_the_depth_are_inactive_whatever_they_hold() -> None:
    space, rng = space_of("autoformer", "tiny", 224), np.random.default_rng(0)
    for depth in (12, 13, 14):
        arch = space.sample(rng).replace(depth=depth)
        beyond = range(depth + 1, 15)
        expected = {f"block{i:02d}_{what}" for i in beyond for what in ("heads", "mlp_ratio")}
        assert inactive("autoformer", "tiny", 224, arch) == expected


def test_operators_on_dead_edges_of_a_cell_are_inactive() -> None:
    arch = Arch(
        {"op_e01": "conv3x3", "op_e02": "skip", "op_e12": "conv1x1",
         "op_e03": "conv3x3", "op_e13": "none", "op_e23": "none"}
    )  # fmt: skip
    # nothing reads nodes 1 and 2: their inputs are dead; either edge to the output revives them
    assert inactive("nasbench201", "tiny", 8, arch) == {"op_e01", "op_e02", "op_e12"}


def test_every_decision_of_a_chain_is_active() -> None:
    space = space_of("nasbench_macro", "tiny", 8)
    archs = [space.sample(np.random.default_rng(i)) for i in range(5)]
    assert active_decisions(space, archs).all()


def test_no_architectures_have_no_activity() -> None:
    space = space_of("nasbench_macro", "tiny", 8)
    assert active_decisions(space, []).shape == (0, len(space.decisions))


class TwoWidthsAlike:
    """Widths 1 and 2 are one network, 3 is another."""

    decisions = (Decision(label="width", choices=(1, 2, 3)),)

    def canonical(self, arch: Arch) -> Arch:
        return arch.replace(width=1) if arch["width"] == 2 else arch


def test_a_decision_is_active_where_only_some_of_its_choices_differ() -> None:
    archs = [Arch({"width": width}) for width in (1, 2, 3)]
    assert active_decisions(TwoWidthsAlike(), archs).tolist() == [[True]] * 3
