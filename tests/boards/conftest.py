"""Emulated boards, shared by all tests of this folder; each needs seconds to start."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from device_agents.bootstrap import Installed, bootstrap
from device_agents.devices import DeviceSpec
from device_agents.link.ssh.transport import SshTransport
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.profiles import counted
from device_agents.measuring.reference import reference_model
from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement
from tests.boards.commands import Desk, Said
from tests.boards.networks import fixed_jobs
from tests.fakes.emulated_board.boot import READY, EmulatedBoard
from tests.fakes.emulated_board.build import BoardImage, image, missing_tools
from tests.fakes.emulated_board.recipe import Recipe
from tests.fakes.emulated_board.shell import shell

DOWNLOADS = Path.home() / ".cache" / "hilnas-tests" / "bootstrap"
FAST, SLOW = 1, 3
"""Shifts of the two boards: one is 2^2 times as slow as the other."""


@dataclass(frozen=True)
class FirstDay:
    """What the commands said that turned a bare board into one that measures, and its disk."""

    said: dict[str, Said]
    disk: Path
    inventory: Path


_seconds = pytest.StashKey[dict[str, float]]()

Boot = Callable[..., EmulatedBoard]
Measure = Callable[..., DeviceMeasurer]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_seconds] = {}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how long the steps took that tests share."""
    for name, seconds in config.stash.get(_seconds, {}).items():
        terminalreporter.write_line(f"board: {name} took {seconds:.1f} s")


@pytest.fixture(scope="session")
def timed(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """Note under a name how long a block takes."""

    @contextmanager
    def note(name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        pytestconfig.stash[_seconds][name] = time.monotonic() - start

    return note


@pytest.fixture(scope="session")
def board_image(timed: Callable[..., Any]) -> BoardImage:
    """The usual image; without the tools to build it tests are skipped, or fail where required."""
    return need_image(Recipe(), timed)


def need_image(recipe: Recipe, timed: Callable[..., Any]) -> BoardImage:
    if missing := missing_tools():
        reason = f"emulated boards need: apt-get install {' '.join(missing)}"
        if os.environ.get("HILNAS_REQUIRE_BOARD") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with timed(f"image {recipe.name}, from the cache where it was there"):
        return image(recipe)


@pytest.fixture(scope="session")
def first_day(
    board_image: BoardImage, tmp_path_factory: pytest.TempPathFactory, timed: Callable[..., Any]
) -> Iterator[FirstDay]:
    """A new board is added, examined, set up and used, all by commands; then its disk is kept."""
    folder = tmp_path_factory.mktemp("desk")
    desk, disk = Desk(folder, DOWNLOADS), folder / "prepared.qcow2"
    (folder / "net.onnx").write_bytes(reference_model("tiny"))
    said: dict[str, Said] = {}
    with EmulatedBoard(board_image, shift=FAST) as board:

        def step(name: str, *words: str) -> None:
            with timed(f"'{name}' by command"):
                said[name] = desk.hilnas(*words) if words else desk.add(board, "new")

        step("add")
        step("doctor of a bare board", "devices", "doctor", "new", "--json")
        step("bootstrap", "devices", "bootstrap", "new", "--json")
        assert said["bootstrap"].code == 0, said["bootstrap"]
        step("probe", "devices", "probe", "new", "--json")
        step("doctor", "devices", "doctor", "new", "--json")
        step("measure", "measure", "net.onnx", "--device", "new", "--measuring", "quick", "--json")
        with shell(board) as run:
            run("sync")
        board.save_snapshot()
        board.keep_disk(disk)
    yield FirstDay(said=said, disk=disk, inventory=folder / "devices.toml")
    disk.unlink()  # pytest would keep half a gigabyte for three runs


@pytest.fixture(scope="session")
def prepared_disk(first_day: FirstDay) -> Path:
    """The disk of a board on which hilnas has installed onnxruntime."""
    return first_day.disk


def install_runtime(board: EmulatedBoard) -> Installed:
    """Let hilnas bring onnxruntime to a board; gives what the board has then."""
    device = board.device("bare")
    transport = transport_to(device)
    transport.open()
    try:
        return bootstrap(transport, device, cache=DOWNLOADS, on_note=print)
    finally:
        transport.close()


def transport_to(device: DeviceSpec) -> SshTransport:
    """The SSH transport as hilnas makes it for an entry of the inventory."""
    assert device.ssh is not None
    return SshTransport(device.ssh, python=device.python, deadline_s=device.deadline_s)


@pytest.fixture(scope="session")
def boot(board_image: BoardImage, prepared_disk: Path) -> Iterator[Boot]:
    """Boot boards with onnxruntime; each is ended when the tests are."""
    with ExitStack() as stack:

        def start(shift: int = FAST) -> EmulatedBoard:
            board = EmulatedBoard(board_image, shift=shift, disk=prepared_disk)
            return stack.enter_context(board)

        yield start


@pytest.fixture(scope="session")
def fast_board(boot: Boot, timed: Callable[..., Any]) -> EmulatedBoard:
    """A board with onnxruntime that no test harms."""
    with timed("boot of the fast board"):
        return boot(FAST)


@pytest.fixture(scope="session")
def slow_board(boot: Boot, timed: Callable[..., Any]) -> EmulatedBoard:
    """The same board with a clock that runs 2^(SLOW - FAST) times as fast: all takes longer."""
    with timed("boot of the slow board"):
        return boot(SLOW)


@pytest.fixture
def victim(board_image: BoardImage, prepared_disk: Path) -> Iterator[EmulatedBoard]:
    """A board with onnxruntime to which things may be done; starts as bootstrap left it."""
    with EmulatedBoard(board_image, shift=FAST, disk=prepared_disk, tag=READY) as board:
        yield board


@pytest.fixture(scope="session")
def measurer_of() -> Measure:
    """A measurer for a board: 20 runs in each of two rounds; ``device`` changes its entry."""

    def make(
        board: EmulatedBoard, *, device: dict[str, Any] | None = None, **settings: Any
    ) -> DeviceMeasurer:
        spec = board.device("emulated", **(device or {}))
        settings.setdefault("profile", counted(20, 2))
        return DeviceMeasurer(spec, transport=transport_to(spec), **settings)

    return make


@pytest.fixture(scope="session")
def six_jobs() -> list[MeasureJob]:
    """Six subnets of one space, far apart in cost."""
    return fixed_jobs()


@pytest.fixture(scope="session")
def six_fast(
    fast_board: EmulatedBoard,
    measurer_of: Measure,
    six_jobs: Sequence[MeasureJob],
    timed: Callable[..., Any],
) -> list[Measurement]:
    """The six on the fast board."""
    with timed("six subnets on the fast board"):
        return measurer_of(fast_board).measure(six_jobs)


@pytest.fixture(scope="session")
def six_slow(
    slow_board: EmulatedBoard,
    measurer_of: Measure,
    six_jobs: Sequence[MeasureJob],
    timed: Callable[..., Any],
) -> list[Measurement]:
    """The six on the slow board."""
    with timed("six subnets on the slow board"):
        return measurer_of(slow_board).measure(six_jobs)
