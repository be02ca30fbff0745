from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

from device_agents.bootstrap.choose import choose, platform_tags
from device_agents.bootstrap.lock import shipped_locks
from device_agents.bootstrap.refresh import plans
from device_agents.bootstrap.releases import RELEASES, RUNTIMES
from device_agents.bootstrap.target import Target
from device_agents.bootstrap.wheels import supported_tags
from latency_tables.errors import BootstrapError, UsageError

BOARD = Target(python=(3, 11), abi="cp311", libc=("glibc", (2, 36)), machine="aarch64")


def target(abi: str, glibc: int, machine: str = "aarch64") -> Target:
    digits = abi.strip("cpmt")
    python = (int(digits[0]), int(digits[1:]))
    return replace(BOARD, python=python, abi=abi, libc=("glibc", (2, glibc)), machine=machine)


def versions(board: Target, runtime: str = "onnxruntime") -> dict[str, str]:
    return {pin.name: pin.version for pin in choose(board, runtime).packages}


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
@pytest.mark.parametrize(
    ("abi", "glibc", "newest"),
    [
        ("cp37m", 36, "1.14.1"),
        ("cp37m", 17, "1.14.1"),
        ("cp38", 31, "1.19.2"),
        ("cp38", 27, "1.19.2"),
        ("cp38", 26, "1.16.3"),
        ("cp38", 17, "1.16.3"),
        ("cp39", 31, "1.19.2"),
        ("cp39", 26, "1.16.3"),
        ("cp310", 35, "1.23.2"),
        ("cp310", 27, "1.23.2"),
        ("cp310", 26, "1.16.3"),
        ("cp311", 36, "1.32.0"),
        ("cp311", 28, "1.32.0"),
        ("cp311", 27, "1.28.0"),
        ("cp311", 26, "1.16.3"),
        ("cp312", 39, "1.32.0"),
        ("cp312", 27, "1.28.0"),
        ("cp313", 41, "1.32.0"),
        ("cp313t", 41, "1.32.0"),
        ("cp314", 41, "1.32.0"),
        ("cp314", 27, "1.28.0"),
        ("cp314t", 28, "1.32.0"),
    ],
)
def test_the_newest_onnxruntime_follows_from_python_and_libc(
    abi: str, glibc: int, newest: str, machine: str
) -> None:
    assert versions(target(abi, glibc, machine))["onnxruntime"] == newest


@pytest.mark.parametrize(
    ("abi", "glibc", "machine", "newest"),
    [
        ("cp38", 31, "aarch64", "2024.4.0"),
        ("cp39", 31, "aarch64", "2025.2.0"),
        ("cp39", 35, "aarch64", "2025.3.0"),
        ("cp310", 31, "aarch64", "2025.2.0"),
        ("cp310", 35, "aarch64", "2026.4.1"),
        ("cp313", 36, "aarch64", "2026.4.1"),
        ("cp311", 28, "x86_64", "2026.4.1"),
        ("cp311", 27, "x86_64", "2025.4.1"),
    ],
)
def test_the_newest_openvino_follows_too(abi: str, glibc: int, machine: str, newest: str) -> None:
    assert versions(target(abi, glibc, machine), "openvino")["openvino"] == newest


def test_an_onnxruntime_from_before_numpy_2_gets_an_older_numpy() -> None:
    assert versions(target("cp311", 26)) == {"onnxruntime": "1.16.3", "numpy": "1.26.4"}
    assert versions(target("cp39", 26))["numpy"] == "1.26.4"


def test_ncnn_is_what_a_musl_board_can_have() -> None:
    board = replace(BOARD, libc=("musl", (1, 2)))
    assert versions(board, "ncnn") == {"ncnn": "1.0.20261020", "numpy": "2.4.6"}
    assert choose(board, "ncnn").platform_tags[0] == "musllinux_1_2_aarch64"


def test_the_npu_runtime_comes_with_all_that_it_imports() -> None:
    assert set(versions(BOARD, "rknn")) == {"rknn-toolkit-lite2", "numpy", "psutil", "ruamel.yaml"}
    assert versions(BOARD, "rknn")["numpy"].startswith("1.26")


@pytest.mark.parametrize(
    ("changes", "said", "tried"),
    [
        ({"python": (3, 6), "abi": "cp36m"}, "allowed there is Python 3.7, 3.8", "--python-tar"),
        ({"libc": ("musl", (1, 2))}, "C library is musl", "glibc"),
        ({"libc": ("glibc", (2, 12))}, "glibc 2.17 or newer", ""),
        ({"machine": "riscv64"}, "wheels for aarch64, x86_64", "build"),
        ({"machine": "armv7l", "kernel_machine": "aarch64"}, "32-bit on a 64-bit", "64-bit image"),
        ({"machine": "armv7l", "kernel_machine": "armv7l"}, "wheels for aarch64", "build"),
        ({"glibcxx": ()}, "no libstdc++", "libstdc++6"),
        ({"glibcxx": (3, 4, 15)}, "GLIBCXX_3.4.19 is needed", "libstdc++6"),
        ({"missing_modules": ("zlib",)}, "lacks the standard modules zlib", "--python-tar"),
        ({"implementation": "pypy"}, "CPython only", "--python-tar"),
        (
            {"python": (3, 12), "abi": "cp312", "libc": ("glibc", (2, 26))},
            "allowed there is Python 3.7, 3.8, 3.9, 3.10, 3.11",
            "--python-tar",
        ),
    ],
)
def test_an_impossible_board_is_told_what_is_allowed(
    changes: dict[str, object], said: str, tried: str
) -> None:
    with pytest.raises(BootstrapError) as caught:
        choose(replace(BOARD, **changes), "onnxruntime")  # type: ignore[arg-type]
    assert said in caught.value.message
    assert tried in (caught.value.hint or "")


def test_an_old_libstdcxx_gets_the_newest_release_that_it_carries() -> None:
    board = replace(BOARD, glibcxx=(3, 4, 20))
    assert versions(board) == {"onnxruntime": "1.16.3", "numpy": "1.26.4"}


def test_an_unknown_runtime_is_told_which_there_are() -> None:
    with pytest.raises(UsageError, match="onnxruntime, openvino, ncnn, rknn"):
        choose(BOARD, "tflite")


def test_platform_tags_go_from_the_newest_to_the_oldest_name() -> None:
    assert platform_tags(("glibc", (2, 19)), "aarch64") == (
        "manylinux_2_19_aarch64",
        "manylinux_2_18_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    )
    assert platform_tags(("glibc", (2, 12)), "x86_64")[:2] == (
        "manylinux_2_12_x86_64",
        "manylinux2010_x86_64",
    )


def test_boards_that_differ_above_what_the_wheels_need_share_one_plan() -> None:
    keys = {choose(target("cp311", glibc), "onnxruntime").key for glibc in (28, 31, 36, 41)}
    assert keys == {"onnxruntime-cp311-aarch64-glibc2.28"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_plan_has_a_shipped_lock_whose_wheels_run_there(runtime: str) -> None:
    locks = {lock.key: lock for lock in shipped_locks()}
    for plan in plans(runtime):
        lock = locks[plan.key]
        assert lock.serves(plan)
        allowed: set[Tag] = set(supported_tags(plan, plan.common_tags))
        for wheel in lock.wheels:
            assert parse_wheel_filename(wheel.filename)[3] & allowed, (plan.key, wheel.filename)


def test_every_release_serves_some_board() -> None:
    used = {
        (pin.name, pin.version)
        for runtime in RUNTIMES
        for plan in plans(runtime)
        for pin in plan.packages
    }
    # numpy for the runtimes, and nothing that no runtime asks for
    assert {(n, r.text) for n, rows in RELEASES.items() for r in rows} - used <= {
        ("ruamel.yaml", "0.18.16"),
    }


def test_a_choice_never_needs_more_than_the_board_has() -> None:
    for abi, glibc, runtime in product(("cp38", "cp310", "cp312"), (26, 27, 28, 31, 35), RUNTIMES):
        board = target(abi, glibc)
        try:
            plan = choose(board, runtime)
        except BootstrapError:
            continue
        assert plan.libc <= board.libc
        assert set(plan.common_tags) <= set(plan.platform_tags)
