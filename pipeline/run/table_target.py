"""How far a table is extended: ``--more 50``, or ``--until 'mape<4%'``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from latency_tables.errors import UsageError

if TYPE_CHECKING:
    from latency_tables import Diagnostics

ErrorMetric = Literal["mape", "within5", "within10"]

FORMS = "mape<4%, mape<0.04, within5>80% or within10>95%"

LEAST = 10
"""Fewer networks than this, which ``latency.samples`` refuses, too, tell no error."""

AT_MOST = 300
"""Networks per device that ``--until`` goes to unless told otherwise."""

_FORM = re.compile(
    r"\s*(mape|within_?5|within_?10)\s*(<=|>=|<|>)\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorTarget:
    """A bound on one error of networks that a model was not fitted on; shares are 0 … 1."""

    metric: ErrorMetric
    bound: float

    def value(self, found: Diagnostics) -> float:
        """The figure that is asked about."""
        if self.metric == "mape":
            return found.loo_mape
        return found.within_5 if self.metric == "within5" else found.within_10

    def reached(self, found: Diagnostics) -> bool:
        """Whether a model is good enough."""
        value = self.value(found)
        return value < self.bound if self.metric == "mape" else value > self.bound

    def __str__(self) -> str:
        name = "MAPE below" if self.metric == "mape" else f"{_SHARES[self.metric]} above"
        return f"{name} {self.bound * 100:.4g} %"

    def said(self, found: Diagnostics) -> str:
        """The figure that was reached, as a person reads it."""
        value = f"{self.value(found) * 100:.3g} %"
        return f"MAPE {value}" if self.metric == "mape" else f"{_SHARES[self.metric]} {value}"


_SHARES = {"within5": "networks within 5 %:", "within10": "networks within 10 %:"}


def parse_target(text: str) -> ErrorTarget:
    """Read a target. Raises UsageError naming the forms that exist.

    >>> parse_target("mape<4%"), str(parse_target("within10 > 0.95"))
    (ErrorTarget(metric='mape', bound=0.04), 'networks within 10 %: above 95 %')
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"--until {text!r} is not a target", hint=f"--until with {FORMS}")
    name, sign, number, percent = match.groups()
    metric = name.lower().replace("_", "")
    if (metric == "mape") != sign.startswith("<"):
        better = "smaller" if metric == "mape" else "larger"
        raise UsageError(
            f"--until {text!r}: {metric} is better the {better} it is",
            hint=f"--until with {FORMS}",
        )
    bound = float(number) / (100 if percent else 1)
    if not 0 < bound < 1:
        raise UsageError(
            f"--until {text!r} means {bound * 100:.4g} %; must lie between 0 and 100 %",
            hint=f"--until with {FORMS}",
        )
    return ErrorTarget(metric=metric, bound=bound)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What to measure beyond ``latency.samples``: ``more`` networks, or until an error is small.

    Raises:
        UsageError: both, or a number below one.
    """

    more: int | None = None
    until: ErrorTarget | None = None
    at_most: int = AT_MOST

    def __post_init__(self) -> None:
        if self.more is not None and self.until is not None:
            raise UsageError("--more and --until exclude each other", hint="--until alone")
        if (self.more is not None and self.more < 1) or self.at_most < LEAST:
            raise UsageError(
                f"--more takes at least 1 network and --at-most {LEAST}, "
                f"not {self.more} and {self.at_most}"
            )

    def __bool__(self) -> bool:
        return self.more is not None or self.until is not None
