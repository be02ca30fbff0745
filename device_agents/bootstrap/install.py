"""Push wheels to a board and have them installed, tested and switched to there."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from device_agents.bootstrap.lock import Locked, LockFile
from device_agents.bootstrap.target import board_program
from device_agents.bootstrap.wheels import Note, Wheel
from device_agents.link.client import clean_text
from device_agents.link.transport import Transport
from device_agents.measuring.reference import reference_model
from latency_tables.errors import (
    BootstrapError,
    DeviceDiskFullError,
    DeviceError,
    LeasedError,
    ProtocolError,
    UploadError,
)

MARGIN_BYTES = 32 << 20  # as on the board: scratch, logs and what the test compiles
STATE_S = 180.0
INSTALL_S = 1200.0
TEST_S = 150.0
MODULES = {
    "onnxruntime": ("numpy", "onnxruntime"),
    "openvino": ("numpy", "openvino"),
    "ncnn": ("numpy", "ncnn"),
    "rknn": ("numpy", "rknnlite.api"),
}
# what the board said -> what to do about it
REMEDIES = (
    ("GLIBCXX", "install the board's newest libstdc++6 package"),
    ("GLIBC_", "the board's C library is older than it says; --python-tar FILE does not help here"),
    ("libgomp", "install the board's libgomp1 package"),
    ("libstdc++", "install the board's libstdc++6 package"),
    ("libgcc_s", "install the board's libgcc-s1 package"),
    ("status -4", "the processor lacks instructions that these wheels use"),
    ("status -11", "the runtime crashes there; try another version with --wheelhouse DIR"),
    ("status -9", "the board killed it, most likely for lack of memory"),
    ("No space left", "free some disk on the board"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The folder of packages that a board uses: its name, and what is in it where it is whole."""

    current: str
    abi: str
    runtimes: tuple[str, ...]
    wheels: tuple[Locked, ...]
    whole: frozenset[str]

    def beside(self, abi: str, runtime: str) -> tuple[str, ...]:
        """The other runtimes there, which a new folder must keep; none for another Python."""
        return tuple(r for r in self.runtimes if r != runtime) if self.abi == abi else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How the wanted folder fares: versions where it passes, wheels that were sent already."""

    versions: Mapping[str, str] | None
    present: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the board is to have: all wheels, and which of them (``keep``) it has in use."""

    runtimes: tuple[str, ...]
    abi: str
    lock: LockFile
    keep: frozenset[str]


def wanted(site: Site, runtime: str, abi: str, lock: LockFile) -> Wanted:
    """``lock`` for ``runtime``, and beside it the packages of the other runtimes on the board."""
    others = site.beside(abi, runtime)
    names = {wheel.name for wheel in lock.wheels}
    kept = tuple(w for w in site.wheels if w.name not in names) if others else ()
    there = {wheel.sha256 for wheel in site.wheels} if site.abi == abi else set()
    return Wanted(
        runtimes=(*others, runtime),
        abi=abi,
        lock=LockFile(key=lock.key, wheels=(*kept, *lock.wheels)),
        keep=frozenset(w.sha256 for w in (*kept, *lock.wheels) if w.sha256 in there),
    )


def read_site(transport: Transport, python: str) -> Site:
    """Ask the board what it uses."""
    answer = _ask(transport, python, {"op": "state"}, STATE_S)
    try:
        wheels = tuple(
            Locked(
                name=clean_text(wheel["name"], 100),
                version=clean_text(wheel["version"], 100),
                filename=clean_text(wheel["filename"], 256),
                sha256=clean_text(wheel["sha256"], 64),
                size=int(wheel["size"]),
            )
            for wheel in answer["wheels"][:100]
        )
        return Site(
            current=clean_text(answer["current"], 64),
            abi=clean_text(answer["abi"], 20),
            runtimes=tuple(r for r in answer["runtimes"] if r in MODULES),
            wheels=wheels,
            whole=frozenset(clean_text(name, 64) for name in answer["whole"][:100]),
        )
    except (KeyError, TypeError, ValueError):
        raise ProtocolError("the board describes its packages in a way that is unknown") from None


def check(transport: Transport, python: str, want: Wanted) -> Check:
    """Test the wanted folder where it is there."""
    answer = _ask(transport, python, _request("check", want), STATE_S + TEST_S)
    test, present = answer.get("test"), answer.get("present")
    return Check(
        versions=_versions(test) if isinstance(test, dict) else None,
        present=frozenset(present) if isinstance(present, list) else frozenset(),
    )


def install(
    transport: Transport,
    python: str,
    want: Wanted,
    wheels: Sequence[Wheel],
    site: Site,
    checked: Check,
    *,
    free_bytes: int | None,
    on_note: Note,
) -> Mapping[str, str]:
    """Push, unpack, test and switch over; gives the versions that the board imported.

    The site in use stays in use unless the new one passes its test. Raises BootstrapError with
    the board's own words, DeviceDiskFullError before anything is sent, LeasedError, LinkLostError.
    """
    fresh = want.lock.hash == site.current  # it is in use, and damaged or does not pass
    whole = want.lock.hash in site.whole and not fresh
    # of a folder that does not pass, only what other runtimes brought is taken over
    own = {wheel.locked.sha256 for wheel in wheels}
    keep = want.keep - own if fresh else want.keep
    new = [wheel for wheel in wheels if wheel.locked.sha256 not in keep]
    if not whole:
        _check_space(new, checked, free_bytes)
        missing = [w for w in new if w.locked.sha256 not in checked.present]
        total = sum(wheel.locked.size for wheel in missing)
        on_note(f"sending {len(missing)} wheels, {total / 1e6:.1f} MB")
        transport.put_all([wheel.path for wheel in new])
        on_note(f"unpacking {sum(wheel.disk_bytes for wheel in new) / 1e6:.0f} MB on the board")
    request = {
        **_request("install", replace(want, keep=keep)),
        "fresh": fresh,
        "disk_bytes": sum(wheel.disk_bytes for wheel in new),
        "n_files": sum(wheel.n_files for wheel in new),
    }
    answer = _ask(transport, python, request, INSTALL_S)
    result = answer.get("test")
    if not isinstance(result, dict):
        raise ProtocolError("the board's answer to the installation has no test")
    versions = _versions(result)
    if versions is None:
        raise _failed(want, result, clean_text(answer.get("current", ""), 64))
    return versions


def _request(operation: str, want: Wanted) -> dict[str, Any]:
    model = base64.b64encode(reference_model("tiny")).decode()
    return {
        "op": operation,
        "site": want.lock.hash,
        "abi": want.abi,
        "wheels": [{**asdict(w), "keep": w.sha256 in want.keep} for w in want.lock.wheels],
        "tests": [
            {
                "runtime": runtime,
                "modules": list(MODULES[runtime]),
                "model": model,
                "timeout_s": TEST_S,
            }
            for runtime in want.runtimes
        ],
    }


def _ask(
    transport: Transport, python: str, request: Mapping[str, Any], timeout_s: float
) -> dict[str, Any]:
    """Run the installer there. Raises what the error of its answer stands for."""
    blob = transport.put(board_program("unpack.py"))
    done = transport.execute(
        [python, "-I", "-B", f"{transport.workdir}/blobs/{blob}"],
        stdin=json.dumps({**request, "workdir": transport.workdir}).encode(),
        timeout_s=timeout_s,
    )
    try:
        answer = json.loads(done.stdout[: 1 << 20].decode())
        error = answer.get("error")
    except (ValueError, AttributeError):
        raise ProtocolError(
            f"the installer on the board ended with status {done.status} and said: "
            f"{clean_text(done.stderr or done.stdout, 600)}"
        ) from None
    if error is not None:
        raise _error(error)
    return dict(answer)


def _error(error: Any) -> DeviceError:
    code = error.get("code") if isinstance(error, dict) else None
    message = clean_text(error.get("message") if isinstance(error, dict) else error, 1000)
    if code == "DISK_FULL":
        return DeviceDiskFullError(
            f"the board's disk: {message}",
            hint="hilnas devices clean NAME, or another workdir in its entry",
        )
    if code == "LEASED":
        return LeasedError(message, hint="wait until that ends, or hilnas devices unlock NAME")
    if code == "UPLOAD_CORRUPT":
        return UploadError(message)
    if code == "BOOTSTRAP":
        return BootstrapError(message)
    failure = DeviceError(f"installing on the board failed: {message}")
    return failure


def _check_space(wheels: Sequence[Wheel], checked: Check, free_bytes: int | None) -> None:
    if free_bytes is None:
        return  # the board checks again, by itself
    sending = sum(w.locked.size for w in wheels if w.locked.sha256 not in checked.present)
    unpacked = sum(wheel.disk_bytes for wheel in wheels)
    needed = sending + unpacked + MARGIN_BYTES
    if free_bytes < needed:
        raise DeviceDiskFullError(
            f"the board has {free_bytes / 1e6:.0f} MB free where its work folder is; needed are "
            f"{needed / 1e6:.0f} MB: {sending / 1e6:.0f} to send, {unpacked / 1e6:.0f} unpacked, "
            f"{MARGIN_BYTES / 1e6:.0f} spare",
            hint="hilnas devices clean NAME, or another workdir in its entry",
        )


def _versions(result: Mapping[str, Any]) -> Mapping[str, str] | None:
    versions = result.get("versions")
    if result.get("ok") is not True or not isinstance(versions, dict):
        return None
    return {clean_text(k, 60): clean_text(v, 60) for k, v in list(versions.items())[:20]}


def _failed(want: Wanted, result: Mapping[str, Any], current: str) -> BootstrapError:
    runtime = clean_text(result.get("runtime", want.runtimes[-1]), 40)
    why, said = clean_text(result.get("why", ""), 200), clean_text(result.get("said", ""), 1500)
    lines = [line for line in said.splitlines() if line.strip()]
    shown = " ".join(lines[-3:])[:700]
    remedy = next((text for sign, text in REMEDIES if sign in f"{why} {said}"), None)
    stays = f"; the packages in use stay ({current})" if current else ""
    return BootstrapError(
        f"{runtime} was unpacked but its test run fails on the board: {why}: {shown}{stays}",
        hint=remedy or "hilnas devices doctor NAME",
    )
