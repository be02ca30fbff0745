"""Compile a supernet region by region with ``torch.compile``: opt-in, and never quietly eager.

A *region* is a largest module with weights that runs as a whole: a choice block, an elastic block,
a stem. The supernet itself is never compiled: every path would be a graph of its own, the limit of
graphs is passed within a few steps, and torch then falls back to eager without a word.

* Regions of equal structure share their graphs, because weights are inputs of a graph.
* A chain of choice blocks sees the same shapes in every step, so its graphs are static. Elastic
  blocks get shapes and sizes as symbols: one graph for all widths.
* A region is one graph. Where it would break in two, or needs more than :data:`GRAPHS` of them,
  training stops and names it.
* Modules are compiled in place. Names of weights, checkpoints and copies stay as they are, and
  when training ends the supernet is as it was before.

Results differ from those of eager training in the last bits, so a run keeps its setting.
"""

from __future__ import annotations

import sysconfig
import types
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from latency_tables.errors import TrainingError, UsageError
from pipeline.spaces.base import Supernet
from pipeline.spaces.chain import ChainSupernet

GRAPHS = 16
"""Graphs per structure: shapes, and the modes of training (with and without gates), of scoring and
of a teacher's pass."""

_CONTAINERS = (nn.ModuleDict, nn.ModuleList)
_WITHOUT = "train without it: --set train.compile=false"


def regions(supernet: nn.Module) -> dict[str, nn.Module]:
    """The modules that are compiled, by name: largest ones with weights and without containers.

    Whatever holds a ``ModuleDict`` or ``ModuleList`` somewhere below it holds alternatives or
    runs them by rules of its own, so it is looked into instead.

    >>> net = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "b": nn.Identity()})
    >>> list(regions(nn.Sequential(net)))
    ['0.a']
    """
    found: dict[str, nn.Module] = {}
    for name, child in supernet.named_children():
        if any(isinstance(module, _CONTAINERS) for module in child.modules()):
            found |= {f"{name}.{below}": module for below, module in regions(child).items()}
        elif next(child.parameters(), None) is not None:
            found[name] = child
    return found


@contextmanager
def compiled(supernet: Supernet, device: torch.device, backend: str = "inductor") -> Iterator[None]:
    """Run the regions of ``supernet`` compiled inside; graphs are made when they are first needed.

    Args:
        backend: what torch makes graphs into; others than the default are for tests.

    Raises:
        UsageError: this machine has nothing that compiles.
        TrainingError: a region needs too many graphs, or cannot be compiled at all.
    """
    if backend == "inductor":
        require_compiler(device)
    # on use: takes a second
    from torch._dynamo import config, exc

    dynamic = not any(_is_plain_chain(module) for module in supernet.modules())
    shared: dict[Hashable, Callable[..., Any]] = {}
    found = regions(supernet)
    for name, region in found.items():
        key = _structure(region)
        if key not in shared:
            run = _function_of_its_own(f"region_{len(shared)}")
            shared[key] = torch.compile(run, fullgraph=True, dynamic=dynamic, backend=backend)
        # what nn.Module.compile sets; a copy of the module does not take it along
        region._compiled_call_impl = _Region(name, region, shared[key])
    settings = {
        "recompile_limit": GRAPHS,
        "fail_on_recompile_limit_hit": True,
        "suppress_errors": False,
        "allow_unspec_int_on_nn_module": dynamic,
    }
    try:
        with config.patch(settings), warnings.catch_warnings():
            # torch looks at the gradients of a region's inputs and then warns of having done so
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            yield
    except exc.TorchDynamoException as error:  # of a graph of the backward pass
        raise _failed("the backward pass of a region", error) from error
    finally:
        for region in found.values():
            region._compiled_call_impl = None


class _Region:
    """Calls the graphs of one region, and names it where that fails."""

    def __init__(self, name: str, module: nn.Module, run: Callable[..., Any]) -> None:
        self.name, self.module, self.run = name, module, run

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        from torch._dynamo import exc

        try:
            return self.run(self.module, *inputs, **named)
        except exc.FailOnRecompileLimitHit as error:
            raise TrainingError(
                f"the region {self.name!r} of the supernet was compiled {GRAPHS} times and its "
                f"input still fits none of the graphs; torch would run it uncompiled from here on",
                hint=f"{_WITHOUT}, or with shapes that change less (batch size, resolution)",
            ) from error
        except exc.TorchDynamoException as error:
            raise _failed(f"the region {self.name!r}", error) from error


def require_compiler(device: torch.device) -> None:
    """Refuse, with the remedy, where graphs cannot be compiled.

    Raises:
        UsageError: no C++ compiler or no headers of Python; on a GPU no Triton.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device.type == "cuda":
        if not has_triton():
            raise UsageError(
                "train.compile = true needs Triton for this GPU, and it is not installed",
                hint=f"python -m pip install triton, or {_WITHOUT}",
            )
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UsageError(
            "train.compile = true needs a C++ compiler, and none was found",
            hint=f"apt-get install g++, or {_WITHOUT}",
        ) from error
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise UsageError(
            f"train.compile = true needs the headers of Python, and {header} does not exist",
            hint=f"apt-get install python3-dev, or {_WITHOUT}",
        )


def _is_plain_chain(module: nn.Module) -> bool:
    return type(module).forward is ChainSupernet.forward


def _run(module: nn.Module, *inputs: Any, **named: Any) -> Any:
    return module._call_impl(*inputs, **named)  # type: ignore[no-untyped-call]


def _function_of_its_own(name: str) -> Callable[..., Any]:
    """:func:`_run` with code of its own, because torch keeps and counts graphs by code."""
    code = _run.__code__.replace(co_name=name, co_qualname=name)
    return cast("Callable[..., Any]", types.FunctionType(code, _run.__globals__, name))


def _structure(module: nn.Module) -> Hashable:
    """Equal for modules that can share graphs; torch checks by itself whether they really can."""
    return type(module), repr(module), tuple(p.shape for p in module.parameters())


def _failed(what: str, error: Exception) -> TrainingError:
    (first, *_) = str(error).strip().splitlines() or [type(error).__name__]
    return TrainingError(f"{what} cannot be compiled: {first}", hint=_WITHOUT)
