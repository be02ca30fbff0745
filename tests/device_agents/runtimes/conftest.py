"""Fragments are used directly here: no agent, no device."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STUB = Path(__file__).parents[2] / "fakes" / "rknn_stub.c"
NO_MASK = 0xFFFFFFFF


@pytest.fixture(scope="session")
def build_stub(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile librknnrt.so with the given definitions into a folder of its own; give the folder."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        if os.environ.get("HILNAS_REQUIRE_CC") == "1":
            pytest.fail("HILNAS_REQUIRE_CC=1, but there is no C compiler (cc or gcc)")
        pytest.skip("no C compiler (cc or gcc): the RKNN stub cannot be built")
    built: dict[tuple[tuple[str, int], ...], Path] = {}

    def build(**definitions: int) -> Path:
        key = tuple(sorted(definitions.items()))
        if key not in built:
            folder = tmp_path_factory.mktemp("rknn")
            defines = [f"-D{name}={value}" for name, value in key]
            target = str(folder / "librknnrt.so")
            command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
            subprocess.run([*command, *defines, str(STUB), "-o", target], check=True)
            built[key] = folder
        return built[key]

    return build


@pytest.fixture
def install_stub(
    build_stub: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Put a stub where the fragment looks first: into a folder on sys.path, as bootstrap does."""

    def install(**definitions: int) -> Path:
        folder = build_stub(**definitions)
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        return folder

    return install


@pytest.fixture
def make_rknn(tmp_path: Path) -> Callable[..., Path]:
    """Write a model that the stub understands: y = a·x + b."""

    def make(
        *,
        a: float = 2.0,
        b: float = -0.5,
        shape: tuple[int, int, int, int] = (1, 3, 4, 5),
        version: int = 5,
        failing_mask: int = NO_MASK,
        base_us: int = 1000,
        jitter_us: int = 0,
    ) -> Path:
        path = tmp_path / "model.onnx"  # the agent's name for every model file
        path.write_bytes(
            b"RKNS"
            + struct.pack("<iff4IIII", version, a, b, *shape, failing_mask, base_us, jitter_us)
        )
        return path

    return make


@pytest.fixture
def open_session() -> Iterator[Callable[..., Any]]:
    """Open sessions of a fragment as a child process does; they are freed after the test."""
    opened: list[Any] = []

    def start(fragment: Any, path: Path, **settings: Any) -> Any:
        given = {"threads": 1, "spinning": False, "optimization": "all", **settings}
        opened.append(fragment.Session(str(path), **given))
        return opened[-1]

    yield start
    for session in opened:
        if hasattr(session, "close"):
            session.close()
