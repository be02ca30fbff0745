"""What must hold of a model as a whole, once all of it was followed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator

from torch import nn

from latency_tables.errors import SpaceError
from pipeline.spaces.own_model import dims
from pipeline.spaces.own_model.dims import Dim
from pipeline.spaces.own_model.layers import Choice, Elastic, Opaque
from pipeline.spaces.own_model.pieces import Body, Branches, Layer, Weight
from pipeline.spaces.own_model.values import shown


def check_all_called(model: nn.Module, seen: Container[int]) -> None:
    """Raise SpaceError for a marked module that ``forward`` never calls; ``seen`` holds ids."""
    for path, module in model.named_modules():
        if isinstance(module, Choice | Elastic) and id(module) not in seen:
            inside = _opaque_above(model, path)
            raise SpaceError(
                f"{shown(path)!r} is never called"
                + (f": {inside!r} is not looked into" if inside else " by forward"),
                hint="call it, or take it out of the model",
            )


def check_sizes(body: Body) -> None:
    """Raise SpaceError unless every size is a whole number, and groups divide it, always."""
    for item in _all_items(body):
        if isinstance(item, Weight):
            for axis in item.axes:
                _check_whole(axis, shown(item.path))
            continue
        for size in item.attributes.values():
            for dim in size if size and isinstance(size[0], tuple) else (size,):
                _check_whole(dim, item.name)  # type: ignore[arg-type]
        for dim, divisor in item.checks:
            bad = [n for n in _possible(dim) if n % divisor]
            if bad:
                raise SpaceError(
                    f"{divisor} groups of {item.name!r} do not divide {bad[0]} channels "
                    f"({', '.join(dims.labels_of(dim))})",
                    hint=f"use widths that are multiples of {divisor}",
                )


def _opaque_above(model: nn.Module, path: str) -> str:
    steps = path.split(".")
    above = (".".join(steps[:n]) for n in range(1, len(steps)))
    found = [p for p in above if isinstance(model.get_submodule(p), Opaque)]
    return shown(found[0]) if found else ""


def _all_items(body: Body) -> Iterator[Layer | Weight]:
    for item in body.items.values():
        if isinstance(item, Layer | Weight):
            yield item
        else:
            inner = item.bodies.values() if isinstance(item, Branches) else item.bodies
            for one in inner:
                yield from _all_items(one)


def _check_whole(dim: Dim | None, name: str) -> None:
    for option in dims.broken_options(dim or ()):
        atom = dims.elastic_atom(dim or ())
        label = atom.label if atom else ""
        raise SpaceError(
            f"{name!r} would get a part of a channel group for {label} = {option}",
            hint=f"use widths of {label} that the groups or heads of {name!r} divide",
        )


def _possible(dim: Dim) -> Iterator[int]:
    """Sizes of an axis over all options."""
    atoms = {p.atom.label: p.atom for p in dims.resolve(dim) if p.atom.label}
    if math.prod(len(a.options) for a in atoms.values()) > 100_000:
        return
    for options in itertools.product(*(a.options for a in atoms.values())):
        yield dims.active_of(dim, dict(zip(atoms, options, strict=True)))
