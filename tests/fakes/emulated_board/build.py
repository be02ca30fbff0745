"""Build the disk of an emulated board: a real aarch64 Debian that boots in seconds.

    python -m tests.fakes.emulated_board.build --out DIR --release trixie --server dropbear

Packages are only unpacked (no maintainer script runs, nothing is emulated, nothing is mounted); the
few files that those scripts would make are written here. The result is kept below
``~/.cache/hilnas-tests/board`` under the hash of its recipe, with keys that are made for it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.emulated_board.machine import machine
from tests.fakes.emulated_board.recipe import GUEST, MODULES, RELEASES, SERVERS, Recipe, sysfs_files

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
}
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_CACHE = Path.home() / ".cache" / "hilnas-tests" / "board"
FIRST_BOOT_S = 600.0
LEFT_OUT = ("boot", "dev", "usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt")
ACCOUNTS = {"root": (0, "/root"), "board": (1000, "/home/board")}
"""Who may log in by key, with user id and home."""


class CannotBuildError(Exception):
    """A tool or Debian's mirror is missing; the message says what to install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardImage:
    """A finished image: kernel, initramfs, disk, and keys of client and host."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """The kernel that qemu starts."""
        return self.folder / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        """Drivers for the disk."""
        return self.folder / "initrd.gz"

    @property
    def disk(self) -> Path:
        """The root file system (qcow2), never written to: boards get overlays."""
        return self.folder / "board.qcow2"

    @property
    def client_key(self) -> Path:
        """Private key that logs in as any of ``ACCOUNTS``."""
        return self.folder / "client_ed25519"

    @property
    def host_public_key(self) -> str:
        """``ssh-ed25519 AAAA…`` of the board."""
        return " ".join((self.folder / "host_ed25519.pub").read_text().split()[:2])

    @property
    def facts(self) -> dict[str, object]:
        """What was built: recipe, kernel, seconds."""
        facts: dict[str, object] = json.loads((self.folder / "facts.json").read_text())
        return facts


def missing_tools() -> tuple[str, ...]:
    """Debian packages that have to be installed before a board can be built and booted.

    >>> all(isinstance(name, str) for name in missing_tools())
    True
    """
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = [
        package for tool, package in TOOLS.items() if shutil.which(tool, path=places) is None
    ]
    if os.geteuid() != 0 and shutil.which("fakeroot") is None:
        missing.append("fakeroot")  # files of the disk belong to its root, not to the builder
    if not SOURCES.is_file() or not KEYRING.is_file():
        missing.append("debian-archive-keyring")
    return tuple(sorted(missing))


def mirror() -> str:
    """The Debian mirror that this machine uses. Raises CannotBuildError."""
    try:
        for line in SOURCES.read_text().splitlines():
            if line.startswith("URIs:"):
                return line.split()[1]
    except OSError as error:
        raise CannotBuildError(f"{SOURCES}: {error.strerror}; boards are built on Debian") from None
    raise CannotBuildError(f"{SOURCES} names no mirror (no line 'URIs:')")


def image(recipe: Recipe | None = None, cache: Path = DEFAULT_CACHE) -> BoardImage:
    """Give the image of a recipe, built now unless ``cache`` holds it. Raises CannotBuildError."""
    recipe = recipe or Recipe()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{recipe.name}-{recipe.key()}"
    with _locked(cache / f"{recipe.name}.lock"):
        if not (folder / "facts.json").is_file():
            build(recipe, folder)
            for old in set(cache.glob(f"{recipe.name}-{'[0-9a-f]' * 16}")) - {folder}:
                shutil.rmtree(old, ignore_errors=True)
    return BoardImage(folder=folder)


def build(recipe: Recipe, out: Path) -> BoardImage:
    """Build into ``out``, which appears whole or not at all. Raises CannotBuildError."""
    if missing := missing_tools():
        raise CannotBuildError(f"apt-get install --no-install-recommends {' '.join(missing)}")
    start = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        product, root = work / "product", work / "root"
        product.mkdir()
        _keys(product)
        archive = work / "root.tar"
        _run(_mmdebstrap(recipe, archive), work)
        _unpack(archive, root)
        kernel = sorted(path.name for path in (root / "lib/modules").iterdir())[-1]
        _initramfs(root, kernel, work / "initramfs", product / "initrd.gz")
        shutil.copyfile(root / f"boot/vmlinuz-{kernel}", product / "vmlinuz")
        _configure(root, recipe, product)
        for name in (*LEFT_OUT, "lib/modules"):
            shutil.rmtree(root / name, ignore_errors=True)
        (root / "dev").mkdir()
        _disk(root, recipe, work / "board.img", product / "board.qcow2")
        _first_boot(BoardImage(folder=product), work)
        facts = {
            "recipe": recipe.name,
            "kernel": kernel,
            "seconds": round(time.monotonic() - start, 1),
            "packages": recipe.packages,
        }
        (product / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        if out.exists():
            shutil.rmtree(out)
        product.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return BoardImage(folder=out)


def _mmdebstrap(recipe: Recipe, archive: Path) -> list[str]:
    return [
        "mmdebstrap",
        "--quiet",
        f"--mode={'root' if os.geteuid() == 0 else 'chrootless'}",
        "--arch=arm64",
        "--variant=extract",
        f"--include={','.join(recipe.packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        recipe.release,
        str(archive),
        f"deb [signed-by={KEYRING}] {mirror()} {recipe.release} main",
    ]


def _unpack(archive: Path, root: Path) -> None:
    """Unpack what a board needs, without device nodes; owners are set when the disk is made."""
    root.mkdir()
    _run(
        ["tar", "--no-same-owner", "--exclude=./dev/*", "-C", str(root), "-xf", str(archive)],
        root.parent,
    )
    archive.unlink()
    for name in ("bin", "sbin", "lib"):  # releases differ in whether these are links
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")


def _keys(product: Path) -> None:
    for name in ("client_ed25519", "host_ed25519"):
        _run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(product / name)],
            product,
        )


def _initramfs(root: Path, kernel: str, folder: Path, out: Path) -> None:
    for name in ("bin", "mod", "proc", "sys", "dev", "newroot"):
        (folder / name).mkdir(parents=True)
    shutil.copy2(root / "bin/busybox", folder / "bin/busybox")
    modules = {
        path.name.split(".ko")[0]: path
        for path in (root / "lib/modules" / kernel / "kernel").rglob("*.ko*")
    }
    order = [name for name in MODULES if name in modules]
    for name in order:
        data = modules[name].read_bytes()
        if modules[name].suffix == ".xz":
            data = lzma.decompress(data)
        (folder / "mod" / f"{name}.ko").write_bytes(data)
    (folder / "mod/order").write_text("".join(f"{name}.ko\n" for name in order))
    shutil.copyfile(GUEST / "initramfs_init.sh", folder / "init")
    (folder / "init").chmod(0o755)
    names = "\n".join(
        str(path.relative_to(folder)) for path in [folder, *sorted(folder.rglob("*"))]
    )
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
        cwd=folder,
        input=names.encode(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    out.write_bytes(gzip.compress(packed, 1))


def _configure(root: Path, recipe: Recipe, product: Path) -> None:
    """Write what maintainer scripts would have made."""

    def write(name: str, text: str, mode: int = 0o644) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    for name in ("proc", "sys", "run", "tmp", "root", "var/empty", "var/log", "etc/dropbear"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shell = root / "bin/sh"
    if not shell.exists():
        shell.symlink_to("dash")
    users = [
        f"{name}:x:{uid}:{uid}:{name}:{home}:/bin/sh" for name, (uid, home) in ACCOUNTS.items()
    ]
    others = ["sshd:x:100:65534::/run/sshd:/usr/sbin/nologin", "nobody:x:65534:65534::/:/bin/false"]
    write("etc/passwd", "\n".join([*users, *others, ""]))
    write("etc/group", "root:x:0:\nboard:x:1000:\nnogroup:x:65534:\n")
    locked = [f"{name}:*:19000:0:99999:7:::" for name in ACCOUNTS]  # with "!" sshd refuses keys too
    write("etc/shadow", "\n".join([*locked, "sshd:!:19000::::::", ""]), 0o600)
    write("etc/hosts", "127.0.0.1 localhost board\n")
    write("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
    public = (product / "client_ed25519.pub").read_text()
    for _, home in ACCOUNTS.values():
        write(f"{home[1:]}/.ssh/authorized_keys", public, 0o600)
        for folder in (home[1:], f"{home[1:]}/.ssh"):
            (root / folder).chmod(0o700)
    write("etc/ssh/ssh_host_ed25519_key", (product / "host_ed25519").read_text(), 0o600)
    write("etc/ssh/sshd_config", (GUEST / "sshd_config").read_text())
    write("opt/used_before.py", (GUEST / "used_before.py").read_text())
    write("board-init", (GUEST / "board_init.sh").read_text(), 0o755)
    if recipe.sysfs:
        for name, text in sysfs_files().items():
            write(f"opt/sys/{name}", text)


def _disk(root: Path, recipe: Recipe, raw: Path, out: Path) -> None:
    """Make the file system; root owns all of it but the homes of other accounts."""
    owned = [f"chown -R {uid}:{uid} root{home}" for uid, home in ACCOUNTS.values() if uid]
    make = f"mke2fs -q -t ext4 -E root_owner=0:0 -d root {raw.name} {recipe.disk_mib}M"
    script = " && ".join(["chown -R 0:0 root", *owned, make])
    prefix = [] if os.geteuid() == 0 else ["fakeroot"]
    _run([*prefix, "sh", "-ec", script], root.parent)
    _run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(out)], root.parent)
    raw.unlink()


def _first_boot(image: BoardImage, folder: Path) -> None:
    """Boot once, so that Python's own files are compiled as on a board that is in use."""
    command = [
        *machine(1, 1024, "board.first"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-no-reboot"),
        *("-drive", f"if=none,id=d0,file={image.disk},format=qcow2"),
        *("-netdev", "user,id=n0,restrict=on", "-serial", "stdio"),
    ]
    _run(["setpriv", "--pdeathsig", "KILL", "--", *command], folder, timeout_s=FIRST_BOOT_S)


def _run(command: Sequence[str], folder: Path, timeout_s: float | None = None) -> None:
    """Run a tool. Raises CannotBuildError with what it said, TimeoutExpired."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
    )
    if done.returncode:
        raise CannotBuildError(f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process build at a time."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build and say where it is."""
    parser = argparse.ArgumentParser(description="Build an emulated aarch64 board.")
    parser.add_argument("--out", type=Path, help="folder for the image (default: the cache)")
    parser.add_argument("--release", choices=RELEASES, default="bookworm")
    parser.add_argument("--server", choices=SERVERS, default="openssh")
    parser.add_argument("--sysfs", action="store_true", help="with faked cpufreq and thermal zones")
    said = parser.parse_args()
    recipe = Recipe(release=said.release, server=said.server, sysfs=said.sysfs)
    try:
        built = build(recipe, said.out) if said.out else image(recipe)
    except CannotBuildError as error:
        print(f"cannot build a board: {error}", file=sys.stderr)
        return 1
    print(built.folder, json.dumps(built.facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
