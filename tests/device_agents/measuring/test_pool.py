"""The pool of boards: work shared by tag, faults set aside, nothing lost or done twice."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agents.measuring.pool import FAULTS_ALLOWED, REST_S, TRIES, Member, Pool
from latency_tables.errors import (
    AuthError,
    DeviceError,
    LinkLostError,
    RunError,
    UsageError,
)
from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement
from tests.latency_tables.conftest import measurement

Fault = Callable[[Sequence[str]], DeviceError | None]


def jobs(n: int) -> list[MeasureJob]:
    return [MeasureJob(net_id=f"net-{i}", arch=None, onnx=b"") for i in range(n)]


class Board:
    """Measures at once, unless ``fault`` says otherwise; ``gate`` holds it up until it is set."""

    batch_size = 5

    def __init__(
        self, name: str = "a", *, fault: Fault = lambda nets: None, seconds: float = 0.0
    ) -> None:
        self.name, self.fault, self.seconds = name, fault, seconds
        self.seen: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.stopped = False

    def measure(self, asked: Sequence[MeasureJob]) -> list[Measurement]:
        nets = [job.net_id for job in asked]
        self.gate.wait(30)
        if self.stopped:
            raise LinkLostError("stopped")
        error = self.fault(nets)
        if error is not None:
            raise error
        time.sleep(self.seconds * len(nets))
        self.seen.append(nets)
        return [measurement(net_id=net, device_name=self.name) for net in nets]

    def stop(self) -> None:
        self.stopped = True
        self.gate.set()


def ids(answers: Sequence[Measurement | DeviceError]) -> list[str]:
    return [a.net_id for a in answers if isinstance(a, Measurement)]


def test_answers_come_in_the_order_asked() -> None:
    with Pool({"a": Member(Board("a")), "b": Member(Board("b"), tags=("x",))}) as pool:
        assert ids(pool.collect(pool.submit(jobs(23), to="b"))) == [j.net_id for j in jobs(23)]


def test_boards_of_one_tag_share_the_work_and_the_fast_one_does_more() -> None:
    fast, slow = Board("fast", seconds=0.001), Board("slow", seconds=0.02)
    members = {"fast": Member(fast, tags=("lab",)), "slow": Member(slow, tags=("lab",))}
    with Pool(members) as pool:
        records = pool.collect(pool.submit(jobs(60), to="lab"))
    by = Counter(r.device_name for r in records if isinstance(r, Measurement))
    assert by["fast"] > 2 * by["slow"] > 0


def test_work_goes_only_to_boards_that_carry_the_tag() -> None:
    a, b = Board("a"), Board("b")
    with Pool({"a": Member(a, tags=("x",)), "b": Member(b, tags=("y",))}) as pool:
        pool.collect(pool.submit(jobs(12), to="y"))
    assert a.seen == []


def test_a_tag_that_nobody_carries_is_refused() -> None:
    with (
        Pool({"a": Member(Board("a"), tags=("x",))}) as pool,
        pytest.raises(UsageError, match="carries 'z'; there are: a, x"),
    ):
        pool.submit(jobs(1), to="z")


def test_a_board_that_dies_leaves_its_work_to_the_others() -> None:
    dead = Board("dead", fault=lambda nets: LinkLostError("no sign of life"))
    alive = Board("alive")
    notes: list[str] = []
    members = {n: Member(b, tags=("lab",)) for n, b in (("dead", dead), ("alive", alive))}
    with Pool(members, on_note=notes.append) as pool:
        assert len(ids(pool.collect(pool.submit(jobs(40), to="lab")))) == 40
    assert Counter(net for nets in alive.seen for net in nets) == Counter(
        job.net_id for job in jobs(40)
    )
    assert all(note.startswith("dead") for note in notes)


def test_a_board_that_recovers_goes_on() -> None:
    faults = iter([LinkLostError("gone"), None, LinkLostError("gone"), *[None] * 50])
    with Pool({"a": Member(Board("a", fault=lambda nets: next(faults)))}) as pool:
        assert len(ids(pool.collect(pool.submit(jobs(20), to="a")))) == 20


def test_when_every_board_is_away_the_caller_is_told_why_and_what_is_kept(tmp_path: Path) -> None:
    n_done = 0

    def fault(nets: Sequence[str]) -> DeviceError | None:
        nonlocal n_done
        n_done += 1
        return None if n_done == 1 else LinkLostError("no sign of life for 10 s")

    journal = tmp_path / "pool.jsonl"
    with Pool({"a": Member(Board("a", fault=fault))}, journal=journal) as pool:
        ticket = pool.submit(jobs(20), to="a")
        with pytest.raises(DeviceError, match=r"no device is left .*a: rests.* is kept"):
            pool.collect(ticket)
    again = Board("a")
    with Pool({"a": Member(again)}, journal=journal) as pool:
        assert len(ids(pool.collect(pool.submit(jobs(20), to="a")))) == 20
    assert sum(map(len, again.seen)) == 15


def test_a_rested_board_is_tried_again() -> None:
    now = [0.0]
    faults = iter([LinkLostError("gone")] * FAULTS_ALLOWED + [None] * 9)
    board = Board("a", fault=lambda nets: next(faults))
    with Pool({"a": Member(board)}, clock=lambda: now[0]) as pool:
        ticket = pool.submit(jobs(3), to="a")
        with pytest.raises(DeviceError, match="rests"):
            pool.collect(ticket)
        now[0] = REST_S + 1
        assert len(ids(pool.collect(ticket))) == 3


def test_a_fault_that_cannot_be_mended_takes_the_board_out_at_once() -> None:
    error = AuthError("refused every key", hint="hilnas devices add")
    with Pool({"a": Member(Board("a", fault=lambda nets: error))}) as pool:
        ticket = pool.submit(jobs(3), to="a")
        with pytest.raises(DeviceError, match="refused every key") as raised:
            pool.collect(ticket)
    assert (raised.value.code, raised.value.hint) == ("AUTH", "hilnas devices add")


def test_a_network_that_breaks_boards_is_given_up_without_blame_and_the_rest_is_measured() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += REST_S / 3  # resting takes a moment only
        return now[0]

    def fault(nets: Sequence[str]) -> DeviceError | None:
        return LinkLostError("rebooted") if "net-3" in nets else None

    boards = {n: Member(Board(n, fault=fault), tags=("lab",)) for n in ("a", "b")}
    with Pool(boards, clock=clock) as pool:
        ticket = pool.submit(jobs(12), to="lab")
        answers = None
        for _ in range(100):
            try:
                answers = pool.collect(ticket)
                break
            except DeviceError:
                continue
    assert answers is not None
    assert ids(answers) == [j.net_id for j in jobs(12) if j.net_id != "net-3"]
    broken = answers[3]
    assert isinstance(broken, DeviceError)
    assert broken.blames == "board"


def test_the_same_network_of_one_campaign_is_measured_once() -> None:
    board = Board("a")
    with Pool({"a": Member(board)}) as pool:
        first = pool.collect(pool.submit(jobs(5), to="a", campaign="table"))
        again = pool.collect(pool.submit(jobs(5), to="a", campaign="table"))
        pool.collect(pool.submit(jobs(5), to="a", campaign="front"))
    assert again == first
    assert sum(map(len, board.seen)) == 10


def test_a_defect_in_a_board_is_raised_and_does_not_hang() -> None:
    def broken(nets: Sequence[str]) -> DeviceError | None:
        raise ZeroDivisionError("a bug")

    with Pool({"a": Member(Board("a", fault=broken))}) as pool:
        ticket = pool.submit(jobs(1), to="a")
        with pytest.raises(ZeroDivisionError, match="a bug"):
            pool.collect(ticket)


def test_closing_does_not_wait_for_a_board_that_hangs() -> None:
    board = Board("a")
    board.gate.clear()
    with Pool({"a": Member(board)}) as pool:
        pool.submit(jobs(3), to="a")
    assert board.stopped


def test_a_damaged_journal_names_the_line(tmp_path: Path) -> None:
    journal = tmp_path / "pool.jsonl"
    with Pool({"a": Member(Board("a"))}, journal=journal) as pool:
        pool.collect(pool.submit(jobs(3), to="a"))
    journal.write_bytes(journal.read_bytes().replace(b"net-1", b"net-7"))
    with pytest.raises(RunError, match="line 2 is damaged"):
        Pool({"a": Member(Board("a"))}, journal=journal)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one device"):
        Pool({})


@settings(max_examples=25, deadline=None)
@given(
    faults=st.lists(st.booleans(), min_size=0, max_size=12),
    n_boards=st.integers(min_value=1, max_value=3),
    tear=st.integers(min_value=0, max_value=40),
)
def test_whatever_breaks_and_however_often_it_is_resumed_the_records_are_those_of_a_quiet_run(
    tmp_path_factory: pytest.TempPathFactory, faults: list[bool], n_boards: int, tear: int
) -> None:
    journal = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    script = iter(faults)
    lock = threading.Lock()

    def fault(nets: Sequence[str]) -> DeviceError | None:
        with lock:
            return LinkLostError("cut") if next(script, False) else None

    answers: list[Measurement | DeviceError] = []
    for _ in range(TRIES * len(faults) + 2):
        boards = {f"b{i}": Board(f"b{i}", fault=fault) for i in range(n_boards)}
        members = {name: Member(board, tags=("lab",)) for name, board in boards.items()}
        try:
            with Pool(members, journal=journal) as pool:
                answers = pool.collect(pool.submit(jobs(17), to="lab", campaign="g"))
        except DeviceError:
            pass
        if len(ids(answers)) == 17:
            break
        raw = journal.read_bytes()
        journal.write_bytes(raw[: max(0, len(raw) - tear)])  # the host lost power, too
    assert ids(answers) == [job.net_id for job in jobs(17)]
    journalled = [line for line in journal.read_bytes().split(b"\n") if line]
    assert len(journalled) == 17


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.device_agents.measuring.test_pool import Board, jobs
from device_agents.measuring.pool import Member, Pool
boards = {{n: Member(Board(n, seconds=0.005), tags=("lab",)) for n in ("a", "b")}}
with Pool(boards, journal=Path({journal!r})) as pool:
    print("ready", flush=True)
    pool.collect(pool.submit(jobs(50), to="lab"))
"""


@pytest.mark.parametrize("after_lines", [1, 11, 30])
def test_a_killed_host_process_loses_nothing_that_was_finished(
    tmp_path: Path, after_lines: int
) -> None:
    journal, root = tmp_path / "pool.jsonl", str(Path(__file__).parents[3])
    code = KILLED.format(root=root, journal=str(journal))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= after_lines:
            break
        time.sleep(0.001)
    process.kill()
    process.wait()
    finished = journal.read_bytes().count(b"\n")
    board = Board("a")
    with Pool({"a": Member(board, tags=("lab",))}, journal=journal) as pool:
        assert len(ids(pool.collect(pool.submit(jobs(50), to="lab")))) == 50
    assert sum(map(len, board.seen)) == 50 - finished
