"""The lease of a board: one holder, a token per holding, and files that are really ours."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import device_agents.board.lease as lease_module
from device_agents.board.lease import (
    EXPIRES_S,
    PATIENCE_S,
    Lease,
    LeaseChanged,
    Leased,
    LeaseLost,
    UnsafeFile,
)

BOOT = "boot 1"


class Clock:
    """Time since boot and of the calendar, as the test says."""

    def __init__(self) -> None:
        self.uptime_s, self.calendar_s = 1000.0, 1.7e9

    def sleep(self, seconds: float) -> None:
        self.uptime_s += seconds
        self.calendar_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease_module, "_uptime_s", lambda: made.uptime_s)
    monkeypatch.setattr(time, "time", lambda: made.calendar_s)
    return made


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], Lease]:
    return lambda: Lease(str(tmp_path))


def text_of(lease: Lease) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(lease.path).read_text())
    return found


def test_only_one_can_hold_it_and_the_other_hears_who(make: Callable[[], Lease]) -> None:
    first, second = make(), make()
    text = first.take("night job", BOOT, user="anna@laptop")
    with pytest.raises(Leased) as caught:
        second.take("other", BOOT)
    assert caught.value.holder == text
    assert (text["owner"], text["user"], text["pid"]) == ("night job", "anna@laptop", os.getpid())


def test_it_is_free_again_after_its_release(make: Callable[[], Lease]) -> None:
    first, second = make(), make()
    first.take("a", BOOT)
    first.release()
    assert second.take("b", BOOT)["owner"] == "b"


def test_every_holding_has_a_token_of_its_own_that_counts_up(make: Callable[[], Lease]) -> None:
    tokens = []
    for _ in range(3):
        lease = make()
        tokens.append(lease.take("a", BOOT)["token"])
        lease.release()
    assert [token.split("-")[0] for token in tokens] == ["1", "2", "3"]
    assert len({token.split("-")[1] for token in tokens}) == 3


def test_taking_it_again_renews_it_and_keeps_the_token(
    make: Callable[[], Lease], clock: Clock
) -> None:
    lease = make()
    first = lease.take("a", BOOT)
    clock.sleep(50)
    again = lease.take("a", BOOT)
    assert (again["token"], again["since"]) == (first["token"], first["since"])
    assert again["renewed_uptime_s"] - first["renewed_uptime_s"] == 50


def test_it_is_renewed_only_when_a_quarter_of_its_time_is_over(
    make: Callable[[], Lease], clock: Clock
) -> None:
    lease = make()
    lease.take("a", BOOT)
    before = text_of(lease)
    clock.sleep(EXPIRES_S / 4 - 1)
    lease.renew_when_due()
    assert text_of(lease) == before
    clock.sleep(1)
    lease.renew_when_due()
    assert text_of(lease) != before


def test_it_is_shown_without_being_taken(make: Callable[[], Lease], clock: Clock) -> None:
    holder, other = make(), make()
    assert other.show(BOOT) == {"holder": None, "reservation": None}
    holder.take("a", BOOT)
    clock.sleep(20)
    shown = other.show(BOOT)["holder"]
    assert (shown["owner"], shown["expired"], shown["expires_in_s"]) == ("a", False, 40)
    clock.sleep(41)
    assert other.show(BOOT)["holder"]["expired"] is True
    holder.release()
    assert other.show(BOOT)["holder"] is None
    assert other.take("b", BOOT)


def test_who_died_holds_nothing_whatever_the_file_says(make: Callable[[], Lease]) -> None:
    lease = make()
    lease.take("a", BOOT)
    lease.release()
    assert make().show(BOOT)["holder"] is None
    assert make().left_by_other_boot(BOOT) is None
    left = make().left_by_other_boot("boot 2")
    assert left is not None
    assert left["owner"] == "a"


def test_a_living_holder_is_broken_only_with_force(make: Callable[[], Lease]) -> None:
    holder, other = make(), make()
    token = holder.take("a", BOOT)["token"]
    with pytest.raises(Leased):
        other.break_(token, BOOT, owner="b", force=False)
    holder.check()
    assert other.break_(token, BOOT, owner="b", force=True)["was"]["owner"] == "a"
    with pytest.raises(LeaseLost):
        holder.check()
    with pytest.raises(LeaseLost):
        holder.renew()
    assert text_of(holder)["broken_by"] == "b"


@pytest.mark.parametrize("boot", [BOOT, "boot 2"])
def test_an_expired_holder_or_one_of_another_boot_is_broken_freely(
    make: Callable[[], Lease], clock: Clock, boot: str
) -> None:
    holder, other = make(), make()
    token = holder.take("a", BOOT)["token"]
    clock.sleep(EXPIRES_S + 1 if boot == BOOT else 1)
    other.break_(token, boot, owner="b", force=False)
    with pytest.raises(LeaseLost):
        holder.check()


@pytest.mark.parametrize("force", [False, True])
def test_only_the_holder_that_was_looked_at_is_broken(
    make: Callable[[], Lease], force: bool
) -> None:
    first, second, breaker = make(), make(), make()
    seen = first.take("a", BOOT)["token"]
    first.release()
    second.take("b", BOOT)
    with pytest.raises(LeaseChanged):
        breaker.break_(seen, BOOT, owner="c", force=force)
    second.check()


def test_breaking_when_nobody_holds_it_is_told(make: Callable[[], Lease]) -> None:
    with pytest.raises(LeaseChanged):
        make().break_("1-aa", BOOT, owner="c", force=True)


def test_a_broken_holder_that_lets_go_is_followed_by_the_next(make: Callable[[], Lease]) -> None:
    holder, other = make(), make()
    token = holder.take("a", BOOT)["token"]
    other.break_(token, BOOT, owner="b", force=True)
    with pytest.raises(Leased):
        other.take("b", BOOT)
    holder.release()
    assert other.take("b", BOOT)["token"].startswith("3-")  # 2 was written by the break


def test_a_broken_holder_that_is_frozen_loses_the_file(
    make: Callable[[], Lease], clock: Clock
) -> None:
    holder, other, third = make(), make(), make()
    token = holder.take("a", BOOT)["token"]
    other.break_(token, BOOT, owner="b", force=True)
    clock.sleep(PATIENCE_S - 1)
    with pytest.raises(Leased):
        other.take("b", BOOT)
    clock.sleep(2)
    assert other.take("b", BOOT)["token"].startswith("3-")
    other.check()
    with pytest.raises(LeaseLost):
        holder.check()
    with pytest.raises(Leased):
        third.take("c", BOOT)
    holder.release()  # it thaws and lets go of the old file
    other.check()


def test_a_frozen_holder_that_was_not_broken_keeps_the_board(
    make: Callable[[], Lease], clock: Clock
) -> None:
    holder, other = make(), make()
    holder.take("a", BOOT)
    clock.sleep(10 * EXPIRES_S)
    with pytest.raises(Leased):
        other.take("b", BOOT)


def test_a_removed_work_folder_is_a_lost_lease(make: Callable[[], Lease]) -> None:
    lease = make()
    lease.take("a", BOOT)
    os.unlink(lease.path)
    with pytest.raises(LeaseLost):
        lease.check()


# ---- files that are not what they should be ---------------------------------------------------


def _link(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    victim.chmod(0o600)
    path.symlink_to(victim)


def _hard_link(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    victim.chmod(0o600)
    path.hardlink_to(victim)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("victim"))


def _open_to_others(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


@pytest.mark.parametrize("name", ["lease", "reservation", "guard"])
@pytest.mark.parametrize(
    "replace", [_link, _hard_link, _dangling, _open_to_others, Path.mkdir, os.mkfifo]
)
def test_a_file_that_is_a_link_or_open_to_others_is_refused_and_its_target_untouched(
    make: Callable[[], Lease], tmp_path: Path, name: str, replace: Callable[[Path], None]
) -> None:
    replace(tmp_path / name)
    with pytest.raises(UnsafeFile, match="remove it"):
        make().take("a", BOOT)
    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_text() == "precious"
    assert victim.exists() == (replace in (_link, _hard_link))


def test_a_lease_file_replaced_by_a_link_while_it_is_held_is_noticed(
    make: Callable[[], Lease], tmp_path: Path
) -> None:
    lease = make()
    lease.take("a", BOOT)
    Path(lease.path).rename(tmp_path / "moved")
    Path(lease.path).symlink_to(tmp_path / "moved")
    with pytest.raises(LeaseLost):
        lease.renew()


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"[1]", b'{"token": 7}', b"{" * 9000])
def test_a_text_damaged_by_a_power_cut_does_not_lock_the_board(
    make: Callable[[], Lease], tmp_path: Path, content: bytes
) -> None:
    for name in ("lease", "reservation"):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    assert make().show(BOOT) == {"holder": None, "reservation": None}
    assert make().take("a", BOOT)["token"]


# ---- reservations -----------------------------------------------------------------------------


def reserve(lease: Lease, owner: str, minutes: float = 10, boot: str = BOOT) -> dict[str, object]:
    return lease.reserve(owner, boot, user="", minutes=minutes, reason="demo")


def test_a_reservation_keeps_others_out_but_not_its_owner(
    make: Callable[[], Lease], clock: Clock
) -> None:
    reserve(make(), "anna@laptop")
    with pytest.raises(Leased) as caught:
        make().take("job", BOOT, user="ben@desk")
    assert caught.value.holder["reason"] == "demo"
    assert caught.value.holder["reserved"] is True
    by_user, by_owner = make(), make()
    by_user.take("job", BOOT, user="anna@laptop")
    by_user.release()
    by_owner.take("anna@laptop", BOOT)


def test_a_reservation_ends_by_itself(make: Callable[[], Lease], clock: Clock) -> None:
    reserve(make(), "anna", minutes=10)
    clock.sleep(599)
    with pytest.raises(Leased):
        make().take("ben", BOOT)
    clock.sleep(2)
    assert make().take("ben", BOOT)


@pytest.mark.parametrize(
    ("uptime_s", "calendar_later_s", "free"),
    [
        (30, 100, False),  # rebooted within the time
        (30, 601, True),  # the calendar says that it is over
        (30, -1.7e9, False),  # a board without a battery, just up, its calendar not set
        (601, -1.7e9, True),  # but it has been up for longer than was reserved
    ],
)
def test_a_reservation_outlives_a_reboot_but_not_its_length(
    make: Callable[[], Lease],
    clock: Clock,
    uptime_s: float,
    calendar_later_s: float,
    free: bool,
) -> None:
    reserve(make(), "anna", minutes=10)
    clock.uptime_s = uptime_s
    clock.calendar_s += calendar_later_s
    assert (make().show("boot 2")["reservation"] is None) == free


def test_a_reservation_is_removed_by_its_token_only(make: Callable[[], Lease]) -> None:
    token = reserve(make(), "anna")["token"]
    with pytest.raises(LeaseChanged):
        make().break_("1-0000", BOOT, owner="ben", force=True)
    assert make().break_(str(token), BOOT, owner="ben", force=False)["broken"] == "reservation"
    assert make().take("ben", BOOT)


def test_nobody_reserves_what_somebody_else_has(make: Callable[[], Lease]) -> None:
    holder = make()
    holder.take("job", BOOT, user="anna")
    with pytest.raises(Leased):
        reserve(make(), "ben")
    reserve(make(), "anna")  # the holder's own user may
    holder.release()
    with pytest.raises(Leased):
        reserve(make(), "ben")
    assert reserve(make(), "anna", minutes=20)["seconds"] == 1200


def test_a_link_in_place_of_a_reservation_is_not_followed_when_reserving(
    make: Callable[[], Lease], tmp_path: Path
) -> None:
    _link(tmp_path / "reservation")
    with pytest.raises(UnsafeFile):
        reserve(make(), "anna")
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("minutes", [0, -1, 1e9, float("nan")])
def test_a_reservation_needs_a_sensible_length(make: Callable[[], Lease], minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes"):
        reserve(make(), "anna", minutes=minutes)


def test_texts_of_any_length_are_kept_readable(make: Callable[[], Lease]) -> None:
    lease = make()
    lease.take("\u2603" * 5000, BOOT, user="\u2603" * 5000)
    shown = make().show(BOOT)["holder"]
    assert shown["owner"] == "\u2603" * 200
    lease.check()
