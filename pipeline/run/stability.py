"""The line about rank stability that ends every search, and ``stability.json`` behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from latency_tables.arch import Arch
from latency_tables.files import write_json
from pipeline.ranking.stability import N_BEST, Stability, rank_stability, sentence
from pipeline.run.context import RunContext
from pipeline.run.scoring import choose_precision, make_scorer
from pipeline.run.targets import target_files
from pipeline.search.evaluation import Evaluation, comparable
from pipeline.search.targets import Target
from pipeline.supernet.answers import Answers, answers_of

SCHEMA = "hilnas.stability/1"
STABILITY = "stability.json"


def stability_files(context: RunContext) -> list[str]:
    """``stability.json`` of every target that has one."""
    names = [STABILITY, *target_files(context, STABILITY)]
    return [name for name in names if context.folder.file(name).exists()]


def write_stability(
    context: RunContext,
    target: Target,
    archive: Sequence[Evaluation],
    winner: Arch,
) -> None:
    """Ask two halves of the images for the order of the best candidates; write and say it.

    The best candidates and the winner are scored once more, image by image and with the weights
    that the winner gets, which costs as much as scoring ``N_BEST`` candidates.
    """
    supernet = context.searched_supernet(target)
    scorer = make_scorer(context, supernet, precision=choose_precision(context, supernet))
    archs = best_archs(context.space.canonical, archive, winner)
    with context.reporter.bar("rank stability") as advance:
        answers: list[Answers] = []
        for index, arch in enumerate(archs, start=1):
            context.give_way()
            answers.append(answers_of(scorer, arch))
            advance(index, len(archs), "")
    by_loss = context.config.search.rank_by == "loss"
    labels = np.concatenate([batch.labels.cpu().numpy() for batch in scorer.validation])
    chosen = [context.space.canonical(arch) for arch in archs].index(
        context.space.canonical(winner)
    )
    found = rank_stability(
        np.stack([a.right for a in answers]), labels, chosen,
        merits=-np.stack([a.loss for a in answers]) if by_loss else None,
        seed=context.config.seed,
    )  # fmt: skip
    told = {"schema": SCHEMA, **found.to_dict(), "networks": _networks(archs, answers, found)}
    write_json(context.folder.file(target.file(STABILITY)), told)
    whose = f"{target}: " if len(context.config.device) > 1 else ""
    context.reporter.say(f"  {whose}{sentence(told)}")


def best_archs(
    canonical: Callable[[Arch], Arch], archive: Sequence[Evaluation], winner: Arch
) -> list[Arch]:
    """The best of an archive that keep the limits, each network once, and the winner."""
    found: dict[Arch, Arch] = {}
    for evaluation in sorted(comparable(archive), key=lambda e: e.standing):
        if evaluation.feasible and len(found) < N_BEST:
            found.setdefault(canonical(evaluation.arch), evaluation.arch)
    found.setdefault(canonical(winner), winner)
    return list(found.values())


def _networks(archs: Sequence[Arch], answers: Sequence[Answers], found: Stability) -> list[Any]:
    return [
        {"arch": dict(arch), "accuracy": float(one.right.mean()), "halves": list(halves)}
        for arch, one, halves in zip(archs, answers, found.halves, strict=True)
    ]
