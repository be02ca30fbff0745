"""Give memory that is free back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``; None where the C library is another one."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return found


def release_unused() -> bool:
    """Return free pages of the heap; whether the C library can do that.

    glibc keeps freed blocks below 32 MiB for later, and the aligned ones that torch asks for often
    do not fit into the gaps that they leave. Batches of a few MiB then pile up to several hundred.

    >>> release_unused() in (True, False)
    True
    """
    trim = _trim()
    if trim is None:
        return False
    trim(0)
    return True
