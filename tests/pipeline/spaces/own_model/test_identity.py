"""A space's identity follows from the model's structure, and segments from where it can be cut."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor, nn

from latency_tables.arch import Arch
from pipeline.own_model import Choice, Elastic, OwnSpace, own_space
from tests.pipeline.spaces.own_model.models import MODELS, SHAPE

torch.set_num_threads(1)


def net(
    *, widths: tuple[int, ...] = (8, 16), kernel: int = 3, dropout: float = 0.1, name: str = "fc"
) -> nn.Module:
    model = nn.Sequential()
    model.add_module("stem", Elastic(nn.Conv2d(3, widths[-1], kernel, padding=1), width=widths))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("drop", nn.Dropout(dropout))
    model.add_module(name, nn.Linear(widths[-1], 10))
    return model


def identity(**changes: object) -> str:
    return own_space(lambda: net(**changes), input_shape=SHAPE, name="net").space_id


def test_the_same_model_is_the_same_space_in_another_process() -> None:
    code = (
        "from pipeline.own_model import own_space\n"
        "from tests.pipeline.spaces.own_model.models import MODELS, SHAPE\n"
        "print(own_space(MODELS['nested'], input_shape=SHAPE).space_id)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == own_space(MODELS["nested"], input_shape=SHAPE).space_id


def test_every_change_of_the_model_is_another_space() -> None:
    found = [
        identity(),
        identity(widths=(4, 16)),
        identity(kernel=1),
        identity(dropout=0.2),
        identity(name="head"),
    ]
    assert len(set(found)) == len(found)
    assert identity() == found[0]


def test_an_operator_that_no_layer_shows_changes_the_space() -> None:
    class Last(nn.Module):
        def __init__(self, activation: object) -> None:
            super().__init__()
            self.stem = Elastic(nn.Conv2d(3, 8, 3), width=(4, 8))
            self.fc = nn.Linear(8, 10)
            self.activation = activation

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.activation(self.stem(x)).mean((2, 3)))

    ids = {
        own_space(lambda f=f: Last(f), input_shape=SHAPE, name="last").space_id
        for f in (torch.relu, torch.sigmoid)
    }
    assert len(ids) == 2


def test_the_description_names_no_file() -> None:
    space = own_space(MODELS["plain"], input_shape=SHAPE)
    assert "/" not in str(space.describe())
    assert ".py" not in str(space.describe())


def labels(space: OwnSpace) -> dict[str, tuple[str, ...]]:
    return dict(space.positions())


def test_a_residual_net_is_cut_between_its_blocks() -> None:
    assert list(labels(own_space(MODELS["residual"], input_shape=SHAPE))) == [
        "stem", "stage1_0", "stage1_1", "stage2_0", "stage2_1", "stage2_2", "fc",
    ]  # fmt: skip


def test_blocks_beyond_an_elastic_depth_are_left_out() -> None:
    space = own_space(MODELS["residual"], input_shape=SHAPE)
    whole = Arch({d.label: d.choices[-1] for d in space.decisions})
    names = [[s.name for s in space.segments(whole.replace(**{"stage2.depth": n}))] for n in (1, 3)]
    assert set(names[1]) - set(names[0]) == {"stage2_1", "stage2_2"}
    shallow = whole.replace(**{"stage2.depth": 1})
    other = shallow.replace(**{"stage2.2.conv1.width": 8})
    assert space.canonical(shallow) == space.canonical(other)
    assert space.canonical(whole) != space.canonical(whole.replace(**{"stage2.2.conv1.width": 8}))


def test_genes_inside_alternatives_that_do_not_run_mean_nothing() -> None:
    space = own_space(MODELS["nested"], input_shape=SHAPE)
    width = "outer.deep.0.narrow.0.width"
    for outer, inner in (("shallow", "narrow"), ("deep", "pool")):
        arch = Arch({"outer": outer, "inner": inner, width: 16})
        assert space.canonical(arch)[width] == 4
    arch = Arch({"outer": "deep", "inner": "narrow", width: 16})
    assert space.canonical(arch) == arch
    keys = {space.graph_key(a) for a in every_arch(space)}
    assert len(keys) == 1 + 1 + 3


def every_arch(space: OwnSpace) -> list[Arch]:
    found = [Arch({})]
    for d in space.decisions:
        found = [Arch({**arch, d.label: c}) for arch in found for c in d.choices]
    return found


def test_equal_graph_keys_mean_equal_networks_and_others_do_not() -> None:
    space = own_space(MODELS["nested"], input_shape=SHAPE)
    by_key = {space.graph_key(a): str(space.network(a)) for a in every_arch(space)}
    for arch in every_arch(space):
        assert str(space.network(arch)) == by_key[space.graph_key(arch)]
    assert len(set(by_key.values())) == len(by_key)


def test_a_size_that_is_asked_for_at_the_top_does_not_couple_what_follows() -> None:
    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = Elastic(nn.Conv2d(3, 8, 3), width=(4, 8))
            self.b = Elastic(nn.Conv2d(8, 8, 3), width=(4, 8))
            self.c = Elastic(nn.Conv2d(8, 8, 1), width=(4, 8))
            self.fc = nn.Linear(8 * 4 * 4, 10)

        def forward(self, x: Tensor) -> Tensor:
            b, _, h, w = x.shape
            x = self.c(self.b(self.a(x)))
            return self.fc(x.reshape(b, -1)) * (h / w)

    space = own_space(Top, input_shape=SHAPE)
    assert [len(found) for found in labels(space).values()] == [1, 2, 2, 1]
    x = torch.randn(5, *SHAPE)
    arch = space.probes[0]
    assert space.network(arch)(x).shape == (5, 10)


def test_linked_choices_of_width_are_one_decision() -> None:
    space = own_space(MODELS["mobile"], input_shape=SHAPE)
    assert [d.label for d in space.decisions][:2] == ["body", "block0"]
    body = [name for name, found in labels(space).items() if "body" in found]
    assert len(body) == 5


def test_a_plain_module_runs_its_largest_self_and_first_alternatives() -> None:
    model = MODELS["plain"]().eval()
    space = own_space(model, input_shape=SHAPE)
    largest = Arch({d.label: d.choices[-1] for d in space.decisions}).replace(block="k3")
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = space.supernet().eval()(x, largest)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)


def test_choice_alone_is_a_model() -> None:
    def head(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
        )

    space = own_space(lambda: Choice("all", {"a": head(4), "b": head(8)}), input_shape=SHAPE)
    assert space.cost_table().n_archs == 2
    assert space.network(Arch({"all": "b"}))(torch.zeros(1, *SHAPE)).shape == (1, 10)
