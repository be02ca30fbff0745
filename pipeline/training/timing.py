"""Where the time of a stage goes: seconds by part of the work.

A :class:`PartTimer` is a row of marks on one clock. Between two marks exactly one part is at work,
the innermost that was entered; what no part claims is ``other``. So parts never overlap and their
seconds add up to those of the whole stage.

On a GPU a mark is an event in the stream of work, which nothing waits for: elapsed times are read
later, once the GPU has passed both events. A GPU that idles because Python is late is counted in
the part that kept it waiting, which is what one wants to know.

Where nobody asked for times, :data:`NO_TIMER` takes the place of a timer and does nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

OTHER = "other"
"""The part of everything that no part claims."""

SCHEMA = "hilnas.timing/1"
PENDING = 4096
"""Intervals whose end the GPU has not reached; from here on those that it has reached are read."""


class Timer(Protocol):
    """What code that is timed needs: it enters parts and counts images."""

    def running(self) -> AbstractContextManager[None]:
        """Time what is inside."""
        ...

    def part(self, name: str) -> AbstractContextManager[None]:
        """Count what is inside as ``name``; an outer part stands still meanwhile."""
        ...

    def count(self, n_images: int, part: str | None = None) -> None:
        """Say that images went through one part, or through all that count none of their own."""
        ...


class _NoTimer:
    """Times nothing, at the price of one call."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def running(self) -> AbstractContextManager[None]:
        return self._nothing

    def part(self, name: str) -> AbstractContextManager[None]:
        return self._nothing

    def count(self, n_images: int, part: str | None = None) -> None:
        pass


NO_TIMER: Timer = _NoTimer()


class Clock(Protocol):
    """Makes marks and tells the seconds between two of them."""

    def mark(self) -> Any:
        """A point in time, possibly one that is still to come."""
        ...

    def passed(self, mark: Any) -> bool:
        """Whether the mark lies in the past. Never waits."""
        ...

    def wait(self, mark: Any) -> None:
        """Wait until the mark has passed."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks that have passed."""
        ...


class HostClock:
    """The processor's clock: a mark has passed when it is made."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def passed(self, mark: float) -> bool:
        """Always."""
        return True

    def wait(self, mark: float) -> None:
        """Nothing to wait for."""

    def seconds(self, start: float, end: float) -> float:
        """The difference."""
        return end - start


class CudaClock:
    """Events in the current stream of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        """An event after all work that was given to the stream so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        """Whether the stream has come to the event."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def wait(self, mark: torch.cuda.Event) -> None:
        """Wait for the event."""
        mark.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Seconds between two events of the stream."""
        return 1e-3 * float(start.elapsed_time(end))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTime:
    """One row: ``share`` is that of the whole; images per second count this part's time alone."""

    part: str
    seconds: float
    share: float
    images_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times of one stage. ``n_images``: what :meth:`Timer.count` was told without a part."""

    parts: tuple[PartTime, ...]
    seconds: float
    n_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "schema": SCHEMA,
            "seconds": self.seconds,
            "n_images": self.n_images,
            "parts": [asdict(part) for part in self.parts],
        }


class PartTimer:
    """Seconds by part.

    Args:
        clock: what marks are made with; see :func:`timer_for`.
        parts: names in the order of the report; a part that is not named here comes after them.

    >>> timer = PartTimer(HostClock(), ("data", "forward"))
    >>> with timer.running():
    ...     with timer.part("data"):
    ...         timer.count(64)
    >>> [row.part for row in timer.timing().parts]
    ['data', 'forward', 'other']
    """

    def __init__(self, clock: Clock, parts: tuple[str, ...] = ()) -> None:
        self._clock = clock
        self._seconds = dict.fromkeys(parts, 0.0)
        self._images: dict[str, int] = {}
        self._n_images = 0
        self._at_work: list[str] = []  # innermost last; empty while nothing is timed
        self._last: Any = None  # the newest mark
        self._pending: deque[tuple[str, Any, Any]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time what is inside; may be entered again later, times add up."""
        self._last = self._clock.mark()
        self._at_work = [OTHER]
        try:
            yield
        finally:
            self._switch()
            self._at_work = []
            self._clock.wait(self._last)
            self._read()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is inside as ``name``; nothing is counted outside :meth:`running`."""
        if not self._at_work:
            yield
            return
        self._switch()
        self._at_work.append(name)
        try:
            yield
        finally:
            self._switch()
            self._at_work.pop()

    def count(self, n_images: int, part: str | None = None) -> None:
        """Count images of one part, or of all that count none of their own."""
        if part is None:
            self._n_images += n_images
        else:
            self._images[part] = self._images.get(part, 0) + n_images

    def timing(self) -> Timing:
        """Everything so far; ``other`` comes last."""
        names = [name for name in self._seconds if name != OTHER] + [OTHER]
        seconds = {name: self._seconds.get(name, 0.0) for name in names}
        total = sum(seconds.values())
        return Timing(
            parts=tuple(
                PartTime(
                    part=name,
                    seconds=value,
                    share=value / total if total else 0.0,
                    images_per_s=_rate(self._images.get(name, self._n_images), value),
                )
                for name, value in seconds.items()
            ),
            seconds=total,
            n_images=self._n_images,
        )

    def _switch(self) -> None:
        """Give the time since the last mark to the part that was at work."""
        now = self._clock.mark()
        self._pending.append((self._at_work[-1], self._last, now))
        self._last = now
        if len(self._pending) >= PENDING:
            self._read()

    def _read(self) -> None:
        """Add up the intervals whose end has passed; they pass in order."""
        while self._pending and self._clock.passed(self._pending[0][2]):
            name, start, end = self._pending.popleft()
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock.seconds(start, end)


def timer_for(device: torch.device, parts: tuple[str, ...] = ()) -> PartTimer:
    """A timer on the clock of ``device``."""
    clock: Clock = CudaClock(device) if device.type == "cuda" else HostClock()
    return PartTimer(clock, parts)


def report_lines(timing: Timing) -> list[str]:
    """The table as lines of text.

    >>> row = PartTime(part="data", seconds=0.5, share=0.25, images_per_s=2000.0)
    >>> for line in report_lines(Timing(parts=(row,), seconds=2.0, n_images=1000)):
    ...     print(line)
    part                seconds    share   images/s
    data                  0.500   25.0 %      2,000
    all                   2.000  100.0 %        500
    """
    rows: list[tuple[str, float, float, float | None]] = [
        (row.part, row.seconds, row.share, row.images_per_s) for row in timing.parts
    ]
    rows.append(("all", timing.seconds, 1.0, _rate(timing.n_images, timing.seconds)))
    lines = [f"{'part':<18} {'seconds':>8} {'share':>8} {'images/s':>10}"]
    for name, seconds, share, rate in rows:
        shown = "" if rate is None else f"{rate:,.0f}"
        lines.append(f"{name:<18} {seconds:8.3f} {100 * share:6.1f} % {shown:>10}".rstrip())
    return lines


def _rate(n_images: int, seconds: float) -> float | None:
    return n_images / seconds if n_images and seconds else None
