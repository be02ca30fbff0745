"""What cannot be resolved is refused: which layers, where, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.errors import SpaceError, UnsupportedOperatorError
from pipeline.own_model import Choice, Elastic, Opaque, OwnSpace, own_space
from tests.pipeline.spaces.own_model.models import SHAPE

torch.set_num_threads(1)

Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A model whose ``forward`` is given, up to the channels that are averaged and classified."""

    def __init__(self, body: Body, channels: int = 16, **layers: object) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body, self.fc = body, nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self, x)
        return self.fc(x.flatten(2).mean(2))


def conv(n_in: int = 3, n_out: int = 16, **more: object) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **more)


def wide(*widths: int, n_in: int = 3, label: str | None = None, **more: object) -> Elastic:
    return Elastic(conv(n_in, widths[-1], **more), width=widths, label=label)


def refused(model: nn.Module, *parts: str, hint: str = "") -> None:
    with pytest.raises(SpaceError) as caught:
        own_space(lambda: model, input_shape=SHAPE)
    for part in parts:
        assert part in caught.value.message
    assert hint in (caught.value.hint or "")


def space_of(model: nn.Module) -> OwnSpace:
    return own_space(lambda: model, input_shape=SHAPE)


def added(m: Net, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x)


def in_turn(m: Net, x: Tensor) -> Tensor:
    return m.b(m.a(x))


# -- widths that meet ----------------------------------------------------------------------------


def test_an_addition_of_unlinked_widths_names_both_layers_and_the_label_to_write() -> None:
    model = Net(added, a=wide(8, 16), b=wide(8, 16))
    refused(
        model,
        "'a' (width 8, 16; label 'a.width')",
        "'b' (width 8, 16; label 'b.width')",
        "'add' in line",
        "of test_refusals.py",
        hint="label='a.width' in both",
    )
    linked = Net(added, a=wide(8, 16, label="both"), b=wide(8, 16, label="both"))
    assert [d.label for d in space_of(linked).decisions] == ["both"]


def test_an_addition_of_different_options_names_both_layers() -> None:
    refused(
        Net(added, a=wide(8, 16), b=wide(4, 16)),
        "'a' (width 8, 16",
        "'b' (width 4, 16",
        hint="the same widths and the same label",
    )


def test_a_plain_layer_follows_the_elastic_one_that_it_is_added_to() -> None:
    space = space_of(Net(added, a=wide(8, 16), b=conv()))
    narrow, whole = (space.network(next(iter(space.probes)).replace(**{"a.width": n}))
                     for n in (8, 16))  # fmt: skip
    shapes = [dict(n.named_parameters())["a.b.weight"].shape[0] for n in (narrow, whole)]
    assert shapes == [8, 16]


def test_an_addition_to_what_never_changes_names_both() -> None:
    model = Net(lambda m, x: m.a(x) + x, channels=3, a=wide(1, 3))
    refused(model, "'a' (width 1, 3", "'the input' (3 channels, fixed: an image)")


def test_a_concatenation_along_a_wrong_axis_names_both_layers() -> None:
    model = Net(lambda m, x: torch.cat([m.a(x), m.b(x)], 2), a=wide(8, 16), b=wide(4, 16))
    refused(model, "'a' (width 8, 16", "'b' (width 4, 16", "'cat' in line")


def test_the_number_of_classes_cannot_be_elastic() -> None:
    model = nn.Sequential(nn.Flatten(), Elastic(nn.Linear(192, 10), width=(5, 10)))
    refused(model, "'1' (width 5, 10)", "class scores", hint="last layer")


# -- shapes --------------------------------------------------------------------------------------


def test_a_view_with_a_fixed_number_names_the_layer_that_feeds_it() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = wide(8, 16), nn.Linear(16 * 64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(-1, 16 * 64))

    refused(Flat(), "'view' in line", "'conv' feeds with conv.width = 8", hint="x.flatten(1)")


def test_a_reshape_into_fixed_groups_names_the_layer_that_feeds_it() -> None:
    model = Net(lambda m, x: m.a(x).reshape(-1, 4, 4, 8, 8).mean(2), channels=4, a=wide(8, 16))
    refused(model, "'reshape' in line", "'a' feeds with a.width = 8")


@pytest.mark.parametrize(
    "half",
    [
        lambda m, x: torch.chunk(m.a(x), 2, 1)[0],
        lambda m, x: m.a(x).split(8, dim=1)[0],
        lambda m, x: m.a(x)[:, :8],
    ],
    ids=["chunk", "split", "slice"],
)
def test_cutting_an_elastic_axis_names_the_layer(half: Body) -> None:
    refused(Net(half, channels=8, a=wide(8, 16)), "'a' (width 8, 16", "an axis is cut")


def test_a_layer_that_needs_fixed_sizes_is_named_with_the_one_before_it() -> None:
    model = Net(in_turn, channels=4, a=wide(8, 16), b=nn.PixelShuffle(2))
    refused(model, "'a' (width 8, 16", "'b'", "PixelShuffle needs fixed sizes")


# -- groups --------------------------------------------------------------------------------------


def test_groups_that_do_not_divide_an_elastic_input_are_refused() -> None:
    refused(
        Net(in_turn, a=wide(6, 16), b=conv(16, 16, groups=4)),
        "'b' would get a part of a channel group for a.width = 6",
    )


def test_groups_that_do_not_divide_an_elastic_width_are_refused() -> None:
    refused(
        Net(in_turn, a=conv(), b=wide(6, 16, n_in=16, groups=4)),
        "'b': 4 groups do not divide the widths [6]",
        hint="multiples of 4",
    )


def test_groups_between_two_elastic_widths_are_refused() -> None:
    refused(
        Net(in_turn, a=wide(8, 16), b=wide(8, 16, n_in=16, groups=4)),
        "'b' (width 8, 16) has 4 groups",
        "'a' sets (a.width)",
        hint="follows its input",
    )


def test_group_norms_that_do_not_divide_a_width_are_refused() -> None:
    model = nn.Sequential(wide(6, 16), nn.GroupNorm(4, 16), nn.Flatten(), nn.Linear(1024, 10))
    refused(model, "4 groups of '1' do not divide 6 channels (0.width)")


# -- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "shape"),
    [(conv(3, 8), "8×8×8"), (nn.Conv2d(3, 16, 3, 2, 1), "16×4×4")],
    ids=["channels", "stride"],
)
def test_alternatives_of_different_shapes_are_named_with_their_shapes(
    other: nn.Module, shape: str
) -> None:
    model = Net(lambda m, x: m.a(x), a=Choice("block", {"one": conv(), "two": other}))
    refused(model, "choice 'block': 'one' gives 16×8×8 and 'two' gives " + shape)


def test_alternatives_with_unlinked_widths_are_refused() -> None:
    model = Net(lambda m, x: m.a(x), a=Choice("block", {"one": wide(8, 16), "two": wide(8, 16)}))
    refused(model, "choice 'block': 'one' and 'two'", "'a.one'", "'a.two'", hint="in both")


def test_a_label_that_is_given_twice_is_refused() -> None:
    two = {"one": conv(16, 16), "two": nn.Identity()}
    model = Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(), b=Choice("c", two), c=Choice("c", {
        "one": conv(16, 16), "two": nn.Identity()}))  # fmt: skip
    refused(model, "the label 'c' is given twice: 'b'", "'c'", hint="another label")
    model = Net(added, a=wide(8, 16, label="w"), b=wide(4, 16, label="w"))
    refused(model, "the label 'w' is given twice: 'a' has width (8, 16), 'b' has width (4, 16)")


def test_depths_of_different_shapes_are_refused() -> None:
    stack = nn.Sequential(conv(3, 8), conv(8, 16))
    model = Net(lambda m, x: m.a(x), a=Elastic(stack, depth=(1, 2)))
    refused(model, "'a': 1 modules give 8×8×8, all 2 give 16×8×8")


# -- modules -------------------------------------------------------------------------------------


def test_an_elastic_layer_that_is_never_called_is_refused() -> None:
    refused(Net(lambda m, x: m.a(x), a=wide(8, 16), b=wide(8, 16)), "'b' is never called")


def test_an_elastic_layer_inside_an_opaque_module_is_refused() -> None:
    model = Net(in_turn, a=wide(8, 16), b=Opaque(nn.Sequential(nn.ReLU(), wide(8, 16, n_in=16))))
    refused(model, "'a' (width 8, 16", "Opaque needs fixed sizes")
    model = Net(in_turn, a=conv(), b=Opaque(nn.Sequential(nn.ReLU(), wide(8, 16, n_in=16))))
    refused(model, "'b.1' is never called: 'b' is not looked into")


def test_a_layer_with_weights_in_two_places_is_refused() -> None:
    model = Net(lambda m, x: m.b(m.b(m.a(x))), a=wide(8, 16), b=conv(16, 16))
    refused(model, "'b' is used twice", hint="a layer of its own")
    shared = conv(16, 16)
    model = Net(lambda m, x: m.c(m.b(m.a(x))), a=wide(8, 16), b=shared, c=shared)
    refused(model, "is used twice")


def test_an_activation_may_be_used_in_many_places() -> None:
    model = Net(lambda m, x: m.r(m.b(m.r(m.a(x)))), a=wide(8, 16), b=conv(16, 16), r=nn.ReLU())
    assert len(space_of(model).decisions) == 1


def test_a_model_without_choices_is_refused() -> None:
    refused(Net(lambda m, x: m.a(x), a=conv()), "nothing to choose", hint="Elastic(layer")


def test_a_model_that_fails_by_itself_is_refused_with_the_place() -> None:
    refused(Net(in_turn, a=wide(8, 16), b=conv(8, 16)), "'b' in line", "given 16×8×8")


def test_an_output_that_is_no_list_of_scores_is_refused() -> None:
    refused(nn.Sequential(wide(8, 16)), "16×8×8 entries per image")

    class Two(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x), x  # type: ignore[return-value]

    refused(Two(lambda m, x: m.a(x), a=wide(8, 16)), "Two gives tuple")


def test_an_operator_that_cannot_be_recorded_is_named_with_its_part() -> None:
    model = Net(lambda m, x: torch.fft.fft(m.a(x)).abs(), a=wide(8, 16))
    with pytest.raises(UnsupportedOperatorError, match=r"fft.* in segment 'a'"):
        space_of(model)


# -- control flow --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flow",
    [lambda m, x: m.a(x) if x.sum() > 0 else -m.a(x),
     lambda m, x: m.a(x) if x.shape[2] > 4 else -m.a(x),
     lambda m, x: sum(m.a(x) for _ in range(int(x.mean())))],
    ids=["contents", "shape", "count"],
)  # fmt: skip
def test_what_depends_on_a_tensor_is_refused_with_its_line(flow: Body) -> None:
    refused(Net(flow, a=wide(8, 16)), "forward of Net", "line ", "test_refusals.py", hint="Opaque")


def test_other_operators_in_training_are_refused() -> None:
    model = Net(lambda m, x: m.a(x) * 2 if m.training else m.a(x), a=wide(8, 16))
    refused(model, "Net calls other operators in training", hint="nn.Dropout")


def test_drop_path_and_functional_dropout_are_followed() -> None:
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return x
            return x * (torch.rand(x.shape[0], 1, 1, 1) > 0.5)

    model = Net(lambda m, x: F.dropout(m.d(m.a(x)), 0.5, m.training), a=wide(8, 16), d=DropPath())
    space = space_of(model)
    supernet, x = space.supernet(), torch.ones(64, *SHAPE)
    with torch.no_grad():
        evaluated = supernet.eval()(x, space.probes[0])
        trained = supernet.train()(x, space.probes[0])
    assert (evaluated == evaluated[0]).all()
    assert not torch.allclose(trained, evaluated)
    assert not (trained == trained[0]).all()  # of 64 images not all lose their branch


def test_an_opaque_module_may_branch() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.shape[2] > 4 else x

    model = Net(lambda m, x: m.c(m.b(m.a(x))), a=wide(8, 16), b=conv(16, 16), c=Opaque(Branch()))
    space = space_of(model)
    assert space.positions()[-1][1] == ()


def test_a_tensor_that_forward_makes_is_refused_and_a_buffer_is_not() -> None:
    refused(
        Net(lambda m, x: m.a(x) + torch.ones(8), a=wide(8, 16)),
        "makes a tensor by itself",
        hint="register_buffer",
    )
    model = Net(lambda m, x: m.a((x - m.mean) / m.std), a=wide(8, 16))
    model.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
    model.std = nn.Parameter(torch.full((3, 1, 1), 2.0))
    space = space_of(model)
    supernet = space.supernet().eval()
    arch, x = space.probes[1], torch.randn(2, *SHAPE)
    torch.testing.assert_close(supernet(x, arch), supernet.model(x))


def test_a_model_with_two_inputs_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    refused(Pair(), "forward of Pair cannot be called with one tensor")


# -- costs ---------------------------------------------------------------------------------------


def test_a_part_that_couples_too_many_decisions_names_them_and_says_what_to_do() -> None:
    branches = nn.ModuleList(wide(2, 4, 8) for _ in range(9))
    model = Net(lambda m, x: torch.cat([b(x) for b in m.bs], 1), channels=72, bs=branches)
    refused(model, "9 decisions: bs.0.width (3), bs.1.width (3)", "19,683", hint="label=")


def test_the_same_part_with_linked_widths_is_tabulated() -> None:
    branches = nn.ModuleList(wide(2, 4, 8, label="all") for _ in range(9))
    model = Net(lambda m, x: torch.cat([b(x) for b in m.bs], 1), channels=72, bs=branches)
    assert space_of(model).cost_table().n_archs == 3


# -- marking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Elastic(nn.BatchNorm2d(8), width=(4, 8)), "BatchNorm2d) cannot have a width"),
        (lambda: Elastic(nn.Sequential(conv()), width=(8, 16)), "Sequential) cannot have a width"),
        (lambda: Elastic(nn.LSTM(4, 4), width=(2, 4)), "LSTM) cannot have a width"),
        (lambda: Elastic(nn.Linear(4, 8), kernel=(1, 3)), "Linear) has no kernel"),
        (lambda: Elastic(conv(), depth=(1, 2)), "Conv2d) has no depth"),
        (lambda: Elastic(conv()), "told nothing to vary"),
        (lambda: Elastic(conv(), width=(8, 12)), "largest width must be its number of outputs, 16"),
        (lambda: Elastic(conv(), width=(16,)), "two or more different whole numbers"),
        (lambda: Elastic(conv(), width=(16, 8)), "rising"),
        (lambda: Elastic(conv(), width=(0, 16)), "rising from 1 up"),
        (lambda: Elastic(conv(), width=(8.0, 16)), "whole numbers"),
        (lambda: Elastic(conv(), width="16"), "no list of whole numbers"),
        (lambda: Elastic(nn.Conv2d(3, 8, 4, padding=1), kernel=(2, 4)), "even sizes"),
        (lambda: Elastic(nn.Conv2d(3, 8, 5), kernel=(3, 5)), "padding=2 with zeros"),
        (lambda: Elastic(nn.Conv2d(3, 8, (3, 5)), kernel=(3, 5)), "not square"),
        (lambda: Elastic(conv(), kernel=(1, 3), label="k"), "label names a width or a depth"),
        (lambda: Elastic(conv(), width=(8, 16), label=""), "cannot be a label"),
        (lambda: Choice("b", {"only": conv()}), "two or more named modules"),
        (lambda: Choice("b", [conv(), conv()]), "dictionary"),
        (lambda: Choice("b", {"a.b": conv(), "c": conv()}), "'a.b' is no name"),
        (lambda: Choice("b", {"a": conv(), "c": None}), "'c' is of type NoneType"),
        (lambda: Choice(3, {"a": conv(), "c": conv()}), "3 cannot be a label"),
    ],
)
def test_marks_that_make_no_sense_are_refused_where_they_are_written(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(SpaceError) as caught:
        make()
    assert message in caught.value.message


def test_a_factory_that_makes_different_models_is_refused() -> None:
    widths = iter((16, 16, 32, 64))

    def make() -> nn.Module:
        n = next(widths)
        return nn.Sequential(
            Elastic(conv(3, n), width=(8, n)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(n, 10),
        )  # fmt: skip

    space = own_space(make, input_shape=SHAPE)
    space.supernet()
    with pytest.raises(SpaceError, match="makes another model each time"):
        space.supernet()
