"""Find and kill what a process started, also what moved to a session of its own.

A process whose parent dies is adopted by the nearest ancestor that asked for it, so an agent that
did (:func:`adopt_orphans`) can find whatever a child left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import Dict, List, NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 20


class _Process(NamedTuple):
    parent: int
    session: int
    state: str


def adopt_orphans() -> bool:
    """Become the parent of orphaned descendants; whether the kernel agrees."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def kill_tree(pid: int, *, orphans_too: bool) -> None:
    """Kill ``pid``, its session and its descendants, and with ``orphans_too`` adopted ones.

    With ``orphans_too`` every other child of this process must be an orphan. New processes may
    be forked while one looks, so it is done until nothing is found; ``pid`` itself is left for
    its parent to reap.
    """
    _kill(pid)
    for _ in range(_ROUNDS):
        victims = _victims(_processes(), pid, orphans_too)
        if not victims:
            return
        for victim in victims:
            _kill(victim)
        time.sleep(0.01)
        if orphans_too:
            for victim in victims:
                _reap(victim)


def _victims(processes: Dict[int, _Process], pid: int, orphans_too: bool) -> List[int]:
    me = os.getpid()
    found = set()
    for number, process in processes.items():
        if number in (me, pid) or process.state in "ZX":
            continue
        ours = process.session == pid or (orphans_too and process.parent == me)
        ancestor = number
        for _ in range(64):  # a chain that changes while it is read may even be a ring
            if ours or ancestor not in processes:
                break
            ancestor = processes[ancestor].parent
            ours = ancestor == pid
        if ours:
            found.add(number)
    return sorted(found)


def _processes() -> Dict[int, _Process]:
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/{}/stat".format(name)) as stream:
                state, parent, _, session = stream.read().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        found[int(name)] = _Process(int(parent), int(session), state)
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):  # gone, or another user's, such as a helper run by sudo
        os.kill(pid, signal.SIGKILL)


def _reap(pid: int) -> None:
    with contextlib.suppress(OSError):  # not our child, or not yet
        os.waitpid(pid, os.WNOHANG)
