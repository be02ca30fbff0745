"""``search.jsonl``: what the search asked, scored and measured, so that a killed run goes on.

One JSON object per line, appended, never rewritten. Lines are written before the searcher is told
of them and reach the disk at the end of every generation at the latest. Each line ends in a
checksum: a torn last line (the process died while writing) is dropped and its work done again, any
other damage is refused with the number of the line.

======================  ==========================================================================
``kind``                holds
======================  ==========================================================================
``search`` (first)      schema and identity: what must be equal for the journal to be continued
``generation``          the candidates asked, with costs and latencies as they were screened
``score``               accuracy of one candidate of the generation above
``measurement``         what a device said about one subnet of the front, live
======================  ==========================================================================
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from latency_tables.arch import Arch
from latency_tables.errors import (
    DeviceError,
    HilnasError,
    MeasurementError,
    RunChangedError,
    RunError,
)
from latency_tables.estimate import Estimate
from latency_tables.files import canonical_json
from pipeline.search.evaluation import Candidate, Score

SCHEMA = 1


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

    def __init__(self, path: Path, stream: BinaryIO, content: Content) -> None:
        self.path = path
        self._stream = stream
        self._content = content

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
        raw = path.read_bytes() if path.exists() else b""
        records, whole = _records(path, raw)
        wanted = json.loads(canonical_json(identity))  # tuples become lists, as in the file
        content = Content(path, records[1:])
        if records:
            _check_identity(path, records[0], wanted)
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
        stream.truncate(whole)
        journal = cls(path, stream, content)
        if not records:
            journal._write({"kind": "search", "schema": SCHEMA, "identity": wanted})
            journal.sync()
            _sync_folder(path.parent)
        return journal

    # -- reading ----------------------------------------------------------------------------------

    def candidates(self, generation: int) -> list[Candidate] | None:
        """What was asked in a generation; None if it was not journalled."""
        asked = self._content.generations
        return asked[generation] if generation < len(asked) else None

    def scores(self, generation: int) -> list[Score]:
        """Scores of the first candidates of a generation, as far as the journal got."""
        scored = self._content.scores
        return list(scored[generation]) if generation < len(scored) else []

    def measured(self, device: str, arch: Arch) -> list[Estimate | DeviceError]:
        """Every live answer of a device about a subnet, in order."""
        return list(self._content.measurements.get((device, arch), ()))

    # -- writing ----------------------------------------------------------------------------------

    def asked(self, generation: int, candidates: Sequence[Candidate]) -> None:
        """Note the candidates of a generation; on disk when this returns."""
        self._write(
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
        self._write(
            {"kind": "score", "generation": generation, "index": index, "score": score.to_dict()}
        )
        self._content.scores[generation].append(score)

    def measurement(self, device: str, arch: Arch, result: Estimate | DeviceError) -> None:
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
        self._write({"kind": "measurement", "device": device, "arch": dict(arch), **answer})
        self._content.measurements.setdefault((device, arch), []).append(result)

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Sync and close."""
        if not self._stream.closed:
            self.sync()
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._stream.write(encode(record))
        self._stream.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line that was read."""

    line: int
    data: dict[str, Any]


class Content:
    """What the lines of a journal say, checked for order.

    Raises:
        RunError: a line does not follow from those before it.
    """

    def __init__(self, path: Path, records: Sequence[Record]) -> None:
        self.generations: list[list[Candidate]] = []
        self.scores: list[list[Score]] = []
        self.measurements: dict[tuple[str, Arch], list[Estimate | DeviceError]] = {}
        read = {
            "generation": self._generation,
            "score": self._score,
            "measurement": self._measurement,
        }
        for record in records:
            try:
                read[record.data["kind"]](record.data)
            except (KeyError, TypeError, ValueError, AttributeError, HilnasError) as error:
                what = error.message if isinstance(error, HilnasError) else repr(error)
                raise _damaged(path, record.line, f"it does not fit here ({what})") from None

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

    def _measurement(self, data: dict[str, Any]) -> None:
        key = (str(data["device"]), Arch.from_dict(data["arch"]))
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
    try:
        records, _ = _records(path, path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", hint="hilnas run") from None
    return Content(path, records[1:])


def encode(record: dict[str, Any]) -> bytes:
    """One line with its checksum."""
    text = canonical_json(record)
    return f'{{"crc32":{zlib.crc32(text.encode())},"record":{text}}}\n'.encode()


def decode(line: bytes) -> dict[str, Any]:
    """Read what :func:`encode` wrote. Raises ValueError."""
    data = json.loads(line)
    record = data["record"] if isinstance(data, dict) and "record" in data else None
    if not isinstance(record, dict):
        raise ValueError("not a journal line")
    if zlib.crc32(canonical_json(record).encode()) != data.get("crc32"):
        raise ValueError("the checksum is wrong")
    return record


def _records(path: Path, raw: bytes) -> tuple[list[Record], int]:
    """The readable lines, and how many bytes they take; only the last may be unreadable."""
    lines = raw.split(b"\n")
    complete, tail = lines[:-1], lines[-1]
    records: list[Record] = []
    whole = 0
    for number, line in enumerate(complete, start=1):
        try:
            records.append(Record(line=number, data=decode(line)))
        except ValueError as error:
            if number == len(complete) and not tail:
                break
            raise _damaged(path, number, str(error)) from None
        whole += len(line) + 1
    return records, whole


def _check_identity(path: Path, first: Record, identity: dict[str, Any]) -> None:
    if first.data.get("kind") != "search" or first.data.get("schema") != SCHEMA:
        raise _damaged(path, first.line, f"it must name kind 'search' and schema {SCHEMA}")
    there = first.data.get("identity")
    if there != identity:
        known = there if isinstance(there, dict) else {}
        names = sorted(k for k in known.keys() | identity.keys() if known.get(k) != identity.get(k))
        raise RunChangedError(
            f"{path} belongs to another search; different: {', '.join(names)}",
            hint="go back to those settings, or give another run folder with --out",
        )


def _damaged(path: Path, line: int, why: str) -> RunError:
    return RunError(
        f"{path}, line {line} is damaged: {why}",
        hint="restore the file, or move it away to search again from the start",
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
