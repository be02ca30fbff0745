# ruff: noqa: UP006, UP022, UP035, UP045
"""Install wheels below ``<workdir>/site/``: unpack, test in a process of its own, switch over.

Runs on a board: Python 3.6 or newer, standard library only, as ``python3 -I unpack.py``. One JSON
object on stdin asks, one line of JSON on stdout answers. ``site/current`` names the folder in use;
it changes last and at once, so that a cut link or a failed test leaves the old one in use.
"""

import base64
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from typing import Any, Dict, List, Optional, Tuple

MANIFEST = "hilnas-site.json"
SCHEMA = 1
MARGIN_BYTES = 32 << 20
_NAME = re.compile(r"[0-9a-f]{16}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

Json = Dict[str, Any]


class Refused(Exception):
    """Told to the host as ``code`` and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def place(name: str, mode: int) -> Optional[str]:
    """Where a wheel's file goes below the site folder; None where it is not installed.

    Raises ValueError for a name that leaves the folder and for what is no plain file.
    """
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name or "\0" in name or ":" in parts[0]:
        raise ValueError(f"{name[:200]!r} is no relative path")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:200]!r} leaves the folder")
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG):
        raise ValueError(f"{name[:200]!r} is no plain file")
    if parts[0].endswith(".data") and len(parts) > 2:
        return "/".join(parts[2:]) if parts[1] in ("purelib", "platlib") else None
    return name


def folder_of(request: Json) -> str:
    """``<workdir>/site``, made private and refused where it is a link."""
    site = os.path.join(request["workdir"], "site")
    os.makedirs(site, mode=0o700, exist_ok=True)
    if os.path.islink(site):
        raise Refused("BOOTSTRAP", f"{site} is a link")
    return site


def read_name(site: str, which: str) -> str:
    """The folder that ``site/current`` or ``site/previous`` names, "" where there is none."""
    try:
        with open(os.path.join(site, which)) as stream:
            name = stream.read(100).strip()
    except (OSError, ValueError):
        return ""
    return name if _NAME.match(name) else ""


def write_name(site: str, which: str, name: str) -> None:
    """Replace it, whole or not at all."""
    partial = os.path.join(site, ".tmp-" + which)
    with open(partial, "w") as stream:
        stream.write(name + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(partial, os.path.join(site, which))
    sync(site)


def sync(path: str) -> None:
    """Make a file, or the renames in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: str) -> None:
    """Write out every file below a folder: the disk may be busy with other things too."""
    for path, _, names in os.walk(folder):
        for name in names:
            sync(os.path.join(path, name))
        sync(path)


def manifest_of(folder: str) -> Json:
    """What was installed in a folder; {} unless every file of it is there with its size."""
    try:
        with open(os.path.join(folder, MANIFEST)) as stream:
            manifest = json.load(stream)  # type: Json
        if manifest["schema"] != SCHEMA:
            return {}
        for wheel in manifest["wheels"]:
            for path, size in wheel["files"]:
                if os.stat(os.path.join(folder, path)).st_size != size:
                    return {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return manifest


def state(request: Json) -> Json:
    """What is in use, and which of ``blobs`` lie there already."""
    site = folder_of(request)
    current = read_name(site, "current")
    manifest = manifest_of(os.path.join(site, current)) if current else {}
    wheels = [{k: w[k] for k in w if k != "files"} for w in manifest.get("wheels", [])]
    return {
        "current": current,
        "abi": manifest.get("abi", ""),
        "runtimes": manifest.get("runtimes", []),
        "wheels": wheels,
        "whole": [
            name
            for name in os.listdir(site)
            if _NAME.match(name) and manifest_of(os.path.join(site, name))
        ],
    }


def check(request: Json) -> Json:
    """Test what is installed; and tell which blobs lie there, for what must be sent."""
    folder = os.path.join(folder_of(request), site_name(request))
    names = [wheel["sha256"] for wheel in request["wheels"]]
    return {
        "present": [name for name in names if os.path.exists(blob(request, name))],
        "test": test(request, folder) if manifest_of(folder) else None,
    }


def install(request: Json) -> Json:
    """Unpack unless that was done, test, switch over, remove what is no longer needed."""
    site, name = folder_of(request), site_name(request)
    lock = take_lease(request["workdir"])
    try:
        clear_scratch(site)
        folder = os.path.join(site, name)
        if request["fresh"] or not manifest_of(folder):
            unpack(request, site, folder)
        result = test(request, folder)
        if not result["ok"]:
            if read_name(site, "current") != name:
                shutil.rmtree(folder, ignore_errors=True)
            return {"test": result, "current": read_name(site, "current")}
        activate(request, site)
        return {"test": result, "current": name}
    finally:
        os.close(lock)


def site_name(request: Json) -> str:
    """The folder that the host asks for."""
    name = request["site"]  # type: str
    if not _NAME.match(name):
        raise Refused("PROTOCOL", f"{name[:80]!r} is not the name of a site")
    return name


def take_lease(workdir: str) -> int:
    """The lock that a measuring agent holds: packages do not change below its feet."""
    import fcntl

    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(os.path.join(workdir, "lease"), flags, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Refused("LEASED", "somebody measures on this board, or sets it up") from None
    return handle


def clear_scratch(site: str) -> None:
    """Remove what an interrupted run left; the lease says that nobody works in it."""
    for name in os.listdir(site):
        if name.startswith(".tmp-"):
            path = os.path.join(site, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)


def unpack(request: Json, site: str, folder: str) -> None:
    """All wheels into a scratch folder, then one rename."""
    space = os.statvfs(site)
    free, needed = space.f_bavail * space.f_frsize, request["disk_bytes"] + MARGIN_BYTES
    if free < needed:
        raise Refused("DISK_FULL", f"{free} bytes are free, {needed} are needed")
    if space.f_files and space.f_favail < request["n_files"]:
        raise Refused("DISK_FULL", f"{space.f_favail} more files are allowed there")
    current = os.path.join(site, read_name(site, "current") or ".none")
    scratch = os.path.join(site, ".tmp-" + request["site"])
    os.mkdir(scratch, 0o700)
    wheels = []
    try:
        for wheel in request["wheels"]:
            if wheel["keep"]:
                files = link_wheel(current, wheel["sha256"], scratch)
            else:
                files = unpack_wheel(blob(request, wheel["sha256"]), wheel["sha256"], scratch)
            wheels.append(dict(wheel, files=files))
        manifest = {"schema": SCHEMA, "abi": request["abi"], "wheels": wheels}
        manifest["runtimes"] = [asked["runtime"] for asked in request["tests"]]
        with open(os.path.join(scratch, MANIFEST), "w") as stream:
            json.dump(manifest, stream)
        sync_files(scratch)
        if os.path.isdir(folder):
            os.rename(folder, os.path.join(site, ".tmp-old-" + request["site"]))
        os.rename(scratch, folder)
        sync(site)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def link_wheel(current: str, sha256: str, folder: str) -> List[Tuple[str, int]]:
    """Take over the files of a wheel that the site in use has: no file is written twice."""
    for wheel in manifest_of(current).get("wheels", []):
        if wheel["sha256"] != sha256:
            continue
        for path, _ in wheel["files"]:
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            try:
                os.link(os.path.join(current, path), target)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST):
                    raise
                shutil.copy2(os.path.join(current, path), target)  # no hard links there
        return [(path, size) for path, size in wheel["files"]]
    raise Refused("BOOTSTRAP", "the packages in use changed meanwhile; try again")


def unpack_wheel(path: str, sha256: str, folder: str) -> List[Tuple[str, int]]:
    """Path and size of what was written. Every file must be what the wheel's RECORD says."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        os.unlink(path)
        raise Refused("UPLOAD_CORRUPT", "a wheel arrived damaged; it was removed")
    written = []
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
        record, signed = read_record(archive, infos)
        for info in infos:
            target = place(info.filename, info.external_attr >> 16)
            if target is None:
                continue
            full = os.path.join(folder, *target.split("/"))
            os.makedirs(os.path.dirname(full), mode=0o755, exist_ok=True)
            mode = 0o755 if (info.external_attr >> 16) & 0o111 else 0o644
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            digest = hashlib.sha256()
            with archive.open(info) as source, os.fdopen(os.open(full, flags, mode), "wb") as out:
                for chunk in iter(lambda: source.read(1 << 20), b""):
                    digest.update(chunk)
                    out.write(chunk)
            text = base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")
            if info.filename in signed and record.get(info.filename) != "sha256=" + text:
                raise ValueError(f"{info.filename[:200]!r} is not what its RECORD says")
            written.append((target, info.file_size))
    return written


def read_record(archive: zipfile.ZipFile, infos: List[zipfile.ZipInfo]) -> Any:
    """File → hash as the wheel lists them, and the set of files that must be listed."""
    records = [i.filename for i in infos if re.match(r"[^/]+\.dist-info/RECORD\Z", i.filename)]
    if len(records) != 1:
        raise ValueError("the wheel has no RECORD")
    rows = csv.reader(io.StringIO(archive.read(records[0]).decode()))
    listed = {row[0]: row[1] for row in rows if len(row) == 3}
    own = {records[0] + suffix for suffix in ("", ".jws", ".p7s")}
    return listed, {info.filename for info in infos} - own


def activate(request: Json, site: str) -> None:
    """Switch over, then remove older sites (the previous one stays) and the wheels."""
    current = read_name(site, "current")
    if current and current != request["site"]:
        write_name(site, "previous", current)
    write_name(site, "current", request["site"])
    keep = {request["site"], read_name(site, "previous")}
    for name in os.listdir(site):
        if _NAME.match(name) and name not in keep:
            shutil.rmtree(os.path.join(site, name), ignore_errors=True)
    clear_scratch(site)
    for wheel in request["wheels"]:
        path = blob(request, wheel["sha256"])
        if os.path.exists(path):
            os.unlink(path)


def test(request: Json, folder: str) -> Json:
    """Every runtime of the site, the asked one last; the first that fails is the answer."""
    versions = {}  # type: Json
    for asked in request["tests"]:
        result = test_one(asked, folder)
        if not result["ok"]:
            return dict(result, runtime=asked["runtime"])
        versions.update(result["versions"])
    return {"ok": True, "versions": versions}


def test_one(asked: Json, folder: str) -> Json:
    """Import and run in a process of its own: a crash there is an answer here."""
    task = json.dumps({"op": "import", "folder": folder, "test": asked})
    environment = dict(os.environ, ORT_DISABLE_TELEMETRY="1", OPENBLAS_NUM_THREADS="1")
    try:
        done = subprocess.run(
            # without -B: what this imports is compiled once, not at every start of a measurement
            [sys.executable, "-I", os.path.abspath(__file__)],
            input=task.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=asked["timeout_s"],
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "why": "it takes longer than allowed", "said": ""}
    said = done.stderr.decode("utf-8", "replace")[-1500:]
    if done.returncode != 0:
        return {"ok": False, "why": f"it ends with status {done.returncode}", "said": said}
    try:
        versions = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"ok": False, "why": "it says nothing that can be read", "said": said}
    return {"ok": True, "versions": versions}


def import_and_run(request: Json) -> Json:
    """Import each module out of ``folder`` and run the model where the runtime reads ONNX."""
    import importlib

    folder, asked = os.path.abspath(request["folder"]), request["test"]
    sys.path.insert(0, folder)
    versions = {}
    for name in asked["modules"]:
        module = importlib.import_module(name)
        where = os.path.abspath(getattr(module, "__file__", None) or "")
        if not where.startswith(folder + os.sep):
            raise ImportError(f"{name} came from {where}, not from {folder}")
        versions[name] = str(getattr(module, "__version__", ""))[:40]
    model = base64.b64decode(asked["model"])
    if asked["runtime"] == "onnxruntime":
        run_onnxruntime(model)
    elif asked["runtime"] == "openvino":
        core = sys.modules["openvino"].Core()
        core.compile_model(core.read_model(io.BytesIO(model).getvalue(), b""), "CPU")
    return versions


def run_onnxruntime(model: bytes) -> None:
    """One run on zeros."""
    import numpy  # type: ignore[import-not-found,unused-ignore]
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {
        put.name: numpy.zeros([size if type(size) is int else 1 for size in put.shape], "float32")
        for put in session.get_inputs()
    }
    if not all(numpy.isfinite(output).all() for output in session.run(None, feeds)):
        raise ValueError("the test network's output is not finite")


def blob(request: Json, name: str) -> str:
    """Path of content that the host sent."""
    if not _SHA256.match(name):
        raise Refused("PROTOCOL", f"{name[:80]!r} is not the name of a blob")
    return os.path.join(request["workdir"], "blobs", name)


OPERATIONS = {"state": state, "check": check, "install": install}


def main() -> int:
    """Answer one request."""
    request = json.loads(sys.stdin.buffer.read().decode())
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native libraries may print; stdout is for the answer
    child = request["op"] == "import"  # whose traceback is the evidence
    answer = import_and_run(request) if child else guarded(request)
    output.write(json.dumps(answer) + "\n")
    output.flush()
    return 0


def guarded(request: Json) -> Json:
    """The answer, or an error that the host understands."""
    try:
        return OPERATIONS[request["op"]](request)
    except Refused as error:
        return {"error": {"code": error.code, "message": str(error)[:1000]}}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return {"error": {"code": "DISK_FULL" if full else "DEVICE", "message": str(error)[:1000]}}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return {"error": {"code": "BOOTSTRAP", "message": "bad wheel: " + str(error)[:900]}}


if __name__ == "__main__":
    # no interpreter shutdown: a runtime's threads may hang there, and the answer is out
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
