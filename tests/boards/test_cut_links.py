"""A link that is cut at random while networks are measured: nothing lost, doubled or left."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from device_agents.measuring.measurer import DeviceMeasurer, Progress
from device_agents.measuring.pool import Member, Pool
from device_agents.measuring.profiles import counted
from latency_tables.append_log import AppendLog
from latency_tables.errors import DeviceError
from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement
from tests.boards.conftest import transport_to
from tests.boards.test_measuring_on_boards import medians
from tests.fakes.emulated_board.boot import HOST, EmulatedBoard
from tests.fakes.emulated_board.shell import shell
from tests.fakes.tcp_proxy import TcpProxy

pytestmark = pytest.mark.board

N_CUTS = 4


class Cutter:
    """Cuts a proxy's connections at random moments, in good order or with RST.

    Every other cut comes after some traffic since the one before, most likely while a connection
    is made or files are sent; the others come some traffic after the next round of a network, while
    networks are timed.
    """

    def __init__(self, proxy: TcpProxy, seed: int) -> None:
        self.proxy, self.random = proxy, random.Random(seed)
        self.cuts: list[str] = []
        self._rounds = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="cutter")

    def listen(self, progress: Progress) -> None:
        """Hear that the measurer got on; notes are about the cuts themselves."""
        self._rounds += not progress.note

    def __enter__(self) -> Cutter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        for index in range(N_CUTS):
            rounds = index % 2
            self._wait(lambda: self._rounds, rounds)
            self._wait(self._traffic, self.random.randint(0, 2_000 if rounds else 60_000))
            if self._over.is_set():
                return
            way = self.random.choice(["cut", "reset"])
            getattr(self.proxy, way)()
            self.cuts.append(f"{way} after {self._rounds} rounds")

    def _wait(self, count: Callable[[], int], more: int) -> None:
        goal = count() + more
        while count() < goal and not self._over.wait(0.002):
            pass

    def _traffic(self) -> int:
        return sum(self.proxy.passed.values())


def measurer_through(cutter: Cutter, board: EmulatedBoard, known_hosts: Path) -> DeviceMeasurer:
    """A measurer that reaches the board by way of the cutter's proxy."""
    proxy = cutter.proxy
    known_hosts.write_text(f"[{HOST}]:{proxy.port} {board.image.host_public_key}\n")
    spec = board.device("emulated")
    assert spec.ssh is not None
    spec = replace(spec, ssh=replace(spec.ssh, port=proxy.port, known_hosts=(known_hosts,)))
    return DeviceMeasurer(
        spec,
        profile=counted(20, 2),
        batch_size=2,
        transport=transport_to(spec),
        on_progress=cutter.listen,
        sleep=lambda seconds: None,
    )


def journalled(path: Path) -> list[Measurement]:
    """Every measurement that a pool's journal holds."""
    with AppendLog.open(path) as log:
        return [Measurement.from_dict(line.record["measurement"]) for line in log.lines]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_through_a_link_that_is_cut_at_random_all_is_measured_once_and_as_without_cuts(
    victim: EmulatedBoard,
    six_jobs: Sequence[MeasureJob],
    six_fast: list[Measurement],
    tmp_path: Path,
    seed: int,
) -> None:
    journal = tmp_path / "boards.jsonl"
    calls = 0
    with TcpProxy(victim.port) as proxy, Cutter(proxy, seed) as cutter:
        measurer = measurer_through(cutter, victim, tmp_path / "known_hosts")
        while calls <= N_CUTS:
            calls += 1
            with (
                contextlib.suppress(DeviceError),  # two faults in a row; the same again goes on
                Pool({"emulated": Member(measurer)}, journal=journal, on_note=print) as pool,
            ):
                pool.collect(pool.submit(six_jobs, to="emulated"))
                break
    records = journalled(journal)
    print(f"{len(cutter.cuts)} cuts in {calls} calls: {cutter.cuts}")
    assert len(cutter.cuts) == N_CUTS
    assert Counter(r.net_id for r in records) == Counter(job.net_id for job in six_jobs)
    found, known = medians(records), medians(six_fast)
    for name, value in found.items():
        assert value == pytest.approx(known[name], rel=0.02)
    assert processes_left(victim) == []


def processes_left(board: EmulatedBoard) -> list[str]:
    """What of hilnas runs on the board, once it had half a minute to notice the end."""
    deadline = time.monotonic() + 30
    with shell(board) as run:
        while True:
            said = run("ps -eo pid,args").splitlines()
            assert any("sshd" in line for line in said)
            left = [line for line in said if "python" in line or "hilnas" in line]
            if not left or time.monotonic() > deadline:
                return left
