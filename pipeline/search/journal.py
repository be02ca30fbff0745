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
``rung``                what one candidate of the generation above got right up to a rung (halving)
``refinement``          which candidates devices are to measure after the generation above, and
                        what was predicted of them
``remeasurement``       which points of the front are to be measured after the generation above
``measurement``         what a device said live about one subnet, while searching or of the front
``reassessment``        accuracy of one of the best by the final weights, after so many generations
======================  ==========================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

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
from pipeline.supernet.tally import Tally

SCHEMA = 4
READABLE = (2, 3, 4)
"""Journals of schema 2 lack refinements, those of schema 3 rungs, remeasurements and reassessments;
otherwise they are the same."""

Phase = Literal["search", "again", "front"]
"""When a subnet was measured: as a candidate, as a point of the front while the search went on, or
as one of the final front."""

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

    def rung(self, generation: int, rung: int, index: int) -> Tally | None:
        """Counts of a candidate up to a rung; None if that was not journalled."""
        return self._content.rungs.get((generation, rung, index))

    def measured(self, phase: Phase, device: str, arch: Arch) -> list[Estimate | DeviceError]:
        """Every live answer of a device about a subnet in a phase, in order."""
        return list(self._content.measurements.get((phase, device, arch), ()))

    def refinement(self, generation: int) -> Refinement | None:
        """What was to be measured after a generation; None if that was not journalled."""
        return self._content.refinements.get(generation)

    def remeasurement(self, generation: int) -> list[Arch] | None:
        """Points of the front to be measured after a generation; None if not journalled."""
        found = self._content.remeasurements.get(generation)
        return None if found is None else list(found)

    def reassessed(self, after: int) -> dict[Arch, Score]:
        """Scores by the final weights of a search of so many generations, as far as they got."""
        return dict(self._content.reassessments.get(after, {}))

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

    def climbed(self, generation: int, rung: int, index: int, tally: Tally) -> None:
        """Note the counts of a candidate up to a rung; on disk after :meth:`sync`."""
        where = {"generation": generation, "rung": rung, "index": index}
        self._log.append({"kind": "rung", **where, "tally": tally.to_dict()})
        self._content.rungs[generation, rung, index] = tally

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

    def remeasuring(self, generation: int, archs: Sequence[Arch]) -> None:
        """Note which points of the front are about to be measured; on disk when this returns."""
        listed = [dict(arch) for arch in archs]
        self._log.append({"kind": "remeasurement", "generation": generation, "archs": listed})
        self._content.remeasurements[generation] = list(archs)
        self.sync()

    def reassess(self, after: int, arch: Arch, score: Score) -> None:
        """Note a score by the final weights, ``after`` so many generations; on disk after
        :meth:`sync`."""
        where = {"after": after, "arch": dict(arch)}
        self._log.append({"kind": "reassessment", **where, "score": score.to_dict()})
        self._content.reassessments.setdefault(after, {})[arch] = score

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
        self.rungs: dict[tuple[int, int, int], Tally] = {}
        self.measurements: dict[tuple[Phase, str, Arch], list[Estimate | DeviceError]] = {}
        self.refinements: dict[int, Refinement] = {}
        self.remeasurements: dict[int, list[Arch]] = {}
        self.reassessments: dict[int, dict[Arch, Score]] = {}
        read = {
            "generation": self._generation,
            "score": self._score,
            "rung": self._rung,
            "refinement": self._refinement,
            "remeasurement": self._remeasurement,
            "measurement": self._measurement,
            "reassessment": self._reassessment,
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

    def _rung(self, data: dict[str, Any]) -> None:
        generation, rung, index = data["generation"], data["rung"], data["index"]
        if (
            generation != len(self.generations) - 1
            or self.scores[generation]
            or not 0 <= index < len(self.generations[generation])
            or (generation, rung, index) in self.rungs
            or (rung and (generation, rung - 1, index) not in self.rungs)
        ):
            raise ValueError(f"rung {rung} of candidate {index} does not follow")
        self.rungs[generation, rung, index] = Tally.from_dict(data["tally"])

    def _closed(self, data: dict[str, Any], known: Mapping[int, object]) -> int:
        """The generation that a line follows: the last one, all of it scored, and none in known."""
        generation = int(data["generation"])
        if (
            generation != len(self.generations) - 1
            or len(self.scores[generation]) != len(self.generations[generation])
            or generation in known
        ):
            raise ValueError(f"{data['kind']} of generation {generation} does not follow")
        return generation

    def _remeasurement(self, data: dict[str, Any]) -> None:
        generation = self._closed(data, self.remeasurements)
        self.remeasurements[generation] = [Arch.from_dict(arch) for arch in data["archs"]]

    def _refinement(self, data: dict[str, Any]) -> None:
        generation = self._closed(data, self.refinements)
        self.refinements[generation] = {
            str(device): {
                Arch.from_dict(w["arch"]): Estimate.from_dict(w["predicted"]) for w in wanted
            }
            for device, wanted in data["wanted"].items()
        }

    def _reassessment(self, data: dict[str, Any]) -> None:
        after, arch = data["after"], Arch.from_dict(data["arch"])
        if after != len(self.generations) or len(self.scores[-1]) != len(self.generations[-1]):
            raise ValueError(f"a score after {after} generations does not follow")
        self.reassessments.setdefault(after, {})[arch] = Score(**data["score"])

    def _measurement(self, data: dict[str, Any]) -> None:
        if data["phase"] not in get_args(Phase):
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
        schemas = ", ".join(map(str, READABLE))
        wanted = f"it must name kind 'search' and one of the schemas {schemas}"
        raise damaged(path, first.number, wanted)
    there = first.record.get("identity")
    if there != identity:
        known = there if isinstance(there, dict) else {}
        names = sorted(k for k in known.keys() | identity.keys() if known.get(k) != identity.get(k))
        raise RunChangedError(
            f"{path} belongs to another search; different: {', '.join(names)}",
            hint="go back to those settings, or give another run folder with --out",
        )
