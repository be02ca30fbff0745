"""``search.jsonl``: what the search asked, scored and measured, so that a killed run goes on.

Lines of an :class:`latency_tables.append_log.AppendLog` are written before the searcher is told of
them and reach the disk at the end of every generation at the latest; the work of a torn last line
is done again.

======================  ==========================================================================
``kind``                holds
======================  ==========================================================================
``search`` (first)      schema and identity: what must be equal for the journal to be continued
``generation``          the candidates asked, with costs and latencies as they were screened
``score``               accuracy of one candidate of the generation above
``refinement``          which candidates devices are to measure after the generation above, and
                        what was predicted of them
``measurement``         what a device said live about one subnet, while searching or of the front
======================  ==========================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from latency_tables.append_log import AppendLog, Line, damaged, read_log
from latency_tables.arch import Arch
from latency_tables.errors import (
    DeviceError,
    HilnasError,
    MeasurementError,
    RunChangedError,
)
from latency_tables.estimate import Estimate
from latency_tables.files import canonical_json
from pipeline.search.evaluation import Candidate, Score

SCHEMA = 3
READABLE = (2, 3)
"""Journals of schema 2 lack refinements and are otherwise the same."""

Phase = Literal["search", "front"]
"""When a subnet was measured: as a candidate, or again as a point of the front."""

Refinement = Mapping[str, Mapping[Arch, Estimate]]
"""Candidates to be measured, by device, in the order wanted; with what was predicted of them."""


class Journal:
    """An open journal; :meth:`open` reads what is there and goes on behind it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "search.jsonl"
    >>> with Journal.open(path, {"seed": 0}) as journal:
    ...     journal.asked(0, [Candidate(arch=Arch({"block": "k3"}), costs={"macs": 1.0})])
    ...     journal.scored(0, 0, Score(accuracy=0.5))
    >>> with Journal.open(path, {"seed": 0}) as journal:
    ...     journal.scores(0)[0].accuracy
    0.5
    """

    def __init__(self, log: AppendLog, content: Content) -> None:
        self._log, self._content = log, content

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Journal:
        """Open or create a journal.

        Args:
            path: the file.
            identity: JSON-ready; everything that the journalled numbers depend on.

        Raises:
            RunChangedError: the journal belongs to other settings; names what differs.
            RunError: a line before the last is damaged; names it.
        """
        log = AppendLog.open(path)
        try:
            wanted = json.loads(canonical_json(identity))  # tuples become lists, as in the file
            content = Content(path, log.lines[1:])
            if log.lines:
                _check_identity(path, log.lines[0], wanted)
            else:
                log.append({"kind": "search", "schema": SCHEMA, "identity": wanted})
                log.sync()
        except BaseException:
            log.close()
            raise
        return cls(log, content)

    # -- reading ----------------------------------------------------------------------------------

    def candidates(self, generation: int) -> list[Candidate] | None:
        """What was asked in a generation; None if it was not journalled."""
        asked = self._content.generations
        return asked[generation] if generation < len(asked) else None

    def scores(self, generation: int) -> list[Score]:
        """Scores of the first candidates of a generation, as far as the journal got."""
        scored = self._content.scores
        return list(scored[generation]) if generation < len(scored) else []

    def measured(self, phase: Phase, device: str, arch: Arch) -> list[Estimate | DeviceError]:
        """Every live answer of a device about a subnet in a phase, in order."""
        return list(self._content.measurements.get((phase, device, arch), ()))

    def refinement(self, generation: int) -> Refinement | None:
        """What was to be measured after a generation; None if that was not journalled."""
        return self._content.refinements.get(generation)

    @property
    def refinements(self) -> Mapping[int, Refinement]:
        """All refinements by generation."""
        return self._content.refinements

    # -- writing ----------------------------------------------------------------------------------

    def asked(self, generation: int, candidates: Sequence[Candidate]) -> None:
        """Note the candidates of a generation; on disk when this returns."""
        self._log.append(
            {
                "kind": "generation",
                "generation": generation,
                "candidates": [c.to_dict() for c in candidates],
            }
        )
        self._content.generations.append(list(candidates))
        self._content.scores.append([])
        self.sync()

    def scored(self, generation: int, index: int, score: Score) -> None:
        """Note one score; on disk after :meth:`sync`, safe from a dying process at once."""
        self._log.append(
            {"kind": "score", "generation": generation, "index": index, "score": score.to_dict()}
        )
        self._content.scores[generation].append(score)

    def refining(self, generation: int, wanted: Refinement) -> None:
        """Note what is about to be measured; on disk when this returns."""
        self._log.append(
            {
                "kind": "refinement",
                "generation": generation,
                "wanted": {
                    device: [{"arch": dict(a), "predicted": e.to_dict()} for a, e in asked.items()]
                    for device, asked in wanted.items()
                },
            }
        )
        self._content.refinements[generation] = {d: dict(asked) for d, asked in wanted.items()}
        self.sync()

    def measurement(
        self, phase: Phase, device: str, arch: Arch, result: Estimate | DeviceError
    ) -> None:
        """Note what a device said; on disk after :meth:`sync`."""
        answer: dict[str, Any]
        if isinstance(result, Estimate):
            answer = {"estimate": result.to_dict()}
        else:
            answer = {
                "error": {
                    "code": result.code,
                    "message": result.message,
                    "blames": result.blames,
                    "retryable": result.retryable,
                }
            }
        where = {"phase": phase, "device": device, "arch": dict(arch)}
        self._log.append({"kind": "measurement", **where, **answer})
        self._content.measurements.setdefault((phase, device, arch), []).append(result)

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        self._log.sync()

    def close(self) -> None:
        """Sync and close."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Content:
    """What the lines of a journal say, checked for order.

    Raises:
        RunError: a line does not follow from those before it.
    """

    def __init__(self, path: Path, lines: Sequence[Line]) -> None:
        self.generations: list[list[Candidate]] = []
        self.scores: list[list[Score]] = []
        self.measurements: dict[tuple[Phase, str, Arch], list[Estimate | DeviceError]] = {}
        self.refinements: dict[int, Refinement] = {}
        read = {
            "generation": self._generation,
            "score": self._score,
            "refinement": self._refinement,
            "measurement": self._measurement,
        }
        for line in lines:
            try:
                read[line.record["kind"]](line.record)
            except (KeyError, TypeError, ValueError, AttributeError, HilnasError) as error:
                what = error.message if isinstance(error, HilnasError) else repr(error)
                raise damaged(path, line.number, f"it does not fit here ({what})") from None

    def _generation(self, data: dict[str, Any]) -> None:
        if data["generation"] != len(self.generations) or (
            self.scores and len(self.scores[-1]) != len(self.generations[-1])
        ):
            raise ValueError(f"generation {data['generation']} does not follow")
        self.generations.append([Candidate.from_dict(c) for c in data["candidates"]])
        self.scores.append([])

    def _score(self, data: dict[str, Any]) -> None:
        generation, index = data["generation"], data["index"]
        if (
            generation != len(self.generations) - 1
            or index != len(self.scores[generation])
            or index >= len(self.generations[generation])
        ):
            raise ValueError(f"score {index} of generation {generation} does not follow")
        self.scores[generation].append(Score(**data["score"]))

    def _refinement(self, data: dict[str, Any]) -> None:
        generation = data["generation"]
        if (
            generation != len(self.generations) - 1
            or len(self.scores[generation]) != len(self.generations[generation])
            or generation in self.refinements
        ):
            raise ValueError(f"refinement of generation {generation} does not follow")
        self.refinements[generation] = {
            str(device): {
                Arch.from_dict(w["arch"]): Estimate.from_dict(w["predicted"]) for w in wanted
            }
            for device, wanted in data["wanted"].items()
        }

    def _measurement(self, data: dict[str, Any]) -> None:
        if data["phase"] not in ("search", "front"):
            raise ValueError(f"there is no phase {data['phase']!r}")
        key = (data["phase"], str(data["device"]), Arch.from_dict(data["arch"]))
        result: Estimate | DeviceError
        if "estimate" in data:
            result = Estimate.from_dict(data["estimate"])
        else:
            error = data["error"]
            result = MeasurementError(
                str(error["code"]),
                str(error["message"]),
                blames=error["blames"],
                retryable=bool(error["retryable"]),
            )
        self.measurements.setdefault(key, []).append(result)


def read_journal(path: Path) -> Content:
    """What a journal holds, without continuing it; a torn last line is left out.

    Raises:
        RunError: the file is missing or a line is damaged.
    """
    return Content(path, read_log(path)[1:])


def _check_identity(path: Path, first: Line, identity: dict[str, Any]) -> None:
    if first.record.get("kind") != "search" or first.record.get("schema") not in READABLE:
        schemas = " or ".join(map(str, READABLE))
        raise damaged(path, first.number, f"it must name kind 'search' and schema {schemas}")
    there = first.record.get("identity")
    if there != identity:
        known = there if isinstance(there, dict) else {}
        names = sorted(k for k in known.keys() | identity.keys() if known.get(k) != identity.get(k))
        raise RunChangedError(
            f"{path} belongs to another search; different: {', '.join(names)}",
            hint="go back to those settings, or give another run folder with --out",
        )
