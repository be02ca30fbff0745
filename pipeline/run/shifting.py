"""Supernet Shifting in a run: whose weights, trained on what, saved where, at what cost.

Every target of a run shifts weights of its own, from the trained ones on. Beside its ``front.json``
lie ``shifting.safetensors``, from which a killed search goes on, and ``shifted.safetensors``, the
weights that its networks are cut out of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_tables.files import sha256_file
from pipeline.data.batches import TrainStream
from pipeline.run.context import RunContext
from pipeline.run.targets import target_files
from pipeline.run.teacher import open_teacher, teacher_sha256
from pipeline.run.transfer import moved_parameters
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import Crew, OneByOne, Scoring
from pipeline.search.journal import Journal
from pipeline.search.shifting import Overhead, Shifting
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.search.targets import Target
from pipeline.spaces.base import Supernet
from pipeline.supernet.crew import RankCrew
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.shifting import Shifter
from pipeline.supernet.weights import load_supernet
from pipeline.training.precision import Precision
from pipeline.training.timing import NO_TIMER, Timer

STATE, SHIFTED = "shifting.safetensors", "shifted.safetensors"


def supernet_to_score(context: RunContext) -> Supernet:
    """The supernet whose subnets the search scores: one of its own where it is shifted."""
    return context.supernet if context.config.search.shifting is None else _trained(context)


def working_files(context: RunContext) -> list[str]:
    """What killed searches of every target go on from, where they shift."""
    return [STATE, *target_files(context, STATE)]


def shifted_files(context: RunContext) -> list[str]:
    """Shifted weights of every target, as far as they are there."""
    names = [SHIFTED, *target_files(context, SHIFTED)]
    return [name for name in names if context.folder.file(name).exists()]


@dataclass(frozen=True, slots=True)
class ShiftedSearch:
    """How one target's search scores its candidates and ends, where it shifts the supernet."""

    context: RunContext
    target: Target
    shifting: Shifting
    shifter: Shifter
    scorer: Scorer
    before: tuple[float, int, int, int]

    def finish(self) -> None:
        """Write the shifted weights and say what they cost; after the search has ended."""
        path = self.context.folder.file(self.target.file(SHIFTED))
        self.shifter.write_supernet(path, {"seed": self.context.config.seed})
        if (cost := self.cost()) is not None:
            self.context.reporter.say(f"  shifting: {self.shifter.steps} steps, {cost}")

    def cost(self) -> Overhead | None:
        """What shifting took beside scoring; None where nothing was scored."""
        seconds, n_scored, n_images, n_bn = (
            now - then for now, then in zip(_counts(self.scorer), self.before, strict=True)
        )
        if not n_scored:
            return None
        return Overhead(
            scoring_s=seconds,
            shifting_s=self.shifter.seconds,
            n_scored=int(n_scored),
            n_learnt=self.shifting.n_learnt,
            n_shift=self.shifting.config.n_images,
            n_bn=round(n_bn / n_scored),
            n_val=round((n_images - n_bn) / n_scored),
        )


@contextmanager
def shifted_search(
    context: RunContext,
    target: Target,
    scoring: Scoring,
    evaluator: Evaluator,
    journal: Journal,
    scorer: Scorer,
    crew: Crew,
    timer: Timer = NO_TIMER,
) -> Iterator[ShiftedSearch | None]:
    """What shifts the weights of ``scorer`` while a target is searched; None where nothing does.

    They are the trained ones to begin with, whatever another target made of them.

    Raises:
        CheckpointError: the trained supernet cannot be read.
        UsageError: the teacher cannot be used.
    """
    config = context.config.search.shifting
    if config is None:
        yield None
        return
    scorer.supernet.load_state_dict(_trained(context).state_dict())
    renew = _renew(crew)
    stream = shifting_stream(context, config)
    shifter = make_shifter(context, scorer.supernet, stream, scorer.precision, timer)
    say_sequential(context)
    try:
        shifting = Shifting(
            OneByOne(evaluator) if config.mode == "immediate" else scoring,
            evaluator,
            shifter,
            journal,
            config,
            path=context.folder.file(target.file(STATE)),
            identity=_identity(context, scorer),
            on_note=context.reporter.warn,
            on_step=lambda _: renew(),
        )
        renew()
        yield ShiftedSearch(context, target, shifting, shifter, scorer, _counts(scorer))
    finally:
        stream.close()


def make_shifter(
    context: RunContext,
    supernet: Supernet,
    stream: TrainStream,
    precision: Precision,
    timer: Timer = NO_TIMER,
) -> Shifter:
    """Moves weights by the run's training objective."""
    config = context.config.search.shifting
    train = context.config.train
    return Shifter(
        context.space,
        supernet,
        stream,
        ShiftingConfig() if config is None else config,
        seed=context.config.seed,
        label_smoothing=train.label_smoothing,
        drop_path=train.drop_path,
        teacher=open_teacher(context, train.teacher),
        precision=Precision(dtype=precision.dtype, channels_last=True),
        parameters=moved_parameters(context),
        timer=timer,
    )


def say_sequential(context: RunContext) -> None:
    """Say what several ranks gain where the supernet is shifted: nothing in mode "immediate"."""
    config, others = context.config.search.shifting, context.ranks.world - 1
    if config is None or not others:
        return
    if config.mode == "immediate":
        context.reporter.warn(
            "shifting with mode = 'immediate' is sequential: rank 0 scores and shifts alone, the "
            f"other {others} wait"
        )
    else:
        context.reporter.say("  all ranks score; rank 0 shifts the supernet")


def weights_entry(context: RunContext, target: Target) -> dict[str, Any]:
    """What a target's ``front.json`` says of the shifted weights; nothing where none were."""
    if context.config.search.shifting is None:
        return {}
    name = target.file(SHIFTED)
    return {"weights": {"file": name, "sha256": sha256_file(context.folder.file(name))}}


def _trained(context: RunContext) -> Supernet:
    """A copy of the trained supernet, laid out like the evaluation batches."""
    supernet = load_supernet(context.space, context.folder.file("supernet.safetensors"))
    Precision(channels_last=True).place(supernet, context.torch_device)
    return supernet


def shifting_stream(context: RunContext, config: ShiftingConfig) -> TrainStream:
    """The training images that candidates are learnt on; close it after use."""
    return TrainStream(
        context.dataset,
        context.splits.train,
        batch_size=config.images_per_batch,
        seed=context.config.seed,
        name="shifting",
        augment=context.config.data.augment,
        device=context.torch_device,
        channels_last=True,
        workers=context.config.data.workers,
    )


def _identity(context: RunContext, scorer: Scorer) -> dict[str, Any]:
    """What shifted weights depend on besides the trained ones and the candidates."""
    train = context.config.train
    return {
        "space": context.space.space_id,
        "seed": context.config.seed,
        "label_smoothing": train.label_smoothing,
        "drop_path": train.drop_path,
        "teacher": teacher_sha256(train.teacher, context.base),
        "augment": context.config.data.augment.model_dump(mode="json"),
        "dtype": scorer.precision.dtype,
        # all of them where it is not said
        **({} if (moved := moved_parameters(context)) is None else {"moved": list(moved)}),
    }


def _counts(scorer: Scorer) -> tuple[float, int, int, int]:
    return scorer.seconds, scorer.n_scored, scorer.n_images, scorer.n_calibration_images


def _renew(crew: Crew) -> Callable[[], None]:
    """Gives the other ranks the weights of this one, where there are any."""
    return crew.renew if isinstance(crew, RankCrew) else lambda: None


def searched_weights(context: RunContext, target: Target | None = None) -> Path:
    """The file with the weights of the networks that a search found for a target, by default for
    all devices: the shifted ones where it shifted, else the trained ones."""
    name = SHIFTED if target is None else target.file(SHIFTED)
    shifting = context.config.search.shifting is not None
    return context.folder.file(name if shifting else "supernet.safetensors")
