"""What a stage of the main job is, and the loop that runs the ones that are out of date."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latency_tables.files import sha256_json

if TYPE_CHECKING:
    from pipeline.run.context import RunContext

DISMISSED = ""
"""What the other ranks hear when they are needed no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step from files to files.

    ``settings`` gives the part of the run file that the stage depends on, ``needs`` the stages
    whose outputs it reads. ``outputs`` are hashed into the stamp; ``working`` are further files
    it leaves (journals, checkpoints). ``further_outputs`` and ``further_working`` name those that
    depend on the run, such as one per device. ``lineage`` gives the settings that working files
    depend on, where that is less than all: a search that is given more generations goes on with
    its journal.
    ``version`` is raised when the code changes what the same settings give. A stage with
    ``on_all_ranks`` takes the processes that torchrun has started; the others are rank 0's alone.
    """

    name: str
    title: str
    run: Callable[[RunContext], None]
    settings: Callable[[RunContext], Any]
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    working: tuple[str, ...] = ()
    lineage: Callable[[RunContext], Any] | None = None
    version: int = 1
    on_all_ranks: bool = False
    further_outputs: Callable[[RunContext], Sequence[str]] | None = None
    further_working: Callable[[RunContext], Sequence[str]] | None = None

    def outputs_in(self, context: RunContext) -> tuple[str, ...]:
        """Every file of a run that the stamp vouches for."""
        further = self.further_outputs(context) if self.further_outputs else ()
        return (*self.outputs, *further)

    def working_in(self, context: RunContext) -> tuple[str, ...]:
        """Journals and checkpoints that the stage leaves in a run."""
        further = self.further_working(context) if self.further_working else ()
        return (*self.working, *further)

    def fingerprint(self, context: RunContext) -> str:
        """Hash of everything that decides what this stage writes."""
        return self._hash(context, self.settings)

    def working_fingerprint(self, context: RunContext) -> str:
        """Hash of everything that its journal or checkpoints depend on."""
        return self._hash(context, self.lineage or self.settings)

    def _hash(self, context: RunContext, settings: Callable[[RunContext], Any]) -> str:
        return sha256_json(
            {
                "stage": self.name,
                "version": self.version,
                "settings": settings(context),
                "inputs": {need: context.folder.outputs_hash(need) for need in self.needs},
            }
        )


def run_stages(stages: Sequence[Stage], context: RunContext, *, until: str | None = None) -> None:
    """Run every stage that is out of date, in order, up to and including ``until``.

    Whatever a stage raises goes on to the caller; its journal and checkpoints stay, and the next
    call goes on from them. Ranks that only train are told of each stage that needs them, and when
    none is left.
    """
    for position, stage in enumerate(stages):
        with context.reporter.busy(stage.name):  # hashing inputs may mean reading a data set
            fingerprint = stage.fingerprint(context)
        if context.folder.up_to_date(stage.name, fingerprint):
            context.reporter.say(f"[green]✓[/green] {stage.name:<8} up to date")
        else:
            context.folder.begin(
                stage.name,
                fingerprint,
                lineage=stage.working_fingerprint(context),
                outputs=stage.outputs_in(context),
                working=stage.working_in(context),
            )
            context.reporter.say(f"[cyan]▸[/cyan] {stage.name:<8} {stage.title}")
            began = time.monotonic()
            if stage.on_all_ranks:
                context.ranks.say(stage.name)
            stage.run(context)
            seconds = time.monotonic() - began
            written = stage.outputs_in(context)
            context.folder.finish(stage.name, fingerprint, written, seconds=seconds)
            context.reporter.say(f"[green]✓[/green] {stage.name:<8} {seconds:.1f} s")
        if stage.name == until or not any(s.on_all_ranks for s in stages[position + 1 :]):
            context.ranks.say(DISMISSED)
        if stage.name == until:
            return


def follow_stages(stages: Sequence[Stage], context: RunContext) -> None:
    """Take part, as a rank that does not lead, in the stages that rank 0 names."""
    by_name = {stage.name: stage for stage in stages}
    while (name := context.ranks.hear()) != DISMISSED:
        by_name[name].run(context)
