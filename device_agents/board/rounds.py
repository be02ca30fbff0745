"""One round of a batch, and the search for the net that breaks it.

A child measures every net of the batch with the reference network between. If the child dies,
what it finished is kept, the net in progress is tried alone, and the rest goes on in another
child; a death that points at no net halves the batch. A net is blamed only after it broke a child
in which it was the only candidate.
"""

from __future__ import annotations

import random
import re
from typing import Any, Callable, Dict, List, Optional, Sequence

from device_agents.board.supervise import Ending, Supervisor
from device_agents.board.system import snapshot
from device_agents.board.witness import Witness

Json = Dict[str, Any]


class RoundFailed(Exception):
    """The round says nothing about any net: the runtime is missing or the reference breaks it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Round:
    """Measures one request; ``on_event`` hears "net" and "failed" as they happen."""

    def __init__(
        self, supervisor: Supervisor, request: Json, on_event: Callable[[str, Json], None]
    ) -> None:
        self.supervisor, self.request, self.on_event = supervisor, request, on_event
        self.nets = {_name(net): net for net in request["nets"]}
        self.children: List[Json] = []
        self.finished: set[str] = set()
        self.random = random.Random(int(request["seed"]))
        self.runtime: Json = {}

    def run(self) -> Json:
        """Give the evidence of every child. Raises RoundFailed."""
        self._measure(list(self.nets))
        return {"children": self.children, "runtime": self.runtime}

    def _measure(self, names: List[str]) -> None:
        names = [name for name in names if name not in self.finished]
        if not names and self.children:
            return
        ending = self._child(names)
        if ending.fatal:
            raise RoundFailed(ending.fatal["code"], ending.fatal["message"])
        left = [name for name in names if name not in self.finished]
        if ending.clean:
            return
        if not left:
            # every net gave its numbers before the child died, in the reference or on the way out
            if len(names) == 1:
                self._blame(names[0], ending)
            elif not names:
                raise RoundFailed("BOOTSTRAP", "the reference network " + ending.message)
            return
        suspect = ending.running_name if ending.running else None
        if len(left) == 1 and len(names) == 1:
            if suspect is None and not self._reference_runs():
                raise RoundFailed("BOOTSTRAP", "the reference network " + ending.message)
            self._blame(left[0], ending)
        elif suspect in left:
            self._measure([str(suspect)])
            self._measure([name for name in left if name != suspect])
        else:
            self._measure(left[: len(left) // 2])
            self._measure(left[len(left) // 2 :])

    def _reference_runs(self) -> bool:
        """Whether a child that times only the reference network survives."""
        return self._child([]).clean

    def _blame(self, name: str, ending: Ending) -> None:
        self.finished.add(name)
        error = {"code": ending.code, "message": "it " + ending.message, "blames": "candidate"}
        self.on_event("failed", {"name": name, "error": error})

    def _child(self, names: Sequence[str]) -> Ending:
        request = self.request
        order = interleave(self.random.sample(list(names), len(names)), request["reference_every"])
        index = len(self.children)
        references: List[Json] = []
        done: List[str] = []

        def on_event(event: str, data: Json) -> None:
            if event == "ready":
                self.runtime = data["runtime"]
            elif event == "reference":
                references.append(dict(data, position=len(done)))
            elif event == "net":
                name = data["name"]
                self.finished.add(name)
                done.append(name)
                kind = "failed" if "error" in data else "net"
                self.on_event(kind, dict(data, child=index, position=len(done) - 1))

        before, witness = snapshot(self.supervisor.tree), Witness(self.supervisor.tree)
        ending = self.supervisor.run(
            child_task(request, "round", [self.nets[name] for name in names], order),
            on_event,
            start_timeout_s=request["start_timeout_s"],
            step_timeout_s=request["net_timeout_s"],
            memory_limit_bytes=request.get("memory_limit_bytes") or 0,
        )
        self.children.append(
            {
                "before": before,
                "after": snapshot(self.supervisor.tree),
                "witness": witness.tell(),
                "cpu_s": ending.cpu_s,
                "clock_khz": ending.clock_khz,
                "references": references,
                "order": done,
                "clean": ending.clean,
            }
        )
        return ending


def interleave(names: Sequence[str], every: int) -> List[Optional[str]]:
    """The visits of a child: the reference (None) first, last and after every few nets.

    >>> interleave(["a", "b", "c"], 2)
    [None, 'a', 'b', None, 'c', None]
    """
    order: List[Optional[str]] = [None]
    for index, name in enumerate(names, 1):
        order.append(name)
        if index % every == 0 or index == len(names):
            order.append(None)
    return order


def _name(net: Json) -> str:
    """A net's name, which also names scratch folders. Raises ValueError."""
    name = net["name"]
    if not isinstance(name, str) or not re.match(r"[A-Za-z0-9_-]{1,64}\Z", name):
        raise ValueError("{!r} is not the name of a net".format(name))
    return name


_TASK = (
    "runtime",
    "threads",
    "cores",
    "spinning",
    "optimization",
    "provider",
    "runtime_options",
    "plan",
    "input_seed",
    "reference",
)


def child_task(
    request: Json, kind: str, nets: List[Json], order: Sequence[Optional[str]] = ()
) -> Json:
    """What a child needs to know, cut from a request."""
    task = {name: request.get(name) for name in _TASK}
    return dict(task, kind=kind, nets=nets, order=list(order))
