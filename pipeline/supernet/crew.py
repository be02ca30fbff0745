"""Several processes that score the candidates of one search: the ranks of torchrun.

Rank 0 leads. It has the searcher, the journal and the devices, and says which rank scores whom;
the others have a copy of the supernet and the same images in the same batches, and know nothing of
the search. Every subnet is scored by one rank alone, as it would be by a process that is alone, so
on processors of one kind the scores are the same bits whatever the number of ranks.

Candidates go out a few at a time, ``AT_ONCE`` per rank: what is lost when a process dies is that
much, and the journal of rank 0 holds all that came before. Between two orders the others wait
without limit, as boards may be measuring for hours. A subnet stays with its rank from one rung of
successive halving to the next, where the statistics of its batch norms are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from latency_tables.arch import Arch
from latency_tables.errors import TrainingError
from pipeline.search.generation import Task
from pipeline.spaces.base import Supernet
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.tally import Tally
from pipeline.training.checkpoint import pack, unpack
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks

AT_ONCE = 2
"""Candidates that each rank scores before all meet."""

MakeScorer = Callable[[dict[str, Any], Precision], Scorer]
"""A scorer whose supernet has this layout (:meth:`Supernet.layout`) and any weights."""

_BEGIN, _WEIGHTS, _COUNT, _FORGET, _END = "begin", "weights", "count", "forget", "end"


class RankCrew:
    """Rank 0's side: a :class:`pipeline.search.generation.Crew` of all ranks.

    Args:
        ranks: the processes; this one leads.
        scorer: this rank's; the others make theirs alike. It counts what all of them did.
    """

    def __init__(self, ranks: Ranks, scorer: Scorer) -> None:
        self.ranks, self.scorer = ranks, scorer
        self._owners: dict[Arch, int] = {}

    @contextmanager
    def working(self) -> Iterator[None]:
        """The other ranks take part inside, with this rank's weights as they are at the start."""
        precision = self.scorer.precision.to_dict()
        self._say(_BEGIN, layout=self.scorer.supernet.layout(), precision=precision)
        self._send_weights()
        yield
        self._say(_END)

    def renew(self) -> None:
        """Give the others this rank's weights, after they have changed."""
        self._say(_WEIGHTS)
        self._send_weights()

    def tallies(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Tally]]:
        """(place in ``tasks``, counts), ``AT_ONCE`` per rank at a time.

        Raises:
            TrainingError: another rank failed or died.
        """
        queues = self._queues(tasks)
        for start in range(0, max(map(len, queues)), AT_ONCE):
            share = [queue[start : start + AT_ONCE] for queue in queues]
            yield from sorted(self._count(tasks, share).items())

    def forget(self) -> None:
        """Let every rank forget."""
        self._owners.clear()
        self.scorer.forget()
        self._say(_FORGET)

    def _queues(self, tasks: Sequence[Task]) -> list[list[int]]:
        """Places of the tasks of every rank: new subnets by turns, known ones where they were."""
        queues: list[list[int]] = [[] for _ in range(self.ranks.world)]
        for place, task in enumerate(tasks):
            owner = self._owners.setdefault(task.arch, len(self._owners) % self.ranks.world)
            queues[owner].append(place)
        return queues

    def _count(self, tasks: Sequence[Task], share: Sequence[Sequence[int]]) -> dict[int, Tally]:
        started, scorer = time.perf_counter(), self.scorer
        seconds = scorer.seconds
        orders = [[tasks[place].to_dict() for place in places] for places in share]
        self._say(_COUNT, tasks=orders)
        replies = self.ranks.gather(_counted(scorer, orders[0]))
        for reply in replies[1:]:
            scorer.n_scored += reply["n_scored"]
            scorer.n_images += reply["n_images"]
            scorer.n_calibration_images += reply["n_calibration_images"]
        scorer.seconds = seconds + time.perf_counter() - started
        return {
            place: Tally.from_dict(tally)
            for places, reply in zip(share, replies, strict=True)
            for place, tally in zip(places, reply["tallies"], strict=True)
        }

    def _send_weights(self) -> None:
        self.ranks.first(pack(self.scorer.supernet.state_dict()))

    def _say(self, order: str, **more: Any) -> None:
        self.ranks.say(json.dumps({"order": order, **more}))


def follow(ranks: Ranks, make_scorer: MakeScorer) -> None:
    """The side of every other rank: do what rank 0 says until it needs nobody any more.

    Raises:
        TrainingError: rank 0 or another rank failed or died.
    """
    scorer: Scorer | None = None
    while (heard := json.loads(ranks.hear()))["order"] != _END:
        if heard["order"] == _BEGIN:
            scorer = make_scorer(heard["layout"], Precision(**heard["precision"]))
        if scorer is None:
            raise TrainingError(f"rank {ranks.rank} is told to {heard['order']!r} too early")
        if heard["order"] in (_BEGIN, _WEIGHTS):
            load_weights(scorer.supernet, ranks.first(None))
        elif heard["order"] == _COUNT:
            ranks.gather(_counted(scorer, heard["tasks"][ranks.rank]))
        else:
            scorer.forget()


def load_weights(supernet: Supernet, data: bytes | None) -> None:
    """Take over all tensors of rank 0's supernet. Raises CheckpointError, TrainingError."""
    if data is None:
        raise TrainingError("rank 0 has no weights to share")
    supernet.load_state_dict(unpack(data))


def _counted(scorer: Scorer, tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one rank found out about its tasks, and how much work it was; JSON-ready."""
    before = scorer.n_scored, scorer.n_images, scorer.n_calibration_images
    tallies = []
    for data in tasks:
        task = Task.from_dict(data)
        tallies.append(scorer.tally(task.arch, task.rung, task.before).to_dict())
    return {
        "tallies": tallies,
        "n_scored": scorer.n_scored - before[0],
        "n_images": scorer.n_images - before[1],
        "n_calibration_images": scorer.n_calibration_images - before[2],
    }
