"""Who holds a device: look, reserve it for a while, and take it from a holder that is stuck.

An agent is started for each question; it takes no lease. Nobody is killed to free a device: the
holder's token is replaced, and the holder stops when it notices, in 2 s or so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from device_agents.board.lease import MAX_RESERVATION_MINUTES
from device_agents.link.client import clean_text
from device_agents.link.session import Session, default_user
from device_agents.link.transport import Transport
from latency_tables.errors import DeviceError, LeasedError, UsageError

ANSWER_S = 30.0
FREE_WAIT_S = 6.0
"""Longer than a living holder needs to let go, and than the next one has patience with a frozen
one."""

__all__ = ["Holder", "LeaseState", "default_user", "lock", "show", "unlock"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has a device. ``reserved``: by a reservation, which has no process (``pid`` 0).

    ``expires_in_s`` is 0 for a holder that is overdue: its host is silent, or the board rebooted.
    """

    owner: str
    user: str
    since: str
    token: str
    pid: int = 0
    boot_id: str = ""
    renewed: str = ""
    expires_in_s: float = 0.0
    reserved: bool = False
    until: str = ""
    reason: str = ""

    @property
    def expired(self) -> bool:
        """Whether it may be broken without force."""
        return self.expires_in_s <= 0

    def __str__(self) -> str:
        who = f"{self.owner} ({self.user})" if self.user else self.owner
        if self.reserved:
            return f"reserved by {who} until {self.until}: {self.reason}"
        return f"leased by {who}, process {self.pid} on the device, since {self.since}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """What keeps others from a device: a holder that measures, a reservation, both or nothing."""

    holder: Holder | None = None
    reservation: Holder | None = None

    @property
    def free(self) -> bool:
        """Whether anybody may take it."""
        return self.holder is None and self.reservation is None


def show(transport: Transport, *, deadline_s: float = 10.0) -> LeaseState:
    """Say who has the device, without taking it. Raises DeviceError.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from device_agents.link.local import LocalTransport
    >>> show(LocalTransport(Path(tempfile.mkdtemp()) / "agent")).free
    True
    """
    with _agent(transport, deadline_s) as session:
        return _show(session)


def lock(
    transport: Transport,
    owner: str = "",
    minutes: float = 60.0,
    reason: str = "",
    *,
    deadline_s: float = 10.0,
) -> Holder:
    """Keep everybody but ``owner`` (by default this user) out for some minutes.

    No process stays behind; the reservation outlives reboots and ends by itself, or by
    :func:`unlock`. Raises LeasedError where somebody else has the device, UsageError, DeviceError.
    """
    if not 0 < minutes <= MAX_RESERVATION_MINUTES:
        raise UsageError(
            f"a lock for {minutes:g} minutes; allowed are more than 0 and up to "
            f"{MAX_RESERVATION_MINUTES} (a week)"
        )
    user = default_user()
    asked = {"owner": owner or user, "user": user, "minutes": minutes, "reason": reason}
    with _agent(transport, deadline_s) as session:
        return _holder(session.request("reserve", asked, timeout_s=ANSWER_S))


def unlock(
    transport: Transport,
    token: str | None = None,
    force: bool = False,
    *,
    deadline_s: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> LeaseState:
    """Take the device from whoever has it; gives who had it.

    Only the holder with ``token`` is broken, so that nobody is who came after one looked; without
    one both holder and reservation of this moment. A holder that is alive is broken only with
    ``force``; this then waits until it has let go or can be passed over. Other people's
    reservations need ``force``, too. Raises LeasedError, DeviceError with code LEASE_CHANGED.
    """
    me = default_user()
    with _agent(transport, deadline_s) as session:
        before = _show(session)
        found = [h for h in (before.reservation, before.holder) if h is not None]
        for holder in found if token is None else [h for h in found if h.token == token]:
            if holder.reserved and not force and me not in (holder.owner, holder.user):
                raise LeasedError(f"the device is {holder}", hint="unlock with --force")
            _break(session, holder.token, me, force)
        if token is not None and token not in [holder.token for holder in found]:
            _break(session, token, me, force)  # let the agent say that it is not the present one
        if before.holder is not None and token in (None, before.holder.token):
            _await_end(session, before.holder, sleep)
        return before


def _break(session: Session, token: str, owner: str, force: bool) -> None:
    asked = {"token": token, "owner": owner, "force": force}
    try:
        session.request("lease_break", asked, timeout_s=ANSWER_S)
    except LeasedError as error:
        raise LeasedError(error.message, hint="unlock with --force; its work is lost") from None


def _await_end(session: Session, old: Holder, sleep: Callable[[float], None]) -> None:
    """Wait until the lock is free; a frozen holder keeps it, and the next one passes it over."""
    deadline = time.monotonic() + FREE_WAIT_S
    while time.monotonic() < deadline:
        holder = _show(session).holder
        if holder is None or holder.pid != old.pid:
            return
        sleep(0.2)


def _agent(transport: Transport, deadline_s: float) -> Session:
    """A session that answers and holds nothing."""
    return Session(transport, take=False, deadline_s=deadline_s)


def _show(session: Session) -> LeaseState:
    said = session.request("lease_show", {}, timeout_s=ANSWER_S)
    holder, reservation = said.get("holder"), said.get("reservation")
    return LeaseState(
        holder=_holder(holder) if isinstance(holder, dict) else None,
        reservation=_holder(reservation) if isinstance(reservation, dict) else None,
    )


def _holder(said: dict[str, Any]) -> Holder:
    """Read what an agent says; nothing of it is trusted."""

    def text(name: str, limit: int = 200) -> str:
        return clean_text(said.get(name) or "", limit)

    def number(name: str) -> float:
        value = said.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
        return 0.0

    if not text("token"):
        raise DeviceError("the agent tells of a holder without a token")
    return Holder(
        owner=text("owner"),
        user=text("user"),
        since=text("since", 40),
        token=text("token", 60),
        pid=int(number("pid")),
        boot_id=text("boot_id", 64),
        renewed=text("renewed", 40),
        expires_in_s=number("expires_in_s"),
        reserved="until" in said,
        until=text("until", 40),
        reason=text("reason", 500),
    )
