"""The main job: open a run folder, run what is out of date, say what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from device_agents.inventory import Inventory
from latency_tables.errors import RunError
from pipeline.run.folder import RunFolder
from pipeline.run.packages import package_root
from pipeline.run.progress import Reporter
from pipeline.run.source import RunSource, read_source, require_own_model, write_lock
from pipeline.run.stage import run_stages
from pipeline.spaces import require_space
from pipeline.strategies import require_strategy

if TYPE_CHECKING:
    from pipeline.run.context import RunContext
    from pipeline.training.ranks import Ranks

__all__ = ["Job", "read_source"]


class Job:
    """One run, from settings to results."""

    def __init__(
        self,
        source: RunSource,
        folder: RunFolder,
        *,
        table_path: Path,
        inventory: Inventory,
        reporter: Reporter,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks  # None: this process is alone
        self.source, self.folder = source, folder
        self.table_path, self.inventory, self.reporter = table_path, inventory, reporter

    @classmethod
    def open(
        cls,
        source: str,
        *,
        out: Path | None = None,
        overrides: Sequence[str] = (),
        table_path: Path,
        inventory: Inventory,
        reporter: Reporter,
        ranks: Ranks | None = None,
    ) -> Job:
        """Read and check the settings, every name in them too; nothing is written yet."""
        return cls.of(
            read_source(source, overrides),
            out=out,
            table_path=table_path,
            inventory=inventory,
            reporter=reporter,
            ranks=ranks,
        )

    @classmethod
    def of(
        cls,
        found: RunSource,
        *,
        out: Path | None = None,
        table_path: Path,
        inventory: Inventory,
        reporter: Reporter,
        ranks: Ranks | None = None,
    ) -> Job:
        """Check every name in settings that were read; nothing is written yet."""
        package_root()
        if not require_own_model(found):
            require_space(found.config.space.name)
        require_strategy(found.config.train.strategy)
        for device in found.config.device:
            inventory.find(device.name)
        path = out or found.folder or Path("runs") / found.name
        return cls(
            found,
            RunFolder(path),
            table_path=table_path,
            inventory=inventory,
            reporter=reporter,
            ranks=ranks,
        )

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints; other ranks help it to train and to score."""
        return self.ranks is None or self.ranks.leads

    def run(self, *, until: str | None = None, profile: bool = False) -> None:
        """Run every stage that is out of date, up to and including ``until``.

        The folder is this process's own meanwhile. A stage that fails leaves its journal and
        checkpoints, so that the same call goes on from there. With ``profile`` training and search
        say where their time went.
        """
        from pipeline.run import transfer
        from pipeline.run.scoring import require_scoring
        from pipeline.run.stage import follow_stages
        from pipeline.run.stages import stages_of
        from pipeline.run.stages.train import refuse_early
        from pipeline.training.ranks import ALONE
        from pipeline.training.threads import torch_threads

        stages = stages_of(self.source.config)
        if not self.leads:
            threads = torch_threads(self.source.config.train.threads)
            with self.context() as context, context.ranks.together(), threads:
                follow_stages(stages, context)
            return
        with (self.ranks or ALONE).together(), self.working() as context:
            context.profile = profile
            refuse_early(context)
            require_scoring(context)
            transfer.refuse_early(context)
            run_stages(stages, context, until=until)
            self._lock_boards()

    def require_winners(self) -> None:
        """Raise LimitError where the search of one of several devices, or of all, found nothing."""
        from pipeline.run.targets import folder_targets, require_winners

        if self.leads:
            targets = folder_targets(self.folder, self.source.config)
            require_winners(self.folder, targets)

    def write_report(self) -> None:
        """Write ``report.html`` from what the folder holds."""
        from pipeline.run.stages.report import write_report

        self._require_results()
        with self.folder.locked(), self.context() as context:
            write_report(context)

    def print_plan(self, *, as_json: bool) -> None:
        """Print stages, sizes and estimated times; nothing is trained or measured for keeps."""
        from pipeline.run.plan import make_plan, render
        from pipeline.training.threads import torch_threads

        if not self.leads:
            return
        with self.context() as context, torch_threads(self.source.config.train.threads):
            plan = make_plan(context)
        if as_json:
            print(json.dumps(plan.to_dict(), indent=2))
        else:
            render(plan, Console())

    def print_summary(self, *, as_json: bool) -> None:
        """Print what the folder holds by now: the winner, or how far the run has come."""
        from pipeline.run.summary import print_summary

        if self.leads:
            print_summary(self.folder, as_json=as_json)

    def print_tables(self, *, as_json: bool) -> None:
        """Print the latency tables that the run has built."""
        from pipeline.run.summary import print_tables

        print_tables(self.folder, as_json=as_json)

    @contextmanager
    def context(self) -> Iterator[RunContext]:
        """The objects of the run, let go of afterwards."""
        from pipeline.run.context import RunContext
        from pipeline.training.ranks import ALONE

        context = RunContext(
            config=self.source.config,
            folder=self.folder,
            base=self.source.base,
            table_path=self.table_path,
            inventory=self.inventory,
            reporter=self.reporter,
            ranks=self.ranks or ALONE,
        )
        try:
            yield context
        finally:
            context.close()

    @contextmanager
    def working(self) -> Iterator[RunContext]:
        """:meth:`context` for writing into the folder, which is this process's own meanwhile."""
        from pipeline.training.threads import torch_threads

        with self.folder.locked(), torch_threads(self.source.config.train.threads):
            write_lock(self.folder.path, self.source)
            with self.context() as context:
                yield context

    def _lock_boards(self) -> None:
        """Put the settings beside each board's own network, so that 'hilnas check' finds images."""
        from pipeline.run.targets import folder_targets

        for target in folder_targets(self.folder, self.source.config):
            beside = self.folder.file(target.file("manifest.json"))
            if target.device is not None and beside.exists():
                write_lock(beside.parent, self.source)

    def _require_results(self) -> None:
        from pipeline.run.targets import folder_targets

        targets = folder_targets(self.folder, self.source.config)
        if not any(self.folder.file(t.file("manifest.json")).exists() for t in targets):
            raise RunError(
                f"{self.folder.path} holds no exported network yet",
                hint=f"hilnas run {self.folder.path}",
            )
