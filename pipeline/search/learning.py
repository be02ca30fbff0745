"""What a search has heard from devices so far, and what follows from it for the rest.

One object per search, shared by everything that measures during it. It is told of answers in the
order asked, also when a journal is replayed, so at any generation it knows what was measured up to
there and nothing of later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, get_args

from latency_tables.arch import Arch
from latency_tables.errors import DeviceError
from latency_tables.estimate import Estimate, Source
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import Evaluator, Latencies, LatencySource, is_answer
from pipeline.search.journal import Journal, Phase

Answer = Estimate | DeviceError

Refit = Callable[[Mapping[Arch, Estimate]], LatencySource]
"""Predictions of one device by a model that also knows these measurements, which are all that the
search has made so far, in the order asked. Must give the same for the same measurements."""


class BackgroundSource(Protocol):
    """Measures on one device while the caller goes on."""

    def submit(self, archs: Sequence[Arch], *, campaign: str) -> object:
        """Hand in architectures; the same ones in the same campaign are measured once."""
        ...

    def collect(self, ticket: object) -> Latencies:
        """Wait for answers, in the order asked. Raises DeviceError where the device is gone."""
        ...


Errand = tuple[str, list[Arch], object]
"""A device, what it was asked to measure, and its ticket."""


def send(
    sources: Mapping[str, BackgroundSource], wanted: Mapping[str, Sequence[Arch]], *, campaign: str
) -> list[Errand]:
    """Have all devices measure at the same time; those that nothing is wanted of are left out."""
    return [
        (device, list(archs), sources[device].submit(archs, campaign=campaign))
        for device, archs in wanted.items()
        if archs
    ]


def receive(
    sources: Mapping[str, BackgroundSource],
    sent: Sequence[Errand],
    journal: Journal,
    phase: Phase,
) -> None:
    """Wait for the answers and journal them; on disk when this returns.

    Raises:
        DeviceError: a board is gone; what devices before it said is kept.
    """
    for device, archs, ticket in sent:
        answers = sources[device].collect(ticket)
        for arch, answer in zip(archs, answers, strict=True):
            journal.measurement(phase, device, arch, answer)
        journal.sync()


class Reviser(Protocol):
    """Something that knows latencies better after a generation was told."""

    def refine(self, generation: int, archive: Sequence[Evaluation]) -> list[Evaluation]:
        """The archive as it is judged now, in its order; the same one where nothing is new."""
        ...


@dataclass(frozen=True, slots=True)
class InTurn:
    """Several revisers, one after the other."""

    revisers: Sequence[Reviser]

    def refine(self, generation: int, archive: Sequence[Evaluation]) -> list[Evaluation]:
        """What the last one makes of what those before it made."""
        judged = list(archive)
        for reviser in self.revisers:
            judged = reviser.refine(generation, judged)
        return judged


@dataclass(slots=True, kw_only=True)
class Learning:
    """Answers of devices, and predictions by models that know them.

    Args:
        refit: makes the predictions of a device anew; devices without one keep theirs.
        evaluator: holds the predictions that the search works with.
    """

    refit: Mapping[str, Refit]
    evaluator: Evaluator
    _heard: dict[str, dict[Arch, Answer]] = field(default_factory=dict)

    def hear(self, device: str, arch: Arch, answer: Answer) -> None:
        """Take note of the newest word of a device about a network; faults of a board say nothing
        about it."""
        if is_answer(answer):
            self._heard.setdefault(device, {})[arch] = answer

    def answers(self, arch: Arch) -> dict[str, Answer]:
        """What devices said of a network last."""
        return {device: found[arch] for device, found in self._heard.items() if arch in found}

    def judge_anew(self, devices: Iterable[str], archive: Sequence[Evaluation]) -> list[Evaluation]:
        """Refit the models of ``devices`` and hold the archive against the limits once more.

        What was measured is judged by its measurement, the rest by the new models.
        """
        sources = {}
        for device in devices:
            found = self._heard.get(device, {})
            known = {a: e for a, e in found.items() if isinstance(e, Estimate)}
            if known and device in self.refit:
                sources[device] = self.refit[device](known)
        self.evaluator.ask_instead(sources)
        screened = self.evaluator.screen([e.arch for e in archive])
        judged = [self.evaluator.rejudge(c, self.answers(c.arch)) for c in screened]
        self.evaluator.adopt(judged)
        return [replace(e, candidate=c) for e, c in zip(archive, judged, strict=True)]


def sources_of(evaluations: Sequence[Evaluation], device: str) -> str:
    """Where the latencies of candidates on one device come from, in words.

    >>> sources_of([], "rpi4")
    'latencies of no candidate are known'
    """
    words = {"measured": "measured while searching", "table": "from the table"}
    counts = Counter(e.latency[device].source for e in evaluations if device in e.latency)
    found = [f"{counts[s]} {words.get(s, s)}" for s in get_args(Source) if counts[s]]
    if not found:
        return "latencies of no candidate are known"
    return f"latencies of {counts.total()} candidates: {', '.join(found)}"
