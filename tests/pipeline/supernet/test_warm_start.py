"""Warm starts: the function of the trained network is kept wherever the target has room for it."""

from __future__ import annotations

import doctest
import io
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from device_agents.inventory import read_inventory
from latency_tables.arch import Arch
from latency_tables.errors import CheckpointError
from pipeline.run.job import Job
from pipeline.run.progress import Reporter
from pipeline.run.stage import run_stages
from pipeline.run.stages.data import DATA
from pipeline.run.stages.train import TRAIN
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.layers import Head, conv_bn
from pipeline.spaces.mobile_blocks import IDENTITY, InvertedResidual
from pipeline.supernet.warm_start import read_weights, warm_start
from pipeline.supernet.warm_start.fitting import fitted_image_channels, fitted_kernel, pick
from pipeline.supernet.weights import save_supernet
from pipeline.training.config import TrainConfig

Write = Callable[[nn.Module, str], Path]
CLASSES = 5


def net(
    *, image: int = 3, stem: int = 8, stages: tuple[int, ...] = (8, 12), repeats: int = 2,
    expand: int = 4, extra: int = 0, kernel: int = 3, se: bool = False, features: int = 32,
    affine: bool = True, classes: int = CLASSES,
) -> nn.Sequential:  # fmt: skip
    """A small MobileNet; ``extra`` middle channels are added to every expanded block."""
    modules: list[nn.Module] = [
        nn.Sequential(*conv_bn(image, stem, 3, stride=2, affine=affine)),
        InvertedResidual(
            stem, None, 6, kernel=3, stride=1, residual=False, affine=affine
        ),
    ]  # fmt: skip
    c = 6
    for channels in stages:
        for depth in range(repeats):
            modules.append(
                InvertedResidual(
                    c, (min(c, channels) if depth else c) * expand + extra, channels,
                    kernel=kernel, stride=1 if depth else 2, residual=bool(depth), se=se,
                    affine=affine,
                )
            )  # fmt: skip
            c = channels
    modules.append(Head(c, features, classes, affine=affine))
    return nn.Sequential(*modules)


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, scales (some negative), shifts and statistics that differ in every channel."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, 0.3, 1, generator=generator)
                nn.init.normal_(module.bias, 0, 0.3, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0, 0.3, generator=generator)
    return network.eval()


def images(channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(9))


def same_function(one: nn.Module, other: nn.Module, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    with torch.inference_mode():
        torch.testing.assert_close(one.eval()(x), other.eval()(x), atol=1e-4, rtol=1e-4)


def blocks(network: nn.Module) -> Iterator[nn.Sequential]:
    """Bodies of the expanded inverted residuals without SE."""
    for module in network.modules():
        if isinstance(module, InvertedResidual) and len(module.body) == 8:
            yield module.body


def silence(norm: nn.Module, channels: list[int]) -> None:
    """Make channels that are always zero."""
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[channels] = 0
        norm.bias[channels] = 0


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a network's weights as a file of one kind."""

    def writer(network: nn.Module, kind: str = "pth") -> Path:
        path = tmp_path / f"trained.{kind}"
        if kind == "onnx":
            torch.onnx.export(network, (images(),), path, dynamo=False, do_constant_folding=True)
        elif kind == "safetensors":
            save_file({k: v for k, v in network.state_dict().items()}, path)
        else:
            torch.save(network.state_dict(), path)
        return path

    return writer


def wrapped(network: nn.Module) -> nn.Module:
    """The same network with other names, so that names are of no help."""
    return nn.Sequential(nn.Identity(), network)


# --- the same structure -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pth", "pt", "safetensors"])
def test_a_target_of_the_same_structure_gets_equal_outputs_to_the_last_bit(
    write: Write, kind: str
) -> None:
    source, target = trained(net(se=True)), net(se=True)
    report = warm_start(target, write(wrapped(source), kind))
    assert report.fresh == ()
    with torch.inference_mode():
        assert torch.equal(source(images()), target.eval()(images()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_onnx_file_with_folded_batch_norms_gives_the_same_function(write: Write) -> None:
    source, target = trained(net()), net()
    path = write(source, "onnx")
    assert all(layer.norm is None for layer in _layers(path))
    warm_start(target, path)
    same_function(source, target)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_onnx_file_with_batch_norms_keeps_them(tmp_path: Path) -> None:
    source, target = trained(net()), net()
    torch.onnx.export(
        source, (images(),), tmp_path / "a.onnx", dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    warm_start(target, tmp_path / "a.onnx")
    ours = [m for m in target.modules() if isinstance(m, nn.BatchNorm2d)]
    theirs = [m for m in source.modules() if isinstance(m, nn.BatchNorm2d)]
    same_function(source, target)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, theirs, strict=True))


def _layers(path: Path) -> list:
    pieces = read_weights(path).pieces
    return [layer for piece in pieces for layer in getattr(piece, "layers", (piece,))]


def test_layers_whose_names_say_no_order_are_put_in_order(tmp_path: Path) -> None:
    # the names of a widespread collection of models; a safetensors file sorts them
    source, target = trained(net()), net()
    names: dict[str, str] = {"0.0": "conv_stem", "0.1": "bn1", "6.0": "conv_head", "6.1": "bn2"}
    names |= {"6.5": "classifier", "1.body.0": "blocks.0.0.conv_dw", "1.body.1": "blocks.0.0.bn1"}
    names |= {"1.body.3": "blocks.0.0.conv_pw", "1.body.4": "blocks.0.0.bn2"}
    parts = {0: "conv_pw", 1: "bn1", 3: "conv_dw", 4: "bn2", 6: "conv_pwl", 7: "bn3"}
    for number in range(2, 6):
        place = f"blocks.{number // 2}.{number % 2}"
        names |= {f"{number}.body.{i}": f"{place}.{part}" for i, part in parts.items()}
    state = {
        f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v
        for k, v in source.state_dict().items()
    }
    save_file(state, tmp_path / "a.safetensors")
    assert warm_start(target, tmp_path / "a.safetensors").fresh == ()
    with torch.inference_mode():
        assert torch.equal(source(images()), target.eval()(images()))


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_inside_a_training_checkpoint_are_found(tmp_path: Path, key: str) -> None:
    source, target = trained(net()), net()
    torch.save({key: source.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    assert warm_start(target, tmp_path / "a.pth").fresh == ()


# --- other sizes ------------------------------------------------------------------------------


def test_pruning_channels_of_no_importance_changes_no_output(write: Write) -> None:
    source = trained(net(extra=6, stem=10, stages=(10, 12), features=40))
    target = net(stem=8, stages=(8, 12), features=32)
    generator = torch.Generator().manual_seed(1)

    def some(n: int, k: int) -> list[int]:
        return torch.randperm(n, generator=generator)[:k].tolist()

    for number, body in enumerate(blocks(source)):
        mid = body[3].out_channels
        keep = [*blocks(target)][number][3].out_channels
        silence(body[4], some(mid, mid - keep))
    with torch.no_grad():  # of the stem two channels are read by nobody, of stage 1 never written
        dead = some(10, 2)
        source[1].body[3].weight[:, dead] = 0
        for number in (2, 3):
            silence(source[number].body[7], [4, 9])
        source[6][5].weight[:, some(40, 8)] = 0
    warm_start(target, write(source))
    with torch.inference_mode():
        torch.testing.assert_close(source(images()), target.eval()(images()), rtol=1e-5, atol=1e-5)


def test_the_most_important_channels_are_kept_rather_than_the_first(write: Write) -> None:
    source, target = trained(net(extra=6)), net()
    body = next(blocks(source))
    mid = body[3].out_channels
    with torch.no_grad():
        body[6].weight[:, : mid - 24] *= 1e-3  # the first channels are the weak ones here
    warm_start(target, write(source))
    kept = next(blocks(target))[3].weight
    assert torch.equal(kept, body[3].weight[-24:])


@pytest.mark.parametrize(
    "larger",
    [
        {"extra": 8},
        {"stem": 16},
        {"stages": (12, 20)},
        {"features": 48, "classes": 5},
        {"repeats": 4},
        {"kernel": 7},
        {"se": True},
        {"extra": 8, "stem": 16, "stages": (12, 20), "repeats": 3, "kernel": 5, "se": True},
    ],
    ids=lambda given: "+".join(given),
)
def test_a_larger_target_computes_the_same_function(write: Write, larger: dict) -> None:
    source, target = trained(net()), net(**larger)
    warm_start(target, write(source))
    same_function(source, target)


@pytest.mark.parametrize("larger", [{"extra": 8}, {"stages": (12, 20)}, {"se": True}])
def test_what_a_larger_target_adds_can_learn(write: Write, larger: dict) -> None:
    target = net(**larger)
    warm_start(target, write(trained(net())))
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        target.train()(images()).square().mean().backward()
        optimizer.step()
    still = [n for n, p in target.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_smaller_kernel_is_the_centre_of_the_larger_one(write: Write) -> None:
    source, target = trained(net(kernel=5)), net(kernel=3)
    with torch.no_grad():
        for body in blocks(source):
            inner = body[3].weight[..., 1:4, 1:4].clone()
            body[3].weight.zero_()
            body[3].weight[..., 1:4, 1:4] = inner
    warm_start(target, write(source))
    same_function(source, target)


def test_kernels_are_cropped_and_padded_around_their_centre() -> None:
    kernel = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert fitted_kernel(kernel, 3)[0, 0].tolist() == [[6, 7, 8], [11, 12, 13], [16, 17, 18]]
    assert torch.equal(fitted_kernel(fitted_kernel(kernel, 9), 5), kernel)
    assert float(fitted_kernel(kernel, 9).sum()) == float(kernel.sum())


def test_a_grey_target_answers_as_the_source_does_for_grey_pictures(write: Write) -> None:
    source, target = trained(net(image=3)), net(image=1)
    warm_start(target, write(source))
    grey = images(1)
    with torch.inference_mode():
        torch.testing.assert_close(
            source(grey.expand(-1, 3, -1, -1)), target.eval()(grey), atol=1e-4, rtol=1e-4
        )


def test_a_colour_target_answers_as_its_grey_source_does_for_grey_pictures(write: Write) -> None:
    source, target = trained(net(image=1)), net(image=3)
    warm_start(target, write(wrapped(source)))
    grey = images(1)
    with torch.inference_mode():
        torch.testing.assert_close(
            source(grey), target.eval()(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
        )


def test_image_channels_that_mean_something_else_are_left_alone() -> None:
    assert fitted_image_channels(torch.ones(8, 4, 3, 3), 3) is None


def test_batch_norms_without_scale_take_it_into_their_statistics(write: Write) -> None:
    source, target = trained(net()), net(affine=False)
    body = next(blocks(source))
    with torch.no_grad():
        body[4].weight[:3] = 0  # constant channels
    warm_start(target, write(source))
    same_function(source, target)


def test_a_classifier_for_other_classes_stays_fresh(write: Write) -> None:
    target = net(classes=7)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    report = warm_start(target, write(wrapped(trained(net()))))
    assert report.fresh == ("6.5.weight", "6.5.bias")
    assert report.unused == ("1.6.5",)
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in report.fresh)
    assert "not matched: 6.5 (2); of the file not used: 1.6.5" in report.summary()


def test_a_shorter_target_takes_the_leading_stages_and_a_fresh_head(write: Write) -> None:
    target = net(stages=(8,))
    report = warm_start(target, write(trained(net())))
    assert {name.split(".")[0] for name in report.fresh} == {"4"}  # its head
    assert {name.split(".")[0] for name in report.unused} == {"4", "5", "6"}


def test_a_longer_target_keeps_fresh_weights_behind_the_source(write: Write) -> None:
    target = net(stages=(8, 12, 16))
    report = warm_start(target, write(trained(net())))
    assert {name.split(".")[0] for name in report.fresh} == {"6", "7", "8"}


# --- supernets --------------------------------------------------------------------------------


def space_of(name: str, **changes: object) -> Space:
    given = {"preset": "tiny", "input_shape": (3, 16, 16), "n_classes": CLASSES} | changes
    return load_space(name, **given)


def fresh(space: Space) -> Supernet:
    torch.manual_seed(5)
    return space.supernet().eval()


def arch_with(space: Space, operator: str, **genes: object) -> Arch:
    found = {
        d.label: genes.get(d.label, operator if operator in d.choices else d.choices[-1])
        for d in space.decisions
    }
    return Arch(found)


@pytest.mark.parametrize("operator", ["mb3_k3", "mb6_k3", "mb3_k7", "mb6_k5_se"])
def test_every_operator_of_a_position_starts_as_the_same_block(write: Write, operator: str) -> None:
    space = space_of("mobilenetv2")
    source = trained(space.network(arch_with(space, "mb3_k3")))
    supernet = fresh(space)
    warm_start(supernet, write(wrapped(source)))
    arch = arch_with(space, operator)
    same_function(source, lambda_module(lambda x: supernet(x, arch)))


def test_a_position_beyond_the_sources_depth_starts_as_an_identity(write: Write) -> None:
    space = space_of("mobilenetv2")
    source = net(stem=16, stages=(16, 24, 32, 48), repeats=1, expand=3, features=192)
    source[1] = InvertedResidual(16, None, 8, kernel=3, stride=1, residual=False, affine=True)
    source[2].body = InvertedResidual(
        8, 24, 16, kernel=3, stride=2, residual=False, affine=True
    ).body
    supernet = fresh(space)
    warm_start(supernet, write(trained(source)))
    plain = arch_with(space, IDENTITY, layer01="mb3_k3", layer03="mb3_k3", layer06="mb3_k3",
                      layer08="mb3_k3")  # fmt: skip
    full = arch_with(space, "mb6_k7_se", **{k: plain[k] for k in ("layer01", "layer03")})
    with torch.inference_mode():
        torch.testing.assert_close(supernet(images(), plain), supernet(images(), full),
                                   atol=1e-3, rtol=1e-3)  # fmt: skip


def test_leading_channels_of_an_elastic_supernet_are_the_most_important(write: Write) -> None:
    space = space_of("mobilenetv2_widths")
    source = trained(space.network(arch_with(space, "mb6_k3")))
    supernet = fresh(space)
    narrow = arch_with(space, "mb6_k3")
    narrow = narrow.replace(**{k: 0.6 for k in narrow if k.endswith("_width")})
    kept = {s.name: s.build() for s in space.segments(narrow)}
    generator = torch.Generator().manual_seed(3)
    for name, module in source.named_children():
        if name.startswith("layer"):  # only as many channels as the narrow one has do anything
            n, keep = module.body[3].out_channels, kept[name].body[3].out_channels
            silence(module.body[4], torch.randperm(n, generator=generator)[keep:].tolist())
    silence(source.mb1.body[4], [1, 3, 5, 7][: 16 - kept["mb1"].body[3].out_channels])
    with torch.no_grad():
        n, keep = source.stem[0].out_channels, kept["stem"][0].out_channels
        dead = torch.randperm(n, generator=generator)[keep:]
        source.mb1.body[3].weight[:, dead] = 0
        n, keep = source.head[0].out_channels, kept["head"][0].out_channels
        source.head[5].weight[:, torch.randperm(n, generator=generator)[keep:]] = 0
    warm_start(supernet, write(wrapped(source)))
    same_function(source, lambda_module(lambda x: supernet(x, narrow)))


@pytest.mark.parametrize("name", ["attentivenas", "bignas"])
def test_an_elastic_supernet_of_another_make_takes_whole_blocks(write: Write, name: str) -> None:
    supernet = fresh(space_of(name, input_shape=(3, 32, 32)))
    report = warm_start(supernet, write(wrapped(trained(net(repeats=1)))))
    layers = {n.rpartition(".")[0] for n in report.seeded}
    expected = {"stem.conv", "mb1_1.depthwise.conv", "mb2_1.expand.conv", "mb3_1.project.conv"}
    assert expected <= layers
    shortcuts = [p for n, p in supernet.named_parameters() if n.startswith("mb2_1.shortcut")]
    assert not any(p.any() for p in shortcuts)


def test_weights_that_would_read_across_a_left_out_stage_stay_fresh(write: Write) -> None:
    space = space_of("nasbench_macro")  # its first layers expand at once
    supernet = fresh(space)
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    report = warm_start(supernet, write(trained(net())))
    assert "blocks.layer1.mb3_k3.body.0.weight" in report.fresh
    assert "blocks.layer2.mb3_k3.body.0.weight" in report.seeded
    name = "blocks.layer1.mb3_k3.body.0.weight"
    assert torch.equal(supernet.state_dict()[name], before[name])


def test_picked_channels_stay_in_order_unless_the_target_is_elastic() -> None:
    importance = torch.tensor([1.0, 9.0, 1.0, 4.0])
    assert pick(importance, 3, elastic=False).tolist() == [0, 1, 3]
    assert pick(importance, 3, elastic=True).tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    "name", ["mobilenetv2", "mobilenetv2_widths", "shufflenetv2", "nasbench_macro"]
)
def test_an_earlier_run_of_the_same_space_is_copied_by_name(tmp_path: Path, name: str) -> None:
    space, other = space_of(name), space_of(name, n_classes=9)
    before = fresh(other)
    for tensor in before.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1)
    save_supernet(other, before, tmp_path / "supernet.safetensors")
    supernet = fresh(space)
    report = warm_start(supernet, tmp_path)
    assert {n.split(".")[1] for n in report.fresh} == {"head"}
    assert len(report.fresh) <= 2
    given, after = before.state_dict(), supernet.state_dict()
    assert all(torch.equal(after[n], given[n]) for n in report.seeded)


def test_a_supernet_of_another_size_serves_by_its_largest_operators(tmp_path: Path) -> None:
    small, large = space_of("mobilenetv2"), space_of("mobilenetv2", preset="paper")
    save_supernet(small, fresh(small), tmp_path / "supernet.safetensors")
    supernet = fresh(large)
    report = warm_start(supernet, tmp_path)
    assert "blocks.layer01.mb3_k3.body.0.weight" in report.seeded
    ours = supernet.get_submodule("blocks.stem.fixed.0").weight[:16]
    assert torch.equal(ours, fresh(small).get_submodule("blocks.stem.fixed.0").weight)


def lambda_module(forward: Callable[[Tensor], Tensor]) -> nn.Module:
    module = nn.Module()
    module.forward = forward  # type: ignore[method-assign]
    return module


# --- files that are no use --------------------------------------------------------------------


class Evil:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple:
        return (print, ("code of the file ran",))


def test_a_pickle_with_code_is_refused_and_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": Evil()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="Python objects, which are not loaded"):
        warm_start(net(), tmp_path / "a.pth")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pth", "safetensors", "onnx"])
@pytest.mark.parametrize("content", [b"", b"no weights at all" * 9])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"warm start: broken\.{kind}"):
        warm_start(net(), path)


def test_a_file_that_was_cut_off_is_named(write: Write) -> None:
    path = write(net(), "pth")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"trained\.pth"):
        warm_start(net(), path)


def test_a_missing_file_another_kind_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist"):
        warm_start(net(), tmp_path / "none.pth")
    (tmp_path / "a.pkl").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"'\.pkl'; allowed: \.safetensors"):
        warm_start(net(), tmp_path / "a.pkl")
    with pytest.raises(CheckpointError, match=r"holds no supernet\.safetensors"):
        warm_start(net(), tmp_path)


def test_values_that_are_not_finite_are_refused(write: Write) -> None:
    source = net()
    with torch.no_grad():
        source[0][0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"0\.0\.weight of trained\.pth"):
        warm_start(net(), write(source))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4)), "no inverted residual"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), "is part of no inverted residual"),
        (nn.Sequential(nn.LayerNorm(4)), "no weights of convolutions"),
    ],
)
def test_a_network_of_another_kind_is_refused_with_the_reason(
    write: Write, network: nn.Module, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        warm_start(net(), write(network))


@pytest.mark.parametrize("name", ["shufflenetv2", "nasbench201", "autoformer"])
def test_a_space_of_another_kind_says_that_only_its_own_runs_serve(write: Write, name: str) -> None:
    supernet = fresh(space_of(name))
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    with pytest.raises(CheckpointError, match="an earlier run in the same space"):
        warm_start(supernet, write(net()))
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())


# --- runs -------------------------------------------------------------------------------------


def run(folder: Path, path: Path, said: io.StringIO) -> None:
    (folder / "own.toml").write_text(
        '[data]\nname = "digits"\n[space]\nname = "nasbench_macro"\n'
        f'[train]\nsteps = 2\nbatch_size = 8\nwarm_start = "{path.name}"\nprecision = "fp32"\n'
        'channels_last = "off"\nthreads = 1\n'
    )
    job = Job.open(
        str(folder / "own.toml"),
        out=folder / "run",
        table_path=folder / "tables.sqlite",
        inventory=read_inventory(folder / "devices.toml", work_dir=folder / "work"),
        reporter=Reporter(Console(file=said, width=500, highlight=False)),
    )
    with job.working() as context:
        run_stages((DATA, TRAIN), context)


def test_a_run_starts_warm_and_depends_on_the_content_of_the_file(
    tmp_path: Path, write: Write
) -> None:
    (tmp_path / "devices.toml").write_text("")
    path, said = write(trained(net(image=1))), io.StringIO()
    run(tmp_path, path, said)
    assert "tensors from trained.pth" in said.getvalue()
    moved = path.rename(tmp_path / "elsewhere.pth")
    again = io.StringIO()
    run(tmp_path, moved, again)
    assert "train    up to date" in again.getvalue()
    torch.save(trained(net(image=1), seed=7).state_dict(), moved)
    changed = io.StringIO()
    run(tmp_path, moved, changed)
    assert "tensors from elsewhere.pth" in changed.getvalue()


# --- the guide --------------------------------------------------------------------------------


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guide = Path(__file__).parents[3] / "docs" / "warm_start.md"
    result = doctest.testfile(str(guide), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0
    (block,) = re.findall(r"```toml\n(.*?)```", guide.read_text(), re.DOTALL)
    assert TrainConfig.model_validate(tomllib.loads(block)["train"]).warm_start
