"""The host's end of a conversation with an agent that may say anything, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from device_agents.board.frames import MAX_FRAME_BYTES, decode, encode, failure
from device_agents.client import AgentClient
from latency_tables.errors import (
    LeasedError,
    LinkLostError,
    MissingRuntimeError,
    ProtocolError,
)


class Script:
    """A channel that says prepared lines; None is silence."""

    def __init__(self, lines: Sequence[bytes | None]) -> None:
        self.lines = list(lines)
        self.sent: list[bytes] = []
        self.killed = False

    def send(self, data: bytes, timeout_s: float) -> None:
        self.sent.append(data)

    def receive(self, timeout_s: float) -> bytes | None:
        return self.lines.pop(0) if self.lines else b""

    def complaint(self) -> str:
        return "it ended with status 1; it said: \x1b[31mboom"

    def kill(self) -> None:
        self.killed = True


def ask(*lines: bytes | None, events: list[str] | None = None) -> dict[str, object]:
    client = AgentClient(Script(lines), silence_s=5)
    heard: list[str] = events if events is not None else []
    return client.request("probe", timeout_s=60, on_event=lambda name, data: heard.append(name))


def answer(identity: int = 1) -> bytes:
    return encode({"v": 1, "id": identity, "ok": True, "result": {"n": identity}})


def test_a_result_is_given_after_its_events_and_heartbeats_are_swallowed() -> None:
    heard: list[str] = []
    beat = encode({"v": 1, "id": 1, "event": "heartbeat", "data": {}})
    net = encode({"v": 1, "id": 1, "event": "net", "data": {}})
    assert ask(beat, net, beat, answer(), events=heard) == {"n": 1}
    assert heard == ["net"]


def test_an_answer_to_an_older_request_is_skipped() -> None:
    assert ask(answer(99), answer(1)) == {"n": 1}


def test_the_end_of_the_stream_is_a_lost_link_that_quotes_stderr_without_control_codes() -> None:
    with pytest.raises(LinkLostError, match=r"said: \[31mboom"):
        ask(b"")


def test_silence_is_a_lost_link() -> None:
    with pytest.raises(LinkLostError, match="5 s"):
        ask(None)


@pytest.mark.parametrize(
    "line",
    [
        b"Traceback (most recent call last):\n",
        b'{"v":1,"id":1',
        b"x" * (MAX_FRAME_BYTES + 2),
        encode({"v": 1, "id": 1, "ok": True, "result": 7}),
        encode({"v": 1, "id": 1, "ok": "yes", "result": {}}),
        encode({"v": 1, "id": 1, "event": "net", "data": [1]}),
        encode({"v": 1, "id": 1}),
    ],
)
def test_whatever_is_not_the_protocol_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        ask(line)


def test_a_lease_error_says_who_holds_the_device() -> None:
    frame = failure(1, "LEASED", "the board is leased")
    frame["error"]["holder"] = {"owner": "ci", "pid": 12, "since": "noon"}
    with pytest.raises(LeasedError, match="leased by ci \\(process 12, since noon\\)"):
        ask(encode(frame))


def test_a_missing_runtime_is_told_apart() -> None:
    with pytest.raises(MissingRuntimeError, match="no module"):
        ask(encode(failure(1, "BOOTSTRAP", "no module")))


def test_closing_says_bye_and_ends_the_process() -> None:
    channel = Script([])
    AgentClient(channel).close()
    assert decode(channel.sent[-1])["op"] == "bye"
    assert channel.killed
