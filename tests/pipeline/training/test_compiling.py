from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import RunChangedError, TrainingError, UsageError
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.chain import ChainSupernet, Position
from pipeline.strategies.greedynas import greedynas
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.weights import load_supernet
from pipeline.training import compiling
from pipeline.training.compiling import compiled, regions, require_compiler
from tests.pipeline.training.toys import ToyStream, toy_config, toy_space, toy_supernet, toy_train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> Iterator[None]:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and count graphs as always, but run them as they are: compiling takes minutes."""

    def traced(supernet: Supernet, device: torch.device) -> object:
        return compiled(supernet, device, backend="eager")

    monkeypatch.setattr("pipeline.training.engine.compiled", traced)


def small_chain() -> ChainSupernet:
    """Three positions of equal structure with two alternatives each."""

    def build(choice: str, affine: bool) -> nn.Module:
        layer = nn.Linear(4, 4, bias=choice == "bias")
        return nn.Sequential(layer, nn.ReLU())

    position = partial(Position, choices=("bias", "plain"), key="layer", build=build)
    return ChainSupernet(tuple(position(name=f"layer{i}") for i in range(3)), affine=True)


def small_paths(supernet: ChainSupernet) -> list[Tensor]:
    """Outputs of all eight paths."""
    labels = [p.name for p in supernet.chain]
    every = itertools.product(("bias", "plain"), repeat=3)
    x = torch.linspace(-1, 1, 8).reshape(2, 4).requires_grad_()  # as for inner layers
    return [supernet(x, Arch(dict(zip(labels, path, strict=True)))) for path in every]


def elastic_space() -> Space:
    return load_space("autoformer", preset="micro", input_shape=(1, 8, 8), n_classes=4)


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def losses(space: Space, supernet: Supernet, n: int) -> list[Tensor]:
    """Losses of a few paths, each with its gradients, dropped again."""
    rng, found = np.random.default_rng(0), []
    for index in range(n):
        batch = ToyStream().batch(index)
        loss = F.cross_entropy(supernet(batch.images, space.sample(rng)), batch.labels)
        loss.backward()
        supernet.zero_grad()
        found.append(loss.detach())
    return found


def test_regions_are_choice_blocks_and_elastic_blocks_and_never_the_whole() -> None:
    chain = regions(toy_supernet(toy_space("shufflenetv2")))
    assert len(chain) == 10 * 4 + 2  # operators, stem, head
    assert {"blocks.block01.k3", "blocks.block10.xception"} <= chain.keys()
    elastic = regions(toy_supernet(elastic_space()))
    assert list(elastic) == ["patch_embed", "block01", "block02", "block03", "head"]


def test_an_operator_without_weights_is_no_region() -> None:
    supernet = toy_supernet(toy_space("nasbench_macro"))
    assert "blocks.layer2.identity" in dict(supernet.named_modules())
    assert "blocks.layer2.identity" not in regions(supernet)


def test_compiled_regions_compute_what_the_supernet_computes() -> None:
    supernet = small_chain()
    expected = small_paths(supernet)
    with compiled(supernet, CPU, backend="eager"):
        found = small_paths(supernet)
    assert graphs() > 0
    torch.testing.assert_close(found, expected)


def test_regions_of_equal_structure_share_their_graphs() -> None:
    supernet = small_chain()
    with compiled(supernet, CPU, backend="eager"):
        small_paths(supernet)
    assert len(regions(supernet)) == 6
    assert graphs() == 2


@pytest.mark.long
@pytest.mark.parametrize("name", ["nasbench_macro", "autoformer"])
def test_a_path_of_a_space_loses_the_same_compiled(name: str) -> None:
    space = elastic_space() if name == "autoformer" else toy_space(name)
    expected = losses(space, toy_supernet(space), 8)
    supernet = toy_supernet(space)
    with compiled(supernet, CPU, backend="eager"):
        found = losses(space, supernet, 8)
    assert graphs() > 0
    torch.testing.assert_close(found, expected)


@pytest.mark.long
def test_elastic_blocks_stop_asking_for_graphs() -> None:
    space = elastic_space()
    supernet = toy_supernet(space)
    with compiled(supernet, CPU, backend="eager"):
        losses(space, supernet, 40)
        settled = graphs()
        losses(space, supernet, 80)
    assert graphs() == settled


def test_names_of_weights_and_copies_know_nothing_of_graphs() -> None:
    supernet = toy_supernet(toy_space())
    names = list(supernet.state_dict())
    with compiled(supernet, CPU, backend="eager"):
        assert list(supernet.state_dict()) == names
        twin = copy.deepcopy(supernet)
        assert all(region._compiled_call_impl is None for region in regions(twin).values())
    assert all(region._compiled_call_impl is None for region in regions(supernet).values())


class Erratic(Supernet):
    """Depends on a number that torch takes for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Scaled()

    def forward(self, x: Tensor, arch: object) -> Tensor:
        y: Tensor = self.layer(x, str(arch))
        return y


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, text: str) -> Tensor:
        return x * self.weight + len(text)


def test_one_graph_too_many_stops_the_run_and_names_the_region() -> None:
    supernet, x = Erratic(), torch.ones(2)
    with compiled(supernet, CPU, backend="eager"):
        for n in range(compiling.GRAPHS):
            supernet(x, "a" * n)
        with pytest.raises(TrainingError, match=r"'layer' .* compiled 16 times .*compile=false"):
            supernet(x, "a" * compiling.GRAPHS)


class Breaking(Erratic):
    """Asks for the value of a tensor, which no single graph can do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = AsksForAValue()


class AsksForAValue(Scaled):
    def forward(self, x: Tensor, text: str) -> Tensor:
        return x * self.weight if bool(x.sum() > 0) else x


def test_a_region_that_is_no_single_graph_is_named() -> None:
    supernet = Breaking()
    with (
        compiled(supernet, CPU, backend="eager"),
        pytest.raises(TrainingError, match=r"'layer' cannot be compiled: .*compile=false"),
    ):
        supernet(torch.ones(2), "")


def test_without_a_compiler_the_remedy_is_named() -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(UsageError, match=r"C\+\+ compiler.*apt-get install g\+\+"),
    ):
        require_compiler(CPU)


def test_without_the_headers_of_python_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UsageError, match=r"Python\.h does not exist.*python3-dev"):
        require_compiler(CPU)


@pytest.mark.usefixtures("quick")
def test_a_run_that_was_compiled_is_read_uncompiled(tmp_path: Path) -> None:
    space = toy_space()
    result = toy_train(tmp_path / "a", space=space, config=toy_config(compile=True))
    eager = toy_train(tmp_path / "b", space=space)
    read = load_supernet(space, result.weights_path)
    assert read.state_dict().keys() == load_supernet(space, eager.weights_path).state_dict().keys()
    batches = [ToyStream().batch(0)]
    arch = space.sample(np.random.default_rng(0))
    assert Scorer(space, read, batches, batches).score(arch).n_images == 16


def test_a_run_goes_on_with_the_setting_it_began_with(tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, on_progress=stop)
    with pytest.raises(RunChangedError, match="compile: False then, True now"):
        toy_train(tmp_path, config=toy_config(compile=True))


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_scoring_passes_of_a_strategy_run_compiled(tmp_path: Path) -> None:
    space = toy_space("nasbench_macro")
    supernet = toy_supernet(space)
    options = {"drawn": 3, "trained": 1, "scoring_images": 16}
    strategy = greedynas(space=space, supernet=supernet, seed=0, options=options)
    config = toy_config(compile=True, strategy="greedynas")
    result = toy_train(tmp_path, space=space, supernet=supernet, strategy=strategy, config=config)
    assert result.final_loss is not None
    assert graphs() > 0


@pytest.mark.long
@pytest.mark.parametrize("name", ["nasbench_macro", "autoformer"])
def test_generated_code_trains_like_eager_code(tmp_path: Path, name: str) -> None:
    space = elastic_space() if name == "autoformer" else toy_space(name)
    # two steps: later ones magnify the last bits, as they do for any other order of summation
    found = toy_train(tmp_path / "a", space=space, config=toy_config(steps=2, compile=True))
    expected = toy_train(tmp_path / "b", space=space, config=toy_config(steps=2))
    assert graphs() > 0
    assert found.final_loss == pytest.approx(expected.final_loss, rel=1e-3)
