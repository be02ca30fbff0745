"""``hilnas rank --follow``: how the scores of good and random networks move while a search shifts.

The search is not disturbed and need not know: the weights after every generation follow from the
trained supernet and the journal, so they are made again, generation by generation, and the
followed networks are scored with them. At the end they must be the weights that the search wrote.
Costs the shifting of the search once more, and scoring 30 networks per generation; a stopped call
starts over.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from latency_tables.append_log import read_log
from latency_tables.arch import Arch
from latency_tables.errors import RunError, UsageError
from latency_tables.files import sha256_file, write_json
from pipeline.randomness import numpy_generator
from pipeline.ranking.choosing import truth_by_graph
from pipeline.ranking.following import N_GOOD, N_RANDOM, Followed, Row, row_of
from pipeline.ranking.truth import Truth
from pipeline.run.context import RunContext
from pipeline.run.progress import Advance
from pipeline.run.ranking import RankRequest, read_request_truth
from pipeline.run.scoring import choose_precision, make_scorer
from pipeline.run.shifting import (
    SHIFTED,
    make_shifter,
    shifting_stream,
    supernet_to_score,
)
from pipeline.search.evaluation import Candidate, Evaluation, Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.journal import Content, Journal, read_journal
from pipeline.search.shifting import Shifting
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.spaces.base import Supernet

if TYPE_CHECKING:
    from pipeline.run.job import Job

SCHEMA = "hilnas.follow/1"
FOLLOW = "follow.json"


def follow_run(job: Job, request: RankRequest) -> dict[str, Any]:
    """:func:`follow` for a finished run; a request without truth follows all the same.

    Raises:
        UsageError, DataError: as :func:`pipeline.run.ranking.rank`.
        RunError: the search has not ended.
    """
    with job.working() as context:
        seed = context.config.seed if request.seed is None else request.seed
        truth = None if request.truth is None else read_request_truth(context, request)
        return follow(context, truth, seed=seed)


def follow(context: RunContext, truth: Truth | None, *, seed: int) -> dict[str, Any]:
    """Follow ten good and twenty random networks; writes ``follow.json`` and gives its content.

    Raises:
        UsageError: the run does not shift its supernet.
        RunError: its search has not ended.
    """
    config, journal = _finished(context)
    followed = choose_followed(context, journal, truth, seed=seed)
    began = time.monotonic()
    with context.reporter.bar("following") as advance:
        rows, same = _replay(context, config, followed, journal, advance)
    if not same:
        context.reporter.warn(
            f"the weights that were made again are not exactly those in {SHIFTED}: this machine "
            "computes otherwise than the one that searched"
        )
    found = {
        "schema": SCHEMA,
        "weights_sha256": sha256_file(context.folder.file(SHIFTED)),
        "same_weights": same,
        "seed": seed,
        "seconds": time.monotonic() - began,
        "truth": None if truth is None else {"source": truth.source, "sha256": truth.sha256,
                                             "column": truth.column},
        "truly_better": followed.truly_better,
        "good": _listed(followed, followed.good),
        "random": _listed(followed, followed.random),
        "rows": [row.to_dict() for row in rows],
    }  # fmt: skip
    write_json(context.folder.file(FOLLOW), found)
    return found


def choose_followed(
    context: RunContext, journal: Content, truth: Truth | None, *, seed: int
) -> Followed:
    """The best of the search, and random networks: of those with a truth, where one is given."""
    space = context.space
    by_graph = {} if truth is None else truth_by_graph(truth, space.graph_key)
    good = _best(journal)
    if truth is not None:  # a good one without a truth cannot be judged
        known = [arch for arch in good if space.graph_key(arch) in by_graph]
        good = known or good
    good = good[:N_GOOD]
    taken = {space.graph_key(arch) for arch in good}
    rng = numpy_generator(seed, "follow")
    random: list[Arch] = []
    for arch in _random_archs(context, truth, rng):
        if len(random) == N_RANDOM:
            break
        if space.graph_key(arch) not in taken:
            taken.add(space.graph_key(arch))
            random.append(arch)
    found = {a: by_graph[key] for a in (*good, *random) if (key := space.graph_key(a)) in by_graph}
    return Followed(good=tuple(good), random=tuple(random), truth=found)


def _finished(context: RunContext) -> tuple[ShiftingConfig, Content]:
    config = context.config.search.shifting
    if config is None:
        raise UsageError(
            "this run does not shift its supernet, so no score moves during its search",
            hint=f"hilnas search {context.folder.path} --set search.shifting=true",
        )
    path = context.folder.file("search.jsonl")
    if not context.folder.file(SHIFTED).is_file() or not path.is_file():
        raise RunError(
            f"the search of {context.folder.path} has not ended, so there is nothing to follow",
            hint=f"hilnas search {context.folder.path}",
        )
    return config, read_journal(path)


def _best(journal: Content) -> list[Arch]:
    """Distinct architectures that keep the limits, the best by their last score first."""
    last: dict[Arch, Evaluation] = {}
    pairs: list[tuple[Candidate, Score]] = [
        pair
        for candidates, scores in zip(journal.generations, journal.scores, strict=True)
        for pair in zip(candidates, scores, strict=False)
    ]
    for candidate, score in pairs:
        last[candidate.arch] = Evaluation(candidate=candidate, score=score)
    final = journal.reassessments.get(len(journal.generations), {})
    ranked = [
        Evaluation(candidate=last[arch].candidate, score=score)
        for arch, score in final.items()
        if arch in last
    ] or list(last.values())
    return [e.arch for e in sorted(ranked, key=lambda e: e.standing) if e.feasible]


def _random_archs(context: RunContext, truth: Truth | None, rng: Any) -> Iterator[Arch]:
    if truth is None:
        for _ in range(100 * N_RANDOM):  # a space may hold fewer networks than are wanted
            yield context.space.sample(rng)
        return
    for index in rng.permutation(len(truth.known)):
        yield truth.known[index].arch


def _replay(
    context: RunContext,
    config: ShiftingConfig,
    followed: Followed,
    content: Content,
    advance: Advance,
) -> tuple[list[Row], bool]:
    """Rows before the search and after every generation that moved the weights."""
    supernet = supernet_to_score(context)
    scorer = make_scorer(context, supernet, precision=choose_precision(context, supernet))
    evaluator = Evaluator(
        space=context.space, cost_table=context.cost_table, score=scorer.score, supernet="trained"
    )

    def judge(generations: int) -> None:
        scores = [scorer.score(arch).accuracy for arch in followed.archs]
        rows.append(row_of(followed, generations, scores))
        advance(generations, len(content.generations), f"{rows[-1].global_count:g} good on top")

    rows: list[Row] = []
    with ExitStack() as kept:
        scratch = Path(kept.enter_context(TemporaryDirectory()))
        journal = kept.enter_context(_copy_of(context.folder.file("search.jsonl"), scratch))
        stream = shifting_stream(context, config)
        kept.callback(stream.close)
        judge(0)
        shifting = Shifting(
            _Known(),
            evaluator,
            make_shifter(context, supernet, stream, scorer.precision),
            journal,
            config,
            path=scratch / "state.safetensors",
            identity={},
            on_step=judge,
        )
        for generation, candidates in enumerate(content.generations):
            known = content.scores[generation]
            for _ in shifting.scores(generation, candidates, known):
                pass
            shifting.end(generation)
    return rows, _equal(supernet, context.searched_supernet())


class _Known:
    """A scoring of which everything is known already."""

    def scores(
        self, generation: int, candidates: Sequence[Candidate], known: Sequence[Score]
    ) -> Iterator[Score]:
        """What the journal holds."""
        yield from known

    def end(self, generation: int) -> None:
        """Nothing to do."""


def _copy_of(path: Path, scratch: Path) -> Journal:
    """A journal that may be opened for writing without touching the run's."""
    copy = scratch / path.name
    shutil.copyfile(path, copy)
    return Journal.open(copy, read_log(copy)[0].record["identity"])


def _equal(one: Supernet, other: Supernet) -> bool:
    tensors = other.state_dict()
    return all(torch.equal(value, tensors[name]) for name, value in one.state_dict().items())


def _listed(followed: Followed, archs: Sequence[Arch]) -> list[dict[str, Any]]:
    return [{"arch": dict(arch), "truth": followed.truth.get(arch)} for arch in archs]
