from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import PEAK_MEMORY, Column, CostTable, Factor
from latency_tables.errors import SpaceError
from pipeline.generator.soft_cost import SoftCost
from pipeline.search.operators import random_genes, sizes_of
from pipeline.spaces.autoformer import AutoFormerSpace
from pipeline.spaces.policy import Policy
from tests.pipeline.generator.tables import blocks, space_of, with_latency

QUICK_SPACES = (
    ("autoformer", "micro", 16),
    ("bignas", "tiny", 16),
    ("shufflenetv2", "tiny", 16),
    ("proxyless", "tiny", 16),
    ("nasbench_macro", "tiny", 8),
    ("nasbench201", "tiny", 8),
)
SPACES = (
    ("attentivenas", "tiny", 32),
    ("shufflenetv2_scales", "tiny", 32),
    ("mobilenetv2", "tiny", 32),
    ("mobilenetv2_widths", "tiny", 32),
    *(("autoformer", preset, 224) for preset in ("tiny", "small", "base", "tiny-absolute")),
    ("bignas", "paper", 320),
    ("attentivenas", "paper", 288),
    ("shufflenetv2", "paper", 224),
    ("shufflenetv2_scales", "paper", 224),
    ("mobilenetv2", "paper", 224),
    ("mobilenetv2_widths", "paper", 224),
    ("proxyless", "paper", 224),
    ("nasbench_macro", "paper", 32),
    ("nasbench201", "paper", 32),
)


def one_hots(table: CostTable, genes: np.ndarray) -> dict[str, Tensor]:
    """(N, n_decisions) → one-hot (N, n_choices) by label."""
    return {
        d.label: torch.eye(len(d.choices))[torch.from_numpy(genes[:, i])]
        for i, d in enumerate(table.decisions)
    }


def require_equal(table: CostTable, n: int = 200) -> None:
    """Soft and hard costs agree at one-hot vectors, in every column that adds up."""
    genes = random_genes(np.random.default_rng(0), sizes_of(table.decisions), n)
    points = one_hots(table, genes)
    columns = [c.name for c in table.columns if c.reduce == "sum"]
    assert columns
    for column in columns:
        hard = table.column(column, genes)
        soft = SoftCost(table, column).of(points).numpy()
        if column == "latency_ms":  # other order of a sum of fractions
            assert np.allclose(soft, hard, rtol=1e-12, atol=0.0)
        else:
            assert (soft == hard).all(), column


@pytest.mark.parametrize(("name", "preset", "px"), QUICK_SPACES, ids=lambda v: str(v))
def test_at_one_hot_vectors_the_soft_cost_is_the_hard_cost(name: str, preset: str, px: int) -> None:
    require_equal(space_of(name, preset, px).cost_table())


@pytest.mark.long
@pytest.mark.parametrize(("name", "preset", "px"), SPACES, ids=lambda v: str(v))
def test_at_one_hot_vectors_the_soft_cost_is_the_hard_cost_of_every_space(
    name: str, preset: str, px: int
) -> None:
    require_equal(with_latency(space_of(name, preset, px).cost_table()))


@pytest.mark.parametrize("name", ["autoformer", "nasbench_macro"])
def test_at_one_hot_vectors_the_soft_latency_is_the_additive_latency(name: str) -> None:
    preset, px = ("micro", 16) if name == "autoformer" else ("tiny", 8)
    require_equal(with_latency(space_of(name, preset, px).cost_table()))


def closed_form_macs(space: AutoFormerSpace, arch: Arch) -> int:
    """MACs of a transformer written out: patches of 16 at 224 px, q = 64 · heads, no cls token
    (the classifier sees a mean), relative products included."""
    e, n, n_patches = int(arch["embed_dim"]), 197, 196
    macs = n_patches * 768 * e + space.n_classes * e
    for i in range(1, int(arch["depth"]) + 1):
        q = 64 * int(arch[f"block{i:02d}_heads"])
        f = int(e * float(arch[f"block{i:02d}_mlp_ratio"]))
        macs += n * 3 * q * e + 2 * n * n * q + n * q * e + 2 * n * e * f + 2 * n * n * q
    return macs


def test_for_autoformer_the_soft_cost_is_the_closed_form() -> None:
    space = space_of("autoformer", "tiny", 224)
    assert isinstance(space, AutoFormerSpace)
    cost, rng = SoftCost(space.cost_table(), "macs"), np.random.default_rng(0)
    for _ in range(50):
        arch = space.sample(rng)
        assert cost(Policy.of(arch, space.decisions)).item() == closed_form_macs(space, arch)


def test_total_costs_times_a_one_hot_vector_equal_increments_times_its_mask() -> None:
    """The oracle of the paper's pairing: costs (1, 2, 3), the second choice."""
    cost = SoftCost(blocks([[1.0, 2.0, 3.0]]), "macs")
    one_hot, mask = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    increments = torch.tensor([1.0, 1.0, 1.0])
    assert cost.of({"block0": one_hot}).item() == (mask * increments).sum().item() == 2
    assert cost.of({"block0": mask}).item() == 3  # masks times total costs: not a cost


def test_the_gradient_of_a_choice_is_the_cost_with_that_choice() -> None:
    table = space_of("autoformer", "micro", 16).cost_table()
    arch = table.arch(random_genes(np.random.default_rng(3), sizes_of(table.decisions), 1)[0])
    policy = Policy.of(arch, table.decisions)
    points = {label: x.double().requires_grad_() for label, x in policy.one_hot.items()}
    SoftCost(table, "macs").of(points).backward()
    checked = 0
    for decision in table.decisions:
        gradient = points[decision.label].grad
        assert gradient is not None
        for j, choice in enumerate(decision.choices):
            change = table.cost(arch.replace(**{decision.label: choice}), "macs")
            step = gradient[j] - gradient[decision.index(arch[decision.label])]
            assert step.item() == change - table.cost(arch, "macs")
            checked += 1
    assert checked > 10


def test_at_probabilities_the_soft_cost_is_the_mean_over_independent_draws() -> None:
    table = space_of("nasbench201", "tiny", 8).cost_table()
    probabilities = {d.label: torch.full((len(d.choices),), 0.2) for d in table.decisions}
    soft = SoftCost(table, "macs").of(probabilities).item()
    assert soft == pytest.approx(table.mean("macs"), rel=1e-6)


def test_factors_without_labels_and_unused_decisions_are_taken_along() -> None:
    table = CostTable(
        [Decision(label="a", choices=(1, 2)), Decision(label="unused", choices=(1, 2, 3))],
        [Column(name="macs", unit="MAC")],
        [
            Factor(name="stem", labels=(), values=np.array([10.0])),
            Factor(name="head", labels=(), values=np.array([5.0])),
            Factor(name="a", labels=("a",), values=np.array([[1.0], [2.0]])),
        ],
    )
    policy = Policy.of({"a": 2, "unused": 3}, table.decisions)
    assert SoftCost(table, "macs")(policy).item() == 17


@pytest.mark.parametrize("column", ["activation_peak_bytes", PEAK_MEMORY])
def test_a_column_that_is_a_maximum_is_refused(column: str) -> None:
    table = space_of("nasbench_macro", "tiny", 8).cost_table()
    with pytest.raises(SpaceError, match=f"{column}.*largest of its parts.*macs"):
        SoftCost(table, column)


def test_an_unknown_column_is_refused_with_those_that_exist() -> None:
    with pytest.raises(SpaceError, match="no column 'flops'; known: macs"):
        SoftCost(blocks([[1.0]]), "flops")
