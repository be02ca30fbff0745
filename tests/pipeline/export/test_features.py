from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from latency_tables.errors import ExportError, ParityError
from pipeline.export import features
from pipeline.export.features import backbone_of, export_backbone
from pipeline.export.onnx_export import export_subnet
from pipeline.onnx_runtime import open_session
from pipeline.own_model import own_space
from pipeline.spaces import load_space
from pipeline.spaces.resampled import resampled
from tests.pipeline.export.conftest import trained_like
from tests.pipeline.spaces.own_model import models

FORMAT = {"opset": 18, "ir_version": 8, "tolerance": 1e-4}


def drawn(name, preset, shape, *, seed=0):
    """A space and a network of it with weights that are not the identity."""
    space = load_space(name, preset=preset, input_shape=shape, n_classes=10)
    arch = space.sample(np.random.default_rng(seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = space.input_shape_of(arch)
        return trained_like(space.network(arch), shape), shape


def pictures(shape, n=2):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "preset", "shape", "after"),
    [
        ("shufflenetv2", "paper", (3, 224, 224), ["block04", "block08", "block16", "block20"]),
        ("mobilenetv2", "paper", (3, 224, 224), ["layer04", "layer08", "layer16", "layer21"]),
        ("proxyless", "paper", (3, 224, 224), ["layer04", "layer08", "layer16", "layer21"]),
        ("bignas", "paper", (3, 320, 320), None),
        ("attentivenas", "paper", (3, 288, 288), None),
    ],
)
def test_networks_of_the_papers_give_maps_at_strides_of_4_8_16_and_32(name, preset, shape, after):
    space = load_space(name, preset=preset, input_shape=shape, n_classes=10)
    arch = space.sample(np.random.default_rng(0))
    with torch.device("meta"):
        network = space.network(arch)
    _, height, width = space.input_shape_of(arch)
    maps = backbone_of(network, space.input_shape_of(arch)).maps
    assert [m.stride for m in maps] == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert [(m.height, m.width) for m in maps] == [
        (height // s, width // s) for s in (4, 8, 16, 32)
    ]
    names = [n for n, _ in network.named_children()]
    if after is not None:
        assert [m.after for m in maps] == after
    assert maps[-1].after == names[-2]  # all but the head


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("shufflenetv2", "tiny"),
        ("shufflenetv2_scales", "tiny"),
        ("mobilenetv2", "tiny"),
        ("nasbench_macro", "tiny"),
        ("nasbench201", "tiny"),
        ("attentivenas", "tiny"),
        ("bignas", "tiny"),
    ],
)
def test_every_map_is_what_the_pieces_before_it_compute(name, preset):
    network, shape = drawn(name, preset, (3, 16, 16))
    backbone, x = backbone_of(network, shape).eval(), pictures(shape)
    names = [n for n, _ in network.named_children()]
    with torch.no_grad():
        for m, found in zip(backbone.maps, backbone(x), strict=True):
            expected = network[: names.index(m.after) + 1](x.clone())
            assert found.shape == (2, m.channels, m.height, m.width)
            assert torch.equal(found, expected)
            following = network[: names.index(m.after) + 2](x.clone())
            # the last one of its size: what follows is smaller, or the head
            assert following.ndim == 2 or following.shape[2:] != found.shape[2:]


def test_a_transformer_gives_tokens_as_maps_without_the_class_token():
    network, shape = drawn("autoformer", "micro", (3, 8, 12), seed=1)
    backbone, x = backbone_of(network, shape).eval(), pictures(shape)
    depth = len(network) - 2
    assert [m.after for m in backbone.maps] == [f"block{i + 1:02d}" for i in range(depth)]
    assert {m.stride for m in backbone.maps} == {(4.0, 4.0)}
    with torch.no_grad():
        tokens = network.patch_embed(x)
        for i, found in enumerate(backbone(x)):
            tokens = network[i + 1](tokens)  # (N, 1 + 2 · 3, E)
            for row in range(2):
                for column in range(3):
                    patch = tokens[:, 1 + 3 * row + column]
                    assert torch.equal(found[:, :, row, column], patch)


def test_the_tiny_transformer_of_the_paper_gives_four_evenly_spaced_maps():
    space = load_space("autoformer", preset="tiny", input_shape=(3, 224, 224), n_classes=10)
    arch = space.sample(np.random.default_rng(0))
    with torch.device("meta"):
        network = space.network(arch)
    maps = backbone_of(network, space.input_shape).maps
    expected = {12: (3, 6, 9, 12), 13: (3, 7, 10, 13), 14: (4, 7, 11, 14)}[int(arch["depth"])]
    assert [m.after for m in maps] == [f"block{i:02d}" for i in expected]
    assert {(m.channels, m.height, m.width) for m in maps} == {(int(arch["embed_dim"]), 14, 14)}


def test_odd_sizes_count_as_halved():
    network = nn.Sequential(OrderedDict(a=nn.Conv2d(1, 2, 3, 2, 1), b=nn.Conv2d(2, 3, 3, 2, 1)))
    maps = backbone_of(network, (1, 18, 7)).maps  # 18 → 9 → 5, 7 → 4 → 2
    assert [(m.height, m.width, m.stride) for m in maps] == [(9, 4, (2, 2)), (5, 2, (4, 4))]


def test_borders_that_are_cut_off_are_no_step():
    network = nn.Sequential(OrderedDict(a=nn.Conv2d(1, 2, 3), b=nn.Conv2d(2, 3, 3)))
    (only,) = backbone_of(network, (1, 12, 12)).maps
    assert (only.after, only.height, only.stride) == ("b", 8, (1, 1))


def test_pooled_vectors_are_no_maps():
    network = nn.Sequential(
        OrderedDict(a=nn.Conv2d(1, 2, 3, 2, 1), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    )
    assert [m.after for m in backbone_of(network, (1, 8, 8)).maps] == ["a"]


def test_learned_resampling_is_no_map_of_its_own_and_counts_in_the_strides():
    inner = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    space = resampled(inner, (12, 12))
    network = space.network(space.sample(np.random.default_rng(0)))
    maps = backbone_of(network, space.input_shape).maps
    assert [m.stride for m in maps] == [(1.5, 1.5), (3.0, 3.0), (6.0, 6.0)]
    assert maps[0].after != "resample"


def test_a_later_piece_that_works_in_place_leaves_a_map_alone():
    pieces = OrderedDict(
        a=nn.Conv2d(1, 4, 3, padding=1),
        b=nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, 2, 1)),
    )
    network, x = nn.Sequential(pieces).eval(), pictures((1, 8, 8))
    with torch.no_grad():
        first, _ = backbone_of(network, (1, 8, 8))(x)
        assert torch.equal(first, network.a(x))
        assert first.min() < 0


def test_an_own_model_gives_the_maps_of_its_pieces(tmp_path):
    space = own_space(models.Plain, input_shape=(3, 8, 8))
    network = trained_like(space.network(space.sample(np.random.default_rng(0))), (3, 8, 8))
    backbone = backbone_of(network, space.input_shape)
    assert [(m.height, m.stride) for m in backbone.maps] == [(8, (1, 1)), (4, (2, 2))]
    export_backbone(backbone, pictures((3, 8, 8)).numpy(), tmp_path / "b.onnx", **FORMAT)


def test_a_network_without_maps_is_refused_with_what_its_pieces_give():
    network = nn.Sequential(OrderedDict(flat=nn.Flatten(), linear=nn.Linear(64, 10)))
    with pytest.raises(ExportError, match=r"no feature maps.*flat \[64\], linear \[10\]"):
        backbone_of(network, (1, 8, 8))


def test_making_a_backbone_leaves_the_network_in_its_mode():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    backbone_of(network, (1, 8, 8))
    assert network.training
    assert network[1].num_batches_tracked == 0


# -- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset"), [("bignas", "tiny"), ("autoformer", "micro"), ("nasbench201", "tiny")]
)
def test_the_file_gives_the_maps_of_torch_under_their_names(tmp_path, name, preset):
    network, shape = drawn(name, preset, (3, 16, 16), seed=2)
    backbone, x = backbone_of(network, shape), pictures(shape, 3)
    model, reports = export_backbone(backbone, x.numpy(), tmp_path / "backbone.onnx", **FORMAT)
    assert [p.name for p in tmp_path.iterdir()] == ["backbone.onnx"]
    assert all(r.ok and r.n_images == 3 for r in reports)
    session = open_session(model.path)
    assert [(t.name, t.shape) for t in session.get_inputs()] == [("image", [1, *shape])]
    assert [(t.name, t.shape) for t in session.get_outputs()] == [
        (m.name, [1, m.channels, m.height, m.width]) for m in backbone.maps
    ]
    with torch.no_grad():
        expected = backbone.eval()(x[1:2])
    of_file = session.run(None, {"image": x[1:2].numpy()})
    for found, of_torch in zip(of_file, expected, strict=True):
        allowed = 1e-4 * max(1.0, float(of_torch.abs().max()))
        np.testing.assert_allclose(found, of_torch.numpy(), rtol=0, atol=allowed)


def test_older_operator_sets_are_written_as_well(tmp_path):
    network, shape = drawn("bignas", "tiny", (3, 16, 16))
    older = {**FORMAT, "opset": 14, "ir_version": 7}
    backbone = backbone_of(network, shape)
    model, _ = export_backbone(backbone, pictures(shape).numpy(), tmp_path / "b.onnx", **older)
    assert (model.opset, model.ir_version) == (14, 7)


def test_a_file_that_disagrees_is_put_aside_and_the_older_one_stays(tmp_path, monkeypatch):
    network, shape = drawn("bignas", "tiny", (3, 16, 16))
    backbone = backbone_of(network, shape)
    (tmp_path / "backbone.onnx").write_bytes(b"older")

    def another(given, *args, **kwargs):
        last = list(given.trunk.parameters())[-1]
        with torch.no_grad():
            last.add_(1.0)
            try:
                return export_subnet(given, *args, **kwargs)
            finally:
                last.sub_(1.0)

    monkeypatch.setattr(features, "export_subnet", another)
    with pytest.raises(ParityError, match=f"{backbone.maps[-1].name} by up to") as refused:
        export_backbone(backbone, pictures(shape).numpy(), tmp_path / "backbone.onnx", **FORMAT)
    assert "features_1" not in str(refused.value)  # the others agree
    assert (tmp_path / "backbone.onnx").read_bytes() == b"older"
    assert (tmp_path / "backbone.refused.onnx").exists()
