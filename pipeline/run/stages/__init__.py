"""The stages of the main job, in order.

What can fail cheaply comes first: an impossible limit or an unreachable device ends a run before
anything is trained.
"""

from __future__ import annotations

from pipeline.config import RunConfig
from pipeline.run.stage import Stage
from pipeline.run.stages.check import CHECK
from pipeline.run.stages.data import DATA
from pipeline.run.stages.export import EXPORT
from pipeline.run.stages.profile import PROFILE
from pipeline.run.stages.report import REPORT
from pipeline.run.stages.search import SEARCH
from pipeline.run.stages.table import TABLE
from pipeline.run.stages.train import TRAIN
from pipeline.run.stages.transfer import TRANSFER

STAGES = (DATA, PROFILE, TABLE, TRAIN, SEARCH, EXPORT, CHECK, REPORT)


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a run: one that takes a supernet over does not train it."""
    if config.transfer is None:
        return STAGES
    return tuple(TRANSFER if stage is TRAIN else stage for stage in STAGES)
