"""The dictionary as a supernet: copies, codes, subnets, files."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from latency_tables.arch import Arch
from latency_tables.errors import CheckpointError, UsageError
from pipeline.kshot.dictionary import KShotSupernet
from pipeline.kshot.fresh import kshot_supernet
from pipeline.kshot.simplex_net import SimplexNet
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.scoring import Scorer, materialise
from pipeline.supernet.split import supernet_of_layout
from pipeline.supernet.weights import load_supernet, save_supernet
from tests.pipeline.training.toys import SHAPE, ToyStream, toy_space, toy_supernet

SPACES = (
    "nasbench201",
    "mobilenetv2_widths",
    "shufflenetv2_scales",
    *(pytest.param(n, marks=pytest.mark.long) for n in ("mobilenetv2", "bignas", "autoformer")),
)


def space_named(name: str) -> Space:
    size = 32 if name in ("bignas", "autoformer") else 8
    return load_space(name, preset="tiny", input_shape=(3, size, size), n_classes=4)


def learnt(supernet: KShotSupernet) -> KShotSupernet:
    """With codes that differ from one architecture to the next."""
    net = supernet.simplex_net
    assert net is not None
    drawn = SimplexNet(supernet.space.decisions, supernet.k, hidden=supernet.hidden, random=True)
    net.load_state_dict(drawn.state_dict())
    return supernet


def dictionary(space: Space, k: int = 3) -> KShotSupernet:
    supernet = kshot_supernet(space, toy_supernet(space), k)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return learnt(supernet)


def images_of(space: Space, n: int = 4) -> Tensor:
    return torch.randn((n, *space.input_shape), generator=torch.Generator().manual_seed(0))


def alone(supernet: KShotSupernet, index: int) -> Supernet:
    """A plain supernet with the weights of one copy."""
    plain = supernet.space.supernet()
    values = dict(supernet.copies[index].named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(values[name])
    return plain


@pytest.mark.parametrize("name", SPACES)
def test_one_hot_codes_give_the_supernets_of_the_dictionary(name: str) -> None:
    space = space_named(name)
    supernet = dictionary(space).train()
    arch, x = space.sample(np.random.default_rng(1)), images_of(space)
    for index, code in enumerate(torch.eye(3)):
        plain = alone(supernet, index).train()
        torch.manual_seed(0)  # dropout
        expected = plain(x, arch)
        torch.manual_seed(0)
        torch.testing.assert_close(supernet.run(x, arch, code), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_a_subnet_is_cut_out_with_weights_of_its_own_and_the_same_output(name: str) -> None:
    space = space_named(name)
    supernet = dictionary(space).eval()
    rng, x = np.random.default_rng(2), images_of(space)
    archs = [space.sample(rng) for _ in range(3)]
    networks = [materialise(space, arch, supernet).eval() for arch in archs]
    for arch, network in zip(archs, networks, strict=True):
        sized = torch.nn.functional.interpolate(x, space.input_shape_of(arch)[1:])
        with torch.no_grad():
            torch.testing.assert_close(network(sized), supernet(sized, arch), atol=1e-5, rtol=1e-5)
    assert supernet.code(archs[0]).sub(supernet.code(archs[1])).abs().max() > 0.01


@pytest.mark.parametrize("name", ["nasbench_macro", "mobilenetv2_widths", "nasbench201"])
def test_genes_that_change_nothing_do_not_change_the_code(name: str) -> None:
    space = space_named(name)
    supernet = dictionary(space)
    rng = np.random.default_rng(0)
    for _ in range(20):
        arch = space.sample(rng)
        assert supernet.code(arch).equal(supernet.code(space.canonical(arch)))


def gradients(supernet: Supernet, x: Tensor, arch: Arch) -> dict[str, Tensor]:
    supernet.zero_grad(set_to_none=True)
    supernet(x, arch).square().sum().backward()
    return {n: p.grad for n, p in supernet.named_parameters() if p.grad is not None}


def test_every_copy_gets_its_share_of_the_gradient_of_the_mixed_weights() -> None:
    space = toy_space()
    supernet = dictionary(space).double().train()
    arch = space.sample(np.random.default_rng(3))
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    code = supernet.code(arch)
    mixed = alone(supernet, 0).double().train()
    held = [dict(c.named_parameters()) for c in supernet.copies]
    with torch.no_grad():
        for name, parameter in mixed.named_parameters():
            parameter.copy_(sum(code[i] * held[i][name] for i in range(3)))  # type: ignore[arg-type]
    expected, found = gradients(mixed, x, arch), gradients(supernet, x, arch)
    assert len(found) == 3 * len(expected)
    for name, gradient in expected.items():
        for i in range(3):
            torch.testing.assert_close(found[f"copies.{i}.{name}"], code[i] * gradient)


def test_the_gradient_of_the_code_is_the_difference_quotient() -> None:
    space = toy_space()
    supernet = dictionary(space).double().train()
    arch = space.sample(np.random.default_rng(3))
    x = torch.randn(4, *SHAPE, dtype=torch.float64)

    def loss(code: Tensor) -> Tensor:
        return supernet.run(x, arch, code, fixed=True).square().sum()

    code = supernet.code(arch).requires_grad_()
    loss(code).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in supernet.parameters())
    assert code.grad is not None
    for i in range(3):
        away = torch.eye(3, dtype=torch.float64)[i] * 1e-6
        with torch.no_grad():
            quotient = (loss(code + away) - loss(code - away)) / 2e-6
        torch.testing.assert_close(code.grad[i], quotient, atol=1e-5, rtol=1e-3)


def test_operators_off_the_path_get_no_gradient_in_any_copy() -> None:
    space = toy_space()
    supernet = dictionary(space).train()
    arch = space.sample(np.random.default_rng(3))
    supernet(torch.randn(4, *SHAPE), arch).sum().backward()
    touched = {n for n, p in supernet.named_parameters() if p.grad is not None}
    used = set(map(id, supernet.subnet_parameters(arch)))
    assert touched == {n for n, p in supernet.named_parameters() if id(p) in used}
    assert len(touched) < len(supernet.weights()) / 2


def test_the_supernets_own_weights_are_back_after_a_pass_that_fails() -> None:
    space = toy_space()
    supernet = dictionary(space)
    before = [id(p) for p in supernet.parameters()]
    with pytest.raises(RuntimeError):
        supernet(torch.randn(4, 7, 8, 8), space.sample(np.random.default_rng(0)))
    assert [id(p) for p in supernet.parameters()] == before


def test_copies_are_independent_and_their_mixture_has_the_intended_variance() -> None:
    space = load_space("nasbench_macro", preset="half", input_shape=SHAPE, n_classes=4)
    plain = toy_supernet(space)
    wanted = {n: p.detach().clone() for n, p in plain.named_parameters()}
    supernet = kshot_supernet(space, plain, 4, seed=1)
    name = "blocks.head.fixed.0.weight"  # 640 × 128 weights
    copies = torch.stack([c.get_parameter(name).detach().flatten() for c in supernet.copies])
    torch.testing.assert_close(copies.mean(0), wanted[name].flatten(), atol=1e-6, rtol=1e-5)
    ratios = copies.std(1) / wanted[name].std()
    torch.testing.assert_close(ratios, torch.full((4,), 2.0), atol=0.03, rtol=0)
    assert (torch.corrcoef(copies) - torch.eye(4)).abs().max() < 0.02


def test_what_no_seed_changes_is_the_same_in_all_copies() -> None:
    space = toy_space()
    supernet = kshot_supernet(space, toy_supernet(space), 3)
    for copied in supernet.copies:
        norm = copied.get_parameter("blocks.stem.fixed.1.weight")
        assert norm.equal(torch.ones_like(norm))


def test_a_space_whose_first_weights_depend_on_no_seed_is_refused() -> None:
    space = toy_space()
    template = toy_supernet(space)

    class Constant:
        name, decisions, canonical = "constant", space.decisions, staticmethod(space.canonical)

        def supernet(self) -> Supernet:
            return copy.deepcopy(template)

    with pytest.raises(UsageError, match="constant starts from the same weights whatever the seed"):
        kshot_supernet(Constant(), toy_supernet(space), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("codes", ["fixed", "random"])
def test_codes_that_are_not_learnt_have_nothing_to_train(codes: str) -> None:
    space = toy_space()
    supernet = kshot_supernet(space, toy_supernet(space), 4, codes=codes)  # type: ignore[arg-type]
    assert {n for n, p in supernet.named_parameters() if p.requires_grad} == set(supernet.weights())
    rng = np.random.default_rng(0)
    found = torch.stack([supernet.code(space.sample(rng)) for _ in range(200)])
    torch.testing.assert_close(found.sum(1), torch.ones(200))
    if codes == "fixed":
        assert found.unique().tolist() == [0.25]
    else:
        assert found.std(0).min() > 0.05
        assert found.min() < 0.1 < 0.4 < found.max()


def test_codes_keep_their_number_format_under_autocast() -> None:
    space = toy_space()
    supernet = dictionary(space)
    arch = space.sample(np.random.default_rng(0))
    expected = supernet.code(arch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert supernet.code(arch).equal(expected)


@pytest.mark.parametrize("k", [1, 3])
def test_a_saved_dictionary_is_read_back_with_its_codes(tmp_path: Path, k: int) -> None:
    space = toy_space()
    supernet = dictionary(space) if k > 1 else kshot_supernet(space, toy_supernet(space), 1)
    save_supernet(space, supernet, tmp_path / "supernet.safetensors")
    state = torch.get_rng_state()
    read = load_supernet(space, tmp_path / "supernet.safetensors")
    assert torch.get_rng_state().equal(state)
    assert isinstance(read, KShotSupernet)
    assert (read.k, read.kind) == (k, "learned")
    arch, x = space.sample(np.random.default_rng(5)), torch.randn(2, *SHAPE)
    assert read.eval()(x, arch).equal(supernet.eval()(x, arch))


def test_a_layout_of_another_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match="k, codes \\(learned, fixed, random\\) and hidden"):
        supernet_of_layout(toy_space(), {"kshot": {"k": 2, "codes": "attention", "hidden": 8}})


@pytest.mark.parametrize("k", [0, 65])
def test_dictionaries_of_other_sizes_are_refused(k: int) -> None:
    with pytest.raises(UsageError, match="1 to 64 are allowed"):
        KShotSupernet(toy_space(), toy_supernet(toy_space()), k)


@pytest.mark.parametrize("policy", ["recalibrate", "batch", "tracked"])
def test_a_scorer_scores_every_subnet_with_its_own_mixture(policy: str) -> None:
    space = toy_space()
    supernet = dictionary(space)
    stream = ToyStream(batch_size=64)
    batches = [stream.batch(0)], [stream.batch(1)]
    scorer = Scorer(space, supernet, *batches, policy=policy)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(3)]
    for arch in [*archs, *archs]:  # the second time from pieces that are there already
        plain = copy.deepcopy(supernet.source_of(arch)).to_empty(device="cpu")
        plain.load_state_dict(_mixed(supernet, arch))
        alone = Scorer(space, plain, *batches, policy=policy)  # type: ignore[arg-type]
        found, expected = scorer.score(arch), alone.score(arch)
        assert found.accuracy == expected.accuracy
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def _mixed(supernet: KShotSupernet, arch: Arch) -> dict[str, Tensor]:
    """All tensors of a plain supernet under the code of one architecture."""
    code = supernet.code(arch)
    held = [dict(c.named_parameters()) for c in supernet.copies]
    tensors = dict(supernet.first.state_dict())
    for name in held[0]:
        tensors[name] = sum(c * h[name].detach() for c, h in zip(code, held, strict=True))  # type: ignore[assignment]
    return tensors


def test_a_subnet_is_exported_as_an_ordinary_network(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnxruntime")
    space = space_named("mobilenetv2_widths")
    supernet = dictionary(space).eval()
    arch, x = space.sample(np.random.default_rng(4)), images_of(space)
    network = space.network(arch)
    space.inherit(network, arch, supernet.source_of(arch))
    network.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), tmp_path / "net.onnx", dynamo=False, input_names=["x"])
        expected = supernet(x, arch)
    (found,) = onnx.InferenceSession(tmp_path / "net.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)
