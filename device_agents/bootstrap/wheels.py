"""Get wheels on the host: from pip, or from a folder that the user brings. Each one is checked.

Dependencies are never resolved here: a plan lists every package. (pip would evaluate their
conditions for the host's Python, not for the board's: pypa/pip#11664.)
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from device_agents.bootstrap.choose import Pin, Plan
from device_agents.bootstrap.lock import Locked, LockFile
from device_agents.bootstrap.programs.unpack import place
from device_agents.link.client import clean_text
from latency_tables.errors import BootstrapError
from latency_tables.files import sha256_file

Note = Callable[[str], None]

DOWNLOAD_S = 1800.0
MAX_UNPACKED_BYTES = 4 << 30
MAX_FILES = 100_000
BLOCK_BYTES = 4096

PIP_KEEPS = {
    "PIP_CACHE_DIR",
    "PIP_CERT",
    "PIP_CLIENT_CERT",
    "PIP_CONFIG_FILE",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_KEYRING_PROVIDER",
    "PIP_NO_CACHE_DIR",
    "PIP_NO_INDEX",
    "PIP_PROXY",
    "PIP_RETRIES",
    "PIP_TIMEOUT",
    "PIP_TRUSTED_HOST",
}
"""Settings of pip in the environment that say where packages come from and how they are reached.
Others say what is wanted, and for which machine (``PIP_CONSTRAINT``, ``PIP_PLATFORM``); those are
about the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel that was found whole; ``disk_bytes`` is what it takes unpacked, in blocks."""

    path: Path
    locked: Locked
    disk_bytes: int
    n_files: int


def inspect(path: Path) -> Wheel:
    """Read a wheel to its end: its zip checksums and the hashes of its RECORD.

    Raises BootstrapError saying what is wrong with it.
    """
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        raise BootstrapError(f"{path.name} is not the name of a wheel") from None
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            total = sum(info.file_size for info in infos)
            if total > MAX_UNPACKED_BYTES or len(infos) > MAX_FILES:
                raise _bad(path, f"{len(infos)} files of {total} bytes are too much")
            for info in infos:
                place(info.filename, info.external_attr >> 16)
            _check_record(path, archive, infos)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, NotImplementedError) as e:
        raise _bad(path, str(e)) from None
    except Exception as error:  # zlib.error and what else a damaged archive makes zipfile raise
        if isinstance(error, BootstrapError):
            raise
        raise _bad(path, f"{type(error).__name__}: {error}") from None
    return Wheel(
        path=path,
        locked=Locked(
            name=str(name),
            version=str(version),
            filename=path.name,
            sha256=sha256_file(path),
            size=path.stat().st_size,
        ),
        disk_bytes=sum(-(-info.file_size // BLOCK_BYTES) * BLOCK_BYTES for info in infos),
        n_files=len(infos),
    )


def pip_command(plan: Plan, folder: Path | str, pins: Sequence[Pin] | None = None) -> list[str]:
    """What downloads the wheels of ``plan``, here or on another machine with internet."""
    command = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", "{}.{}".format(*plan.python)]
    for abi in (plan.abi, "abi3", "none"):
        command += ["--abi", abi]
    for tag in plan.common_tags:
        command += ["--platform", tag]
    return command + [f"{pin.name}=={pin.version}" for pin in (pins or ())]


def pip_environment(host: Mapping[str, str]) -> dict[str, str]:
    """The host's environment without what would choose other wheels than the board's plan.

    >>> pip_environment({"PIP_CONSTRAINT": "c.txt", "PIP_INDEX_URL": "http://lab/", "HOME": "/"})
    {'PIP_INDEX_URL': 'http://lab/', 'HOME': '/'}
    """
    return {
        name: value
        for name, value in host.items()
        if not name.startswith("PIP_") or name in PIP_KEEPS
    }


def download(plan: Plan, lock: LockFile | None, folder: Path, on_note: Note) -> list[Wheel]:
    """Fetch what ``folder`` lacks, one package after the other; what is there is kept.

    With a ``lock`` pip itself refuses other contents. Raises BootstrapError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    locked = {wheel.name: wheel for wheel in lock.wheels} if lock else {}
    found = []
    for pin in plan.packages:
        wanted = locked.get(pin.name)
        wheel = _present(pin, plan, wanted, folder)
        if wheel is None:
            on_note(f"downloading {pin.name} {pin.version} for {plan.abi} on {plan.machine}")
            wheel = _fetch(pin, plan, wanted, folder)
            on_note(f"{wheel.locked.filename}: {wheel.locked.size / 1e6:.1f} MB")
        found.append(wheel)
    return found


def from_wheelhouse(folder: Path, plan: Plan, on_note: Note) -> list[Wheel]:
    """Take the wheels of ``plan`` out of ``folder``, without any network.

    Another version than the plan's is taken, and said, where that one is missing.
    Raises BootstrapError naming what is missing and the command that fetches it elsewhere.
    """
    if not folder.is_dir():
        raise BootstrapError(f"the wheelhouse {folder} is not a folder")
    found, missing = [], []
    for pin in plan.packages:
        candidates = _candidates(folder, pin.name, plan.platform_tags, plan)
        if not candidates:
            missing.append(pin)
            continue
        wanted = Version(pin.version)
        version, _, path = max(candidates, key=lambda c: (c[0] == wanted, c[0], -c[1]))
        if version != wanted:
            on_note(f"the wheelhouse has {pin.name} {version}, not {wanted}: taking that")
        found.append(_named(inspect(path), pin.name, str(version)))
    if missing:
        names = ", ".join(f"{pin.name} {pin.version}" for pin in missing)
        command = shlex.join(["python3", *pip_command(plan, "wheelhouse", missing)])
        raise BootstrapError(
            f"the wheelhouse {folder} has no wheel for {plan.abi} on {plan.machine} of {names}",
            hint=f"on a machine with internet: {command}",
        )
    return found


def supported_tags(plan: Plan, platforms: Sequence[str]) -> list[Tag]:
    """The wheel tags that the board accepts on ``platforms``, best first."""
    abis = [plan.abi] if plan.abi.endswith("t") else [plan.abi, "abi3"]
    tags = list(cpython_tags(plan.python, abis, platforms))
    interpreter = "cp{}{}".format(*plan.python)
    return tags + list(compatible_tags(plan.python, interpreter, platforms))


def _candidates(
    folder: Path, name: str, platforms: Sequence[str], plan: Plan
) -> list[tuple[Version, int, Path]]:
    """Version, rank of the best tag (0 is best) and path of every wheel that fits."""
    rank = {tag: index for index, tag in reversed(list(enumerate(supported_tags(plan, platforms))))}
    found = []
    for path in sorted(folder.glob("*.whl")):
        try:
            own, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        ranks = [rank[tag] for tag in tags if tag in rank]
        if own == canonicalize_name(name) and ranks:
            found.append((version, min(ranks), path))
    return found


def _present(pin: Pin, plan: Plan, wanted: Locked | None, folder: Path) -> Wheel | None:
    """The wheel that an earlier run left in ``folder``; a damaged one is removed."""
    for version, _, path in sorted(
        _candidates(folder, pin.name, plan.common_tags, plan), key=lambda c: c[1]
    ):
        if version != Version(pin.version) or (wanted and path.name != wanted.filename):
            continue
        try:
            wheel = inspect(path)
        except BootstrapError:
            path.unlink()
            continue
        if wanted is None or wheel.locked.sha256 == wanted.sha256:
            return _named(wheel, pin.name, pin.version)
        path.unlink()
    return None


def _fetch(pin: Pin, plan: Plan, wanted: Locked | None, folder: Path) -> Wheel:
    if importlib.util.find_spec("pip") is None:
        raise BootstrapError(
            f"{sys.executable} has no pip to download wheels with",
            hint=f"{sys.executable} -m ensurepip, or --wheelhouse DIR",
        )
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as partial:
        command = [sys.executable, *pip_command(plan, partial)]
        command += ["--quiet", "--no-input", "--disable-pip-version-check"]
        requirements = Path(partial) / "requirements.txt"
        text = f"{pin.name}=={pin.version}"
        if wanted is not None:
            text += f" --hash=sha256:{wanted.sha256}"
            command.append("--require-hashes")
        requirements.write_text(text + "\n")
        try:
            done = subprocess.run(
                [*command, "-r", str(requirements)],
                env=pip_environment(os.environ),
                capture_output=True,
                timeout=DOWNLOAD_S,
                check=False,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            raise BootstrapError(f"pip did not fetch {pin.name} within {DOWNLOAD_S:g} s") from None
        found = list(Path(partial).glob("*.whl"))
        if done.returncode != 0 or len(found) != 1:
            command_elsewhere = shlex.join(["python3", *pip_command(plan, "DIR", plan.packages)])
            raise BootstrapError(
                f"pip cannot fetch {pin.name} {pin.version}: {_reason(done.stderr)}",
                hint=f"--wheelhouse DIR, filled elsewhere by: {command_elsewhere}",
            )
        wheel = inspect(found[0])
        target = folder / found[0].name
        found[0].replace(target)
    return _named(replace(wheel, path=target), pin.name, pin.version)


def _named(wheel: Wheel, name: str, version: str) -> Wheel:
    """The wheel under the plan's spelling of its name (file names normalise it)."""
    return replace(wheel, locked=replace(wheel.locked, name=name, version=version))


def _reason(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    return clean_text(" ".join(errors or stderr.splitlines()[-2:]), 500)


def _check_record(path: Path, archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> None:
    """Every file must be listed with its SHA-256, and every listed file be there."""
    records = [i for i in infos if i.filename.endswith(".dist-info/RECORD")]
    if len(records) != 1 or records[0].filename.count("/") != 1:
        raise _bad(path, "it has no RECORD")
    rows = csv.reader(io.StringIO(archive.read(records[0]).decode()))
    listed = {row[0]: row[1] for row in rows if len(row) == 3}
    unsigned = {records[0].filename + suffix for suffix in ("", ".jws", ".p7s")}
    for info in infos:
        if info.filename in unsigned:
            continue
        with archive.open(info) as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]
        expected = "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if listed.get(info.filename) != expected:
            raise _bad(path, f"{info.filename!r} is not what its RECORD says")
    missing = set(listed) - {info.filename for info in infos} - unsigned
    if missing:
        raise _bad(path, f"{min(missing)!r} of its RECORD is missing")


def _bad(path: Path, why: str) -> BootstrapError:
    return BootstrapError(
        f"the wheel {path.name} is damaged: {clean_text(why, 300)}",
        hint=f"remove {path} and fetch it again",
    )
