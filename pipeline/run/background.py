"""Measuring while the host computes: boards in a pool, this machine in the pauses between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_agents.measuring.pool import Member, Pool, Ticket
from latency_tables.arch import Arch
from latency_tables.errors import DeviceError
from latency_tables.estimate import Estimate
from latency_tables.records import Measurement
from pipeline.run.devices import RunDevice, measure_job
from pipeline.search.evaluator import Latencies
from pipeline.search.in_loop import BackgroundSource
from pipeline.search.sources import answer_of


@dataclass(frozen=True, slots=True)
class OnBoard:
    """A board that measures while the host computes."""

    device: RunDevice
    pool: Pool

    def submit(self, archs: Sequence[Arch], *, campaign: str) -> Ticket:
        """Hand the networks to the pool."""
        jobs = [measure_job(self.device.space, arch) for arch in archs]
        return self.pool.submit(jobs, to=self.device.name, campaign=campaign)

    def collect(self, ticket: object) -> Latencies:
        """Wait for them. Raises DeviceError where the board is gone."""
        assert isinstance(ticket, Ticket)  # submit made it
        return [_answer(result) for result in self.pool.collect(ticket)]


@dataclass(frozen=True, slots=True)
class InPauses:
    """This machine: it measures when the host waits for the answers and computes nothing."""

    device: RunDevice

    def submit(self, archs: Sequence[Arch], *, campaign: str) -> tuple[Arch, ...]:
        """Remember what was asked."""
        return tuple(archs)

    def collect(self, ticket: object) -> Latencies:
        """Measure now."""
        assert isinstance(ticket, tuple)  # submit made it
        return [_answer(record) for record in self.device.measure(ticket)]


@contextlib.contextmanager
def background_sources(
    devices: Sequence[RunDevice], *, journal: Path, on_note: Callable[[str], None]
) -> Iterator[Mapping[str, BackgroundSource]]:
    """Sources by device; those of boards share a pool, which is closed at the end.

    Raises:
        RunError: the pool's journal is damaged.
    """
    boards = [device for device in devices if not device.measurer.transport.exclusive]
    sources: dict[str, BackgroundSource] = {
        device.name: InPauses(device) for device in devices if device not in boards
    }
    if not boards:
        yield sources
        return
    members = {device.name: Member(device.measurer) for device in boards}
    with contextlib.ExitStack() as kept:
        for device in boards:  # connected, and leased, from one generation to the next
            kept.enter_context(device.measurer)
        pool = kept.enter_context(Pool(members, journal=journal, on_note=on_note))
        yield {**sources, **{device.name: OnBoard(device, pool) for device in boards}}


def _answer(result: Measurement | DeviceError) -> Estimate | DeviceError:
    return result if isinstance(result, DeviceError) else answer_of(result)
