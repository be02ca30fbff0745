"""Clocks over a session with a real agent, whose board is an invented tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agents.clocks import ClockControl, ClockReport, Restored, restore_clocks
from device_agents.devices import DeviceSpec
from device_agents.link.local import LocalTransport
from device_agents.link.session import Session
from latency_tables.errors import LinkLostError
from tests.device_agents.agents import kill_agent
from tests.fakes.board_tree import BoardTree

POLICY = "sys/devices/system/cpu/cpufreq/policy4"
DEVICE = DeviceSpec(name="rock", clocks={"policy4": 2208000, "npu": 600_000_000}, power="direct")


@pytest.fixture
def board(tmp_path: Path) -> BoardTree:
    return BoardTree(tmp_path / "root")


@pytest.fixture
def connect(board: BoardTree, tmp_path: Path) -> Callable[[], Session]:
    arguments = ("--root", str(board.root))
    return lambda: Session(LocalTransport(tmp_path / "agent", arguments=arguments))


def governor(board: BoardTree) -> str:
    return board.read(f"{POLICY}/scaling_governor")


def test_clocks_hold_for_the_time_of_a_measurement(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    with connect() as session:
        with ClockControl(session, DEVICE) as clocks:
            assert clocks.report.got == clocks.report.asked == dict(DEVICE.clocks)
            assert clocks.report.findings() == []
            assert governor(board) == "userspace"
        assert governor(board) == "schedutil"
        assert clocks.notes == []


def test_clocks_are_put_back_when_the_measurement_fails(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    with connect() as session:
        with pytest.raises(RuntimeError), ClockControl(session, DEVICE):
            raise RuntimeError
        assert governor(board) == "schedutil"


def test_without_power_clocks_are_observed_and_each_wish_is_a_finding(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    device = replace(
        DEVICE, power="observe", clocks={"policy4": 2208000, "npu": 1, "dmc": 2_112_000_000}
    )
    with connect() as session, ClockControl(session, device) as clocks:
        assert governor(board) == "schedutil"
    assert [finding.code for finding in clocks.report.findings()] == [
        "UNCONTROLLED_GOV",
        "UNCONTROLLED_NPU",
        "UNCONTROLLED_DMC",
    ]
    assert "power is 'observe'" in clocks.report.findings()[0].evidence


def test_a_governor_that_cannot_be_set_becomes_a_finding_with_the_kernels_reason(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    board.refuse_governor()
    with connect() as session, ClockControl(session, DEVICE) as clocks:
        assert clocks.report.got["npu"] == 600_000_000
    (finding,) = clocks.report.findings()
    assert finding.code == "UNCONTROLLED_GOV"
    assert "Permission denied" in finding.evidence


def test_a_governor_whose_write_is_ignored_becomes_a_finding(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    board.refuse_governor(silently=True)
    with connect() as session, ClockControl(session, DEVICE) as clocks:
        pass
    (finding,) = clocks.report.findings()
    assert "wrote userspace, reads back" in finding.evidence


def test_an_agent_that_is_killed_leaves_clocks_that_the_next_session_puts_back(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    with connect() as session, ClockControl(session, DEVICE) as lost:
        kill_agent(session)
    assert governor(board) == "userspace"
    assert "the clocks were not put back" in lost.notes[0]
    assert lost.notes[-1] == "to put them back: hilnas devices restore rock"
    with connect() as session:
        assert session.hello["clocks_journal"] is True
        with ClockControl(session, replace(DEVICE, clocks={})) as clocks:
            assert governor(board) == "schedutil"
    assert clocks.notes[0] == "of a lost session: 4 clock settings were put back"


def test_after_a_reboot_nothing_is_put_back_and_the_clocks_are_set_again(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    with connect() as session, ClockControl(session, DEVICE) as clocks:
        kill_agent(session)
        with pytest.raises(LinkLostError):
            session.request("clocks_journal", {}, timeout_s=5)
        board.reboot()
        session.open()
        assert governor(board) == "schedutil"
        clocks.apply_again()
        assert governor(board) == "userspace"
    assert governor(board) == "schedutil"
    assert clocks.notes == []


def test_a_reboot_that_took_the_changed_clocks_away_is_told(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    with connect() as session, ClockControl(session, DEVICE):
        kill_agent(session)
    board.reboot()
    with connect() as session:
        assert "rebooted" in restore_clocks(session, DEVICE).dropped
        assert restore_clocks(session, DEVICE).dropped == ""


def test_a_board_without_any_clock_refuses_each_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ("--root", str(tmp_path / "empty"))
    with (
        Session(LocalTransport(tmp_path / "agent", arguments=arguments)) as session,
        ClockControl(session, DEVICE, governor="performance", idle=False) as clocks,
    ):
        assert set(clocks.report.refused) == {"policy4", "npu", "governor", "idle"}


def test_what_was_put_back_is_one_sentence() -> None:
    assert str(Restored()) == "no session left clocks changed"
    assert str(Restored(nodes=("a", "b"))) == "2 clock settings were put back"


def test_a_report_is_plain_json() -> None:
    report = ClockReport(asked={"npu": 1}, got={"npu": 2}, refused={"npu": "no"})
    assert report.to_json() == {"asked": {"npu": 1}, "got": {"npu": 2}, "refused": {"npu": "no"}}


def test_a_cut_link_gives_the_clocks_back_at_once(
    connect: Callable[[], Session], board: BoardTree
) -> None:
    session = connect()
    session.open()
    ClockControl(session, DEVICE).apply()
    assert governor(board) == "userspace"
    client: Any = session._client
    client.channel._process.stdin.close()
    client.channel._process.wait(10)
    assert governor(board) == "schedutil"
    session.close()
