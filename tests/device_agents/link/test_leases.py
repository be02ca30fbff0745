"""Looking at, reserving and freeing a device from the host."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import device_agents.board.lease as board_lease
from device_agents.link import leases
from device_agents.link.leases import default_user, lock, show, unlock
from device_agents.link.local import LocalTransport
from device_agents.link.session import Session
from latency_tables.errors import DeviceError, LeasedError, UsageError
from tests.device_agents.agents import processes_in


@pytest.fixture
def transport(tmp_path: Path) -> Iterator[LocalTransport]:
    yield LocalTransport(tmp_path / "agent")
    assert processes_in(tmp_path / "agent") == []  # no question leaves an agent behind


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Session]:
    """Sessions of somebody else, with a connection of their own."""

    def session(**settings: Any) -> Session:
        asked = {"user": "ben@desk", "lease_wait_s": 0.0, **settings}
        return Session(LocalTransport(tmp_path / "agent"), **asked)

    return session


def test_a_free_device_shows_nobody(transport: LocalTransport) -> None:
    state = show(transport)
    assert (state.holder, state.reservation, state.free) == (None, None, True)


def test_a_holder_is_shown_without_disturbing_it(
    transport: LocalTransport, make: Callable[..., Session]
) -> None:
    with make(owner="night job") as session:
        holder = show(transport).holder
        assert holder is not None
        assert (holder.owner, holder.user, holder.expired) == ("night job", "ben@desk", False)
        assert holder.token == session.lease_token
        assert holder.boot_id == session.boot_id
        assert "leased by night job (ben@desk), process" in str(holder)
        assert session.request("ping", {}, timeout_s=5) == {}
    assert show(transport).free


def test_a_lock_keeps_others_out_until_it_is_unlocked(
    transport: LocalTransport, make: Callable[..., Session]
) -> None:
    held = lock(transport, minutes=5, reason="demo for customers")
    assert (held.owner, held.reserved, held.pid) == (default_user(), True, 0)
    assert show(transport).reservation is not None
    with pytest.raises(LeasedError, match=r"reserved by .* until .*: demo for customers"):
        make().open()
    with make(user=default_user()):
        pass  # not in one's own way
    assert unlock(transport).reservation is not None
    with make():
        pass


def test_a_lock_of_somebody_else_is_removed_only_with_force(
    transport: LocalTransport, make: Callable[..., Session]
) -> None:
    lock(transport, "anna@laptop", minutes=5, reason="demo")
    other = "ben@desk"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "default_user", lambda: other)
        with pytest.raises(LeasedError, match="anna@laptop"):
            lock(transport, other, minutes=5)
        with pytest.raises(LeasedError, match="anna@laptop"):
            unlock(transport)
        unlock(transport, force=True)
    assert show(transport).free


def test_nothing_to_unlock_is_no_error(transport: LocalTransport) -> None:
    assert unlock(transport).free


def test_a_holder_that_works_is_freed_only_with_force_and_notices(
    transport: LocalTransport, make: Callable[..., Session]
) -> None:
    with make(owner="night job") as session:
        with pytest.raises(LeasedError, match="night job"):
            unlock(transport)
        before = unlock(transport, session.lease_token, force=True)
        assert before.holder is not None
        assert before.holder.owner == "night job"
        with make(owner="next"):
            with pytest.raises(LeasedError) as caught:
                session.request("clean", {"what": ["parts"]}, timeout_s=10)
            assert caught.value.code == "LEASE_LOST"


def test_a_holder_that_came_after_one_looked_is_not_broken(
    transport: LocalTransport, make: Callable[..., Session]
) -> None:
    with make() as session:
        seen = session.lease_token
    with make() as session:
        with pytest.raises(DeviceError) as caught:
            unlock(transport, seen, force=True)
        assert caught.value.code == "LEASE_CHANGED"
        assert session.request("clean", {"what": ["parts"]}, timeout_s=10)


def test_a_frozen_holder_is_passed_over(
    transport: LocalTransport, make: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = make(owner="frozen", deadline_s=60.0)
    frozen.open()
    pid = processes_in(Path(LocalTransport(transport._folder).workdir))[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert board_lease.PATIENCE_S < leases.FREE_WAIT_S  # else the wait below is for nothing
        unlock(transport, frozen.lease_token, force=True)
        with make(owner="next", lease_wait_s=5) as session:
            os.kill(pid, signal.SIGCONT)
            with pytest.raises(LeasedError) as caught:
                frozen.request("clean", {"what": ["parts"]}, timeout_s=10)
            assert caught.value.code == "LEASE_LOST"
            assert session.request("clean", {"what": ["parts"]}, timeout_s=10)
    finally:
        os.kill(pid, signal.SIGCONT) if Path(f"/proc/{pid}").exists() else None
        frozen.close()


@pytest.mark.parametrize("minutes", [0, -5, 1e6])
def test_a_lock_needs_a_sensible_length_before_anything_is_asked(
    transport: LocalTransport, minutes: float
) -> None:
    with pytest.raises(UsageError, match="a week"):
        lock(transport, minutes=minutes)


@pytest.mark.parametrize(
    "said",
    [
        {"owner": "x"},
        {"token": ""},
        {"token": None, "owner": ["x"]},
    ],
)
def test_a_holder_that_makes_no_sense_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(DeviceError):
        leases._holder(said)


def test_what_a_board_says_of_a_holder_is_cleaned() -> None:
    holder = leases._holder(
        {"token": "1-a", "owner": "\x1b[31mx", "pid": float("1e30"), "expires_in_s": True}
    )
    assert (holder.owner, holder.expires_in_s, holder.user) == ("[31mx", 0.0, "")
