"""Who measures on this board: a lock that the kernel frees, and a text that says whose it is.

Three files lie in the work folder:

``lease``        locked (flock) by the agent that holds the board, so death and reboot free it. Its
                 text names the holder, and a token that is another one for every holder.
``reservation``  keeps everybody but its owner out until it expires; no process needed.
``guard``        locked for the moment in which one of the others is read and rewritten.

Nobody is killed to free a board. Breaking a lease replaces the token in its text: the old holder
notices when it looks (every 2 s, and before each measurement), stops what it does and unlocks.
Only a holder that does not do so within :data:`PATIENCE_S`, because it is frozen, loses the file
itself: the next one locks a new file of that name.

Expiry is counted in seconds since boot, as clocks of boards without a battery jump. Whatever is
opened here must be a regular file of ours that nobody else may touch, with one name: a link is
refused (:class:`UnsafeFile`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from typing import Any, Dict, Iterator, Optional

from device_agents.board.own_files import (
    UnsafeFile,
    open_own,
    opened,
    read_text,
    try_lock,
    write_text,
)

EXPIRES_S = 60.0
PATIENCE_S = 5.0
MAX_RESERVATION_MINUTES = 7 * 24 * 60
_GUARD_S = 3.0

__all__ = ["Lease", "LeaseChanged", "LeaseLost", "Leased", "UnsafeFile"]

Json = Dict[str, Any]


class Leased(Exception):
    """Somebody else holds the board; ``holder`` is what they wrote about themselves."""

    def __init__(self, holder: Json) -> None:
        super().__init__("the board is leased")
        self.holder = holder


class LeaseLost(Exception):
    """The lease was broken or its file replaced: this agent may not measure any more."""


class LeaseChanged(Exception):
    """The token that was to be broken is not that of the present holder."""


class Lease:
    """The lease below ``workdir``, for one agent.

    >>> import tempfile
    >>> lease = Lease(tempfile.mkdtemp())
    >>> lease.take("night job", "boot 1")["owner"]
    'night job'
    >>> lease.check()
    >>> lease.release()
    """

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir
        self.path = os.path.join(workdir, "lease")
        self.token = ""
        self.boot_id = ""
        self._handle = -1
        self._renewed_s = 0.0

    @property
    def held(self) -> bool:
        """Whether this agent took it and did not release it."""
        return self._handle >= 0

    def take(self, owner: str, boot_id: str, *, user: str = "", expires_s: float = 0.0) -> Json:
        """Take it now or raise Leased; taking it again renews it. Raises UnsafeFile, LeaseLost.

        The text that is given back has the fencing token as ``token``.
        """
        self.boot_id = boot_id
        if self.held:
            return self.renew()
        with self._guarded():
            reserved = self._reservation()
            if reserved and reserved.get("owner") not in (owner, user):
                raise Leased(reserved)
            handle = self._lock()
            try:
                before = read_text(handle)
                now = _utc()
                text: Json = {
                    "owner": owner[:200],
                    "user": user[:200],
                    "pid": os.getpid(),
                    "boot_id": boot_id,
                    "since": now,
                    "renewed": now,
                    "renewed_uptime_s": round(_uptime_s(), 3),
                    "expires_s": expires_s or EXPIRES_S,
                    "token": _next_token(before.get("token")),
                }
                write_text(handle, text)
            except BaseException:
                os.close(handle)
                raise
        self._handle, self.token, self._renewed_s = handle, text["token"], _uptime_s()
        return text

    def check(self) -> None:
        """Raise LeaseLost unless the lease is still ours."""
        with self._guarded():
            self._check()

    def renew(self) -> Json:
        """Start the time to expiry again. Raises LeaseLost."""
        with self._guarded():
            self._check()
            text = read_text(self._handle)
            text.update(renewed=_utc(), renewed_uptime_s=round(_uptime_s(), 3))
            write_text(self._handle, text)
        self._renewed_s = _uptime_s()
        return text

    def renew_when_due(self) -> None:
        """Renew it four times per expiry: each renewal is a write to the board's flash."""
        if _uptime_s() - self._renewed_s >= EXPIRES_S / 4:
            self.renew()

    def release(self) -> None:
        """Give it back; closing the file is what frees the lock."""
        if self.held:
            handle, self._handle = self._handle, -1
            os.close(handle)

    # ---- without holding it -------------------------------------------------------------------

    def show(self, boot_id: str) -> Json:
        """``{"holder": ..., "reservation": ...}``, each None where there is none."""
        with self._guarded():
            return {"holder": self._holder(boot_id), "reservation": self._reservation(boot_id)}

    def left_by_other_boot(self, boot_id: str) -> Optional[Json]:
        """The text of a lease from before a reboot, or None."""
        with contextlib.suppress(FileNotFoundError), opened(self.path, os.O_RDONLY) as handle:
            text = read_text(handle)
            if text.get("boot_id") not in (None, boot_id):
                return text
        return None

    def break_(self, token: str, boot_id: str, *, owner: str, force: bool) -> Json:
        """Take lease or reservation from its holder if its token is still ``token``.

        A holder that lives and has not expired keeps it unless ``force`` is given. Raises Leased,
        LeaseChanged.
        """
        with self._guarded():
            reserved = self._reservation(boot_id)
            if reserved and reserved["token"] == token:
                os.unlink(self._reservation_path)
                return {"broken": "reservation", "was": reserved}
            holder = self._holder(boot_id)
            if holder is None or holder.get("token") != token:
                raise LeaseChanged("token {!r} is not that of the present holder".format(token))
            if not holder["expired"] and not force:
                raise Leased(holder)
            with opened(self.path, os.O_RDWR) as handle:
                text = dict(
                    read_text(handle),
                    token=_next_token(token),
                    broken_by=owner[:200],
                    broken_uptime_s=round(_uptime_s(), 3),
                    boot_id=boot_id,
                )
                write_text(handle, text)
            return {"broken": "lease", "was": holder}

    def reserve(self, owner: str, boot_id: str, *, user: str, minutes: float, reason: str) -> Json:
        """Keep others out for a while. Raises Leased where somebody else has the board."""
        if not 0 < minutes <= MAX_RESERVATION_MINUTES:
            raise ValueError(
                "{} minutes; allowed are up to {}".format(minutes, MAX_RESERVATION_MINUTES)
            )
        if not owner:
            raise ValueError("a reservation needs an owner")
        with self._guarded():
            for held in (self._reservation(boot_id), self._holder(boot_id)):
                mine = held is None or {held.get("owner"), held.get("user")} & {owner, user} - {""}
                if held and not mine:
                    raise Leased(held)
            text = {
                "owner": owner[:200],
                "user": user[:200],
                "reason": reason[:500],
                "boot_id": boot_id,
                "since": _utc(),
                "until": _utc(minutes * 60),
                "until_unix_s": int(time.time() + minutes * 60),
                "made_uptime_s": round(_uptime_s(), 3),
                "seconds": minutes * 60,
                "token": _next_token(None),
            }
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._reservation_path)  # a link of that name goes, not its target
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            with opened(self._reservation_path, flags) as handle:
                write_text(handle, text)
        return text

    # ---- under the guard ----------------------------------------------------------------------

    @property
    def _reservation_path(self) -> str:
        return os.path.join(self.workdir, "reservation")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        with opened(os.path.join(self.workdir, "guard"), os.O_RDWR | os.O_CREAT) as handle:
            deadline = time.monotonic() + _GUARD_S
            while not try_lock(handle):
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "another agent keeps the guard of the lease locked")
                time.sleep(0.02)
            yield

    def _lock(self) -> int:
        """Open and lock the file, a new one if its holder was broken and does not let go."""
        handle = open_own(self.path, os.O_RDWR | os.O_CREAT)
        if try_lock(handle):
            return handle
        text = read_text(handle)
        os.close(handle)
        broken_s = text.get("broken_uptime_s")
        if broken_s is None or _uptime_s() - broken_s < PATIENCE_S:
            raise Leased(text)
        os.unlink(self.path)
        handle = open_own(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try_lock(handle)
        write_text(handle, {"token": text.get("token")})  # so that the count goes on
        return handle

    def _check(self) -> None:
        if not self.held or not self._is_ours():
            raise LeaseLost("the lease of this board was broken or taken by somebody else")

    def _is_ours(self) -> bool:
        try:
            there, ours = os.lstat(self.path), os.fstat(self._handle)
        except OSError:
            return False
        same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        return same and read_text(self._handle).get("token") == self.token

    def _holder(self, boot_id: str) -> Optional[Json]:
        """Who holds the lease, or None where nobody does, whatever the file says."""
        try:
            with opened(self.path, os.O_RDWR) as handle:
                text = read_text(handle)
                locked = not try_lock(handle)  # our own handle keeps this one out, too
        except FileNotFoundError:
            return None
        if not locked:
            return None
        try:
            age_s = _uptime_s() - float(text["renewed_uptime_s"])
            left_s = float(text["expires_s"]) - age_s
        except (KeyError, TypeError, ValueError):
            left_s = 0.0
        expired = left_s <= 0 or text.get("boot_id") != boot_id
        return dict(
            {"owner": "", "user": "", "pid": 0, "boot_id": "", "since": "", "token": ""},
            **text,
            expired=expired,
            expires_in_s=round(max(0.0, left_s), 1),
        )

    def _reservation(self, boot_id: str = "") -> Optional[Json]:
        """The reservation in force; one that expired is removed."""
        boot_id = boot_id or self.boot_id
        try:
            with opened(self._reservation_path, os.O_RDONLY) as handle:
                text = read_text(handle)
        except FileNotFoundError:
            return None
        try:
            left_s = _left_s(text, boot_id)
            text = dict(text, token=str(text["token"]), owner=str(text["owner"]), reserved=True)
        except (KeyError, TypeError, ValueError):
            left_s = 0.0
        if left_s <= 0:
            os.unlink(self._reservation_path)
            return None
        return dict(text, expires_in_s=round(left_s, 1))


def _left_s(reservation: Json, boot_id: str) -> float:
    """Seconds that a reservation still lasts.

    After a reboot only the calendar can tell, if it was set by then; no reservation outlives its
    own length in the uptime of one boot.
    """
    seconds = float(reservation["seconds"])
    if reservation["boot_id"] == boot_id:
        return seconds - (_uptime_s() - float(reservation["made_uptime_s"]))
    return min(float(reservation["until_unix_s"]) - time.time(), seconds - _uptime_s())


def _next_token(before: Any) -> str:
    """A counter, so that order can be told, and 64 random bits, so that none comes twice.

    >>> _next_token("41-aa").split("-")[0], _next_token(None).split("-")[0]
    ('42', '1')
    """
    count = str(before or "").partition("-")[0]
    number = int(count) if count.isdigit() and len(count) < 16 else 0
    return "{}-{}".format(number + 1, secrets.token_hex(8))


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _utc(later_s: float = 0.0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + later_s))
