"""Settings of retraining and the papers' recipes, without torch.

A recipe is a TOML file in ``recipes/``: the keys of ``[train]`` without a strategy, and those of
:class:`RetrainConfig`. Without a recipe the run's own ``[train]`` holds, as for the supernet.

>>> recipe_names()  # doctest: +NORMALIZE_WHITESPACE
['autoformer', 'autoformer-fine-tune', 'greedynas', 'kshot', 'nasbench-macro', 'nasbench201',
 'spos']
>>> retrain_config("greedynas", TrainConfig()).optimizer.kind
'rmsprop'
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from device_agents.settings import explain
from latency_tables.errors import ConfigError, UsageError
from pipeline.config import apply_overrides
from pipeline.data.config import AugmentConfig
from pipeline.training.config import TrainConfig

_FOLDER = resources.files("pipeline.retraining") / "recipes"
_OF_SUPERNETS = ("strategy", "options", "warm_start")
FINE_TUNE_SLOWER = 10
"""Without a recipe, fine-tuning has the run's learning rate divided by this. Our choice: the full
rate would undo what is inherited within a few steps."""


class RetrainConfig(TrainConfig):
    """How one network is trained alone.

    >>> RetrainConfig(epochs=50, drop_path=0.2).start
    'scratch'
    """

    strategy: Literal["alone"] = "alone"
    start: Literal["scratch", "inherited"] = "scratch"
    """Fresh weights, or those of the supernet (fine-tuning)."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability before the classifier; as the space has it where not given."""
    batch_norm: Literal["tracked", "recalibrate"] = "tracked"
    """Statistics at the end: those of training, or new ones from the calibration images."""
    all_data: bool = False
    """Train on the held-out images as well; nothing but the test images is left to score on."""
    augment: AugmentConfig | None = None
    """How images are varied; as the run does it where not given."""

    @model_validator(mode="after")
    def _check_alone(self) -> Self:
        if self.options or self.warm_start is not None:
            raise ValueError("options and warm_start belong to supernets; start says what to do")
        return self


def recipe_names() -> list[str]:
    """Names of the recipes, in order."""
    names = (entry.name for entry in _FOLDER.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The commented TOML of a recipe. Raises UsageError naming those that exist."""
    names = recipe_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise UsageError(
            f"no recipe is called {name!r}; known: {', '.join(names)}",
            hint=f"--recipe {near[0]}" if near else "--recipe list",
        )
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def recipe_summaries() -> list[tuple[str, str]]:
    """Each recipe's name and the first line of its comment."""
    texts = [(name, recipe_text(name)) for name in recipe_names()]
    return [(name, text.splitlines()[0].lstrip("# ").rstrip()) for name, text in texts]


def retrain_config(
    recipe: str | None,
    run: TrainConfig,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> RetrainConfig:
    """Settings from a recipe (or the run's own), then ``key=value`` overrides, then flags.

    Args:
        recipe: a name of :func:`recipe_names`; None for ``run``.
        run: the run's ``[train]``.
        flags: values by name that win over everything else.

    Raises:
        UsageError: no such recipe.
        ConfigError: an unknown key (names the nearest), or a value out of range.

    >>> retrain_config(None, TrainConfig(epochs=80), ["optimizer.lr=0.2"]).optimizer.lr
    0.2
    >>> retrain_config(None, TrainConfig(), flags={"start": "inherited"}).optimizer.lr
    0.01
    """
    flags = dict(flags or {})
    data: dict[str, Any]
    if recipe is None:
        data = run.model_dump(exclude_none=True, exclude=set(_OF_SUPERNETS))
        if flags.get("start") == "inherited":
            data["optimizer"]["lr"] /= FINE_TUNE_SLOWER
    else:
        data = tomllib.loads(recipe_text(recipe))
        for key in ("threads", "precision", "channels_last"):  # of this machine, not of a paper
            data[key] = getattr(run, key)
    apply_overrides(data, overrides)
    given = {override.partition("=")[0].strip() for override in overrides}
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if key in given and other not in given:
            data.pop(other, None)
    try:
        return RetrainConfig.model_validate(data | flags)
    except ValidationError as error:
        raise ConfigError(explain(error, RetrainConfig)) from None
