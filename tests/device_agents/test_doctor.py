"""What the doctor says of boards that are well, hot, stuck, half set up, or without a Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agents.board.system import identify, snapshot
from device_agents.devices import DeviceSpec
from device_agents.doctor import Check, diagnose, diagnose_without_agent, speed, stack, system
from device_agents.limits import OnnxLimits
from device_agents.link.local import LocalTransport
from device_agents.link.session import Session
from device_agents.link.transport import Completed
from latency_tables.errors import UnreachableError
from tests.device_agents.agents import kill_agent
from tests.fakes.board_tree import CPU, BoardTree

DEVICE = DeviceSpec(name="rock", pin="big", threads=2)


@pytest.fixture
def board(tmp_path: Path) -> BoardTree:
    return BoardTree(tmp_path / "root")


def probed(board: BoardTree, **changes: Any) -> dict[str, Any]:
    said = {**identify(board.tree), "now": snapshot(board.tree), "allowed_cores": list(range(8))}
    return {**said, "user_id": 1000, **changes}


def by_name(checks: Sequence[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def examine(board: BoardTree, tmp_path: Path) -> Callable[..., dict[str, Check]]:
    """Diagnose the invented board by a real agent."""

    def run(**settings: Any) -> dict[str, Check]:
        device = replace(DEVICE, **settings)
        arguments = ("--root", str(board.root))
        session = Session(LocalTransport(tmp_path / "agent", arguments=arguments))
        checks = diagnose(session, device)
        assert not session.is_open
        assert len({check.name for check in checks}) == len(checks)
        return by_name(checks)

    return run


# ---- through an agent -----------------------------------------------------------------------


def test_a_board_that_is_well_has_evidence_for_everything(
    examine: Callable[..., dict[str, Check]],
) -> None:
    found = examine(pin="", cores=(0,), threads=1)
    for name in ("agent", "lease", "leftovers", "clock journal", "runtimes", "ONNX limits"):
        assert found[name].state == "ok", found[name]
    assert "onnxruntime" in found["runtimes"].evidence
    assert "opset" in found["ONNX limits"].evidence
    assert "big = 4, 5, 6, 7; little = 0, 1, 2, 3" in found["cores"].evidence
    assert "RKNPU driver: v0.9.8" in found["NPU"].evidence
    assert found["heat"].evidence == "soc-thermal is at 45 °C, throttled from 75 °C"
    assert found["energy"].evidence.startswith("no sensor")
    assert found["clock source"].evidence == "arch_sys_counter"
    assert all(check.evidence for check in found.values())
    assert all(check.remedy for check in found.values() if check.state == "fail")


def test_changed_clocks_of_a_lost_session_are_told_with_the_command_that_restores_them(
    examine: Callable[..., dict[str, Check]], board: BoardTree, tmp_path: Path
) -> None:
    arguments = ("--root", str(board.root))
    request = {"clocks": {"policy4": 1200000}, "power": "direct"}
    with Session(LocalTransport(tmp_path / "agent", arguments=arguments)) as session:
        session.request("clocks_set", request, timeout_s=20)
        kill_agent(session)
    journal = examine(pin="", cores=(0,), threads=1)["clock journal"]
    assert journal.state == "warn"
    assert journal.remedy == "hilnas devices restore rock"
    board.reboot()
    assert examine(pin="", cores=(0,), threads=1)["clock journal"].state == "ok"


def test_a_machine_that_shows_nothing_is_unknown_and_not_wrong(tmp_path: Path) -> None:
    """A root without any file of the kernel, as in a locked-down container."""
    (tmp_path / "empty").mkdir()
    arguments = ("--root", str(tmp_path / "empty"))
    device = DeviceSpec(name="vm")
    checks = by_name(diagnose(Session(LocalTransport(tmp_path / "a", arguments=arguments)), device))
    for name in ("governors", "devfreq", "heat", "cooling", "energy", "clock source", "memory"):
        assert checks[name].state == "unknown", checks[name]


def test_this_very_machine_can_be_diagnosed(tmp_path: Path) -> None:
    checks = diagnose(Session(LocalTransport(tmp_path / "agent")), DeviceSpec(name="local"))
    assert by_name(checks)["agent"].state == "ok"
    assert by_name(checks)["python"].state == "ok"


def test_a_leased_board_is_one_check(tmp_path: Path) -> None:
    with Session(LocalTransport(tmp_path / "agent"), owner="somebody else"):
        second = Session(LocalTransport(tmp_path / "agent"), lease_wait_s=0.0)
        (check,) = diagnose(second, DEVICE)
    assert (check.name, check.state) == ("lease", "fail")
    assert "somebody else" in check.evidence


def test_a_board_whose_python_is_too_old_is_asked_by_plain_commands(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -c ]; then echo 3.6.9; exit; fi\n'
        'echo \'{"v":1,"id":null,"ok":false,"error":{"code":"BOOTSTRAP","blames":"board",'
        '"message":"the agent needs Python 3.7 or newer, this is 3.6"}}\'\n'
    )
    old.chmod(0o755)
    device = replace(DEVICE, python=str(old))
    session = Session(LocalTransport(tmp_path / "agent", python=str(old)))
    found = by_name(diagnose(session, device))
    assert "3.7 or newer" in found["agent"].evidence
    assert found["python"].state == "fail"
    assert "3.6.9" in found["python"].evidence
    assert found["agent"].remedy
    assert found["python"].remedy == "hilnas devices bootstrap rock --python-tar FILE"


class Bare:
    """A transport to a board that answers plain commands only."""

    def __init__(self, answers: dict[str, Completed]) -> None:
        self.answers = answers

    def open(self) -> None: ...

    def execute(self, command: Sequence[str], **_: Any) -> Completed:
        if command[0] not in self.answers:
            raise UnreachableError(f"{command[0]} cannot be run: No such file or directory")
        return self.answers[command[0]]


def said(text: str, status: int = 0) -> Completed:
    return Completed(status=status, stdout=text.encode(), stderr="")


def test_a_board_without_a_python_is_told_what_to_bring() -> None:
    bare = Bare(
        {
            "uname": said("aarch64\n"),
            "sh": said("ldd (Debian GLIBC 2.36-9+deb12u4) 2.36\n"),
            "df": said(
                "Filesystem 1024-blocks Used Available Capacity Mounted on\n"
                "/dev/root 4000000 3950000 50000 99% /\n"
            ),
        }
    )
    found = by_name(diagnose_without_agent(bare, DEVICE))  # type: ignore[arg-type]
    assert found["python"].state == "fail"
    assert found["python"].remedy.startswith("hilnas devices bootstrap rock --python-tar FILE")
    assert found["libc"].evidence == "glibc 2.36"
    assert found["architecture"].evidence == "aarch64"
    assert found["disk"].state == "fail"


def test_musl_is_told_from_glibc_and_an_unknown_libc_from_both() -> None:
    def libc(text: str) -> Check:
        bare = Bare({"sh": said(text)})
        return by_name(diagnose_without_agent(bare, DEVICE))["libc"]  # type: ignore[arg-type]

    assert "musl" in libc("musl libc (aarch64)\n/lib/ld-musl-aarch64.so.1\n").evidence
    assert libc("ldd (GNU libc) 2.24\n").state == "warn"
    assert libc("sh: ldd: not found\n").state == "unknown"


def test_what_a_bare_board_says_cannot_control_the_terminal() -> None:
    bare = Bare({"uname": said("aarch64\x1b[2J\n"), "python3": said("\x1b[31mboom", status=1)})
    checks = diagnose_without_agent(bare, DEVICE)  # type: ignore[arg-type]
    assert not any("\x1b" in check.evidence for check in checks)


# ---- single checks --------------------------------------------------------------------------


def test_governors_that_move_come_with_clocks_to_wish_and_the_line_for_sudo(
    board: BoardTree,
) -> None:
    check = speed.governors(probed(board), DEVICE, "rock-user")
    assert check.state == "warn"
    assert "policy6 schedutil 408–2400 MHz" in check.evidence
    assert "policy0" not in check.evidence
    assert "policy6 = 2256000" in check.remedy  # one listed clock below its top
    assert "rock-user ALL=(root) NOPASSWD: /usr/local/sbin/hilnas-clocks" in check.remedy


def test_root_needs_no_sudo_to_hold_clocks(board: BoardTree) -> None:
    check = speed.governors(probed(board, user_id=0), DEVICE, "root")
    assert 'power = "direct"' in check.remedy
    assert "sudoers" not in check.remedy


def test_governors_that_stand_still_are_fine(board: BoardTree) -> None:
    board.write(f"{CPU}/cpufreq/policy6/scaling_governor", "performance")
    assert speed.governors(probed(board), DEVICE, "u").state == "ok"


def test_a_sudo_helper_that_is_refused_is_a_failure(board: BoardTree) -> None:
    device = replace(DEVICE, power="sudo", clocks={"policy6": 2208000})
    assert speed.power(probed(board), device, "u", helper_works=True).state == "ok"
    refused = speed.power(probed(board), device, "u", helper_works=False)
    assert refused.state == "fail"
    assert "NOPASSWD" in refused.remedy


def test_direct_power_without_root_is_told(board: BoardTree) -> None:
    device = replace(DEVICE, power="direct")
    assert speed.power(probed(board), device, "u", None).state == "warn"
    assert speed.power(probed(board, user_id=0), device, "root", None).state == "ok"


def test_throttling_that_is_stuck_differs_from_heat(board: BoardTree) -> None:
    assert speed.cooling(probed(board), DEVICE).state == "ok"
    board.stick_cooling()
    stuck = speed.cooling(probed(board), DEVICE)
    assert stuck.state == "fail"
    assert "the throttling is stuck" in stuck.evidence
    board.throttle()
    hot = speed.cooling(probed(board), DEVICE)
    assert hot.state == "fail"
    assert "stuck" not in hot.evidence
    assert speed.heat(probed(board), DEVICE).state == "fail"


def test_a_fan_that_turns_slows_nothing_down(board: BoardTree) -> None:
    board.write("sys/class/thermal/cooling_device9/type", "pwm-fan")
    board.write("sys/class/thermal/cooling_device9/cur_state", 3)
    check = speed.cooling(probed(board), DEVICE)
    assert check.state == "ok"
    assert "pwm-fan in state 3" in check.evidence


@pytest.mark.parametrize(("heat_mc", "state"), [(45_000, "ok"), (66_000, "warn"), (75_000, "fail")])
def test_heat_is_judged_by_the_trip_point(board: BoardTree, heat_mc: int, state: str) -> None:
    board.heat(heat_mc)
    assert speed.heat(probed(board), DEVICE).state == state


def test_heat_is_judged_by_the_devices_own_limit(board: BoardTree) -> None:
    board.heat(52_000)
    assert speed.heat(probed(board), replace(DEVICE, max_temperature_c=50.0)).state == "fail"


def test_memory_and_npu_clocks_that_move_are_told(board: BoardTree) -> None:
    check = speed.devfreq(probed(board), replace(DEVICE, runtime="rknn"))
    assert check.state == "warn"
    assert "npu = 1000000000" in check.remedy
    assert "dmc = 2112000000" in check.remedy


def test_a_wish_for_more_cores_than_a_cluster_has_fails(board: BoardTree) -> None:
    check = speed.cores(probed(board), replace(DEVICE, threads=5))
    assert check.state == "fail"
    assert "little = 0, 1, 2, 3" in check.evidence


def test_cores_that_the_login_may_not_use_fail(board: BoardTree) -> None:
    device = DeviceSpec(name="rock", cores=(6, 7), threads=2)
    check = speed.cores(probed(board, allowed_cores=[0, 1, 2, 3, 6]), device)
    assert check.state == "fail"
    assert "may not use 7" in check.evidence


@pytest.mark.parametrize(("average", "pressure"), [(2.0, 0.0), (0.0, 20.0)])
def test_a_busy_board_is_told(board: BoardTree, average: float, pressure: float) -> None:
    assert system.load(probed(board)).state == "ok"
    board.load(average)
    board.press(pressure)
    assert system.load(probed(board)).state == "warn"


@pytest.mark.parametrize(
    ("version", "state"),
    [("3.6.15", "fail"), ("3.7.3", "warn"), ("3.13.1", "ok"), ("x", "unknown")],
)
def test_pythons_are_judged_by_what_the_agent_and_the_wheels_need(version: str, state: str) -> None:
    assert system.python({"python": version}, DEVICE).state == state


def test_a_missing_and_a_broken_runtime_lead_to_bootstrap() -> None:
    assert stack.runtimes({}, DEVICE).remedy == "hilnas devices bootstrap rock"
    broken = {"runtimes": [{"name": "onnxruntime", "broken": "libgomp.so.1 is missing"}]}
    check = stack.runtimes(broken, DEVICE)
    assert check.state == "fail"
    assert "libgomp.so.1" in check.evidence


def test_an_old_runtime_that_cannot_load_exported_files_fails() -> None:
    assert stack.limits(OnnxLimits(ir=7, opset=13), DEVICE).state == "fail"
    assert stack.limits(OnnxLimits(ir=10, opset=21), DEVICE).state == "ok"
    nothing = OnnxLimits(ir=None, opset=None, errors={"ir 4": "Illegal instruction"})
    assert "Illegal instruction" in stack.limits(nothing, DEVICE).evidence


def test_two_different_npu_libraries_are_a_warning(board: BoardTree) -> None:
    board.write("usr/lib/librknnrt.so", "one")
    assert stack.npu(probed(board), DEVICE).state == "ok"
    board.write("lib64/librknnrt.so", "two")
    assert stack.npu(probed(board), DEVICE).state == "warn"


def test_the_mainline_npu_driver_fails_only_for_rknn() -> None:
    rocket = {"npu": {"stack": "rocket"}}
    assert stack.npu(rocket, DEVICE).state == "warn"
    assert stack.npu(rocket, replace(DEVICE, runtime="rknn")).state == "fail"
    assert stack.npu({}, replace(DEVICE, runtime="rknn")).state == "fail"
    assert stack.npu({}, DEVICE).state == "ok"


@pytest.mark.parametrize(
    "garbage",
    [
        {},
        {"policies": "none", "devfreq": [1, None], "clusters": {}, "now": 7, "npu": "x"},
        {"clusters": 7, "allowed_cores": 8, "policies": [{"cores": "1-2-3"}], "npu": []},
        {"clusters": [{"name": "big", "cores": 4}], "policies": [{"cores": "0-99999999999"}]},
        {"policies": [{}], "devfreq": [{}], "now": {"thermal_zones": [{}], "psi": [1]}},
        {
            "policies": [{"cores": "a-b", "min_khz": "x"}],
            "choices": [{"available_khz": "x"}],
            "now": {
                "cooling_devices": [{"state": "hot"}],
                "thermal_zones": [{"temperature_mc": 1}],
            },
            "runtimes": [{"name": 3}],
            "npu": {"libraries": [{}], "driver": 5},
            "power_sensors": [{}],
        },
    ],
)
def test_whatever_a_board_says_no_check_raises(garbage: dict[str, Any]) -> None:
    for device in (DEVICE, replace(DEVICE, pin="", runtime="rknn", power="direct")):
        checks = [
            system.python(garbage, device),
            system.libc(garbage),
            system.architecture(garbage),
            system.disk(garbage, device, "/"),
            system.memory(garbage),
            system.clock_source(garbage),
            system.load(garbage),
            system.energy(garbage),
            stack.runtimes(garbage, device),
            stack.npu(garbage, device),
            speed.cores(garbage, device),
            speed.governors(garbage, device, ""),
            speed.power(garbage, device, "", None),
            speed.devfreq(garbage, device),
            speed.heat(garbage, device),
            speed.cooling(garbage, device),
        ]
        assert all(check.evidence for check in checks)
