"""Transfer: a supernet that was trained on other images, with a new classifier.

Zhang et al., 2024 ("Boosting Order-Preserving and Transferability for Neural Architecture Search"),
section 3.4: the feature extractor is kept, the classifier is new, the images are brought to the
size that the supernet knows, and then the search trains each candidate for tens of batches, with a
step per batch (:mod:`pipeline.supernet.shifting`, mode "immediate").

=====================  ===========================================================================
paper                  here
=====================  ===========================================================================
new classifier layer   :func:`classifier_of` names it, :func:`take_over` leaves it fresh
feature extractor      all other tensors, copied by name
head warm-up           not in the paper: :class:`HeadWarmUp`, off by default. Its authors saw the
                       search prefer small networks, whose classifiers learn faster (section 4.4)
=====================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from latency_tables.errors import CheckpointError
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.resampled import NAME, resampled
from pipeline.strategies.spos import SPOS
from pipeline.supernet.warm_start.fitting import fitted_image_channels
from pipeline.training.step import OptimizerPlan, Step, Update

_RESAMPLING = f"blocks.{NAME}."


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What a transfer did with the tensors of the new supernet, by name."""

    kept: tuple[str, ...]
    fitted: tuple[str, ...]
    """First convolution, whose weights were fitted to other image channels."""
    fresh: tuple[str, ...]

    def summary(self) -> str:
        """One line for the log."""
        total = len(self.kept) + len(self.fitted) + len(self.fresh)
        other = f", {len(self.fitted)} fitted to other image channels" if self.fitted else ""
        return f"{len(self.kept)} of {total} tensors kept{other}; new: {', '.join(self.fresh)}"


def classifier_of(space: Space) -> tuple[str, ...]:
    """Names of the parameters that make classes out of features: those that grow with classes.

    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> classifier_of(space)
    ('blocks.head.fixed.5.weight', 'blocks.head.fixed.5.bias')
    """
    here, more = (_shapes(space, space.n_classes + extra) for extra in (0, 1))
    return tuple(name for name, shape in here.items() if more[name] != shape)


def new_in(space: Space) -> tuple[str, ...]:
    """Names of the tensors that no source has: the classifier, and learned resampling."""
    resampling = (n for n in _shapes(space, space.n_classes) if n.startswith(_RESAMPLING))
    return (*resampling, *classifier_of(space))


def check_fits(space: Space, source: Space) -> None:
    """Raise CheckpointError, naming the first tensors, unless ``source``'s weights fit ``space``.

    Classes may differ, and image channels as long as there are 1 or 3.
    """
    if (space.name, space.preset) != (source.name, source.preset):
        raise CheckpointError(
            f"a supernet of {source.name} ({source.preset}) is no supernet of {space.name} "
            f"({space.preset})",
            hint="leave [space] to the source run",
        )
    free = set(new_in(space))
    wanted, given = _shapes(space, space.n_classes), _shapes(source, source.n_classes)
    unfit = [
        name
        for name, shape in wanted.items()
        if name not in free and not _may_become(given.get(name), shape)
    ]
    if unfit:
        shown = "; ".join(f"{n}: {given.get(n)} for {wanted[n]}" for n in unfit[:2])
        raise CheckpointError(
            f"{len(unfit)} tensors of a supernet for images {_size(source)} do not fit images "
            f"{_size(space)}: {shown}",
            hint=f"--set data.image_size={source.input_shape[1]}",
        )


@torch.no_grad()
def take_over(supernet: Supernet, space: Space, source: Supernet) -> TakenOver:
    """Write the weights of ``source`` into a fresh ``supernet`` of ``space``, bar its classifier.

    Whether they fit is for :func:`check_fits` to say.
    """
    given, free = source.state_dict(), set(new_in(space))
    kept, fitted, fresh = [], [], []
    for name, tensor in supernet.state_dict(keep_vars=True).items():
        if name in free:
            fresh.append(name)
        elif given[name].shape == tensor.shape:
            tensor.copy_(given[name])
            kept.append(name)
        else:
            weight = fitted_image_channels(given[name], tensor.shape[1])
            tensor.copy_(weight if weight is not None else tensor)
            fitted.append(name)
    return TakenOver(kept=tuple(kept), fitted=tuple(fitted), fresh=tuple(fresh))


class HeadWarmUp(SPOS):
    """Uniform paths, of which only the classifier learns.

    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> list(HeadWarmUp(space, space.supernet()).optimizers()["classifier"].parameters)
    ['blocks.head.fixed.5.weight', 'blocks.head.fixed.5.bias']
    """

    def __init__(self, space: Space, supernet: Supernet) -> None:
        super().__init__(space)
        named = dict(supernet.named_parameters())
        self.classifier = {name: named[name] for name in classifier_of(space)}

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """One optimizer over the classifier, as the run file says."""
        return {"classifier": OptimizerPlan(parameters=self.classifier)}

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update of the classifier behind one path."""
        arch = self.sample(step.rng)
        yield Update(losses=[partial(step.loss, arch, step.batch())], optimizer="classifier")


def _shapes(space: Space, n_classes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a plain supernet with so many classes; nothing is allocated."""
    channels, *size = space.input_shape
    inner = space.describe()["options"].get("resampled_to")
    same = load_space(
        space.name,
        preset=space.preset,
        input_shape=space.input_shape if inner is None else (channels, *inner),
        n_classes=n_classes,
    )
    if inner is not None:
        same = resampled(same, (size[0], size[1]))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        supernet = same.supernet()
    return {name: tuple(tensor.shape) for name, tensor in supernet.state_dict().items()}


def _may_become(given: tuple[int, ...] | None, wanted: tuple[int, ...]) -> bool:
    """Whether a tensor can be copied, or fitted to other image channels."""
    if given is None or given == wanted:
        return given == wanted
    images = {given[1:2], wanted[1:2]} == {(1,), (3,)}
    return images and len(given) == 4 and (given[0], *given[2:]) == (wanted[0], *wanted[2:])


def _size(space: Space) -> str:
    return "×".join(map(str, space.input_shape))
