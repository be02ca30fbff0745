"""The latency model as JSON: its training networks and what was chosen; solving repeats it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import CostTable
from latency_tables.errors import CorruptTableError, ForeignTableError, HilnasError
from latency_tables.fields import Fields
from latency_tables.predictor.blend import FORMS, Form, Hyper
from latency_tables.predictor.features import N_GROUPS, Features
from latency_tables.predictor.hierarchical import Scales
from latency_tables.predictor.problem import Problem, Training
from latency_tables.predictor.process import KINDS, Candidate, Kernel

SCHEMA = 2


def to_dict(problem: Problem, hyper: Hyper) -> dict[str, Any]:
    """A JSON-ready dictionary of a fitted model."""
    features, training = problem.features, problem.training
    return {
        "schema": SCHEMA,
        "cost_table_hash": features.table.table_hash,
        "stages": {name: list(names) for name, names in features.stages.items()},
        "priors": {name: prior.to_dict() for name, prior in features.priors.items()},
        "forms": [
            {"form": form, "share": share, "scales": _listed(hyper.scales.get(form, ()))}
            for form, share in hyper.shares.items()
        ],
        "table": _listed(hyper.scales["table"]),
        "kernels": [{"scales": list(scales), **asdict(kernel)} for scales, kernel in hyper.kernels],
        "genes": training.genes.tolist(),
        "latency_ms": training.latency_ms.tolist(),
        "groups": training.groups.tolist(),
    }


def from_dict(data: object, cost_table: CostTable, *, least: int) -> tuple[Problem, Hyper]:
    """Read what :func:`to_dict` wrote; ``least`` networks are expected.

    Raises ForeignTableError for another cost table, CorruptTableError naming the field.
    """
    fields = Fields(data, "latency model")
    fields.schema(SCHEMA)
    require_table(fields.text("cost_table_hash"), cost_table)
    training = _training(fields, cost_table, least)
    stages = fields.object("stages")
    priors = {n: CostTable.from_dict(prior) for n, prior in fields.object("priors").items()}
    hyper = _hyper(fields, tuple(priors))
    fields.end()
    try:
        problem = Problem(features=Features(cost_table, stages, priors), training=training)
    except (HilnasError, TypeError) as error:
        raise CorruptTableError(f"latency model: stages or priors: {error}") from None
    return problem, hyper


def require_table(fitted_hash: str, given: CostTable) -> None:
    """Raise ForeignTableError unless a model was fitted on this cost table."""
    if fitted_hash != given.table_hash:
        raise ForeignTableError(
            f"the latency model belongs to cost table {fitted_hash[:12]}, "
            f"not to {given.table_hash[:12]}",
            hint="hilnas tables build FILE",
        )


def _training(fields: Fields, cost_table: CostTable, least: int) -> Training:
    training = Training(
        genes=_numbers(fields, "genes", kinds="iu").astype(np.int64),
        latency_ms=_numbers(fields, "latency_ms", kinds="iuf").astype(np.float64),
        groups=_numbers(fields, "groups", kinds="iu").astype(np.int64),
    )
    n = len(training.latency_ms)
    sizes = np.array([len(d.choices) for d in cost_table.decisions])
    fits = (
        len(np.unique(training.groups)) >= least
        and training.genes.shape == (n, len(sizes))
        and training.groups.shape == training.latency_ms.shape == (n,)
        and bool((training.genes >= 0).all() and (training.genes < sizes).all())
        and bool(np.isfinite(training.latency_ms).all() and (training.latency_ms > 0).all())
    )
    if not fits:
        raise CorruptTableError("latency model: training data do not fit together")
    return training


def _numbers(fields: Fields, name: str, *, kinds: str) -> NDArray[np.generic]:
    try:
        found: NDArray[np.generic] = np.array(fields.items(name))
    except ValueError as error:  # rows of different lengths
        raise CorruptTableError(f"latency model: field {name!r}: {error}") from None
    if found.dtype.kind not in kinds:
        raise CorruptTableError(f"latency model: field {name!r} holds {found.dtype}, not numbers")
    return found


def _hyper(fields: Fields, priors: tuple[str, ...]) -> Hyper:
    shares: dict[Form, float] = {}
    scales: dict[Form, tuple[Scales, ...]] = {"table": _scales(fields.items("table"))}
    for entry in fields.items("forms"):
        each = Fields(entry, "latency model, forms")
        form = cast(Form, each.one_of("form", FORMS))
        if form in shares:
            raise CorruptTableError(f"latency model: form {form!r} is there twice")
        shares[form] = each.number("share")
        if listed := each.items("scales"):
            scales[form] = _scales(listed)
        each.end()
    kernels: list[Candidate] = []
    for entry in fields.items("kernels"):
        each = Fields(entry, "latency model, kernels")
        kernel = Kernel(
            kind=cast(Any, each.one_of("kind", KINDS)),
            scale=each.number("scale"),
            length=each.number("length"),
        )
        (scale,) = _scales([each.items("scales")])
        kernels.append((scale, kernel))
        each.end()
    whole = bool(shares) and bool(scales["table"])
    whole = whole and all(share > 0 for share in shares.values())
    whole = whole and abs(sum(shares.values()) - 1.0) < 1e-6
    whole = whole and ("process" not in shares or bool(kernels))
    if not whole or not all(k.length > 0 and k.scale > 0 for _, k in kernels):
        raise CorruptTableError("latency model: forms, scales or kernels are missing")
    return Hyper(shares=shares, scales=scales, kernels=tuple(kernels), priors=priors)


def _listed(scales: tuple[Scales, ...]) -> list[list[float]]:
    return [list(one) for one in scales]


def _scales(listed: object) -> tuple[Scales, ...]:
    try:
        array: NDArray[np.float64] = np.array(listed, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CorruptTableError(f"latency model: scales are no numbers: {error}") from None
    if array.ndim != 2 or array.shape[1] != N_GROUPS:
        raise CorruptTableError(
            f"latency model: scales have shape {array.shape}; expected (n, {N_GROUPS})"
        )
    if not np.isfinite(array).all() or (array < 0).any():
        raise CorruptTableError("latency model: scales must be numbers that are not negative")
    return tuple(tuple(float(s) for s in row) for row in array)
