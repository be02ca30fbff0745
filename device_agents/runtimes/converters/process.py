"""Run a converter: another process, without network where the kernel lets us, with an end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

_KEPT_BYTES = 1 << 20
_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a process ended: ``status`` < 0 is a signal, ``late`` that its time was over."""

    status: int
    output: str
    log: str
    late: bool

    def problem(self) -> str:
        """What went wrong in words, with the end of the log; "" after status 0."""
        if self.late:
            said = "did not end in time"
        elif self.status < 0:
            said = f"was ended by {signal.Signals(-self.status).name}"
        elif self.status:
            said = f"ended with status {self.status}"
        else:
            return ""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        return f"{said}: {' | '.join(lines[-4:])[-600:]}" if lines else said


def run(
    command: Sequence[str | Path], *, folder: Path, timeout_s: float, message: str = ""
) -> Finished:
    """Run ``command`` in ``folder`` with ``message`` on stdin and an environment of its own.

    It and its children are killed when the time is over. Raises FileNotFoundError.

    >>> run(["/bin/sh", "-c", "read x; echo $x"], folder=Path("/tmp"), timeout_s=9, message="hi")
    Finished(status=0, output='hi\\n', log='', late=False)
    """
    if not Path(command[0]).is_file():
        raise FileNotFoundError(str(command[0]))
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as log,
    ):
        stdin.write(message.encode())
        stdin.seek(0)
        process = subprocess.Popen(
            [*isolation(), *(str(word) for word in command)],
            cwd=folder,
            env=environment(folder, Path(command[0])),
            stdin=stdin,
            stdout=output,
            stderr=log,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind, too
            process.wait()
        return Finished(
            status=process.returncode,
            output=_tail(output, _ANSWER_BYTES),
            log=_tail(log, _KEPT_BYTES),
            late=late,
        )


def environment(folder: Path, program: Path) -> Mapping[str, str]:
    """Nothing of ours: a home that vanishes, and the program's own folder first on PATH."""
    return {
        "PATH": f"{program.parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "ORT_DISABLE_TELEMETRY": "1",
    }


@cache
def isolation() -> tuple[str, ...]:
    """The words before a command that take its network away; empty where that is not permitted."""
    for words in (("unshare", "-n", "--"), ("unshare", "-r", "-n", "--")):
        try:
            done = subprocess.run([*words, "true"], capture_output=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return words
    return ()


def _tail(stream: IO[bytes], size: int) -> str:
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - size))
    return stream.read(size).decode("utf-8", "replace")
