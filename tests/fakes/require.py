"""Programs that some tests need: skip without them, or fail where the environment promised them."""

from __future__ import annotations

import os
import shutil

import pytest


def require_program(name: str) -> str:
    """Path of a program; skips the test without it, fails it under ``HILNAS_REQUIRE_SSH=1``."""
    folders = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"))
    found = shutil.which(name, path=folders)
    if found is None:
        refuse(f"{name} is not installed")
    return str(found)


def refuse(reason: str) -> None:
    """Skip the test for ``reason``, or fail it under ``HILNAS_REQUIRE_SSH=1``."""
    if os.environ.get("HILNAS_REQUIRE_SSH") == "1":
        pytest.fail(f"{reason}, and HILNAS_REQUIRE_SSH=1 asks for it")
    pytest.skip(reason)
