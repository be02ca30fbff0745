"""Talk to an agent: requests with deadlines, events as they come, and no wait without end.

Everything an agent says is untrusted until it was checked here: size and JSON by the frame codec,
the shape of an answer below, the fields of results where they are used.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from device_agents.board.frames import PROTOCOL_VERSION, FrameError, decode, encode
from device_agents.transport import Channel
from latency_tables.errors import (
    DeviceError,
    LeasedError,
    LinkLostError,
    MissingRuntimeError,
    ProtocolError,
)

Event = Callable[[str, dict[str, Any]], None]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DROP: Event = lambda name, data: None  # noqa: E731


def clean_text(text: object, limit: int = 2000) -> str:
    """Text from a board without control codes that a terminal would obey.

    >>> clean_text("red \\x1b[31malert")
    'red [31malert'
    """
    return _CONTROL.sub("", str(text))[:limit]


class AgentClient:
    """One conversation over one channel.

    An agent that works sends a heartbeat every 2 s; ``silence_s`` without any line means that the
    link is lost, long before the deadline of the request.
    """

    def __init__(self, channel: Channel, *, silence_s: float = 15.0) -> None:
        self.channel, self.silence_s = channel, silence_s
        self._ids = itertools.count(1)

    def request(
        self,
        operation: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
        on_event: Event = _DROP,
    ) -> dict[str, Any]:
        """Send one request and give its result.

        Raises LinkLostError (end, silence, deadline), ProtocolError (garbage), or the DeviceError
        that the agent's failure names.
        """
        identity = next(self._ids)
        frame = {**(parameters or {}), "v": PROTOCOL_VERSION, "id": identity, "op": operation}
        try:
            line = encode(frame)
        except FrameError as error:
            raise ProtocolError(f"request {operation!r}: {error}") from None
        self.channel.send(line, min(timeout_s, self.silence_s))
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._receive(operation, deadline)
            if answer.get("id") not in (identity, None):
                continue  # a late answer to a request that was given up
            if "event" in answer:
                data = answer.get("data")
                if not isinstance(data, dict):
                    raise ProtocolError(f"event during {operation!r} without data")
                if answer["event"] != "heartbeat":
                    on_event(str(answer["event"]), data)
            elif answer.get("ok") is True and isinstance(answer.get("result"), dict):
                result: dict[str, Any] = answer["result"]
                return result
            else:
                raise _failure(operation, answer)

    def close(self) -> None:
        """Say bye and end the process."""
        try:
            self.channel.send(encode({"v": PROTOCOL_VERSION, "id": 0, "op": "bye"}), 1.0)
        except DeviceError:
            pass  # it is gone already
        finally:
            self.channel.kill()

    def _receive(self, operation: str, deadline: float) -> dict[str, Any]:
        patience = min(self.silence_s, deadline - time.monotonic())
        line = self.channel.receive(patience)
        if line is None:
            kind = "deadline" if deadline <= time.monotonic() else f"{self.silence_s:g} s"
            raise LinkLostError(f"the agent gave no answer to {operation!r} within its {kind}")
        if not line:
            said = clean_text(self.channel.complaint())
            raise LinkLostError(f"the agent vanished during {operation!r}; {said}")
        try:
            return decode(line)
        except FrameError as error:
            raise ProtocolError(clean_text(error)) from None


def _failure(operation: str, answer: Mapping[str, Any]) -> DeviceError:
    error = answer.get("error")
    if answer.get("ok") is not False or not isinstance(error, dict):
        return ProtocolError(f"the answer to {operation!r} is neither a result nor a failure")
    code, message = clean_text(error.get("code"), 40), clean_text(error.get("message"))
    if code == "LEASED":
        holder = error.get("holder")
        holder = holder if isinstance(holder, dict) else {}
        owner, pid, since = (clean_text(holder.get(k, "?"), 80) for k in ("owner", "pid", "since"))
        return LeasedError(
            f"the device is leased by {owner} (process {pid}, since {since})",
            hint="wait until that measurement ends, or stop it",
        )
    if code == "BOOTSTRAP":
        return MissingRuntimeError(message)
    if code == "PROTOCOL":
        return ProtocolError(f"the agent refuses {operation!r}: {message}")
    failure = DeviceError(f"{operation!r} failed on the device: {message}")
    failure.code = code
    return failure
