"""Bring a whole Python to a board that has none: a tar that the user brings.

Any layout with one ``bin/python3`` will do, such as ``python/bin/python3``. The board needs a
shell, ``tar`` and ``gzip``. The tar is read and packed anew on the host: nothing outside its
folder, no devices, no links that leave it; tests, headers and documentation stay behind.
"""

from __future__ import annotations

import gzip
import io
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from device_agents.bootstrap.target import Board, board_program, elf_machine
from device_agents.bootstrap.wheels import BLOCK_BYTES, Note
from device_agents.link.client import clean_text
from device_agents.link.transport import Transport
from latency_tables.errors import BootstrapError, DeviceDiskFullError, LinkLostError, UploadError
from latency_tables.files import replacing, sha256_file

MAX_BYTES = 4 << 30
MAX_MEMBERS = 200_000
MARGIN_BYTES = 32 << 20
UNPACK_S = 1200.0
_LEFT_BEHIND = re.compile(
    r"(^|/)(__pycache__|include|share/(man|doc|terminfo)|lib/python3[^/]*/(test|idlelib|turtledemo))/"
    r"|\.a\Z"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPython:
    """A tar made ready: ``name`` is that of its folder on the board."""

    path: Path
    name: str
    machine: str
    libc: str
    disk_bytes: int
    left_behind: int


def install_python(
    transport: Transport, board: Board, tar: Path, cache: Path, on_note: Note
) -> str:
    """Unpack ``tar`` on the board unless that was done; gives the interpreter's path there.

    Raises BootstrapError (wrong processor, no Python inside, unsafe members, it does not run),
    DeviceDiskFullError, LinkLostError.
    """
    packed = pack_python(tar, cache)
    check_fits(packed, board, tar)
    folder = f"{transport.workdir}/{packed.name}"
    python = f"{folder}/bin/python3"
    if _unpack(transport, "check", folder, "").startswith("ok"):
        on_note(f"{python} is already there")
        return python
    needed = packed.disk_bytes + packed.path.stat().st_size + MARGIN_BYTES
    if board.free_bytes is not None and board.free_bytes < needed:
        raise DeviceDiskFullError(
            f"the board has {board.free_bytes / 1e6:.0f} MB free, this Python needs "
            f"{needed / 1e6:.0f} MB",
            hint="a stripped Python, or another workdir in the board's entry",
        )
    on_note(f"sending Python, {packed.path.stat().st_size / 1e6:.1f} MB")
    blob = transport.put(packed.path)
    said = _unpack(transport, "unpack", folder, blob)
    if said.startswith("corrupt"):
        raise UploadError("the tar of Python arrived damaged; it was removed")
    if not said.startswith("ok"):
        raise BootstrapError(
            f"the Python of {tar} does not run on the board: {said or 'it says nothing'}",
            hint="a build for its processor and C library (glibc or musl)",
        )
    on_note(f"{python}: {said.removeprefix('ok').strip()}")
    return python


def pack_python(tar: Path, cache: Path) -> PackedPython:
    """Check ``tar`` and pack what a board needs of it, with ``bin`` at the top.

    Raises BootstrapError.
    """
    try:
        with tarfile.open(tar) as archive:
            members = _members(archive, tar)
            root = _root(members, tar)
            program = _resolve(members, f"{root}bin/python3", tar)
            stream = archive.extractfile(program)
            header = stream.read(1 << 16) if stream else b""
            machine = elf_machine(header)
            if not machine:
                raise BootstrapError(f"bin/python3 of {tar} is no program (no ELF header)")
            name = f"python-{sha256_file(tar)[:16]}"
            target = cache / "pythons" / f"{name}.tar.gz"
            kept = [m for m in members.values() if not _LEFT_BEHIND.search(m.name)]
            if not target.exists():
                with replacing(target) as partial:
                    _write(archive, kept, root, partial)
            return PackedPython(
                path=target,
                name=name,
                machine=machine,
                libc="musl" if b"/ld-musl-" in header else "glibc",
                disk_bytes=sum(-(-m.size // BLOCK_BYTES) * BLOCK_BYTES for m in kept),
                left_behind=len(members) - len(kept),
            )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BootstrapError(
            f"{tar} cannot be read as a tar: {error}",
            hint="a .tar, .tar.gz or .tar.xz file (unpack .zst to .tar first)",
        ) from None


def check_fits(packed: PackedPython, board: Board, tar: Path) -> None:
    """Refuse another processor or C library, before anything is sent."""
    machine = {"arm": "armv7l"}.get(packed.machine, packed.machine)
    if machine != board.machine:
        raise BootstrapError(
            f"the Python of {tar} is for {machine}, the board's programs are for {board.machine}",
            hint=f"a Python for {board.machine}",
        )
    if packed.libc != board.libc[0]:
        raise BootstrapError(
            f"the Python of {tar} is for {packed.libc}, the board has {board.libc[0]}",
            hint=f"a Python for {board.libc[0]}",
        )


def _members(archive: tarfile.TarFile, tar: Path) -> dict[str, tarfile.TarInfo]:
    """Files and links by normal name; folders follow from them."""
    found: dict[str, tarfile.TarInfo] = {}
    total = 0
    for count, member in enumerate(archive):
        name = posixpath.normpath(member.name)
        total += member.size
        if count > MAX_MEMBERS or total > MAX_BYTES:
            raise BootstrapError(
                f"{tar} is larger than {MAX_BYTES >> 30} GiB or has too many files"
            )
        if name.startswith(("/", "../")) or name == "..":
            raise BootstrapError(f"{tar} holds {clean_text(name, 200)!r}, outside its folder")
        if member.isdir():
            continue
        if not (member.isfile() or member.issym() or member.islnk()):
            raise BootstrapError(f"{tar} holds {clean_text(name, 200)!r}, which is no plain file")
        member.name = name
        if member.issym() or member.islnk():
            base = posixpath.dirname(name) if member.issym() else ""
            goal = posixpath.normpath(posixpath.join(base, member.linkname))
            if goal.startswith(("/", "../")) or goal == "..":
                raise BootstrapError(f"{tar}: the link {clean_text(name, 200)!r} leaves its folder")
        found[name] = member
    return found


def _root(members: dict[str, tarfile.TarInfo], tar: Path) -> str:
    """What stands before ``bin/python3``."""
    roots = sorted(
        (
            name.removesuffix("bin/python3")
            for name in members
            if f"/{name}".endswith("/bin/python3")
        ),
        key=len,
    )
    if not roots:
        raise BootstrapError(
            f"{tar} has no bin/python3", hint="a tar of a whole Python, such as python/bin/python3"
        )
    return roots[0]


def _resolve(members: dict[str, tarfile.TarInfo], name: str, tar: Path) -> tarfile.TarInfo:
    for _ in range(10):
        member = members.get(name)
        if member is None:
            break
        if member.isfile():
            return member
        base = posixpath.dirname(name) if member.issym() else ""
        name = posixpath.normpath(posixpath.join(base, member.linkname))
    raise BootstrapError(f"bin/python3 of {tar} is a link to what is not there")


def _write(archive: tarfile.TarFile, kept: list[tarfile.TarInfo], root: str, partial: Path) -> None:
    """Equal content gives equal bytes: sorted, no owners, no times."""
    with (
        partial.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as out,
    ):
        for old, new in _renamed(kept, root):
            stream = archive.extractfile(old) if new.isfile() else None
            out.addfile(new, stream or (io.BytesIO() if new.isfile() else None))


def _renamed(
    kept: list[tarfile.TarInfo], root: str
) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    # plain files first: a hard link needs its goal, and busybox follows no later ones
    for member in sorted(kept, key=lambda m: (m.islnk(), m.name)):
        if not member.name.startswith(root):
            continue
        new = tarfile.TarInfo(member.name.removeprefix(root))
        new.type, new.size = member.type, member.size if member.isfile() else 0
        new.mode = 0o755 if member.mode & 0o111 else 0o644
        new.linkname = member.linkname
        if member.islnk():
            if not posixpath.normpath(member.linkname).startswith(root):
                continue
            new.linkname = posixpath.normpath(member.linkname).removeprefix(root)
        yield member, new


def _unpack(transport: Transport, verb: str, folder: str, blob: str) -> str:
    """Run the shell part there; gives the line that it says. Raises on a full disk."""
    script = board_program("python.sh").decode()
    done = transport.execute(
        ["sh", "-c", script, "sh", verb, transport.workdir, folder, blob], timeout_s=UNPACK_S
    )
    if done.status == 127:
        raise LinkLostError("the board has no shell that answers")
    said = clean_text(done.stdout[:2000].decode("utf-8", "replace"), 300).strip()
    complaint = clean_text(done.stderr, 500).strip()
    if "No space left" in complaint:
        raise DeviceDiskFullError(f"Python was not unpacked: {complaint[-200:]}")
    return said or complaint[-300:]
