"""``hilnas generate``: what is asked for, in numbers, and what can be asked for at all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from latency_tables.errors import LimitBelowFastestError, LimitError, UsageError
from pipeline.search.limits import Limit, Metric

if TYPE_CHECKING:
    from latency_tables.cost_table import CostTable
    from pipeline.generator.file import LoadedGenerator

MAX_SWEEP = 200
"""More networks than this are a slip of the keyboard."""

_AMOUNT = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*([kMG]?)\s*")
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_WORDS = {"latency_ms": "fastest", "macs": "cheapest", "params": "smallest"}


def parse_amount(text: str) -> float:
    """A positive number, with k, M or G behind it where it is large.

    >>> parse_amount("300M"), parse_amount("5"), parse_amount("1.5e6")
    (300000000.0, 5.0, 1500000.0)

    Raises:
        UsageError: it is none.
    """
    match = _AMOUNT.fullmatch(text)
    value = float(match[1]) * _FACTORS[match[2]] if match else math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{text!r} is not a positive number such as 5, 2.5e6 or 300M")
    return value


def parse_sweep(text: str) -> tuple[float, ...]:
    """The limits of ``FROM:TO:STEP``, both ends among them.

    >>> parse_sweep("3:4.5:0.5")
    (3.0, 3.5, 4.0, 4.5)
    >>> parse_sweep("1M:2M:500k")
    (1000000.0, 1500000.0, 2000000.0)

    Raises:
        UsageError: it is not of that form, runs backwards, or names too many limits.
    """
    parts = text.split(":")
    if len(parts) != 3:
        raise UsageError(f"a sweep is FROM:TO:STEP, not {text!r}", hint="--sweep 3:12:0.5")
    first, last, step = (parse_amount(part) for part in parts)
    if first > last:
        raise UsageError(
            f"a sweep goes upwards, not from {first:g} to {last:g}",
            hint=f"--sweep {parts[1]}:{parts[0]}:{parts[2]}",
        )
    n = math.floor((last - first) / step + 1e-9) + 1
    if n > MAX_SWEEP:
        raise UsageError(f"the sweep {text!r} names {n:,} limits; {MAX_SWEEP} are allowed")
    # rounded, for 3 + 6 · 0.1 is no limit that anybody meant
    return tuple(float(f"{first + i * step:.12g}") for i in range(n))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One network that is asked for.

    ``limits`` come as they were given; ``leading`` is the one of them that the network should come
    close to, the others it just has to keep.

    >>> limit = Limit(metric="latency_ms", bound=5.0, device="rpi")
    >>> ask = Ask(limits=(limit,), leading=limit)
    >>> ask.name, ask.latency_bound, ask.tightened(4.5).leading.bound
    ('5ms-rpi', 5.0, 4.5)
    """

    limits: tuple[Limit, ...]
    leading: Limit

    @property
    def further(self) -> tuple[Limit, ...]:
        """All but the leading one."""
        return tuple(limit for limit in self.limits if limit is not self.leading)

    @property
    def latency_bound(self) -> float | None:
        """The limit on latency in ms; None where there is none."""
        return next((x.bound for x in self.limits if x.metric == "latency_ms"), None)

    @property
    def name(self) -> str:
        """Name of a folder for it."""
        return folder_name(self.limits)

    def tightened(self, latency_ms: float) -> Ask:
        """The same with another limit on latency."""
        lower = tuple(_with_latency(limit, latency_ms) for limit in self.limits)
        return Ask(limits=lower, leading=lower[self.limits.index(self.leading)])


def folder_name(limits: Sequence[Limit]) -> str:
    """Name of a folder for a network of these limits."""
    return "-".join(_named(limit) for limit in limits)


def _with_latency(limit: Limit, latency_ms: float) -> Limit:
    return replace(limit, bound=latency_ms) if limit.metric == "latency_ms" else limit


def _named(limit: Limit) -> str:
    if limit.metric == "latency_ms":
        return f"{limit.bound:.6g}ms-{limit.device}"
    return f"{_short(limit.bound)}-{limit.metric}"


def _short(amount: float) -> str:
    for letter, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= factor:
            return f"{amount / factor:.6g}{letter}"
    return f"{amount:.6g}"


def make_ask(
    limits: Sequence[Limit], generator: LoadedGenerator, share: Callable[[Limit], float]
) -> Ask:
    """Choose the leading limit: the one that the fewest networks keep.

    Args:
        limits: one or more.
        generator: of equal limits, that on its own cost leads.
        share: of all networks, those that keep a limit (0 … 1).
    """
    if len(limits) == 1:
        return Ask(limits=tuple(limits), leading=limits[0])
    leading = min(limits, key=lambda limit: (share(limit), not knows(generator, limit)))
    return Ask(limits=tuple(limits), leading=leading)


def knows(generator: LoadedGenerator, limit: Limit) -> bool:
    """Whether the limit is on the very cost of the generator's levels."""
    return generator.column == limit.metric and generator.device == (
        limit.device if limit.metric == "latency_ms" else None
    )


def require_possible(
    limit: Limit, table: CostTable, generator: LoadedGenerator, space: str
) -> None:
    """Refuse a limit that no network keeps; names the ranges of the space and of the levels.

    Raises:
        LimitBelowFastestError: it is below the cheapest network.
    """
    low = table.minimum(limit.metric)[0]
    if limit.bound < low:
        raise LimitBelowFastestError(
            f"limit {limit} is below the {_WORDS[limit.metric]} network: "
            f"{ranges(limit, table, generator, space)}",
            hint=f"a limit of {limit.show(_three_digits(low, math.ceil))} or more",
        )


def require_some_dearer(
    limit: Limit, table: CostTable, generator: LoadedGenerator, space: str
) -> None:
    """Refuse a leading limit that every network keeps; names the ranges.

    Raises:
        LimitError: it is above the dearest network.
    """
    high = table.maximum(limit.metric)[0]
    if limit.bound > high:
        raise LimitError(
            f"limit {limit} is above the dearest network, so that every one keeps it: "
            f"{ranges(limit, table, generator, space)}",
            hint=f"a limit of {limit.show(_three_digits(high, math.floor))} or less",
        )


def ranges(limit: Limit, table: CostTable, generator: LoadedGenerator, space: str) -> str:
    """From where to where networks and levels reach, for messages."""
    low, high = (limit.show(f(limit.metric)[0]) for f in (table.minimum, table.maximum))
    by = f" on {limit.device}, by its table" if limit.metric == "latency_ms" else ""
    return (
        f"the networks of {space} reach from {low} to {high}{by}; the generator's levels from "
        f"{levels_range(generator)}"
    )


def levels_range(generator: LoadedGenerator) -> str:
    """From which cost to which the generator has learned."""
    low, high = (amount(generator, generator.targets[end]) for end in (0, -1))
    return f"{low} to {high}{f' on {generator.device}' if generator.device else ''}"


def amount(generator: LoadedGenerator, value: float) -> str:
    """A value of the generator's cost with its unit."""
    known = {metric: metric for metric in get_args(Metric)}
    if generator.column in known:
        return Limit(metric=known[generator.column], bound=1.0).show(value)
    return f"{value:,.6g} {generator.unit}"


def _three_digits(value: float, rounded: Callable[[float], float]) -> float:
    """``value`` with three digits, ``rounded`` so that a hint is a limit that is not refused."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return rounded(value / step) * step
