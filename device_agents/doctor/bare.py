"""What can be told of a board on which the agent does not start: by constant commands only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from device_agents.devices import DeviceSpec
from device_agents.doctor import system
from device_agents.doctor.check import Check
from device_agents.link.client import clean_text
from device_agents.link.transport import Transport
from latency_tables.errors import DeviceError, LeasedError

COMMAND_S = 20.0
PYTHON_CODE = "import platform; print(platform.python_version())"
LIBC = "ldd --version 2>&1 | head -n 1; ls /lib/ld-musl-* 2>/dev/null; true"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    status: int
    text: str


def diagnose_without_agent(
    transport: Transport, device: DeviceSpec, error: DeviceError | None = None
) -> list[Check]:
    """Python, C library, architecture and disk of a board that cannot run the agent.

    ``error`` is why it cannot; it becomes the first check. Raises UnreachableError where the board
    cannot be reached at all.
    """
    transport.open()
    machine = _run(transport, ["uname", "-m"])
    checks = [
        _python(transport, device),
        _libc(transport),
        system.architecture({"machine": machine.text} if machine.status == 0 else {}),
        _disk(transport, device, str(device.workdir or "")),
    ]
    if error is None:
        return checks
    remedy = error.hint or next((c.remedy for c in checks if c.state == "fail"), "")
    name = "lease" if isinstance(error, LeasedError) else "agent"
    return [Check(name=name, state="fail", evidence=error.message, remedy=remedy), *checks]


def _python(transport: Transport, device: DeviceSpec) -> Check:
    said = _run(transport, [device.python, "-c", PYTHON_CODE])
    if said.status == 0 and re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}\S{0,40}", said.text):
        return system.python({"python": said.text}, device)
    return Check(
        name="python",
        state="fail",
        evidence=f"{device.python} does not run: {said.text or f'status {said.status}'}",
        remedy=f"hilnas devices bootstrap {device.name} --python-tar FILE, or python = in "
        "devices.toml if it has another name",
    )


def _libc(transport: Transport) -> Check:
    said = _run(transport, ["sh", "-c", LIBC])
    if "musl" in said.text:
        return system.libc({"libc": "musl"})
    found = re.search(r"(\d{1,4}\.\d{1,4})", said.text)
    is_glibc = re.search("glibc|gnu|libc", said.text, re.IGNORECASE)
    return system.libc({"libc": f"glibc {found[1]}"} if found and is_glibc else {})


def _disk(transport: Transport, device: DeviceSpec, workdir: str) -> Check:
    for folder in filter(None, (workdir, "/")):
        said = _run(transport, ["df", "-Pk", folder])
        columns = said.text.splitlines()[-1].split() if said.text else []
        if said.status == 0 and len(columns) >= 6 and columns[3].isdigit():
            free = {"disk_free_bytes": int(columns[3]) * 1024}
            return system.disk(free, device, folder)
    return system.disk({}, device, workdir or "/")


def _run(transport: Transport, command: Sequence[str]) -> _Said:
    """Run a command; one that cannot be run is a status, not an error."""
    try:
        done = transport.execute(command, timeout_s=COMMAND_S)
    except DeviceError as error:
        return _Said(status=127, text=error.message)
    said = clean_text(done.stdout.decode("utf-8", "replace"), 2000).strip()
    problem = clean_text(done.stderr, 300).strip()
    return _Said(status=done.status, text=said or (problem if done.status else ""))
