"""A run folder: who works in it, which stages are done, and what they were made from.

``stages.json`` holds a stamp per stage: the fingerprint of everything that the stage depends on,
and the hash of every file that it wrote. A stage whose stamp still fits is skipped. When its
settings changed, its old files are moved to ``superseded/``, never deleted: what was trained or
measured stays.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latency_tables.errors import RunError, RunLockedError
from latency_tables.files import sha256_file, write_json

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What is known of one stage: begun or done, from what, and the hashes of its files.

    ``lineage`` is the fingerprint of what its journal or checkpoints depend on.
    """

    fingerprint: str
    lineage: str
    done: bool
    outputs: dict[str, str]
    seconds: float
    utc: str


class RunFolder:
    """The files of one run.

    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()))
    >>> _ = (folder.path / "data.json").write_text("{}")
    >>> folder.begin("data", "f1", outputs=["data.json"])
    >>> _ = (folder.path / "data.json").write_text("{}")
    >>> folder.finish("data", "f1", ["data.json"], seconds=0.1)
    >>> folder.up_to_date("data", "f1"), folder.up_to_date("data", "f2")
    (True, False)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        """Path of one file of the run."""
        return self.path / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the kernel frees it when the process dies.

        Raises:
            RunLockedError: another process works in the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.file(".lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise RunLockedError(
                    f"{self.path} is in use by process {owner}",
                    hint="wait for it, or give another folder with --out",
                ) from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def stamps(self) -> dict[str, Stamp]:
        """Stamps by stage name. Raises RunError where ``stages.json`` is damaged."""
        path = self.file("stages.json")
        if not path.exists():
            return {}
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise RunError(
                    f"{path} has schema {data['schema']}; this version reads {SCHEMA}",
                    hint="start over in another folder with --out",
                )
            return {name: Stamp(**stamp) for name, stamp in data["stages"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} is damaged ({error})",
                hint="delete that file: stages then run again, measurements are kept",
            ) from None

    def up_to_date(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage was finished from the same inputs and its files are untouched."""
        stamp = self.stamps().get(stage)
        return (
            stamp is not None
            and stamp.done
            and stamp.fingerprint == fingerprint
            and all(
                self.file(name).is_file() and sha256_file(self.file(name)) == digest
                for name, digest in stamp.outputs.items()
            )
        )

    def begin(
        self,
        stage: str,
        fingerprint: str,
        *,
        lineage: str = "",
        outputs: Sequence[str] = (),
        working: Sequence[str] = (),
    ) -> None:
        """Note that the stage runs; put files aside that belong to other settings.

        ``outputs`` of another fingerprint are put aside; ``working`` files, the checkpoints or the
        journal to go on from, only if their lineage is another one.
        """
        stamps = self.stamps()
        stamp = stamps.get(stage)
        aside: list[str] = []
        if stamp is None or stamp.fingerprint != fingerprint:
            aside += outputs
            # also what other settings wrote and these do not, such as files of another device
            aside += [name for name in (stamp.outputs if stamp else ()) if name not in outputs]
        if stamp is None or stamp.lineage != lineage:
            aside += working
        self._put_aside(stage, aside)
        begun = Stamp(
            fingerprint=fingerprint, lineage=lineage, done=False, outputs={}, seconds=0.0,
            utc=_now(),
        )  # fmt: skip
        self._write(stamps, stage, begun)

    def finish(
        self, stage: str, fingerprint: str, outputs: Sequence[str], *, seconds: float
    ) -> None:
        """Note that the stage is done and what it wrote."""
        stamps = self.stamps()
        hashes = {name: sha256_file(self.file(name)) for name in outputs}
        done = Stamp(
            fingerprint=fingerprint,
            lineage=stamps[stage].lineage if stage in stamps else "",
            done=True,
            outputs=hashes,
            seconds=seconds,
            utc=_now(),
        )
        self._write(stamps, stage, done)

    def outputs_hash(self, stage: str) -> dict[str, str]:
        """Hashes of what a finished stage wrote."""
        stamp = self.stamps().get(stage)
        if stamp is None or not stamp.done:
            raise RunError(f"stage {stage!r} has not run in {self.path}", hint="hilnas run")
        return stamp.outputs

    def _put_aside(self, stage: str, files: Sequence[str]) -> None:
        present = [name for name in files if self.file(name).exists()]
        if not present:
            return
        aside = self.file("superseded") / f"{stage}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        shared = os.path.commonpath([os.path.dirname(name) for name in files])
        for name in present:  # two devices have files of one name, in folders of their own
            to = aside / os.path.relpath(name, shared or ".")
            to.parent.mkdir(parents=True, exist_ok=True)
            self.file(name).rename(to)

    def _write(self, stamps: dict[str, Stamp], stage: str, stamp: Stamp) -> None:
        stamps[stage] = stamp
        data: dict[str, Any] = {
            name: {field: getattr(s, field) for field in Stamp.__slots__}
            for name, s in stamps.items()
        }
        write_json(self.file("stages.json"), {"schema": SCHEMA, "stages": data})


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
