"""What a board is, as far as packages care: its Pythons, C library, processor and free disk.

Only constant programs run there. What they print comes from a board and is checked field by field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from device_agents.link.client import clean_text
from device_agents.link.transport import Transport
from latency_tables.errors import BootstrapError, ProtocolError

# ELF e_machine -> name; 32-bit ARM is refined by what the kernel says
ELF_MACHINES = {62: "x86_64", 183: "aarch64", 40: "arm", 243: "riscv64", 3: "i686"}
MAX_PYTHONS = 8
PROBE_S = 60.0
_PATH = re.compile(r"/[A-Za-z0-9._/+-]{1,250}\Z")
_ABI = re.compile(r"[a-z]{2}[0-9]{2,3}[a-z]{0,2}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One Python of a board.

    ``abi`` is the ABI tag of its wheels, with a ``t`` where it is free-threaded. ``machine`` is
    that of the program, ``kernel_machine`` that of the kernel: they differ where 32-bit programs
    run on a 64-bit kernel. ``glibcxx`` is the newest symbol version of libstdc++, () where there
    is no libstdc++ and None where that is unknown.

    >>> print(Target(python=(3, 11), abi="cp311", libc=("glibc", (2, 36)), machine="aarch64"))
    Python 3.11 on aarch64 with glibc 2.36
    """

    python: tuple[int, int]
    abi: str
    libc: tuple[str, tuple[int, ...]]
    machine: str
    executable: str = "python3"
    implementation: str = "cpython"
    kernel_machine: str = ""
    glibcxx: tuple[int, ...] | None = None
    missing_modules: tuple[str, ...] = ()
    has_pip: bool = False
    has_venv: bool = False

    def __str__(self) -> str:
        name, version = self.libc
        threads = " free-threaded" if self.abi.endswith("t") else ""
        python = f"{self.python[0]}.{self.python[1]}{threads}"
        return f"Python {python} on {self.machine} with {name} {'.'.join(map(str, version))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A board: its Pythons, the preferred one first, and what is known without any Python.

    ``free_bytes`` is None where ``df`` says nothing. ``tools`` are the programs that unpacking a
    Python needs and that are there.
    """

    targets: tuple[Target, ...]
    machine: str
    kernel_machine: str
    libc: tuple[str, tuple[int, ...]]
    workdir: str
    free_bytes: int | None
    tools: frozenset[str]


def probe(
    transport: Transport,
    python: str = "python3",
    *,
    enough: Callable[[Target], bool] = lambda target: False,
) -> Board:
    """Ask the board; ``python`` is the interpreter that its inventory entry names.

    Further Pythons are asked until one is ``enough``: on a slow board each takes a second.
    ``transport`` is open. Raises BootstrapError where not even a shell answers, DeviceError.
    """
    script = board_program("probe.sh").decode()
    done = transport.execute(
        ["sh", "-c", script, "sh", transport.workdir, python], timeout_s=PROBE_S
    )
    if done.status != 0:
        raise BootstrapError(
            f"the board's shell fails with status {done.status}: {clean_text(done.stderr, 300)}"
        )
    said = _lines(done.stdout)
    kernel_machine = (said.get("machine") or ["unknown"])[0]
    libc = _libc(said)
    targets = []
    for path in said.get("python", [])[:MAX_PYTHONS]:
        if _PATH.match(path):
            target = _ask(transport, path, kernel_machine, libc)
            if target is not None:
                targets.append(target)
                if enough(target):
                    break
    elf = said.get("elf", [""])[0]
    return Board(
        targets=tuple(targets),
        machine=_machine(elf, kernel_machine) or kernel_machine,
        kernel_machine=kernel_machine,
        libc=libc,
        workdir=transport.workdir,
        free_bytes=_free_bytes(said.get("df", [""])[-1]),
        tools=frozenset(said.get("tool", [])),
    )


def elf_machine(header: bytes) -> str:
    """The processor that an ELF file is for, "" where the bytes are no ELF header.

    >>> elf_machine(bytes.fromhex("7f454c46020101000000000000000000" "0300b700"))
    'aarch64'
    """
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return ""
    order = "big" if header[5] == 2 else "little"
    number = int.from_bytes(header[18:20], "big" if order == "big" else "little")
    return ELF_MACHINES.get(number, f"ELF machine {number}")


def board_program(name: str) -> bytes:
    return (files("device_agents.bootstrap") / "programs" / name).read_bytes()


def _lines(stdout: bytes) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in stdout[: 1 << 16].decode("utf-8", "replace").splitlines():
        key, separator, value = clean_text(line, 1000).partition("=")
        if separator:
            found.setdefault(key, []).append(value.strip())
    return found


def _libc(said: dict[str, list[str]]) -> tuple[str, tuple[int, ...]]:
    text = " ".join(said.get("libc", []))
    if "musl" in text.lower() or (said.get("musl") and not re.search(r"gnu|glibc", text, re.I)):
        version = re.search(r"Version (\d+)\.(\d+)", text + " " + " ".join(said.get("musl", [])))
        return "musl", _pair(version)
    return "glibc", _pair(re.search(r"(?:glibc|libc|ldd).*?\b(\d)\.(\d+)", text, re.I))


def _pair(match: re.Match[str] | None) -> tuple[int, ...]:
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _machine(elf_hex: str, kernel_machine: str) -> str:
    try:
        name = elf_machine(bytes.fromhex(elf_hex))
    except ValueError:
        return ""
    if name != "arm":
        return name
    return "armv6l" if kernel_machine.startswith("armv6") else "armv7l"


def _free_bytes(line: str) -> int | None:
    """The fourth column of ``df -Pk``, which wraps no lines."""
    match = re.search(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s", line + " ")
    return int(match[1]) * 1024 if match else None


def _ask(
    transport: Transport, path: str, kernel_machine: str, libc: tuple[str, tuple[int, ...]]
) -> Target | None:
    """Facts about one interpreter; None where it does not run."""
    done = transport.execute(
        [path, "-I", "-B", "-"], stdin=board_program("facts.py"), timeout_s=PROBE_S
    )
    if done.status != 0 or len(done.stdout) > 1 << 16:
        return None
    try:
        facts = json.loads(done.stdout.decode())
        return _target(facts, path, kernel_machine, libc)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ProtocolError(
            f"{path} on the board describes itself with {clean_text(done.stdout, 200)}"
        ) from None


def _target(
    facts: dict[str, Any], path: str, kernel_machine: str, libc: tuple[str, tuple[int, ...]]
) -> Target:
    major, minor = (int(part) for part in facts["version"][:2])
    implementation = clean_text(facts["implementation"], 40)
    abi = facts["abi"]
    if not _ABI.match(abi):
        raise ValueError(abi)
    machine = _machine(str(facts["elf"]), kernel_machine) or kernel_machine
    own = str(facts["libc"])
    if own.startswith("musl"):
        libc = ("musl", libc[1] if libc[0] == "musl" else (1, 2))
    elif match := re.match(r"glibc (\d+)\.(\d+)", own):
        libc = ("glibc", _pair(match))
    glibcxx = facts["glibcxx"]
    return Target(
        python=(major, minor),
        abi=abi,
        libc=libc,
        machine=machine,
        executable=path,
        implementation=implementation,
        kernel_machine=kernel_machine,
        glibcxx=None if glibcxx is None else tuple(int(part) for part in glibcxx[:3]),
        missing_modules=tuple(clean_text(name, 40) for name in facts["missing"][:20]),
        has_pip=facts["pip"] is True,
        has_venv=facts["venv"] is True,
    )
