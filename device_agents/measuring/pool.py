"""Several boards at once: each takes work it may do, a faulty one is set aside, nothing is lost.

Work waits in one line. A board takes from it the next networks that were asked of one of its tags
(its own name is one), so fast boards do more. A fault of a board puts its networks back in front
of the line; after ``FAULTS_ALLOWED`` faults in a row the board rests for ``REST_S`` while others
go on. Every record is journalled before anybody is told of it: opened again on the same journal, a
pool measures only what is not in it.

>>> class Stopwatch:
...     batch_size = 10
...     def measure(self, jobs):
...         return [record_of(job) for job in jobs]
...     def stop(self): ...
>>> from latency_tables.oracle import MeasureJob
>>> def record_of(job): return job  # a board gives Measurements
>>> with Pool({"a": Member(Stopwatch(), tags=("lab",))}) as pool:
...     ticket = pool.submit([MeasureJob(net_id="n", arch=None, onnx=b"")], to="lab")
...     [record.net_id for record in pool.collect(ticket)]
['n']
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from latency_tables.append_log import AppendLog, damaged
from latency_tables.errors import DeviceError, HilnasError, MeasurementError, UsageError
from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement

FAULTS_ALLOWED = 2
"""Faults in a row after which a board rests."""

REST_S = 60.0

SHARED = 4
"""A board takes at most the SHARED-th part of what it and its fellows have left, so that all of
them end at about the same time."""

ALONE_AFTER = 2
"""A network that met this many faults is sent alone: perhaps it is what breaks the board."""

TRIES = 4
"""Faults that a network may meet before it is given up, without blaming it."""


class BoardMeasurer(Protocol):
    """What the pool needs of a board; a ``DeviceMeasurer`` offers it."""

    batch_size: int

    def measure(self, jobs: Sequence[MeasureJob]) -> list[Measurement]:
        """One record per job, in order. Raises DeviceError for faults of the board."""
        ...

    def stop(self) -> None:
        """End the connection from another thread; ``measure`` then raises DeviceError."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """A board of a pool and the tags that its work may be asked of."""

    measurer: BoardMeasurer
    tags: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class _Task:
    job: MeasureJob
    to: str
    campaign: str
    faults: int = 0
    result: Measurement | DeviceError | None = None

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.campaign, self.to, self.job.net_id


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """Work that was handed in; :meth:`Pool.collect` waits for it."""

    tasks: tuple[_Task, ...]


@dataclass(slots=True, kw_only=True)
class _Board:
    name: str
    member: Member
    faults: int = 0
    rests_until: float = 0.0
    last: DeviceError | None = None
    out: DeviceError | None = None  # a fault that trying again cannot mend

    @property
    def tags(self) -> set[str]:
        return {self.name, *self.member.tags}


@dataclass(slots=True, kw_only=True)
class _State:
    """Everything that threads share, guarded by ``changed``."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    waiting: deque[_Task] = field(default_factory=deque)
    known: dict[tuple[str, str, str], _Task] = field(default_factory=dict)
    closing: bool = False
    broken: BaseException | None = None


class Pool:
    """Boards that share work. Use as a context manager.

    ``journal`` is a file that outlives this process; ``on_result`` hears of each board's records
    as they come, in the thread of that board, ``on_note`` of faults in words.

    Raises:
        UsageError: no boards.
        RunError: the journal is damaged.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        *,
        journal: Path | None = None,
        on_result: Callable[[list[Measurement]], None] = lambda records: None,
        on_note: Callable[[str], None] = lambda note: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not members:
            raise UsageError("a pool needs at least one device", hint="hilnas devices list")
        self._boards = [_Board(name=name, member=member) for name, member in members.items()]
        self._on_result, self._on_note, self._clock = on_result, on_note, clock
        self._state = _State()
        self._log = None if journal is None else AppendLog.open(journal)
        if self._log is not None:
            self._state.known = _read(self._log)
        self._threads = [
            threading.Thread(target=self._work, args=(board,), name=f"board {board.name}")
            for board in self._boards
        ]

    def __enter__(self) -> Pool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the boards; what they are at is lost, what they finished is journalled."""
        with self._state.changed:
            self._state.closing = True
            self._state.changed.notify_all()
        for board in self._boards:
            board.member.measurer.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if self._log is not None:
            self._log.close()

    def submit(self, jobs: Sequence[MeasureJob], *, to: str, campaign: str = "") -> Ticket:
        """Hand in networks for any board that carries the tag ``to``.

        A network that was handed in before for the same ``to`` and ``campaign``, by this process
        or by one before it on this journal, is not measured again.

        Raises:
            UsageError: no board carries the tag.
        """
        if not any(to in board.tags for board in self._boards):
            known = sorted(set().union(*(board.tags for board in self._boards)))
            raise UsageError(f"no device of the pool carries {to!r}; there are: {', '.join(known)}")
        tasks = []
        with self._state.changed:
            for job in jobs:
                task = _Task(job=job, to=to, campaign=campaign)
                known_task = self._state.known.get(task.identity)
                if known_task is None or isinstance(known_task.result, DeviceError):
                    self._state.known[task.identity] = task
                    self._state.waiting.append(task)
                    known_task = task
                tasks.append(known_task)
            self._state.changed.notify_all()
        return Ticket(tuple(tasks))

    def collect(self, ticket: Ticket) -> list[Measurement | DeviceError]:
        """Wait for a ticket; answers in the order asked.

        A network that met too many faults of boards is answered by the last fault.

        Raises:
            DeviceError: every board that could do the rest is out; what was measured is kept.
        """
        with self._state.changed:
            while any(task.result is None for task in ticket.tasks):
                self._check_hope(ticket)
                self._state.changed.wait(0.5)  # resting boards come back by the clock
            return [task.result for task in ticket.tasks if task.result is not None]

    # ---- inside -------------------------------------------------------------------------------

    def _check_hope(self, ticket: Ticket) -> None:
        if self._state.broken is not None:
            raise self._state.broken
        if self._state.closing:
            raise UsageError("the pool was closed before this ticket was collected")
        for task in ticket.tasks:
            able = [board for board in self._boards if task.to in board.tags]
            if task.result is None and all(self._is_away(board) for board in able):
                raise self._all_away(able)

    def _is_away(self, board: _Board) -> bool:
        return board.out is not None or self._clock() < board.rests_until

    def _all_away(self, boards: Sequence[_Board]) -> DeviceError:
        # a fault that cannot be mended tells more than one that may be over soon
        faults = [b.out for b in boards if b.out] or [b.last for b in boards if b.last]
        last = faults[-1] if faults else None
        told = "; ".join(_why_away(board) for board in boards)
        error = DeviceError(
            f"no device is left that could go on ({told}); what was measured is kept",
            hint=last.hint if last is not None and last.hint else "the same command goes on",
        )
        if last is not None:
            error.code, error.retryable = last.code, last.retryable
        return error

    def _work(self, board: _Board) -> None:
        try:
            while (tasks := self._take(board)) is not None:
                self._do(board, tasks)
        except BaseException as error:  # a defect: tell who waits instead of hanging
            with self._state.changed:
                self._state.broken = error
                self._state.changed.notify_all()

    def _take(self, board: _Board) -> list[_Task] | None:
        """The next networks for a board; waits for some; None when the pool closes."""
        state = self._state
        with state.changed:
            while not state.closing and board.out is None:
                if self._clock() >= board.rests_until:
                    mine = [task for task in state.waiting if task.to in board.tags]
                    if mine:
                        return self._choose(board, mine)
                state.changed.wait(0.5)
        return None

    def _choose(self, board: _Board, mine: Sequence[_Task]) -> list[_Task]:
        first = mine[0]
        if first.faults >= ALONE_AFTER:
            chosen = [first]
        else:
            fellows = sum(
                1 for b in self._boards if b.tags & {t.to for t in mine} and not self._is_away(b)
            )
            fair = len(mine) if fellows < 2 else -(-len(mine) // SHARED)
            size = max(1, min(board.member.measurer.batch_size, fair))
            same = [t for t in mine if (t.to, t.campaign) == (first.to, first.campaign)]
            chosen = [t for t in same if t.faults < ALONE_AFTER][:size]
        for task in chosen:
            self._state.waiting.remove(task)
        return chosen

    def _do(self, board: _Board, tasks: list[_Task]) -> None:
        try:
            records = board.member.measurer.measure([task.job for task in tasks])
        except DeviceError as error:
            self._fault(board, tasks, error)
            return
        finished = list(zip(tasks, records, strict=True))
        if self._log is not None:
            for task, record in finished:
                self._log.append(_line(task, record))
            self._log.sync()
        self._on_result(list(records))
        with self._state.changed:
            board.faults, board.last, board.out = 0, None, None
            for task, record in finished:
                task.result = record
            self._state.changed.notify_all()

    def _fault(self, board: _Board, tasks: list[_Task], error: DeviceError) -> None:
        with self._state.changed:
            board.faults, board.last = board.faults + 1, error
            if not error.retryable:
                board.out = error
            elif board.faults >= FAULTS_ALLOWED:
                board.rests_until = self._clock() + REST_S
            for task in tasks:
                task.faults += 1
                if task.faults >= TRIES:
                    task.result = MeasurementError(
                        error.code, error.message, blames="board", retryable=True
                    )
            self._state.waiting.extendleft(t for t in reversed(tasks) if t.result is None)
            closing = self._state.closing
            self._state.changed.notify_all()
        if not closing:
            away = "is out" if board.out else "rests" if self._is_away(board) else "tries again"
            self._on_note(f"{board.name} {away}: {error.message}")


def _why_away(board: _Board) -> str:
    fault = board.out or board.last
    rests = "" if board.out else f"rests after {board.faults} faults, the last: "
    return f"{board.name}: {rests}{fault.message if fault else 'away'}"


def _line(task: _Task, record: Measurement) -> dict[str, object]:
    return {"campaign": task.campaign, "to": task.to, "measurement": record.to_dict()}


def _read(log: AppendLog) -> dict[tuple[str, str, str], _Task]:
    known = {}
    for line in log.lines:
        try:
            record = Measurement.from_dict(line.record["measurement"])
            task = _Task(
                job=MeasureJob(net_id=record.net_id, arch=record.arch, onnx=b""),
                to=str(line.record["to"]),
                campaign=str(line.record["campaign"]),
                result=record,
            )
        except (KeyError, TypeError, HilnasError) as error:
            raise damaged(log.path, line.number, f"it is no measurement ({error})") from None
        known[task.identity] = task
    return known
