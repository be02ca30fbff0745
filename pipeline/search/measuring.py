"""Live measurements of the front: journalled before they are used, repeated after a board's fault.

What a device said before (the journal's lines of an earlier call) is not asked again, so a killed
re-measuring goes on where it stopped. Only faults of the board are asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from latency_tables.arch import Arch
from latency_tables.errors import DeviceError
from latency_tables.estimate import Estimate
from pipeline.search.evaluator import LatencySource, is_answer
from pipeline.search.journal import Journal

ATTEMPTS = 2
"""Times per call that a subnet is measured when the board is to blame for the failure."""

Answers = dict[str, Estimate | DeviceError]
"""What each device said about one subnet last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMeasurer:
    """Measures subnets on every device now; ``sources`` never answer from a table.

    ``on_progress`` is called with (device, answered, asked) around every batch that is sent.
    """

    sources: Mapping[str, LatencySource]
    journal: Journal
    on_progress: Callable[[str, int, int], None] | None = None

    def measure(self, archs: Sequence[Arch]) -> dict[Arch, Answers]:
        """Answers of every device for every architecture.

        A fault of the board is an answer here only after ``ATTEMPTS`` tries; the caller must not
        hold it against the subnet.
        """
        answers: dict[Arch, Answers] = {arch: {} for arch in archs}
        for device, source in self.sources.items():
            for _ in range(ATTEMPTS):
                waiting = [arch for arch in answers if not self._answered(device, arch)]
                if not waiting:
                    break
                self._tell(device, len(answers) - len(waiting), len(answers))
                for arch, result in zip(waiting, source(waiting), strict=True):
                    self.journal.measurement("front", device, arch, result)
                self.journal.sync()
                answered = sum(self._answered(device, arch) for arch in answers)
                self._tell(device, answered, len(answers))
            for arch in answers:
                answers[arch][device] = self.journal.measured("front", device, arch)[-1]
        return answers

    def _tell(self, device: str, answered: int, asked: int) -> None:
        if self.on_progress is not None:
            self.on_progress(device, answered, asked)

    def _answered(self, device: str, arch: Arch) -> bool:
        """Whether the journal holds a latency, or a failure that is the subnet's own."""
        return any(is_answer(result) for result in self.journal.measured("front", device, arch))
