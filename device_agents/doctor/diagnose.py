"""Ask a board everything that matters for measuring on it, and say what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from device_agents.clocks import HELPER
from device_agents.devices import DeviceSpec
from device_agents.doctor import speed, stack, system
from device_agents.doctor.bare import diagnose_without_agent
from device_agents.doctor.check import Check, Probe, mib, number, text
from device_agents.limits import find_limits
from device_agents.link.client import clean_text
from device_agents.link.session import Session
from latency_tables.errors import (
    AuthError,
    DeviceError,
    HostKeyError,
    LeasedError,
    LinkLostError,
    UnreachableError,
)

RUNTIMES = ("onnxruntime", "openvino", "ncnn", "rknn")
COMMAND_S = 20.0
CLOCKS_S = 20.0
# the folder is the one in which onnxruntime 1.29 and newer keep an identifier and unsent events
TELEMETRY = (
    'test -e "${XDG_CACHE_HOME:-$HOME/.cache}/Microsoft/DeveloperTools/.onnxruntime" && echo yes '
    "|| echo no"
)


def diagnose(session: Session, device: DeviceSpec) -> list[Check]:
    """Every check, with what was seen and a remedy; opens the session where it is not open.

    A check that fails by itself is one of the answers. A board on which the agent does not start
    is asked by plain commands. Raises UnreachableError, HostKeyError, AuthError where there is no
    way to the board, and LinkLostError where it goes away in between.
    """
    mine = not session.is_open
    try:
        if mine:
            session.open()
    except LeasedError as error:
        remedy = error.hint or f"hilnas devices unlock {device.name}"
        return [Check(name="lease", state="fail", evidence=error.message, remedy=remedy)]
    except (HostKeyError, AuthError):
        raise
    except DeviceError as error:
        return _without_agent(session, device, error)
    try:
        return _with_agent(session, device)
    finally:
        if mine:
            session.close()


def _without_agent(session: Session, device: DeviceSpec, error: DeviceError) -> list[Check]:
    try:
        return diagnose_without_agent(session.transport, device, error)
    except UnreachableError:
        raise error from None
    finally:
        session.transport.close()


def _with_agent(session: Session, device: DeviceSpec) -> list[Check]:
    names = dict.fromkeys((device.runtime, *RUNTIMES))
    said: Probe = session.probe([*names])
    hello = session.hello
    user = _output(session, ["id", "-un"]).strip()
    disk = hello if number(hello, "disk_free_bytes") is not None else said
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("agent", lambda: _agent(session)),
        ("lease", lambda: _lease(session)),
        ("leftovers", lambda: _leftovers(session, device)),
        ("clock journal", lambda: _journal(session, device)),
        ("architecture", lambda: system.architecture(said)),
        ("python", lambda: system.python(said, device)),
        ("libc", lambda: system.libc(said)),
        ("disk", lambda: system.disk(disk, device, _workdir(session, hello))),
        ("memory", lambda: system.memory(said)),
        ("clock source", lambda: system.clock_source(said)),
        ("load", lambda: system.load(said)),
        ("users", lambda: _users(session)),
        ("runtimes", lambda: stack.runtimes(said, device)),
        ("ONNX limits", lambda: _limits(session, said, device)),
        ("telemetry", lambda: stack.telemetry(_telemetry(session))),
        ("NPU", lambda: stack.npu(said, device)),
        ("cores", lambda: speed.cores(said, device)),
        ("governors", lambda: speed.governors(said, device, user)),
        ("power", lambda: speed.power(said, device, user, _helper_works(session, device))),
        ("devfreq", lambda: speed.devfreq(said, device)),
        ("heat", lambda: speed.heat(said, device)),
        ("cooling", lambda: speed.cooling(said, device)),
        ("energy", lambda: system.energy(said)),
    ]
    return [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except LinkLostError:
        raise
    except DeviceError as error:
        return Check(name=name, state="fail", evidence=error.message, remedy=error.hint or "")


def _agent(session: Session) -> Check:
    evidence = f"agent {session.agent_sha256[:12]} answers, boot {session.boot_id[:8] or 'unknown'}"
    return Check(name="agent", state="ok", evidence=evidence)


def _lease(session: Session) -> Check:
    other = _behind(session).get("other_boots_lease")
    evidence = "free: this session has it now"
    if other:
        evidence += "; an earlier holder was ended by a reboot"
    return Check(name="lease", state="ok", evidence=evidence)


def _leftovers(session: Session, device: DeviceSpec) -> Check:
    behind = _behind(session)
    scratch = (number(behind, "scratch_bytes") or 0) + (number(behind, "stale_part_bytes") or 0)
    if session.leftovers:
        return Check(
            name="leftovers",
            state="warn",
            evidence=f"still running from earlier sessions: {', '.join(session.leftovers)}",
            remedy="end these processes on the board: they disturb measurements",
        )
    if scratch:
        return Check(
            name="leftovers",
            state="warn",
            evidence=f"{mib(scratch)} of files of lost sessions",
            remedy=f"hilnas devices clean {device.name}",
        )
    return Check(name="leftovers", state="ok", evidence="none of earlier sessions")


def _journal(session: Session, device: DeviceSpec) -> Check:
    said = session.request("clocks_journal", {}, timeout_s=CLOCKS_S)
    if not said.get("present"):
        return Check(name="clock journal", state="ok", evidence="no session left clocks changed")
    if not said.get("same_boot"):
        evidence = "a lost session changed clocks; the reboot since put them back"
        return Check(name="clock journal", state="ok", evidence=evidence)
    nodes = said.get("nodes")
    count = len(nodes) if isinstance(nodes, dict) else 0
    return Check(
        name="clock journal",
        state="warn",
        evidence=f"a lost session left {count} clock settings changed",
        remedy=f"hilnas devices restore {device.name}",
    )


def _limits(session: Session, said: Probe, device: DeviceSpec) -> Check:
    """Only for the runtimes that read ONNX files themselves, and work."""
    if device.runtime not in ("onnxruntime", "openvino"):
        evidence = f"{device.runtime} reads converted files"
        return Check(name="ONNX limits", state="unknown", evidence=evidence)
    if stack.runtimes(said, device).state != "ok":
        evidence = f"{device.runtime} does not work, so no file was tried"
        return Check(name="ONNX limits", state="unknown", evidence=evidence)
    return stack.limits(find_limits(session, device.runtime), device)


def _users(session: Session) -> Check:
    """How many logins there are; names stay on the board."""
    said = _output(session, ["who"])
    logins = len(said.splitlines())
    if logins > 1:
        return Check(
            name="users",
            state="warn",
            evidence=f"{logins} terminals are logged in",
            remedy="ask who else works on the board; hilnas devices lock keeps other sessions out",
        )
    evidence = f"{logins} terminals are logged in" if said else "no login is told"
    return Check(name="users", state="ok" if said else "unknown", evidence=evidence)


def _telemetry(session: Session) -> bool | None:
    return {"yes": True, "no": False}.get(_output(session, ["sh", "-c", TELEMETRY]).strip())


def _helper_works(session: Session, device: DeviceSpec) -> bool | None:
    if device.power != "sudo":
        return None
    return bool(_output(session, ["sudo", "-n", "-l", HELPER]).strip())


def _output(session: Session, command: list[str]) -> str:
    """What a constant command prints; '' where it fails or does not exist."""
    try:
        done = session.transport.execute(command, timeout_s=COMMAND_S)
    except DeviceError:
        return ""
    return clean_text(done.stdout.decode("utf-8", "replace"), 4000) if done.status == 0 else ""


def _behind(session: Session) -> Mapping[str, Any]:
    behind = session.hello.get("left_behind")
    return behind if isinstance(behind, dict) else {}


def _workdir(session: Session, hello: Probe) -> str:
    return text(hello, "workdir", 300) or session.transport.workdir
