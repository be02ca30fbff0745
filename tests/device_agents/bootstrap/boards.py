"""Boards for the tests: transports that answer from a script, and wheels made by hand."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from device_agents.link.local import LocalTransport
from device_agents.link.transport import Completed

NUMPY = """
__version__ = "{version}"
class _Ones(list):
    def all(self):
        return all(self)
def zeros(shape, kind):
    return list(shape)
def isfinite(values):
    return _Ones(values)
"""
ONNXRUNTIME = """
import os
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
__version__ = "{version}"
class SessionOptions:
    pass
class _Input:
    name, shape = "input", ["batch", 3, 8, 8]
class InferenceSession:
    def __init__(self, model, options, providers):
        assert len(model) > 1000 and providers == ["CPUExecutionProvider"]
    def get_inputs(self):
        return [_Input]
    def run(self, names, feeds):
        assert feeds == {{"input": [1, 3, 8, 8]}}
        return [[1.0]]
"""


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    tag: str = "py3-none-any",
    modes: Mapping[str, int] | None = None,
    record: Mapping[str, bytes] | None = None,
) -> Path:
    """A wheel; ``record`` are other contents to list hashes of, ``modes`` are file modes."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    content = {**files, f"{info}/METADATA": f"Name: {name}\nVersion: {version}\n".encode()}
    content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    lines = []
    for path, data in {**content, **(record or {})}.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(data)}")
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    target = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in content.items():
            entry = zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0))
            entry.external_attr = (modes or {}).get(path, 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return target


def make_runtime(folder: Path, *, version: str = "1.0", code: str = ONNXRUNTIME) -> Path:
    """A wheelhouse with an onnxruntime and a numpy that do what the installer's test asks."""
    source = code.format(version=version).encode()
    make_wheel(folder, "onnxruntime", version, {"onnxruntime/__init__.py": source})
    make_wheel(folder, "numpy", "2.0", {"numpy/__init__.py": NUMPY.format(version="2.0").encode()})
    return folder


class Told(LocalTransport):
    """This machine, with what it says changed by ``edit``; what was sent and run is kept."""

    def __init__(
        self, workdir: Path, *, edit: Callable[[Sequence[str], Completed], Completed], **more: Any
    ) -> None:
        super().__init__(workdir, **more)
        self.edit = edit
        self.sent: list[bytes | Path] = []

    def put(self, source: bytes | Path) -> str:
        self.sent.append(source)
        return super().put(source)

    def execute(
        self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0
    ) -> Completed:
        done = super().execute(command, stdin=stdin, timeout_s=timeout_s)
        return self.edit(command, done)


class Scripted:
    """A transport whose shell prints ``shell`` and whose Pythons print ``facts``."""

    exclusive = False
    workdir = "/home/board/.cache/hilnas/agent"

    def __init__(self, shell: bytes, facts: bytes = b"", status: int = 0) -> None:
        self.shell, self.facts, self.status = shell, facts, status

    def execute(
        self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0
    ) -> Completed:
        stdout = self.shell if command[0] == "sh" else self.facts
        return Completed(status=self.status, stdout=stdout, stderr="sh: broken")
