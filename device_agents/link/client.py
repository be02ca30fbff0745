"""Talk to an agent: requests with deadlines, events as they come, and no wait without end.

Everything an agent says is untrusted until it was checked here: size, depth and numbers by the
frame codec, the shape and the amount of what answers a request below, the fields of results where
they are used.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from device_agents.board.frames import PROTOCOL_VERSION, FrameError, decode, encode
from device_agents.link.transport import Channel
from latency_tables.errors import (
    DeviceDiskFullError,
    DeviceError,
    LeasedError,
    LinkLostError,
    MissingRuntimeError,
    ProtocolError,
)

Event = Callable[[str, dict[str, Any]], None]

PING_S = 2.0
LOST_S = 0.75
"""What ending an agent may take that gave no sign of life."""
START_S = 20.0
"""Patience until the first line of an agent: an interpreter that starts answers no pings."""
MAX_LINES = 20_000
MAX_LINES_PER_S = 100
"""Lines that may come before the answer to one request; no honest agent gets near."""

_PING_ID = 0
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DROP: Event = lambda name, data: None  # noqa: E731


def clean_text(text: object, limit: int = 2000) -> str:
    """Text from a board without control codes that a terminal would obey.

    >>> clean_text("red \\x1b[31malert")
    'red [31malert'
    """
    return _CONTROL.sub("", str(text)[: 4 * limit])[:limit]


class AgentClient:
    """One conversation over one channel; requests may come from several threads, one at a time.

    While it waits it pings every 2 s, and the agent's reader thread answers whatever the agent is
    busy with. ``deadline_s`` without any line means that the link is lost, long before the
    deadline of the request. Only the first line may take longer (``start_s``).
    """

    def __init__(
        self, channel: Channel, *, deadline_s: float = 10.0, start_s: float = START_S
    ) -> None:
        self.channel, self.deadline_s = channel, deadline_s
        self._start_s = max(start_s, deadline_s)
        self._heard_any = self._silent = False
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pinger: threading.Thread | None = None
        self._lost: DeviceError | None = None

    def request(
        self,
        operation: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
        on_event: Event = _DROP,
    ) -> dict[str, Any]:
        """Send one request and give its result.

        Raises LinkLostError (end, silence, deadline), ProtocolError (garbage, floods), or the
        DeviceError that the agent's failure names.
        """
        with self._lock:
            if self._lost is not None:
                raise self._lost
            return self._request(operation, parameters or {}, timeout_s, on_event)

    def keep_alive(self) -> None:
        """Ping in the background while no request runs, so that the agent knows we are there.

        A link that breaks meanwhile is told by the next request.
        """
        if self._pinger is None:
            self._pinger = threading.Thread(target=self._ping_idle, daemon=True)
            self._pinger.start()

    def close(self) -> None:
        """End the process; an agent that gave no sign of life is not waited for.

        The end of its stdin is what an agent ends by at once.
        """
        self._stop.set()
        self.channel.kill(LOST_S if self._silent else None)
        if self._pinger is not None and self._pinger is not threading.current_thread():
            self._pinger.join(1.0)

    def _ping_idle(self) -> None:
        while not self._stop.wait(PING_S):
            if not self._lock.acquire(blocking=False):
                continue  # the request that runs pings by itself
            try:
                self._request("ping", {}, self._start_s, _DROP)
            except DeviceError as error:
                self._lost = error
                return
            finally:
                self._lock.release()

    def _request(
        self, operation: str, parameters: Mapping[str, Any], timeout_s: float, on_event: Event
    ) -> dict[str, Any]:
        identity = next(self._ids)
        frame = {**parameters, "v": PROTOCOL_VERSION, "id": identity, "op": operation}
        try:
            line = encode(frame)
        except FrameError as error:
            raise ProtocolError(f"request {operation!r}: {error}") from None
        wait = _Wait(self, operation, timeout_s)
        try:
            self.channel.send(line, min(timeout_s, self.deadline_s))
        except LinkLostError:
            self.note_silence()
            wait.hear_last_words(identity)
            raise
        while True:
            answer = wait.next()
            named = answer.get("id")
            ours = type(named) is int and named == identity
            if not ours and not _is_aside(answer, identity):
                raise ProtocolError(f"an answer to request {clean_text(named, 40)}")
            if "event" in answer:
                data = answer.get("data")
                if not isinstance(data, dict):
                    raise ProtocolError(f"event during {operation!r} without data")
                if answer["event"] != "heartbeat" and ours:
                    on_event(clean_text(answer["event"], 40), data)
            elif not ours and named is not None:
                continue  # a pong, or a late answer to a request that was given up
            elif answer.get("ok") is True and isinstance(answer.get("result"), dict):
                result: dict[str, Any] = answer["result"]
                return result
            else:
                raise _failure(operation, answer)

    def heard(self) -> None:
        """Note that the agent started."""
        self._heard_any = True

    def note_silence(self) -> None:
        """Note that nothing is to be awaited of the agent any more."""
        self._silent = True

    def patience_s(self) -> float:
        """How long silence may last."""
        return self.deadline_s if self._heard_any else self._start_s


class _Wait:
    """The lines that come while one request waits, within its limits of time and number."""

    def __init__(self, client: AgentClient, operation: str, timeout_s: float) -> None:
        self.client, self.operation = client, operation
        self.start = time.monotonic()
        self.deadline = self.start + timeout_s
        self.timeout_s = timeout_s
        self.silent_s = 0.0
        self.ping_in_s = PING_S
        self.n_lines = 0

    def next(self) -> dict[str, Any]:
        """The next frame. Raises LinkLostError, ProtocolError."""
        channel = self.client.channel
        while True:
            now = time.monotonic()
            left_s = self.deadline - now
            if left_s <= 0:
                raise LinkLostError(
                    f"no answer to {self.operation!r} within its {self.timeout_s:g} s"
                )
            patience_s = min(self.ping_in_s, self.client.patience_s() - self.silent_s, left_s)
            line = channel.receive(patience_s)
            if line is not None:
                self.silent_s = 0.0
                return self._frame(line)
            # counted in what was waited for: a host that was suspended has not listened
            self.silent_s += patience_s
            self.ping_in_s -= patience_s
            if self.silent_s >= self.client.patience_s() - 1e-6:
                self.client.note_silence()
                raise LinkLostError(
                    f"no sign of life for {self.silent_s:g} s while {self.operation!r} waits"
                )
            if self.ping_in_s <= 1e-6:
                self.ping()

    def ping(self) -> None:
        """Ask for a sign of life; that it cannot be sent is told by what comes next."""
        self.ping_in_s = PING_S
        ping = {"v": PROTOCOL_VERSION, "id": _PING_ID, "op": "ping"}
        with contextlib.suppress(LinkLostError):
            self.client.channel.send(encode(ping), PING_S)

    def hear_last_words(self, identity: int) -> None:
        """Raise the failure that an agent told before it left, if it did."""
        with contextlib.suppress(LinkLostError, ProtocolError):
            while (line := self.client.channel.receive(0.2)) is not None:
                answer = self._frame(line)
                if answer.get("ok") is False and answer.get("id") in (identity, None):
                    raise _failure(self.operation, answer)

    def _frame(self, line: bytes) -> dict[str, Any]:
        if not line:
            said = clean_text(self.client.channel.complaint())
            raise LinkLostError(f"the agent vanished during {self.operation!r}; {said}")
        self.n_lines += 1
        if self.n_lines > MAX_LINES + MAX_LINES_PER_S * (time.monotonic() - self.start):
            raise ProtocolError(f"{self.n_lines} lines came instead of an answer")
        try:
            frame = decode(line)
        except FrameError as error:
            raise ProtocolError(clean_text(error)) from None
        self.client.heard()
        return frame


def _is_aside(answer: Mapping[str, Any], identity: int) -> bool:
    """Whether a frame may come between: heartbeats, what concerns all, answers to the past."""
    named = answer.get("id")
    if answer.get("event") == "heartbeat" or (named is None and answer.get("ok") is False):
        return True
    return type(named) is int and _PING_ID <= named < identity


def _failure(operation: str, answer: Mapping[str, Any]) -> DeviceError:
    error = answer.get("error")
    if answer.get("ok") is not False or not isinstance(error, dict):
        return ProtocolError(f"the answer to {operation!r} is neither a result nor a failure")
    code, message = clean_text(error.get("code"), 40), clean_text(error.get("message"))
    if code == "LEASED":
        return _leased(error.get("holder"))
    if code == "BOOTSTRAP":
        return MissingRuntimeError(message)
    if code == "PROTOCOL":
        return ProtocolError(f"the agent refuses {operation!r}: {message}")
    if code == "DISK_FULL":
        return DeviceDiskFullError(
            f"{operation!r} failed, the device has no room: {message}",
            hint="hilnas devices clean NAME",
        )
    text = f"{operation!r} failed on the device: {message}"
    failure = LeasedError(text) if code == "LEASE_LOST" else DeviceError(text)
    failure.code = code
    return failure


def _leased(holder: Any) -> LeasedError:
    holder = holder if isinstance(holder, dict) else {}

    def say(name: str, limit: int = 80) -> str:
        return clean_text(holder.get(name) or "?", limit)

    if holder.get("reserved") is True:
        return LeasedError(
            f"the device is reserved by {say('owner')} until {say('until')}: {say('reason', 500)}",
            hint="wait until then, or 'hilnas devices unlock NAME'",
        )
    user = f"; {say('user')}" if holder.get("user") else ""
    where = f"process {say('pid')}, since {say('since')}{user}"
    return LeasedError(
        f"the device is leased by {say('owner')} ({where})",
        hint="wait until that measurement ends, or 'hilnas devices unlock NAME'",
    )
