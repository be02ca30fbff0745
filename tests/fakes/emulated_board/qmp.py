"""The little of QEMU's machine protocol that boards need: a command, its answer, an event."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, or does not answer."""


def command(
    path: Path,
    name: str,
    arguments: dict[str, Any] | None = None,
    *,
    event: str = "",
    timeout_s: float = 60.0,
) -> Any:
    """Run one command, and wait for ``event`` after it where one is named. Raises QmpError."""
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(timeout_s)
            link.connect(str(path))
            with link.makefile("rw", encoding="utf-8") as stream:
                stream.readline()  # the greeting
                _ask(stream, {"execute": "qmp_capabilities"}, "")
                return _ask(stream, {"execute": name, "arguments": arguments or {}}, event)
    except (OSError, ValueError) as error:
        raise QmpError(f"{name}: {error}") from error


def monitor(path: Path, line: str) -> str:
    """Run a command of the human monitor, which says nothing where it succeeds."""
    said: str = command(path, "human-monitor-command", {"command-line": line})
    return said.strip()


def _ask(stream: Any, request: dict[str, Any], event: str) -> Any:
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    answer, answered, seen = None, False, not event
    while not (answered and seen):
        line = stream.readline()
        if not line:
            raise QmpError(f"{request['execute']}: QEMU hung up")
        said = json.loads(line)
        if "error" in said:
            raise QmpError(f"{request['execute']}: {said['error'].get('desc')}")
        if "return" in said:
            answer, answered = said["return"], True
        seen = seen or said.get("event") == event
    return answer
