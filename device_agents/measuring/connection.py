"""A session that is kept alive: retries, files that come back after a reboot, clocks, gates.

A lost link is mended a bounded number of times. Whatever was sent is offered again after each
connect (it is skipped where it is present): a work folder in memory does not survive a reboot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from device_agents.devices import DeviceSpec
from device_agents.link.session import Session, Sleep, with_retries
from device_agents.measuring.gates import Gatekeeper
from device_agents.measuring.profiles import Profile
from device_agents.measuring.verdicts import Finding
from latency_tables.errors import DeviceError, LinkLostError

if TYPE_CHECKING:
    from device_agents.clocks import ClockControl

ATTEMPTS = 3
AWAY_S = 90.0
"""How long a device that answered before is waited for: it may be booting."""

T = TypeVar("T")


class _Stopped(LinkLostError):
    """Somebody asked for the end; no fault, and nothing to try again."""

    retryable = False


class Connection:
    """One device, its session and what must be true of it while networks are timed.

    ``tell`` hears sentences for the user.
    """

    def __init__(
        self,
        session: Session,
        device: DeviceSpec,
        profile: Profile,
        *,
        tell: Callable[[str], None],
        sleep: Sleep,
    ) -> None:
        self.session, self.device, self.profile = session, device, profile
        self._tell, self._sleep = tell, sleep
        self._sources: list[bytes | Path] = []
        self._clocks: ClockControl | None = None
        self._gates = self._fresh_gates()
        self._stopped, self._was_open = False, False

    def stop(self) -> None:
        """Close, from any thread: what is under way fails and is not tried again."""
        self._stopped = True
        self.session.close()

    def open(self) -> None:
        """Connect and begin a session with new gates. Raises DeviceError after three attempts."""
        self._stopped, self._was_open = False, False
        self._sources.clear()
        self._gates = self._fresh_gates()
        self.again(lambda: None)
        self._was_open = True
        for leftover in self.session.leftovers:
            self._tell(f"still runs on the device and may disturb: {leftover}")
        if self.session.hello.get("clocks_journal") and self.device.power == "observe":
            self._tell(
                "a lost session left its clocks set; to put the old ones back: "
                f"hilnas devices restore {self.device.name}"
            )

    def again(self, action: Callable[[], T]) -> T:
        """Do ``action`` on an open session; connect and repeat it after a retryable fault."""

        def attempt() -> T:
            if self._stopped:
                raise _Stopped(f"measuring on {self.device.name} was stopped")
            if not self.session.is_open:
                self._reopen()
            try:
                return action()
            except LinkLostError:
                self.session.close()  # the link is gone also where a transfer noticed it
                raise

        return with_retries(
            attempt,
            attempts=ATTEMPTS,
            on_retry=self._note,
            sleep=self._sleep,
            away_s=AWAY_S if self._was_open else 0.0,
        )

    def put_all(self, sources: Sequence[bytes | Path]) -> list[str]:
        """Make files present with few round trips, and again after each connect; their names."""
        names = self.again(lambda: self.session.transport.put_all(list(sources)))
        self._sources = list(sources)
        return names

    @contextlib.contextmanager
    def clocked(self) -> Iterator[None]:
        """Hold the device's clocks, where it has any to hold; the inner one of two does nothing.

        The strict profile also asks for the fastest governor and for shallow idle states.
        """
        device, strict = self.device, self.profile.name == "strict"
        if self._clocks is not None or (device.power == "observe" and not device.clocks):
            yield
            return
        from device_agents.clocks import ClockControl

        may_set = strict and device.power != "observe"
        control = ClockControl(
            self.session,
            device,
            governor="performance" if may_set and not device.clocks else None,
            idle=False if may_set else None,
        )
        with control:
            self._clocks = control
            self._hear(control)
            try:
                yield
            finally:
                self._clocks = None
        self._hear(control)

    def clock_evidence(self) -> dict[str, Any]:
        """Clocks asked for, got and refused; empty where none were asked for."""
        if self._clocks is None or not self._clocks.wishes:
            return {}
        return self._clocks.report.to_json()

    def gate(self) -> list[Finding]:
        """Wait before a round; what stayed closed. Raises DeviceError."""
        return self._gates.wait(self.session)

    def _reopen(self) -> None:
        self.session.open()
        if self._sources:
            self.session.transport.put_all(self._sources)
        if self._clocks is not None:
            self._clocks.apply_again()

    def _fresh_gates(self) -> Gatekeeper:
        return Gatekeeper(self.device, self.profile, tell=self._tell, sleep=self._sleep)

    def _hear(self, control: ClockControl) -> None:
        for note in control.notes:
            self._tell(note)
        control.notes.clear()

    def _note(self, error: DeviceError) -> None:
        self._tell(f"{error.message}; trying again")
