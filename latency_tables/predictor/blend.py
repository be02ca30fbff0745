"""Several forms of predictor, and how much each of them has to say.

Every form predicts the training networks without having seen them; a form's share falls with the
size of these errors as the likelihood of Gaussian errors does (pseudo-Bayesian model averaging,
Geisser and Eddy 1979), so few networks average and many choose. The hierarchical table starts with
half of the belief, and stands alone unless the others make it clearly better, because only it is a
sum over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latency_tables.predictor import boosted, bottleneck, hierarchical, process
from latency_tables.predictor.boosted import Boosted
from latency_tables.predictor.bottleneck import Bottleneck
from latency_tables.predictor.features import PRIORS
from latency_tables.predictor.hierarchical import Linear, Scales
from latency_tables.predictor.problem import Problem, relative_errors
from latency_tables.predictor.process import Candidate, Process

Array = NDArray[np.float64]
Genes = NDArray[np.int64]
Fitted = Linear | Bottleneck | Process | Boosted
Form = Literal["table", "log table", "bottleneck", "process", "boosted"]
Progress = Callable[[int, int], None]

FORMS: tuple[Form, ...] = ("table", "log table", "bottleneck", "process", "boosted")
LEAST_SHARE = 0.05
"""Forms with a smaller share are dropped."""
BLEND_MUST_WIN_BY = 0.97
"""Forms are blended where that brings the table's error below this share: only sums add up."""
GOOD_ENOUGH = 1e-3
"""A table whose error is no larger needs nobody: no latency is measured better."""
PRIORS_MUST_WIN_BY = 0.95
"""Other devices are listened to where the table's error with them is below this share."""

_CLIP = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """What was chosen: the share of each form, and what each of them averages over.

    ``scales`` are the column scales that each form kept, ``kernels`` those of the process.
    ``priors`` names the devices that are listened to.
    """

    shares: Mapping[Form, float]
    scales: Mapping[Form, tuple[Scales, ...]]
    kernels: tuple[Candidate, ...] = ()
    priors: tuple[str, ...] = ()

    @property
    def additive(self) -> bool:
        """Whether predictions are sums over blocks."""
        return set(self.shares) == {"table"}


@dataclass(slots=True, kw_only=True)
class Blend:
    """Fitted forms and their shares; ``table`` is always there, whatever its share."""

    problem: Problem
    hyper: Hyper
    table: Linear
    forms: dict[Form, Fitted] = field(default_factory=dict)

    @property
    def left_out_ms(self) -> Array:
        """Predictions (N,) of training networks left out."""
        total: Array = sum(
            (share * self.forms[form].left_out_ms for form, share in self.hyper.shares.items()),
            start=np.zeros(len(self.table.left_out_ms)),
        )
        return total

    def predict_raw_ms(self, genes: Genes, columns: Array, table_ms: Array) -> Array:
        """Latencies (M,) before the floor of choice indices with raw columns (M, p).

        ``table_ms`` (M,) is what the table says of them.
        """
        total = np.zeros(len(genes))
        for form, share in self.hyper.shares.items():
            own = table_ms if form == "table" else self._one(form, genes, columns)
            total += share * own
        return total

    def _one(self, form: Form, genes: Genes, columns: Array) -> Array:
        fitted = self.forms[form]
        if isinstance(fitted, Linear):
            return fitted.predict_raw_ms(columns)
        if isinstance(fitted, Process):
            return fitted.predict_raw_ms(self.problem, columns)
        return fitted.predict_raw_ms(self.problem, genes, columns)


def choose(
    problem: Problem, forms: Sequence[Form] = FORMS, progress: Progress | None = None
) -> Blend:
    """Fit those of ``forms`` that apply, and weigh them; the table always takes part.

    ``progress`` is told how many forms of how many are fitted.
    """
    wanted = [f for f in FORMS if f == "table" or (f in forms and _applies(f, problem))]
    total = len(wanted)

    def step(done: int) -> None:
        if progress is not None:
            progress(done, total)

    problem, table = _with_helpful_priors(problem)
    fits: dict[Form, Fitted] = {}
    for done, form in enumerate(wanted):
        step(done)
        fits[form] = table if form == "table" else _fit(form, problem, table)
    step(total)
    shares = _shares(fits, problem.training.latency_ms)
    kernels: tuple[Candidate, ...] = ()
    scales: dict[Form, tuple[Scales, ...]] = {"table": table.kept}
    for form in shares:
        fitted = fits[form]
        if isinstance(fitted, Process):
            kernels = fitted.kept
        elif isinstance(fitted, Linear):
            scales[form] = fitted.kept
        elif isinstance(fitted, Bottleneck):
            scales[form] = fitted.rest.kept
    hyper = Hyper(
        shares=shares,
        scales=scales,
        kernels=kernels,
        priors=tuple(problem.features.priors),
    )
    return Blend(
        problem=problem,
        hyper=hyper,
        table=table,
        forms={form: fits[form] for form in shares},
    )


def solve(problem: Problem, hyper: Hyper) -> Blend:
    """Fit what ``hyper`` says, and nothing else: much faster than choosing again."""
    table = hierarchical.fit(problem, "latency", kept=hyper.scales["table"])
    forms: dict[Form, Fitted] = {}
    for form in hyper.shares:
        forms[form] = table if form == "table" else _fit(form, problem, table, hyper)
    return Blend(problem=problem, hyper=hyper, table=table, forms=forms)


def _applies(form: Form, problem: Problem) -> bool:
    if form == "bottleneck":
        return bottleneck.applies(problem.features)
    n = len(problem.training.genes)
    if form == "process":
        return n <= process.MAX_NETWORKS
    return form != "boosted" or n >= boosted.MIN_NETWORKS


def _fit(form: Form, problem: Problem, table: Linear, hyper: Hyper | None = None) -> Fitted:
    kept = None if hyper is None else hyper.scales.get(form)
    if form == "log table":
        return hierarchical.fit(problem, "log", kept=kept)
    if form == "bottleneck":
        return bottleneck.fit(problem, kept=kept)
    if form == "process":
        return process.fit(problem, table, kept=None if hyper is None else hyper.kernels)
    return boosted.fit(problem, table)


def _with_helpful_priors(problem: Problem) -> tuple[Problem, Linear]:
    """The problem without other devices, unless the table is clearly better with them."""
    if not problem.features.sizes[PRIORS]:
        return problem, hierarchical.fit(problem, "latency")
    alone = problem.without_priors()
    tables = [hierarchical.fit(one, "latency") for one in (alone, problem)]
    errors = _clipped([t.left_out_ms for t in tables], problem.training.latency_ms)
    if errors[1] < PRIORS_MUST_WIN_BY * errors[0]:
        return problem, tables[1]
    return alone, tables[0]


def _shares(forms: Mapping[Form, Fitted], latency_ms: Array) -> dict[Form, float]:
    errors = _clipped([fitted.left_out_ms for fitted in forms.values()], latency_ms)
    belief = np.full(len(forms), 0.5 / max(len(forms) - 1, 1))
    belief[list(forms).index("table")] = 0.5
    likelihood = np.log(belief) - 0.5 * len(latency_ms) * np.log(np.maximum(errors, 1e-9))
    share = np.exp(likelihood - likelihood.max())
    share /= share.sum()
    share[share < LEAST_SHARE] = 0.0
    share /= share.sum()
    left_out = [fitted.left_out_ms for fitted in forms.values()]
    blended = np.tensordot(share, np.stack(left_out), axes=1)
    alone, together = _clipped([forms["table"].left_out_ms, blended], latency_ms)
    if together > BLEND_MUST_WIN_BY * alone or alone <= GOOD_ENOUGH:
        return {"table": 1.0}
    return {form: float(s) for form, s in zip(forms, share, strict=True) if s > 0}


def _clipped(left_out_ms: list[Array], latency_ms: Array) -> Array:
    """Mean relative error of each, clipped at five medians of the first."""
    errors = [relative_errors(found, latency_ms) for found in left_out_ms]
    limit = max(_CLIP * float(np.median(errors[0])), 1e-9)
    return np.array([np.minimum(found, limit).mean() for found in errors])
