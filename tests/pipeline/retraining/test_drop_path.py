from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.export.onnx_export import export_subnet
from pipeline.retraining.alone import Alone, SpaceOfOne, regularise
from pipeline.spaces import load_space
from pipeline.spaces.autoformer.blocks import Block, BlockSize
from pipeline.spaces.drop_path import DropPath, set_drop_path
from pipeline.spaces.mobile_blocks import InvertedResidual
from pipeline.strategies.distillation import has_dropout
from pipeline.supernet.scoring import materialise
from tests.pipeline.training.toys import toy_config, toy_space, toy_supernet, toy_train

SHAPE = (3, 16, 16)


def alone(name: str, preset: str = "tiny", seed: int = 0) -> Alone:
    """The largest network of a space, by MACs or by choices."""
    space = load_space(name, preset=preset, input_shape=SHAPE, n_classes=4)
    arch = Arch({d.label: d.choices[-1] for d in space.decisions})
    if name in ("mobilenetv2", "proxyless"):
        arch = Arch({d.label: d.choices[1] for d in space.decisions})
    torch.manual_seed(seed)
    return SpaceOfOne(space, arch).supernet()


def regularised(name: str, preset: str = "tiny", **rates: float) -> Alone:
    made = alone(name, preset)
    given = {"drop_path": 0.0, "dropout": None} | rates
    regularise(made, **given, input_shape=SHAPE)  # type: ignore[arg-type]
    return made


def test_whole_images_are_dropped_as_often_as_asked_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    out = DropPath(0.2)(torch.ones(4000, 2, 3, 3))
    per_image = out.flatten(1)
    assert torch.equal(per_image.amin(1), per_image.amax(1))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert float(out.mean()) == pytest.approx(1.0, abs=0.03)


def test_rates_rise_linearly_to_the_last_block() -> None:
    network = nn.Sequential(*(DropPath() for _ in range(4)))
    assert set_drop_path(network, 0.2) == 4
    assert [module.p for module in network] == pytest.approx([0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    "block",
    [
        InvertedResidual(8, 16, 8, kernel=3, stride=1, residual=True, affine=True),
        Block(BlockSize(embed_dim=8, heads=2, hidden=16), head_dim=4),
    ],
)
def test_a_block_whose_branches_are_all_dropped_is_the_identity(block: nn.Module) -> None:
    set_drop_path(block, 1 - 1e-7)
    x = torch.randn(4, 8, 8, 8) if isinstance(block, InvertedResidual) else torch.randn(4, 5, 8)
    assert torch.equal(block.train()(x), x)
    assert not torch.equal(block.eval()(x), x)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("nasbench_macro", "tiny"),
        ("mobilenetv2", "tiny"),
        ("proxyless", "tiny"),
        ("autoformer", "micro"),
    ],
)
def test_residual_networks_differ_in_training_and_not_in_evaluation(name: str, preset: str) -> None:
    plain, dropped = alone(name, preset), regularised(name, preset, drop_path=0.5)
    images, nothing = torch.randn(4, *SHAPE), Arch({})
    with torch.no_grad():
        torch.manual_seed(1)
        in_training = dropped.train()(images, nothing)
        assert not torch.equal(in_training, plain.train()(images, nothing))
    fresh, same = alone(name, preset).eval(), regularised(name, preset, drop_path=0.5).eval()
    with torch.no_grad():
        assert torch.equal(fresh(images, nothing), same(images, nothing))


def test_supernets_have_nothing_that_drops_unless_asked() -> None:
    space = load_space("nasbench_macro", preset="tiny", input_shape=SHAPE, n_classes=4)
    assert not has_dropout(space.supernet())
    assert has_dropout(regularised("nasbench_macro", drop_path=0.1))


def test_alternatives_of_a_supernet_share_the_rate_of_their_place() -> None:
    supernet = load_space(
        "nasbench_macro", preset="tiny", input_shape=SHAPE, n_classes=4
    ).supernet()
    assert set_drop_path(supernet, 0.8) == 8
    rates = [{m.p for m in supernet.blocks[f"layer{n}"].modules() if isinstance(m, DropPath)}
             for n in range(1, 9)]  # fmt: skip
    assert rates == [{0.8 * n / 8} for n in range(1, 9)]


def test_a_supernet_is_trained_with_it_and_scored_without(tmp_path: Path) -> None:
    space, plain = toy_space(), toy_supernet(toy_space())
    dropped = toy_supernet(space)
    toy_train(tmp_path / "plain", space=space, supernet=plain, config=toy_config(steps=3))
    settings = toy_config(steps=3, drop_path=0.5)
    toy_train(tmp_path / "dropped", space=space, supernet=dropped, config=settings)
    names = [name for name, p in plain.named_parameters() if p.ndim > 1]
    weights = plain.state_dict(), dropped.state_dict()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in names)
    cut = materialise(space, space.sample(np.random.default_rng(0)), dropped)
    assert {m.p for m in cut.modules() if isinstance(m, DropPath)} <= {0.0}


def test_a_network_without_residuals_is_refused_instead_of_left_as_it_is() -> None:
    with pytest.raises(UsageError, match="no residual branches") as caught:
        regularised("shufflenetv2", drop_path=0.2)
    assert "--set drop_path=0" in (caught.value.hint or "")


def test_dropout_of_the_space_takes_the_rate_that_is_asked_for() -> None:
    made = regularised("shufflenetv2", dropout=0.35)
    assert [m.p for m in made.modules() if isinstance(m, nn.Dropout)] == [0.35]


def test_dropout_comes_before_the_classifier_where_the_space_has_none() -> None:
    made = regularised("nasbench_macro", dropout=0.5)
    (flatten,) = [module for module in made.modules() if isinstance(module, nn.Flatten)]
    linear = [module for module in made.modules() if isinstance(module, nn.Linear)][-1]
    features: list[torch.Tensor] = []
    classified: list[torch.Tensor] = []
    flatten.register_forward_hook(lambda module, given, out: features.append(out.detach()))
    linear.register_forward_hook(lambda module, given, out: classified.append(given[0].detach()))
    made.train()(torch.randn(64, *SHAPE), Arch({}))
    made.eval()(torch.randn(64, *SHAPE), Arch({}))
    live = features[0] != 0
    assert float((classified[0][live] == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    kept = classified[0] != 0
    assert torch.equal(classified[0][kept], 2 * features[0][kept])
    assert torch.equal(classified[1], features[1])


def test_dropout_that_no_layer_would_apply_is_refused() -> None:
    # the classifier of AutoFormer slices its weights and is never called as a module
    with pytest.raises(UsageError, match="no linear layer"):
        regularised("autoformer", "micro", dropout=0.2)


def test_names_and_shapes_of_weights_do_not_change() -> None:
    plain = alone("nasbench_macro")
    dropped = regularised("nasbench_macro", drop_path=0.2, dropout=0.2)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in dropped.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("nasbench_macro", "tiny"),
        pytest.param("autoformer", "micro", marks=pytest.mark.long),
    ],
)
def test_the_exported_file_is_the_same_to_the_byte(tmp_path: Path, name: str, preset: str) -> None:
    def exported(file: str, network: nn.Module) -> str:
        export_subnet(network, SHAPE, tmp_path / file)
        return hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()

    plain, dropped = alone(name, preset), regularised(name, preset, drop_path=0.3)
    assert np.array_equal(
        next(plain.parameters()).detach().numpy(), next(dropped.parameters()).detach().numpy()
    )
    assert exported("plain.onnx", plain.network) == exported("dropped.onnx", dropped.network)
