"""What is known of a tensor while a model is followed, and how a disagreement is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from latency_tables.errors import SpaceError
from pipeline.spaces.own_model import dims
from pipeline.spaces.own_model.dims import Atom, Dim, WidthConflictError
from pipeline.spaces.own_model.trace import site


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor (without numbers, at the largest sizes), its axes, and the layer that made it."""

    tensor: Tensor
    axes: tuple[Dim, ...]
    maker: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape at the largest."""
        return tuple(self.tensor.shape)


def shown(path: str) -> str:
    """A module's path without the names that Choice and Elastic put in."""
    steps = [s for s in path.split(".") if s not in ("branches", "module")]
    return ".".join(steps) or "the model"


def values_in(argument: Any) -> list[Value]:
    """All tensors of (nested) arguments, in order."""
    if isinstance(argument, Value):
        return [argument]
    if isinstance(argument, dict):
        argument = argument.values()
    elif not isinstance(argument, tuple | list):
        return []
    return [value for item in argument for value in values_in(item)]


def tensors_of(argument: Any) -> Any:
    """The same arguments with plain tensors."""
    if isinstance(argument, Value):
        return argument.tensor
    if isinstance(argument, dict):
        return {k: tensors_of(v) for k, v in argument.items()}
    if isinstance(argument, tuple | list) and not hasattr(argument, "_fields"):
        return type(argument)(tensors_of(item) for item in argument)
    return argument


def fixed_value(tensor: Tensor, maker: str, why: str) -> Value:
    """A tensor none of whose axes changes."""
    return Value(tensor=tensor, axes=tuple(dims.fixed(n, why) for n in tensor.shape), maker=maker)


class Ties:
    """Ties axes together, and says which two layers disagree where that cannot be."""

    def unify(self, node: fx.Node, a: Value, i: int, b: Value, j: int) -> None:
        """Axis i of ``a`` and axis j of ``b`` must be equal."""
        self.tie(node, a.axes[i], a.maker, b.axes[j], b.maker)

    def tie(self, node: fx.Node, a: Dim, maker_a: str, b: Dim, maker_b: str) -> None:
        """Two axes must be equal. Raises SpaceError naming both layers."""
        try:
            dims.unify(a, b)
        except WidthConflictError as error:
            one, other = _told(a, maker_a), _told(b, maker_b)
            raise SpaceError(
                f"{one} and {other} meet at {site(node)}, which needs equal widths",
                hint=_remedy(error),
            ) from None

    def fix(self, node: fx.Node, value: Value, axes: Iterable[int], why: str) -> None:
        """These axes of a value must never change. Raises SpaceError naming the elastic layer."""
        for axis in axes:
            self.fix_dim(node, value.axes[axis], value.maker, why)

    def fix_dim(self, node: fx.Node, dim: Dim, maker: str, why: str) -> None:
        """One axis must never change."""
        try:
            dims.fix(dim, f"{why} at {site(node)}")
        except WidthConflictError:
            raise SpaceError(
                f"{_told(dim, maker)} feeds {site(node)}, where {why}",
                hint="leave that layer's width fixed, or let the part in between be a layer of its "
                "own (Linear, Conv2d)",
            ) from None


def _told(dim: Dim, maker: str) -> str:
    """A layer and its width: ``'stem' (width 16, 24, 32)``."""
    atom = dims.elastic_atom(dim)
    size = dims.size_of(dims.resolve(dim))
    if atom is None:
        reasons = [p.atom.fixed for p in dims.resolve(dim) if p.atom.fixed]
        because = f": {reasons[0]}" if reasons and reasons[0] else ""
        return f"{maker!r} ({size} channels, fixed{because})"
    name = maker if maker in atom.layers else f"{atom.layers[0]}' by way of '{maker}"
    return f"'{name}' (width {', '.join(map(str, atom.options))}; label {atom.label!r})"


def _remedy(error: WidthConflictError) -> str:
    atoms: list[Atom] = [a for a in (error.first, error.second) if a is not None and a.label]
    if len({a.label for a in atoms}) == 2:
        if len({a.options for a in atoms}) == 1:
            return f"write label={atoms[0].label!r} in both, so that they have one width"
        return "give both the same widths and the same label=..., or make one of them plain"
    return "make the layer that sets the fixed width plain and adaptable, or the elastic one fixed"
