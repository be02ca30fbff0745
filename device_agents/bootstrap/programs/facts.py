# ruff: noqa: UP006, UP035, UP045
"""Print what this Python is, as one line of JSON. Runs on a board: Python 3.6 or newer, -I."""

import importlib.util
import json
import os
import re
import struct
import sys
import sysconfig
from typing import List, Optional

# what unpacking wheels, the agent and the runtimes import
NEEDED = (
    "ctypes",
    "fcntl",
    "hashlib",
    "json",
    "select",
    "socket",
    "struct",
    "subprocess",
    "threading",
    "zipfile",
    "zlib",
)


def head(path: str, count: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except OSError:
        return b""


def missing() -> List[str]:
    found = []
    for name in NEEDED:
        try:
            __import__(name)
        except ImportError:
            found.append(name)
    return found


def libc(header: bytes) -> str:
    interpreter = re.search(rb"/[\x21-\x7e]*/(ld-[\x21-\x7e]+)", header)
    if interpreter and interpreter.group(1).startswith(b"ld-musl"):
        return "musl"
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def glibcxx() -> Optional[List[int]]:
    """Newest GLIBCXX symbol of libstdc++; [] where it cannot be loaded, None without ctypes."""
    try:
        import ctypes
    except ImportError:
        return None
    try:
        ctypes.CDLL("libstdc++.so.6")
    except OSError:
        return []
    with open("/proc/self/maps") as stream:
        paths = re.findall(r"\s(/\S*libstdc\+\+\S*)$", stream.read(), re.MULTILINE)
    versions = re.findall(rb"GLIBCXX_(\d+)\.(\d+)\.(\d+)\0", head(paths[0], -1)) if paths else []
    return list(max(tuple(map(int, version)) for version in versions)) if versions else None


def abi() -> str:
    implementation = sys.implementation.name
    short = {"cpython": "cp", "pypy": "pp"}.get(implementation, "py")
    flags = getattr(sys, "abiflags", "")
    if sysconfig.get_config_var("Py_GIL_DISABLED") and "t" not in flags:
        flags += "t"
    return f"{short}{sys.version_info[0]}{sys.version_info[1]}{flags}"


program = head(os.path.realpath(sys.executable), 65536)
print(
    json.dumps(
        {
            "version": list(sys.version_info[:3]),
            "implementation": sys.implementation.name,
            "abi": abi(),
            "bits": struct.calcsize("P") * 8,
            "elf": program[:20].hex(),
            "libc": libc(program),
            "glibcxx": glibcxx(),
            "missing": missing(),
            "pip": importlib.util.find_spec("pip") is not None,
            "venv": importlib.util.find_spec("ensurepip") is not None,
        }
    )
)
