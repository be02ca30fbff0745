"""What an emulated board is, seen without hilnas: the ground that the other tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.boards.conftest import need_image
from tests.fakes.emulated_board import build
from tests.fakes.emulated_board.boot import EmulatedBoard, greeting
from tests.fakes.emulated_board.build import BoardImage, CannotBuildError
from tests.fakes.emulated_board.recipe import Recipe
from tests.fakes.emulated_board.shell import shell

pytestmark = pytest.mark.board

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def bare(board_image: BoardImage) -> Iterator[EmulatedBoard]:
    """A board as it was built, booted cold."""
    with EmulatedBoard(board_image, snapshot=False) as board:
        yield board


def test_it_is_a_64_bit_arm_linux_with_a_cortex_a76(bare: EmulatedBoard) -> None:
    with shell(bare) as run:
        assert run("uname -m") == "aarch64"
        assert "CPU part\t: 0xd0b" in run("cat /proc/cpuinfo")


def test_it_has_python_but_neither_pip_nor_numpy_nor_a_runtime(bare: EmulatedBoard) -> None:
    with shell(bare) as run:
        assert run("python3 -V").startswith("Python 3.11")
        for module in ("pip", "ensurepip", "numpy", "onnxruntime"):
            assert "No module named" in run(f"python3 -c 'import {module}'")


def test_it_reaches_no_other_machine_not_even_the_one_that_emulates_it(
    bare: EmulatedBoard,
) -> None:
    ask = "import socket; socket.create_connection(('10.0.2.2', 22), 3)"
    with shell(bare) as run:
        assert "Error" in run(f'python3 -c "{ask}"')


def test_a_reset_gives_another_boot_id_and_keeps_what_was_synced(bare: EmulatedBoard) -> None:
    with shell(bare) as run:
        before = run(f"{BOOT_ID}; echo kept > /root/note; sync")
    bare.reboot()
    with shell(bare) as run:
        assert run(BOOT_ID) != before
        assert run("cat /root/note") == "kept"


def test_a_power_cut_loses_what_was_not_synced_and_the_board_boots_again(
    bare: EmulatedBoard,
) -> None:
    with shell(bare) as run:
        before = run(f"{BOOT_ID}; echo lost > /root/unsynced")
    bare.power_cut()
    assert greeting(bare.port, 1.0) == b""
    bare.start()
    with shell(bare) as run:
        assert run(BOOT_ID) != before
        assert "No such file" in run("cat /root/unsynced")


def test_frozen_or_without_cable_it_is_silent_and_goes_on_afterwards(bare: EmulatedBoard) -> None:
    for hurt, heal in ((bare.stop, bare.cont), (bare.unplug, bare.plug)):
        hurt()
        assert greeting(bare.port, 2.0) == b""
        heal()
        assert greeting(bare.port, 60.0).startswith(b"SSH-")


def test_a_start_from_a_snapshot_is_shorter_than_a_boot(
    bare: EmulatedBoard, board_image: BoardImage
) -> None:
    with EmulatedBoard(board_image):
        pass  # the first one makes the snapshot
    with EmulatedBoard(board_image) as resumed, EmulatedBoard(board_image, snapshot=False) as cold:
        assert resumed.start_seconds < cold.start_seconds / 2
        with shell(resumed) as run:
            assert run("uname -m") == "aarch64"


def test_two_boards_have_disks_of_their_own(bare: EmulatedBoard, board_image: BoardImage) -> None:
    with EmulatedBoard(board_image) as other:
        with shell(other) as run:
            run("echo mine > /root/own; sync")
        with shell(bare) as run:
            assert "No such file" in run("cat /root/own")


def test_no_emulator_outlives_a_killed_test_run(board_image: BoardImage, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.fakes.emulated_board.boot import EmulatedBoard\n"
        "from tests.fakes.emulated_board.build import BoardImage\n"
        "with EmulatedBoard(BoardImage(folder=Path(sys.argv[1]))) as board:\n"
        "    print(board.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(build.__file__).parents[3]
    runner = subprocess.Popen(
        [sys.executable, "-c", program, str(board_image.folder)],
        cwd=root,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with runner:
        assert runner.stdout is not None
        emulator = Path(f"/proc/{int(runner.stdout.readline())}")
        assert b"qemu-system-aarch64" in (emulator / "cmdline").read_bytes()
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    assert ended(emulator)


def ended(process: Path) -> bool:
    """Whether a process is gone, or dead and not yet collected, within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.long
def test_faked_clocks_can_be_set_and_are_as_shipped_again_after_a_reset(
    timed: Callable[..., Any],
) -> None:
    policy = "/sys/devices/system/cpu/cpufreq/policy0"
    with EmulatedBoard(need_image(Recipe(sysfs=True), timed)) as board:
        with shell(board) as run:
            assert run(f"cat {policy}/scaling_governor") == "schedutil"
            assert run("cat /sys/class/thermal/thermal_zone0/temp") == "41000"
            change = f"echo performance > {policy}/scaling_governor"
            assert run(f"{change}; cat {policy}/scaling_governor") == "performance"
        board.reboot()
        with shell(board) as run:
            assert run(f"cat {policy}/scaling_governor") == "schedutil"


def test_missing_tools_are_named_as_debian_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(build.TOOLS, "no-such-tool", "its-package")
    with pytest.raises(CannotBuildError, match=r"apt-get install .*its-package"):
        build.build(Recipe(), tmp_path / "image")
    assert not (tmp_path / "image").exists()
