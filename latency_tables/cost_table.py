"""Costs of every architecture of a space, as a list of small tables.

A :class:`CostTable` holds *factors*. A factor looks at a few decisions (its scope) and gives one
value per *column* (MACs, parameters, activation bytes, …); the cost of an architecture is the sum
of its factors, or the largest of them for columns such as the peak of activation memory. A chain of
blocks has one factor per block with a scope of one decision; couplings (the width of the previous
stage, a global depth) are factors with more labels; a fully tabulated space is one factor.

Everything that needs costs reads this table and never records a network: feasibility of limits,
filtering before any evaluation, the exact sampler, features of the latency model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latency_tables.arch import Arch, Choice, Decision, check_arch
from latency_tables.elimination import Scope, optimise
from latency_tables.errors import CorruptTableError, HilnasError, InvalidArchError, SpaceError
from latency_tables.files import sha256_json

Reduce = Literal["sum", "max"]
Array = NDArray[np.float64]
Genes = NDArray[np.int64]

SCHEMA = 1

PEAK_MEMORY = "peak_memory_bytes"
"""Derived column: all weights (a sum) plus the peak of the activations (a maximum)."""
PEAK_PARTS = ("weight_bytes", "activation_peak_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One kind of cost. ``reduce`` says how the factors combine."""

    name: str
    unit: str
    reduce: Reduce = "sum"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factor:
    """Costs that depend on the decisions ``labels`` only.

    ``values`` is float64 of shape (*number of choices of each label, n_columns); a factor without
    labels is a constant.
    """

    name: str
    labels: tuple[str, ...]
    values: Array


class CostTable:
    """Exact costs of every architecture of a space.

    >>> table = CostTable(
    ...     decisions=[Decision(label="block", choices=("k3", "k5"))],
    ...     columns=[Column(name="macs", unit="MAC")],
    ...     factors=[
    ...         Factor(name="stem", labels=(), values=np.array([10.0])),
    ...         Factor(name="block", labels=("block",), values=np.array([[1.0], [2.0]])),
    ...     ],
    ... )
    >>> table.cost(Arch({"block": "k5"}), "macs"), table.minimum("macs")
    (12.0, (11.0, Arch({'block': 'k3'})))

    Raises:
        SpaceError: labels, shapes or names do not fit together; the message names the factor.
    """

    def __init__(
        self,
        decisions: Iterable[Decision],
        columns: Iterable[Column],
        factors: Iterable[Factor],
    ) -> None:
        self.decisions = tuple(decisions)
        self.columns = tuple(columns)
        self._sizes = {d.label: len(d.choices) for d in self.decisions}
        self._column_index = {c.name: i for i, c in enumerate(self.columns)}
        if len(self._sizes) != len(self.decisions):
            raise SpaceError("a cost table names a decision twice")
        if len(self._column_index) != len(self.columns):
            raise SpaceError("a cost table names a column twice")
        for column in self.columns:
            if column.reduce not in ("sum", "max"):
                raise SpaceError(f"column {column.name!r} reduces by {column.reduce!r}; sum or max")
        self.factors = tuple(self._checked(f) for f in factors)
        axes = {label: axis for axis, label in enumerate(self._sizes)}
        self._axes = [np.array([axes[x] for x in f.labels], dtype=np.intp) for f in self.factors]
        self._flat = [f.values.reshape(-1, len(self.columns)) for f in self.factors]
        self._index: dict[str, dict[Choice, int]] = {
            d.label: {c: i for i, c in enumerate(d.choices)} for d in self.decisions
        }

    def _checked(self, factor: Factor) -> Factor:
        unknown = [label for label in factor.labels if label not in self._sizes]
        if unknown or len(set(factor.labels)) != len(factor.labels):
            raise SpaceError(
                f"factor {factor.name!r} has the scope {factor.labels}; every label must be one "
                f"of the decisions, once"
            )
        values = np.array(factor.values, dtype=np.float64)
        expected = (*(self._sizes[label] for label in factor.labels), len(self.columns))
        if values.shape != expected:
            raise SpaceError(
                f"factor {factor.name!r} has values of shape {values.shape}; expected {expected} "
                "(choices of each label, columns)"
            )
        if not np.isfinite(values).all():
            raise SpaceError(f"factor {factor.name!r} holds a value that is not finite")
        values.flags.writeable = False
        return Factor(name=factor.name, labels=tuple(factor.labels), values=values)

    def __repr__(self) -> str:
        return (
            f"CostTable({len(self.decisions)} decisions, {len(self.factors)} factors, "
            f"columns {', '.join(c.name for c in self.columns)})"
        )

    @property
    def n_archs(self) -> int:
        """Number of genomes."""
        return math.prod(self._sizes.values())

    def column_names(self) -> tuple[str, ...]:
        """Every name that :meth:`cost` takes, derived ones last."""
        derived = (PEAK_MEMORY,) if self._has_peak() else ()
        return (*self._column_index, *derived)

    # -- looking up ------------------------------------------------------------------------------

    def genes(self, archs: Iterable[Mapping[str, Choice]]) -> Genes:
        """Choice indices of shape (N, n_decisions). Raises InvalidArchError."""
        rows = []
        for arch in archs:
            try:
                rows.append([index[arch[label]] for label, index in self._index.items()])
            except KeyError:
                check_arch(self.decisions, arch)
                raise
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.decisions))

    def arch(self, genes: Sequence[int] | Genes) -> Arch:
        """The architecture with these choice indices (n_decisions,)."""
        return Arch.from_genes(self.decisions, [int(g) for g in genes])

    def _checked_genes(self, genes: ArrayLike) -> Genes:
        array = np.asarray(genes)
        if array.ndim != 2 or array.shape[1] != len(self.decisions):
            raise InvalidArchError(
                f"genes have shape {array.shape}; expected (N, {len(self.decisions)})"
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise InvalidArchError(f"genes are choice indices (integers), not {array.dtype}")
        sizes = np.array(list(self._sizes.values()), dtype=np.int64)
        if array.size and ((array < 0) | (array >= sizes)).any():
            row, axis = np.argwhere((array < 0) | (array >= sizes))[0]
            raise InvalidArchError(
                f"gene {array[row, axis]} of {self.decisions[axis].label!r} is outside "
                f"0..{sizes[axis] - 1}"
            )
        return array.astype(np.int64, copy=False)

    def factor_values(self, genes: ArrayLike) -> Array:
        """What each factor adds: (N, n_decisions) → (N, n_factors, n_columns)."""
        return self._gathered(genes, list(range(len(self.columns))))

    def _gathered(self, genes: ArrayLike, columns: list[int]) -> Array:
        """Some columns of every factor: (N, n_decisions) → (N, n_factors, len(columns))."""
        array = self._checked_genes(genes)
        out = np.empty((len(array), len(self.factors), len(columns)))
        for i, (factor, axes, flat) in enumerate(
            zip(self.factors, self._axes, self._flat, strict=True)
        ):
            if not len(axes):
                out[:, i] = flat[0, columns]
                continue
            rows = array[:, axes[0]]
            if len(axes) > 1:
                indices = tuple(array[:, axis] for axis in axes)
                rows = np.ravel_multi_index(indices, factor.values.shape[:-1])
            out[:, i] = flat[rows[:, None], columns]
        return out

    def batch(self, genes: ArrayLike) -> Array:
        """Costs (N, n_columns) of N architectures given as choice indices."""
        return self._reduced(genes, list(range(len(self.columns))))

    def _reduced(self, genes: ArrayLike, columns: list[int]) -> Array:
        parts = self._gathered(genes, columns)
        costs: Array = parts.sum(axis=1)
        for i, column in enumerate(columns):
            if self.columns[column].reduce == "max" and self.factors:
                costs[:, i] = parts[:, :, i].max(axis=1)
        return costs

    def column(self, name: str, genes: ArrayLike) -> Array:
        """One cost, derived ones included, of N architectures: (N, n_decisions) → (N,)."""
        parts: tuple[str, ...] = (name,)
        if name == PEAK_MEMORY and name not in self._column_index and self._has_peak():
            parts = PEAK_PARTS
        total: Array = self._reduced(genes, [self._position(part) for part in parts]).sum(axis=1)
        return total

    def cost(self, arch: Mapping[str, Choice], column: str) -> float:
        """One cost of one architecture."""
        return float(self.column(column, self.genes([arch]))[0])

    def costs(self, arch: Mapping[str, Choice]) -> dict[str, float]:
        """Every cost of one architecture, derived ones included."""
        values = self.batch(self.genes([arch]))[0]
        costs = {name: float(values[i]) for name, i in self._column_index.items()}
        if self._has_peak() and PEAK_MEMORY not in costs:
            costs[PEAK_MEMORY] = sum(costs[part] for part in PEAK_PARTS)
        return costs

    # -- over the whole space ---------------------------------------------------------------------

    def minimum(self, column: str) -> tuple[float, Arch]:
        """Smallest cost in the space, exactly, and an architecture that has it.

        Raises TableTooWideError where factors couple too many decisions.
        """
        return self._extreme(column, "min")

    def maximum(self, column: str) -> tuple[float, Arch]:
        """Largest cost in the space, exactly, and an architecture that has it."""
        return self._extreme(column, "max")

    def mean(self, column: str) -> float:
        """Mean cost over all genomes, each equally likely (columns that add up only)."""
        index = self._position(column)
        if self.columns[index].reduce != "sum":
            raise SpaceError(f"column {column!r} does not add up, so its mean needs a sampler")
        return float(sum(f.values[..., index].mean() for f in self.factors))

    def scoped(self, column: str) -> list[tuple[Scope, Array]]:
        """(labels, values) of every factor for one column."""
        index = self._position(column)
        return [(f.labels, f.values[..., index]) for f in self.factors]

    def _extreme(self, column: str, goal: Literal["min", "max"]) -> tuple[float, Arch]:
        if column == PEAK_MEMORY and column not in self._column_index and self._has_peak():
            value, genes = self._peak_extreme(goal)
        else:
            reduce = self.columns[self._position(column)].reduce
            value, genes = optimise(self.scoped(column), self._sizes, goal=goal, combine=reduce)
        return value, self.arch(list(genes.values()))

    def _peak_extreme(self, goal: Literal["min", "max"]) -> tuple[float, dict[str, int]]:
        """Extreme of sum + maximum, by one elimination per candidate for the maximum."""
        sums, peaks = (self.scoped(part) for part in PEAK_PARTS)
        found: list[tuple[float, dict[str, int]]] = []
        if goal == "max":
            # max over archs of (sum + max over factors) = max over factors of (sum + that factor)
            for i, (_, peak) in enumerate(peaks):
                raised = [(s, v + peak if i == j else v) for j, (s, v) in enumerate(sums)]
                found.append(optimise(raised, self._sizes, goal="max"))
            return max(found, key=lambda entry: entry[0])
        for ceiling in np.unique(np.concatenate([peak.ravel() for _, peak in peaks])):
            capped = [
                (scope, np.where(peak <= ceiling, values, np.inf))
                for (scope, values), (_, peak) in zip(sums, peaks, strict=True)
            ]
            weight, genes = optimise(capped, self._sizes, goal="min")
            found.append((weight + float(ceiling), genes))
        return min(found, key=lambda entry: entry[0])

    # -- other tables -----------------------------------------------------------------------------

    def with_column(
        self, name: str, unit: str, values: Sequence[ArrayLike], *, reduce: Reduce = "sum"
    ) -> CostTable:
        """A table with one more column (or a replaced one).

        ``values`` holds one array per factor, of shape (*choices of each label).
        """
        if len(values) != len(self.factors):
            raise SpaceError(f"{len(values)} value arrays given for {len(self.factors)} factors")
        kept = [i for i, c in enumerate(self.columns) if c.name != name]
        factors = []
        for factor, extra in zip(self.factors, values, strict=True):
            new = np.asarray(extra, dtype=np.float64)
            if new.shape != factor.values.shape[:-1]:
                raise SpaceError(
                    f"column {name!r}, factor {factor.name!r}: values of shape {new.shape}; "
                    f"expected {factor.values.shape[:-1]}"
                )
            joined = np.concatenate([factor.values[..., kept], new[..., None]], axis=-1)
            factors.append(Factor(name=factor.name, labels=factor.labels, values=joined))
        columns = [*(self.columns[i] for i in kept), Column(name=name, unit=unit, reduce=reduce)]
        return CostTable(self.decisions, columns, factors)

    def given(self, label: str, choice: Choice) -> CostTable:
        """The table of the architectures that take ``choice``: ``label`` has that choice alone.

        Raises:
            InvalidArchError: no such choice.
        """
        decision = next((d for d in self.decisions if d.label == label), None)
        if decision is None:
            raise SpaceError(f"no decision is called {label!r}; there are {', '.join(self._sizes)}")
        index = decision.index(choice)
        decisions = [
            Decision(label=label, choices=(choice,)) if d is decision else d for d in self.decisions
        ]
        factors = [
            replace(f, values=f.values.take([index], axis=f.labels.index(label)))
            if label in f.labels
            else f
            for f in self.factors
        ]
        return CostTable(decisions, self.columns, factors)

    @cached_property
    def table_hash(self) -> str:
        """Content hash: equal tables hash equally on any machine."""
        return sha256_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; see :meth:`from_dict`."""
        return {
            "schema": SCHEMA,
            "decisions": [{"label": d.label, "choices": list(d.choices)} for d in self.decisions],
            "columns": [{"name": c.name, "unit": c.unit, "reduce": c.reduce} for c in self.columns],
            "factors": [
                {"name": f.name, "labels": list(f.labels), "values": f.values.tolist()}
                for f in self.factors
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CostTable:
        """Read what :meth:`to_dict` gave. Raises CorruptTableError."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise CorruptTableError(f"a cost table must have schema {SCHEMA}")
        try:
            return cls(
                [
                    Decision(label=d["label"], choices=tuple(d["choices"]))
                    for d in data["decisions"]
                ],
                [Column(**c) for c in data["columns"]],
                [
                    Factor(
                        name=f["name"],
                        labels=tuple(f["labels"]),
                        values=np.array(f["values"], dtype=np.float64),
                    )
                    for f in data["factors"]
                ],
            )
        except (KeyError, TypeError, ValueError, HilnasError) as error:
            raise CorruptTableError(f"a cost table cannot be read: {error}") from None

    # -- helpers ----------------------------------------------------------------------------------

    def _has_peak(self) -> bool:
        return all(part in self._column_index for part in PEAK_PARTS)

    def _position(self, column: str) -> int:
        try:
            return self._column_index[column]
        except KeyError:
            known = ", ".join(self.column_names())
            raise SpaceError(f"the cost table has no column {column!r}; known: {known}") from None
