"""Screening and scoring of candidates.

*Screening* is cheap: costs from the cost table, latencies from each device's oracle, limits held
against both. *Scoring* is dear: the accuracy with inherited weights, asked only for what passed
the screening and only once per (canonical architecture, supernet, batch-norm policy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from latency_tables.arch import Arch, Decision
from latency_tables.errors import DeviceError, MissingLatencyError
from latency_tables.estimate import Estimate
from pipeline.search.config import RankBy
from pipeline.search.evaluation import Candidate, Score, Scored
from pipeline.search.limits import Limit, cost_values, latency_limits, violations_by_cost

if TYPE_CHECKING:
    from latency_tables.cost_table import CostTable

Latencies = Sequence[Estimate | DeviceError]
LatencySource = Callable[[Sequence[Arch]], Latencies]
"""Latencies of several architectures on one device, in the order asked. An architecture that the
device could not time gives the error, whose ``blames`` says whether it is to blame itself."""

UNTIMED_VIOLATION = 1e6
"""Violation of a subnet that crashed a device: behind every subnet that is merely too slow."""

_ASK_AGAIN = 1  # further attempts after a fault of the board; then the search stops, resumable


class SearchSpace(Protocol):
    """What the search needs of a space; :class:`pipeline.spaces.base.Space` offers it."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The questions that an architecture answers."""
        ...

    def canonical(self, arch: Arch) -> Arch:
        """Drop genes that change neither function nor inherited weights."""
        ...


class AccuracyCache:
    """Scores by (canonical architecture, supernet version, batch-norm policy).

    One cache may serve several searches, for example over the same supernet under other limits.
    """

    def __init__(self) -> None:
        self._scores: dict[tuple[Arch, str, str], Score] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, canonical: Arch, supernet: str, bn_policy: str) -> Score | None:
        """The score, if these weights were scored in this way before."""
        return self._scores.get((canonical, supernet, bn_policy))

    def put(self, canonical: Arch, supernet: str, bn_policy: str, score: Score) -> None:
        """Remember a score."""
        self._scores[canonical, supernet, bn_policy] = score


class Evaluator:
    """Screens and scores candidates of one space under fixed limits.

    Args:
        space: decisions and canonical form.
        cost_table: exact costs of the space.
        latency: a source of latencies per device; every limit on latency needs one.
        score: accuracy of one architecture with inherited weights; called for cache misses only.
        limits: resolved limits of all devices; all of them must hold.
        supernet: version (hash) of the weights, part of the cache's key.
        bn_policy: how the scorer treats batch norms, part of the cache's key.
        cache: shared between searches where given.
        rank_by: what scores are ordered by.

    Raises:
        MissingLatencyError: a limit on latency names a device that nothing answers for.
    """

    def __init__(
        self,
        *,
        space: SearchSpace,
        cost_table: CostTable,
        score: Callable[[Arch], Scored],
        limits: Sequence[Limit] = (),
        latency: Mapping[str, LatencySource] | None = None,
        supernet: str = "",
        bn_policy: str = "",
        cache: AccuracyCache | None = None,
        rank_by: RankBy = "accuracy",
    ) -> None:
        self.space, self.cost_table, self.limits = space, cost_table, tuple(limits)
        self.latency = dict(latency or {})
        self.supernet, self.bn_policy, self.rank_by = supernet, bn_policy, rank_by
        self.cache = AccuracyCache() if cache is None else cache
        self.n_scored, self.n_cached = 0, 0
        self._score = score
        # one answer per architecture while sources stay: asking twice must not give two verdicts
        self._screened: dict[Arch, Candidate] = {}
        for limit in latency_limits(limits):
            if limit.device not in self.latency:
                raise MissingLatencyError(
                    f"limit {limit}: nothing was measured on {limit.device!r}, and a latency is "
                    "never guessed",
                    hint="hilnas tables build FILE",
                )

    def screen(self, archs: Sequence[Arch]) -> list[Candidate]:
        """Costs, latencies and limits of ``archs``, in order.

        Raises:
            DeviceError: a board failed and asking again did not help. No candidate is blamed;
                the search can be resumed.
        """
        new = list(dict.fromkeys(arch for arch in archs if arch not in self._screened))
        if new:
            genes = self.cost_table.genes(new)
            columns = {k: v.tolist() for k, v in cost_values(self.cost_table, genes).items()}
            excess = violations_by_cost(self.cost_table, genes, self.limits).tolist()
            rows = [{k: v[i] for k, v in columns.items()} for i in range(len(new))]
            timed = [arch for arch, violation in zip(new, excess, strict=True) if violation <= 0]
            answers = {device: self._ask(device, timed) for device in self.latency}
            for arch, costs, violation in zip(new, rows, excess, strict=True):
                found = {d: table[arch] for d, table in answers.items() if arch in table}
                self._screened[arch] = judge(arch, costs, violation, found, self.limits)
        return [self._screened[arch] for arch in archs]

    @property
    def screened(self) -> list[Candidate]:
        """Everything that was screened so far."""
        return list(self._screened.values())

    def violations(self, archs: Sequence[Arch]) -> list[float]:
        """By how much each of ``archs`` breaks the limits in all; 0 where it keeps them."""
        return [candidate.violation for candidate in self.screen(archs)]

    def adopt(self, candidates: Iterable[Candidate]) -> None:
        """Take over candidates screened earlier (a journal's), so that their numbers stay."""
        for candidate in candidates:
            self._screened[candidate.arch] = candidate

    def ask_instead(self, sources: Mapping[str, LatencySource]) -> None:
        """Ask other sources on these devices from now on; verdicts so far are forgotten.

        Whoever keeps candidates screens them again, so that one search knows one verdict of each.
        """
        self.latency.update(sources)
        self._screened.clear()

    def rejudge(
        self, candidate: Candidate, answers: Mapping[str, Estimate | DeviceError]
    ) -> Candidate:
        """The candidate with what devices answered in place of what was known before."""
        if not answers:
            return candidate
        genes = self.cost_table.genes([candidate.arch])
        excess = float(violations_by_cost(self.cost_table, genes, self.limits)[0])
        latency = {**candidate.latency, **answers}
        return judge(candidate.arch, candidate.costs, excess, latency, self.limits)

    def score(self, candidate: Candidate) -> tuple[Score, bool]:
        """Accuracy of a candidate, and whether it came from the cache."""
        cached = self.cached(candidate)
        if cached is not None:
            return cached, True
        return self.take(candidate, self._score(candidate.arch)), False

    def cached(self, candidate: Candidate) -> Score | None:
        """The score of a candidate that these weights were given before."""
        key = self.space.canonical(candidate.arch)
        found = self.cache.get(key, self.supernet, self.bn_policy)
        self.n_cached += found is not None
        return found

    def take(self, candidate: Candidate, scored: Scored) -> Score:
        """Take over what a scorer found, and remember it.

        Raises:
            DivergedError: the accuracy is not a number.
        """
        score = Score.of(scored, candidate.arch, self.rank_by)
        self.remember(candidate.arch, score)
        self.n_scored += 1
        return score

    def remember(self, arch: Arch, score: Score) -> None:
        """Put a score into the cache."""
        self.cache.put(self.space.canonical(arch), self.supernet, self.bn_policy, score)

    def identity(self) -> dict[str, Any]:
        """What must be equal for evaluations to be comparable; JSON-ready."""
        return {
            "cost_table": self.cost_table.table_hash,
            "limits": [limit.to_dict() for limit in self.limits],
            "devices": sorted(self.latency),
            "supernet": self.supernet,
            "bn_policy": self.bn_policy,
        }

    def _ask(self, device: str, archs: list[Arch]) -> dict[Arch, Estimate | DeviceError]:
        """Latencies on one device; what failed through the board's fault is asked for again."""
        answers: dict[Arch, Estimate | DeviceError] = {}
        waiting = archs
        for _ in range(1 + _ASK_AGAIN):
            if not waiting:
                break
            answers.update(zip(waiting, self.latency[device](waiting), strict=True))
            waiting = [arch for arch in waiting if not is_answer(answers[arch])]
        for arch in waiting:
            error = answers[arch]
            if isinstance(error, DeviceError):
                raise error
        return answers


def is_answer(result: Estimate | DeviceError) -> bool:
    """Whether this says something about the network: a latency, or a fault of its own."""
    return isinstance(result, Estimate) or result.blames == "candidate"


def judge(
    arch: Arch,
    costs: dict[str, float],
    cost_violation: float,
    latency: Mapping[str, Estimate | DeviceError],
    limits: Sequence[Limit],
) -> Candidate:
    """Hold latencies against the limits.

    A device that the network itself brought down counts as a broken limit; faults of a board must
    not arrive here.
    """
    estimates = {d: e for d, e in latency.items() if isinstance(e, Estimate)}
    faults = {d: str(e) for d, e in latency.items() if isinstance(e, DeviceError)}
    violation = cost_violation + UNTIMED_VIOLATION * len(faults)
    for limit in latency_limits(limits):
        if limit.device in estimates:
            violation += limit.excess(estimates[limit.device].latency_ms)
    return Candidate(arch=arch, costs=costs, latency=estimates, violation=violation, faults=faults)
