"""Power cuts, freezes, pulled cables: what hilnas does when it happens to the board itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from device_agents.link.session import Session
from device_agents.measuring.measurer import DeviceMeasurer, Progress
from latency_tables.errors import DeviceError, LinkLostError
from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement
from tests.boards.conftest import Measure, transport_to
from tests.boards.test_measuring_on_boards import medians
from tests.fakes.emulated_board.boot import EmulatedBoard

pytestmark = pytest.mark.board

DEADLINE_S = 8.0
"""Of a board that is about to fall silent; other boards of this folder are given more."""
SLACK_S = 4.0
"""What noticing may take beyond the deadline on a busy machine."""


def once(step: int, action: Callable[[], object]) -> Callable[[Progress], None]:
    """A listener that acts the first time ``step`` rounds of networks are done."""
    waiting = [action]

    def listen(progress: Progress) -> None:
        if progress.done >= step and waiting:
            waiting.pop()()

    return listen


@pytest.mark.long  # the search of test_search_on_boards.py meets a power cut, too
def test_after_a_power_cut_in_a_batch_nothing_finished_is_measured_again(
    victim: EmulatedBoard,
    measurer_of: Measure,
    six_jobs: Sequence[MeasureJob],
    six_fast: list[Measurement],
) -> None:
    kept: list[Measurement] = []
    measurer = measurer_of(
        victim,
        device={"deadline_s": DEADLINE_S},
        batch_size=2,
        on_result=kept.extend,
        on_progress=once(7, victim.power_cut),  # 2 networks × 2 rounds are stored, 3 more under way
        sleep=lambda seconds: None,
    )
    start = time.monotonic()
    with pytest.raises(DeviceError):
        measurer.measure(six_jobs)
    assert time.monotonic() - start < 120
    assert [record.net_id for record in kept] == [job.net_id for job in six_jobs[:2]]

    victim.start()
    measurer_of(victim, on_result=kept.extend).measure(six_jobs[2:])
    assert [record.net_id for record in kept] == [job.net_id for job in six_jobs]
    known = medians(six_fast)
    for name, found in medians(kept).items():
        assert found == pytest.approx(known[name], rel=0.02)


def test_a_board_that_reboots_in_a_batch_is_waited_for_and_its_rounds_are_taken_again(
    victim: EmulatedBoard, measurer_of: Measure, six_jobs: Sequence[MeasureJob]
) -> None:
    notes: list[str] = []
    reset = once(3, victim.reboot)  # a round of both networks is stored, the next is under way

    def listen(progress: Progress) -> None:
        notes.append(progress.note)
        reset(progress)

    record = measurer_of(victim, on_progress=listen).measure(six_jobs[:2])[0]
    assert record.statistics is not None
    assert record.statistics.n_rounds == 2
    assert "BOARD_REBOOTED" not in {verdict.code for verdict in record.verdicts}
    assert any("rebooted" in note for note in notes)


@pytest.mark.parametrize("fault", ["freeze", "cable"])
def test_a_silent_board_is_lost_within_its_deadline_and_the_next_session_works(
    victim: EmulatedBoard, fault: str
) -> None:
    hurt, heal = {
        "freeze": (victim.stop, victim.cont),
        "cable": (victim.unplug, victim.plug),
    }[fault]
    device = victim.device("emulated", deadline_s=DEADLINE_S)
    with Session(transport_to(device), owner="first", deadline_s=DEADLINE_S) as session:
        hurt()
        start = time.monotonic()
        with pytest.raises(LinkLostError):
            session.probe(["onnxruntime"])
        assert time.monotonic() - start < DEADLINE_S + SLACK_S
    heal()
    patient = victim.device("emulated")
    with Session(transport_to(patient), owner="second", lease_wait_s=90) as session:
        assert session.probe(["onnxruntime"])["machine"] == "aarch64"


def test_a_freeze_shorter_than_the_deadline_costs_nothing(
    victim: EmulatedBoard,
    measurer_of: Measure,
    six_jobs: Sequence[MeasureJob],
    six_fast: list[Measurement],
) -> None:
    notes: list[str] = []
    thaw = threading.Timer(3.0, victim.cont)  # the board lies frozen for three seconds

    def freeze() -> None:
        victim.stop()
        thaw.start()

    listen = once(1, freeze)

    def on_progress(progress: Progress) -> None:
        if progress.note:
            notes.append(progress.note)
        listen(progress)

    measurer: DeviceMeasurer = measurer_of(victim, on_progress=on_progress)
    found, known = medians(measurer.measure(six_jobs[:1])), medians(six_fast)
    thaw.join()
    assert notes == []
    for name, value in found.items():
        assert value == pytest.approx(known[name], rel=0.02)


def test_a_reset_changes_the_boot_id_that_a_session_tells(victim: EmulatedBoard) -> None:
    def told() -> str:
        with Session(transport_to(victim.device("emulated")), owner="reader") as session:
            return session.boot_id

    before = told()
    victim.reboot()
    assert "" not in (before, after := told())
    assert before != after
