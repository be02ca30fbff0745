"""Runs one module on the meta device and records every operator that it uses.

In inference mode a dispatch mode sees torch's operators as they were called (a convolution, a
batch norm, attention), before they are decomposed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latency_tables.errors import UnsupportedOperatorError
from latency_tables.graph import Graph
from pipeline.export.record_builder import GraphBuilder
from pipeline.export.record_ops import HANDLERS

_SAME_SHAPE = frozenset({"relu", "sigmoid", "silu", "gelu", "hardswish", "hardsigmoid"})


def _shaped_like_input(name: str, a: dict[str, Any]) -> Tensor | None:
    """The output of an operator that changes no shape, None for others.

    torch computes the shape in Python, through decompositions: half of the time of recording.
    """
    if name == "batch_norm":
        x, mean = a["input"], a["running_mean"]
        same = mean is not None and not a["training"] and mean.shape == x.shape[1:2]
    else:
        x, same = a.get("self"), name in _SAME_SHAPE
    return torch.empty_like(x) if same and isinstance(x, Tensor) else None


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operator to its handler; unknown ones are decomposed by torch or refused."""

    def __init__(self, builder: GraphBuilder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = builder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        name = schema.name.removeprefix("aten::")
        in_place = name.endswith("_")
        handler = HANDLERS.get(name) or HANDLERS.get(name.removesuffix("_"))
        if handler is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is NotImplemented:
                raise UnsupportedOperatorError(schema.name)
            return result
        arguments = {
            a.name: args[i] if i < len(args) else kwargs.get(a.name, a.default_value)
            for i, a in enumerate(schema.arguments)
        }
        if in_place and isinstance(args[0], Tensor) and self.builder.shares_memory(args[0]):
            raise UnsupportedOperatorError(f"{schema.name} on a tensor that has views")
        out = _shaped_like_input(name, arguments)
        if out is None:
            out = func(*args, **kwargs)
        handler(self.builder, arguments, out)
        return out


def record(module: nn.Module, input_shape: tuple[int, ...], *, own: bool = False) -> Graph:
    """Record a module that maps one float32 tensor to one tensor.

    Args:
        module: any module; its weights may live on the meta device. It is not changed.
        input_shape: shape of the input including the batch, for example (1, 3, 224, 224).
        own: the module is nobody else's and lives on the meta device, so it needs no copy.

    Raises:
        UnsupportedOperatorError: names the operator that Graph does not have.

    >>> record(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (1, 3, 8, 8)).nodes[0].op
    'Conv'
    """
    shadow, constants = (module.eval(), {}) if own else _on_meta(module)
    builder = GraphBuilder(shadow, constants)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator otherwise
    try:
        with torch.inference_mode():
            x = torch.empty(input_shape, device="meta")
            builder.set_input(x)
            with _Recording(builder):
                out = shadow(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if not isinstance(out, Tensor):
        raise UnsupportedOperatorError(f"an output of type {type(out).__name__}")
    return builder.finish(out)


def _on_meta(module: nn.Module) -> tuple[nn.Module, dict[str, NDArray[Any]]]:
    """A copy in eval mode on the meta device, and the values of integer buffers."""
    constants: dict[str, NDArray[Any]] = {}
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=False
        )
    for name, buffer in module.named_buffers():
        if not buffer.is_floating_point() and buffer.device.type != "meta":
            constants[name] = buffer.detach().cpu().numpy()
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo).eval(), constants
