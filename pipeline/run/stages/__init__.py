"""The stages of the main job, in order.

What can fail cheaply comes first: an impossible limit or an unreachable device ends a run before
anything is trained.
"""

from __future__ import annotations

from pipeline.run.stages.check import CHECK
from pipeline.run.stages.data import DATA
from pipeline.run.stages.export import EXPORT
from pipeline.run.stages.profile import PROFILE
from pipeline.run.stages.report import REPORT
from pipeline.run.stages.search import SEARCH
from pipeline.run.stages.table import TABLE
from pipeline.run.stages.train import TRAIN

STAGES = (DATA, PROFILE, TABLE, TRAIN, SEARCH, EXPORT, CHECK, REPORT)
