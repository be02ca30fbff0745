"""The host's end of a conversation with an agent that may say anything, or nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest

import device_agents.link.client as client_module
from device_agents.board.frames import MAX_FRAME_BYTES, decode, encode, failure
from device_agents.link.client import MAX_LINES, AgentClient
from latency_tables.errors import (
    DeviceDiskFullError,
    LeasedError,
    LinkLostError,
    MissingRuntimeError,
    ProtocolError,
)


class Script:
    """A channel that says prepared lines; None is silence, after the last one for ever."""

    def __init__(self, lines: Sequence[bytes | None], *, ends: bool = True) -> None:
        self.lines, self.ends = list(lines), ends
        self.waited_s = 0.0
        self.sent: list[bytes] = []
        self.killed = False

    def send(self, data: bytes, timeout_s: float) -> None:
        self.sent.append(data)

    def receive(self, timeout_s: float) -> bytes | None:
        line = self.lines.pop(0) if self.lines else b"" if self.ends else None
        self.waited_s += timeout_s if line is None else 0
        return line

    def complaint(self) -> str:
        return "it ended with status 1; it said: \x1b[31mboom"

    def kill(self, within_s: float | None = None) -> None:
        self.killed, self.killed_within_s = True, within_s


class Chatty(Script):
    """A channel that never ends and never answers."""

    def receive(self, timeout_s: float) -> bytes | None:
        return encode({"v": 1, "id": 1, "event": "heartbeat", "data": {}})


def ask(*lines: bytes | None, events: list[str] | None = None) -> dict[str, object]:
    client = AgentClient(Script(lines), deadline_s=5, start_s=5)
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


def test_an_answer_to_a_request_that_was_given_up_is_skipped() -> None:
    client = AgentClient(Script([None, None, None]), deadline_s=5, start_s=5)
    with pytest.raises(LinkLostError):
        client.request("probe", timeout_s=60)
    client.channel = Script([answer(1), answer(2)])
    assert client.request("probe", timeout_s=60) == {"n": 2}


@pytest.mark.parametrize("identity", [99, -1, "1", 1.5, [1], True])
def test_an_answer_to_a_request_that_was_never_sent_is_a_protocol_error(identity: object) -> None:
    with pytest.raises(ProtocolError, match="answer to request"):
        ask(encode({"v": 1, "id": identity, "ok": True, "result": {}}))


def test_the_end_of_the_stream_is_a_lost_link_that_quotes_stderr_without_control_codes() -> None:
    with pytest.raises(LinkLostError, match=r"said: \[31mboom"):
        ask(b"")


def test_silence_is_a_lost_link_after_the_deadline_and_not_that_of_the_request() -> None:
    channel = Script([answer(0)], ends=False)
    with pytest.raises(LinkLostError, match="no sign of life for 10 s"):
        AgentClient(channel).request("measure", timeout_s=3600)
    assert channel.waited_s == pytest.approx(10)


def test_an_agent_that_still_starts_is_given_more_time_for_its_first_line() -> None:
    channel = Script([], ends=False)
    with pytest.raises(LinkLostError, match="no sign of life for 20 s"):
        AgentClient(channel, deadline_s=3).request("hello", timeout_s=60)
    assert channel.waited_s == pytest.approx(20)


def test_it_pings_every_two_seconds_while_it_waits() -> None:
    channel = Script([answer(0)], ends=False)
    with pytest.raises(LinkLostError):
        AgentClient(channel).request("measure", timeout_s=60)
    assert [decode(line)["op"] for line in channel.sent] == ["measure", *["ping"] * 4]


def test_a_board_that_answers_pings_is_not_given_up_while_it_works() -> None:
    pongs: list[bytes | None] = []
    for _ in range(100):  # each pong comes nine seconds after the last line
        pongs += [None, None, None, None, answer(0)]
    channel = Script([answer(0), *pongs, answer(1)])
    assert AgentClient(channel).request("measure", timeout_s=3600) == {"n": 1}
    assert channel.waited_s > 600


def test_a_host_that_was_suspended_does_not_take_its_own_sleep_for_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = itertools.count(0, 100)  # every look at the clock is 100 s later
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    channel = Script([answer(0), None, answer(1)])
    assert AgentClient(channel).request("measure", timeout_s=10_000) == {"n": 1}


def test_an_agent_that_talks_but_never_answers_is_given_up_at_the_deadline_of_the_request() -> None:
    start = time.monotonic()
    with pytest.raises((LinkLostError, ProtocolError)):
        AgentClient(Chatty([])).request("measure", timeout_s=0.2)
    assert time.monotonic() - start < 5


def test_a_flood_of_events_is_refused() -> None:
    event = encode({"v": 1, "id": 1, "event": "net", "data": {}})
    with pytest.raises(ProtocolError, match="lines came"):
        ask(*[event] * (MAX_LINES + 2000), answer())


def test_events_of_another_request_are_not_passed_on() -> None:
    heard: list[str] = []
    old = encode({"v": 1, "id": 0, "event": "net", "data": {}})
    assert ask(old, answer(), events=heard) == {"n": 1}
    assert heard == []


def test_an_agent_that_left_before_the_request_came_is_quoted() -> None:
    class Closed(Script):
        def send(self, data: bytes, timeout_s: float) -> None:
            raise LinkLostError("the agent is gone")

    said = encode(failure(None, "BOOTSTRAP", "the agent needs Python 3.7 or newer"))
    with pytest.raises(MissingRuntimeError, match=r"3\.7"):
        AgentClient(Closed([said])).request("hello", timeout_s=5)
    with pytest.raises(LinkLostError, match="is gone"):
        AgentClient(Closed([])).request("hello", timeout_s=5)


def test_a_link_that_breaks_while_idle_is_told_by_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "PING_S", 0.01)
    client = AgentClient(Script([]), deadline_s=5)
    client.keep_alive()
    deadline = time.monotonic() + 10
    while client._lost is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(LinkLostError, match="vanished during 'ping'"):
        client.request("probe", timeout_s=5)
    client.close()


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
        b'{"v":1,"id":1,"ok":true,"result":{"n":NaN}}\n',
        b'{"v":1,"id":1,"ok":true,"result":{"n":1e999}}\n',
        b'{"v":1,"id":1,"ok":true,"result":{"n":' + b"[" * 200 + b"]" * 200 + b"}}\n",
        encode({"v": 1, "id": None, "ok": True, "result": {}}),
        b"\xff\xfe\n",
        b"\n",
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


def test_a_reservation_says_until_when_and_why() -> None:
    frame = failure(1, "LEASED", "the board is leased")
    frame["error"]["holder"] = {
        "owner": "anna",
        "until": "noon",
        "reason": "demo\x1b[2J",
        "reserved": True,
    }
    with pytest.raises(LeasedError, match=r"reserved by anna until noon: demo\[2J"):
        ask(encode(frame))


@pytest.mark.parametrize("holder", [None, [], 7, {"owner": {"a": 1}, "pid": None}])
def test_a_holder_that_makes_no_sense_is_still_a_lease_error(holder: object) -> None:
    frame = failure(1, "LEASED", "the board is leased")
    frame["error"]["holder"] = holder
    with pytest.raises(LeasedError):
        ask(encode(frame))


def test_a_lost_lease_and_a_full_disk_are_told_apart() -> None:
    with pytest.raises(LeasedError) as lost:
        ask(encode(failure(1, "LEASE_LOST", "broken by ben")))
    assert lost.value.code == "LEASE_LOST"
    with pytest.raises(DeviceDiskFullError, match="no room"):
        ask(encode(failure(1, "DISK_FULL", "measure: [Errno 28]")))


def test_a_missing_runtime_is_told_apart() -> None:
    with pytest.raises(MissingRuntimeError, match="no module"):
        ask(encode(failure(1, "BOOTSTRAP", "no module")))


def test_closing_ends_the_process_with_patience() -> None:
    channel = Script([answer()])
    client = AgentClient(channel)
    client.request("probe", timeout_s=60)
    client.close()
    assert channel.killed
    assert channel.killed_within_s is None


def test_an_agent_that_was_silent_is_not_waited_for_at_the_end() -> None:
    channel = Script([None] * 9, ends=False)
    client = AgentClient(channel, deadline_s=5, start_s=5)
    with pytest.raises(LinkLostError, match="no sign of life"):
        client.request("probe", timeout_s=60)
    client.close()
    assert channel.killed_within_s == client_module.LOST_S


def test_an_agent_that_takes_too_long_but_lives_is_ended_with_patience() -> None:
    channel = Chatty([])
    client = AgentClient(channel)
    with pytest.raises((LinkLostError, ProtocolError)):
        client.request("measure", timeout_s=0.2)
    client.close()
    assert channel.killed_within_s is None
