"""Expand ``Include`` of an ssh configuration for one host, so that paramiko can read the rest.

An ``Include`` inside a ``Host`` or ``Match`` block counts only where the block does. Whether it
does is asked of paramiko itself: a mark is put into the block and the host looked up. The programs
of ``Match exec`` run here, without our stdin and not for ever.
"""

from __future__ import annotations

import getpass
import glob
import os
import re
import shlex
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from latency_tables.errors import UsageError

MAX_DEPTH = 16
EXEC_S = 10.0
MAX_BYTES = 1 << 20
_MARK = "hilnasmark"
_LINE = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.+?)\s*")
_CRITERIA = {"all", "canonical", "final", "host", "originalhost", "user", "localuser", "exec"}


@dataclass(slots=True, kw_only=True)
class Flattened:
    """The lines read so far, as they hold for ``host``; ``may_run`` allows ``Match exec``."""

    host: str
    may_run: bool
    lines: list[str] = field(default_factory=list)

    def lookup(self, extra: str = "") -> dict[str, str]:
        """What the lines say about the host. Raises UsageError where they cannot be read."""
        text = "\n".join([*self.lines, extra])
        try:
            return dict(paramiko.SSHConfig.from_text(text).lookup(self.host))
        except paramiko.ConfigParseError as error:
            raise UsageError(f"the ssh configuration cannot be read: {error}") from None
        except paramiko.CouldNotCanonicalize as error:
            raise UsageError(f"{self.host} has no canonical name: {error}") from None
        except (KeyError, ValueError) as error:
            raise UsageError(f"the ssh configuration cannot be read: {error!r}") from None

    @property
    def active(self) -> bool:
        """Whether a line added now would hold for the host."""
        return self.lookup(f"{_MARK} yes").get(_MARK) == "yes"


def flatten(file: Path, flat: Flattened) -> None:
    """Append what ``file`` says, included files in place. Nothing where it does not exist."""
    if file.is_file():  # and not /dev/null
        flat.lines.append("Host *")
        _read(file, flat, root=file.absolute().parent, stack=())


def _read(file: Path, flat: Flattened, *, root: Path, stack: tuple[Path, ...]) -> None:
    real = file.resolve()
    if real in stack:
        raise UsageError(f"{file} includes itself: {' -> '.join(map(str, (*stack, real)))}")
    if len(stack) > MAX_DEPTH:
        raise UsageError(f"{file} is included {len(stack)} levels deep, allowed are {MAX_DEPTH}")
    for line in _lines(file):
        found = _LINE.fullmatch(line)
        keyword = found[1].lower() if found else ""
        if found is None or keyword not in ("include", "match"):
            flat.lines.append(line)
        elif keyword == "match":
            _match(file, found[2], flat)
        elif flat.active:
            for path in _included(found[2], root):
                flat.lines.append("Host *")  # what it says outside of blocks holds: ours does
                _read(path, flat, root=root, stack=(*stack, real))
            flat.lines.append("Host *")  # back in the block that included


def _lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
                raise UsageError(
                    f"{file} is refused: it belongs to user {status.st_uid} with mode "
                    f"{stat.S_IMODE(status.st_mode):04o}; it must be yours or root's, and nobody "
                    "else may write it",
                    hint=f"chmod go-w {shlex.quote(str(file))}",
                ) from None
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{file} has more than {MAX_BYTES} bytes")
    return data.decode("utf-8", "replace").splitlines()


def _included(value: str, root: Path) -> list[Path]:
    try:
        patterns = shlex.split(value, comments=True)
    except ValueError as error:
        raise UsageError(f"Include {value!r} cannot be read: {error}") from None
    found: list[Path] = []
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        found += [Path(item) for item in sorted(glob.glob(os.path.join(root, path)))]
    return [path for path in found if path.is_file()]


def _match(file: Path, value: str, flat: Flattened) -> None:
    """Append a ``Match`` line; programs in it are run now and replaced by their outcome."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise UsageError(f"{file}: Match {value!r} cannot be read: {error}") from None
    others: list[str] = []
    programs: list[tuple[bool, str]] = []
    while words:
        word = words.pop(0)
        criterion = word.lstrip("!").lower()
        if criterion not in _CRITERIA:
            # paramiko would let it match every host
            raise UsageError(
                f"{file}: 'Match {criterion}' is not supported; allowed: "
                + ", ".join(sorted(_CRITERIA))
            )
        argument = [] if criterion in ("all", "canonical", "final") else words[:1]
        words = words[len(argument) :]
        if criterion != "exec":
            others += [word, *argument]
        elif not flat.may_run:
            raise UsageError(
                f"{file} asks to run a program (Match exec); that is done only from the user's own "
                "~/.ssh/config"
            )
        else:
            programs.append((not word.startswith("!"), "".join(argument)))
    flat.lines.append(f"Match {shlex.join(others or ['all'])}")
    # as in OpenSSH, nothing runs for a host that the other conditions leave out
    if programs and flat.active and not all(wish == _run(cmd, flat) for wish, cmd in programs):
        flat.lines[-1] = "Host !*"


def _run(command: str, flat: Flattened) -> bool:
    said = flat.lookup()
    tokens = {
        "%": "%",
        "d": str(Path.home()),
        "h": said.get("hostname", flat.host),
        "n": flat.host,
        "p": said.get("port", "22"),
        "r": said.get("user", getpass.getuser()),
        "u": getpass.getuser(),
    }
    text = re.sub(r"%([%a-z])", lambda found: tokens.get(found[1], found[0]), command)
    try:
        done = subprocess.run(
            text,
            shell=True,  # it is the user's own file: see Flattened.may_run
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=EXEC_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"Match exec {command!r} does not end within {EXEC_S:g} s") from None
    return done.returncode == 0
