"""Sizes of tensor axes that depend on decisions, and which of them must be equal.

The size of an axis is a sum of parts; a part is a whole multiple (or, for the blocks of grouped
convolutions and of heads, a fraction) of an *atom*: the number of outputs of one layer, or a number
that never changes. Layers whose outputs are added share an atom, after a concatenation an axis has
the parts of both operands, after flattening (C, H, W) a part counts H · W entries per channel.

An atom is *labelled* (a decision sets it), *fixed*, or free until something ties it to another;
free ones that nothing ties keep their full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

BATCH = "the batch"
"""Why the first axis is fixed: what meets it is the number of images as well."""


class WidthConflictError(Exception):
    """Two sizes cannot be made equal; the caller knows where and says so."""

    def __init__(self, first: Atom | None, second: Atom | None) -> None:
        super().__init__("widths disagree")
        self.first, self.second = first, second


@dataclass(eq=False, slots=True, kw_only=True)
class Atom:
    """A number of channels. ``size`` is the largest; ``bound`` is what it was found to equal."""

    size: int
    label: str | None = None
    options: tuple[int, ...] = ()
    fixed: str = ""
    layers: list[str] = field(default_factory=list)
    bound: tuple[Part, ...] | None = None

    @property
    def free(self) -> bool:
        """Whether it can still be tied to another."""
        return self.label is None and not self.fixed


@dataclass(frozen=True, slots=True)
class Part:
    """``unit`` entries per channel of ``atom``."""

    atom: Atom
    unit: Fraction = Fraction(1)

    @property
    def size(self) -> int:
        """Entries when the atom is at its largest."""
        return int(self.atom.size * self.unit)

    def active(self, arch: Mapping[str, Any]) -> int:
        """Entries in an architecture."""
        label = self.atom.label
        return int((self.atom.size if label is None else int(arch[label])) * self.unit)


Dim = tuple[Part, ...]


def fixed(size: int, why: str) -> Dim:
    """An axis that never changes."""
    return (Part(Atom(size=size, fixed=why)),)


def free(size: int, layer: str) -> Dim:
    """The outputs of a layer that nothing constrains yet."""
    return (Part(Atom(size=size, layers=[layer])),)


def resolve(dim: Dim) -> Dim:
    """The parts after all that was found out so far."""
    if all(part.atom.bound is None for part in dim):
        return dim
    return tuple(found for part in dim for found in _resolved(part))


def _resolved(part: Part) -> Iterator[Part]:
    if part.atom.bound is None:
        yield part
        return
    for inner in resolve(part.atom.bound):
        yield Part(inner.atom, inner.unit * part.unit)


def size_of(dim: Dim) -> int:
    """Entries at the largest."""
    return sum(part.size for part in dim)


def active_of(dim: Dim, arch: Mapping[str, Any]) -> int:
    """Entries in an architecture."""
    return sum(part.active(arch) for part in resolve(dim))


def labels_of(dim: Dim) -> list[str]:
    """Decisions on which the size depends."""
    return [part.atom.label for part in resolve(dim) if part.atom.label is not None]


def elastic_atom(dim: Dim) -> Atom | None:
    """The first labelled atom, if any."""
    return next((p.atom for p in resolve(dim) if p.atom.label is not None), None)


def scaled(dim: Dim, factor: Fraction | int) -> Dim:
    """Every channel stands for ``factor`` entries that lie side by side."""
    return tuple(Part(part.atom, part.unit * factor) for part in resolve(dim))


def ranges(dim: Dim, arch: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(start, length) of the active entries: the leading ones of every part, merged."""
    found: list[tuple[int, int]] = []
    start = 0
    for part in resolve(dim):
        length = part.active(arch)
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
        start += part.size
    return found


def broken_options(dim: Dim) -> list[int]:
    """Widths for which some part would not be a whole number of entries, one or more."""
    return [
        option
        for part in resolve(dim)
        for option in part.atom.options
        if (option * part.unit).denominator != 1 or option * part.unit < 1
    ]


def fix(dim: Dim, why: str) -> None:
    """Demand that the size never changes. Raises WidthConflictError where a decision sets it."""
    for part in resolve(dim):
        if part.atom.label is not None:
            raise WidthConflictError(part.atom, None)
        part.atom.fixed = part.atom.fixed or why


def unify(first: Dim, second: Dim) -> None:
    """Demand that two axes have the same active entries in every architecture.

    Raises:
        WidthConflictError: they cannot.
    """
    a, b = list(resolve(first)), list(resolve(second))
    while a and b:
        if a[0].size == b[0].size:
            _tie(a.pop(0), b.pop(0))
        elif a[0].size < b[0].size:
            _absorb(b.pop(0), a)
        else:
            _absorb(a.pop(0), b)
        a, b = list(resolve(tuple(a))), list(resolve(tuple(b)))
    if a or b:
        raise WidthConflictError(elastic_atom(first), elastic_atom(second))


def _tie(x: Part, y: Part) -> None:
    """Two parts of equal size."""
    if x.atom is y.atom and x.unit == y.unit:
        return
    if x.atom.fixed and y.atom.fixed:
        for one, other in ((x, y), (y, x)):
            if (
                one.atom.fixed == BATCH
                and other.atom.fixed != BATCH
                and one.unit == other.unit == 1
            ):
                other.atom.bound = (one,)
        return
    small, large = sorted((x, y), key=lambda part: part.unit)
    for one, other in ((small, large), (large, small)):  # whole multiples where possible
        if one.atom.free and other.atom is not one.atom:
            one.atom.bound = (Part(other.atom, other.unit / one.unit),)
            other.atom.layers.extend(one.atom.layers)
            return
    if x.atom.free or y.atom.free or (x.atom.label is None and y.atom.label is None):
        fix((x, y), "it meets itself in another shape")
        return
    raise WidthConflictError(x.atom, y.atom)


def _absorb(large: Part, small: list[Part]) -> None:
    """``large`` must be the sum of the first of ``small``, which are taken away."""
    taken: list[Part] = []
    while small and sum(p.size for p in taken) < large.size:
        taken.append(small.pop(0))
    fits = sum(p.size for p in taken) == large.size
    if (
        fits
        and large.atom.free
        and large.unit == 1
        and all(p.atom is not large.atom for p in taken)
    ):
        large.atom.bound = tuple(taken)
        return
    atoms = [large.atom, *(p.atom for p in taken)]
    elastic = [atom for atom in atoms if atom.label is not None]
    if not fits or elastic:
        raise WidthConflictError(elastic[0] if elastic else large.atom, large.atom)
    for atom in atoms:
        atom.fixed = atom.fixed or "parts of it meet other layers"
