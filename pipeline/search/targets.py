"""What a search is after: a network for one device alone, or one for all of them.

A run with several devices asks two questions about one supernet: which network is best on each
device under that device's own limits, and which single network keeps all limits of all devices.
Each is a search of its own, with its own journal; they share what they know of accuracies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latency_tables.arch import Arch
from latency_tables.errors import HilnasError
from latency_tables.files import write_json
from pipeline.search.config import Targets
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import Evaluator
from pipeline.search.front import SCHEMA
from pipeline.search.limits import Limit

BOARDS = "boards"
"""Folder inside the run's that holds what belongs to one device alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One network to be found: the devices that it is for, and the limits that it must keep.

    ``device`` is the one that it is for alone; None for the network that all devices share.

    >>> Target(device="rpi4", devices=("rpi4",), limits=()).file("front.json")
    'boards/rpi4/front.json'
    >>> Target(device=None, devices=("rpi4", "nuc"), limits=()).file("front.json")
    'front.json'
    """

    device: str | None
    devices: tuple[str, ...]
    limits: tuple[Limit, ...]

    def file(self, name: str) -> str:
        """Name inside the run folder of a file that belongs to this target."""
        return name if self.device is None else f"{board_folder(self.device)}/{name}"

    def __str__(self) -> str:
        if self.device is not None:
            return self.device
        return self.devices[0] if len(self.devices) == 1 else "all devices"


def targets_of(
    devices: Sequence[str], limits: Sequence[Limit], wanted: Targets
) -> tuple[Target, ...]:
    """Targets of a run: each device's own, in the order given, then the one for all.

    A run with one device has one target.

    >>> [str(t) for t in targets_of(["rpi4", "nuc"], [], "each")]
    ['rpi4', 'nuc', 'all devices']
    >>> [str(t) for t in targets_of(["rpi4"], [], "each")]
    ['rpi4']
    """
    common = Target(device=None, devices=tuple(devices), limits=tuple(limits))
    if wanted == "common" or len(devices) == 1:
        return (common,)
    own = [
        Target(device=name, devices=(name,), limits=tuple(x for x in limits if x.device == name))
        for name in devices
    ]
    return (*own, common)


def board_folder(device: str) -> str:
    """Folder inside the run's that holds a device's own network.

    >>> board_folder("rk3588-a")
    'boards/rk3588-a'
    """
    return f"{BOARDS}/{device}"


def shared_candidates(
    evaluator: Evaluator, own: Sequence[Evaluation], others: Iterable[Evaluation]
) -> list[Evaluation]:
    """What other searches over the same weights have scored and this one's limits allow.

    With these beside its own archive, no search overlooks a network that another one knows.

    Args:
        evaluator: of the search that takes.
        own: its archive; what is there is not given again.
        others: archives of other searches.
    """
    canonical = evaluator.space.canonical
    seen = {canonical(e.arch) for e in own}
    new: dict[Arch, Evaluation] = {}
    for evaluation in others:
        key = canonical(evaluation.arch)
        if key not in seen:
            new.setdefault(key, evaluation)
    screened = evaluator.screen([e.arch for e in new.values()])
    found = []
    for key, evaluation, candidate in zip(new, new.values(), screened, strict=True):
        score = evaluator.cache.get(key, evaluator.supernet, evaluator.bn_policy)
        if candidate.feasible and score is not None:
            found.append(
                Evaluation(candidate=candidate, score=score, generation=evaluation.generation)
            )
    return found


def write_missing(path: Path, target: Target, error: HilnasError) -> None:
    """Write the ``front.json`` of a search that found no winner: no points, and the reason."""
    write_json(
        path,
        {
            "schema": SCHEMA,
            "limits": [limit.to_dict() for limit in target.limits],
            "objectives": [],
            "points": [],
            "winner": None,
            "reason": error.message,
        },
    )
