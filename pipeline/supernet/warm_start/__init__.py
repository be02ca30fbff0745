"""Warm start: give a fresh supernet the weights of a network that is trained already.

A file whose tensors have the names and shapes of the supernet's (an earlier run in the same
space) is copied by name. Any other file is matched by structure, see
:mod:`pipeline.supernet.warm_start.matching`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from latency_tables.errors import CheckpointError
from pipeline.spaces.base import Supernet
from pipeline.spaces.chain import ChainSupernet
from pipeline.supernet.warm_start.fitting import fitted_image_channels
from pipeline.supernet.warm_start.layers import Layer, layers_of, with_first
from pipeline.supernet.warm_start.matching import Seeded, seed_chain
from pipeline.supernet.warm_start.sources import Weights, read_weights, weights_sha256
from pipeline.supernet.warm_start.structure import (
    Block,
    Chain,
    Place,
    chain_of,
    pieces_of,
    plain_places,
)

__all__ = ["WarmStart", "read_weights", "warm_start", "weights_sha256"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """What a warm start did; tensors are parameters and running statistics of the supernet."""

    origin: str
    seeded: tuple[str, ...] = field(repr=False)
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    """Layers of the file that nothing took."""

    def summary(self) -> str:
        """One line for the log."""
        total = len(self.seeded) + len(self.fresh)
        parts = [f"warm start: {len(self.seeded)} of {total} tensors from {self.origin}"]
        if self.fresh:
            parts.append(f"not matched: {_shown(_places_of(self.fresh))}")
        if self.unused:
            parts.append(f"of the file not used: {_shown(self.unused)}")
        return "; ".join(parts)


def _shown(names: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _places_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """``layer01 (12)`` for twelve tensors of a chain's position, modules of other networks."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        counts[
            parts[1] if parts[0] == "blocks" and len(parts) > 3 else name.rpartition(".")[0]
        ] += 1
    return tuple(f"{place} ({n})" for place, n in counts.items())


def warm_start(
    supernet: nn.Module, path: Path | Weights, *, elastic: bool | None = None
) -> WarmStart:
    """Write trained weights into ``supernet``, in place; the rest keeps its fresh weights.

    Args:
        supernet: a supernet of any chain of inverted residuals, or a plain network of them.
        path: ``.safetensors``, ``.pth``, ``.onnx``, the folder of a run, or what was read of one.
        elastic: whether narrower subnets use leading channels, so that the most important ones
            go first; by default true of supernets that are not chains of choices only.

    Raises:
        CheckpointError: the file cannot be read (see :func:`read_weights`), or nothing of it
            fits; the message says where the structures part.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("mobilenetv2", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> trained, fresh = space.supernet(), space.supernet()
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "trained.pth"
    >>> torch.save(trained.state_dict(), path)
    >>> warm_start(fresh, path).summary()
    'warm start: 1674 of 1674 tensors from trained.pth'
    """
    weights = path if isinstance(path, Weights) else read_weights(path)
    given = {k: t for k, t in supernet.state_dict(keep_vars=True).items() if _is_weight(k, t)}
    if _is_same_network(weights.tensors, given):
        return _report(weights, _copied(weights.tensors, given), given, by_name=True)
    seeded = _by_structure(supernet, weights, elastic=_is_elastic(supernet, elastic))
    return _report(weights, seeded, given, by_name=False)


def _is_weight(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not name.endswith("num_batches_tracked")


def _is_elastic(supernet: nn.Module, elastic: bool | None) -> bool:
    if elastic is not None:
        return elastic
    return isinstance(supernet, Supernet) and type(supernet) is not ChainSupernet


def _layers(piece: Block | Layer) -> tuple[Layer, ...]:
    return piece.layers if isinstance(piece, Block) else (piece,)


def _ends(names: Sequence[str]) -> set[str]:
    """First and last module that has weights: they depend on the images and the classes."""
    modules = [name.rpartition(".")[0] for name in names]
    return {modules[0], modules[-1]} if modules else set()


def _is_same_network(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> bool:
    """Whether all names are there with equal shapes, but for image channels and classes."""
    ends = _ends(list(target))
    return source.keys() == target.keys() and all(
        source[name].shape == tensor.shape or name.rpartition(".")[0] in ends
        for name, tensor in target.items()
    )


@torch.no_grad()
def _copied(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Seeded:
    """Copy by name; image channels are added up or shared out, other classes stay fresh."""
    done = Seeded()
    for name, tensor in target.items():
        given: Tensor | None = source[name]
        if given is not None and given.shape[1:2] != tensor.shape[1:2] and given.dim() == 4:
            given = fitted_image_channels(given, tensor.shape[1])
        if given is not None and given.shape == tensor.shape:
            tensor.copy_(given)
            done.tensors.add(name)
    return done


def _report(
    weights: Weights, seeded: Seeded, given: Mapping[str, Tensor], *, by_name: bool
) -> WarmStart:
    if by_name:
        unused = [name for name in weights.tensors if name not in seeded.tensors]
    else:
        layers = [layer.name for piece in weights.pieces for layer in _layers(piece)]
        unused = [name for name in layers if name not in seeded.used]
    return WarmStart(
        origin=weights.origin,
        seeded=tuple(name for name in given if name in seeded.tensors),
        fresh=tuple(name for name in given if name not in seeded.tensors),
        unused=tuple(unused),
    )


def _by_structure(supernet: nn.Module, weights: Weights, *, elastic: bool) -> Seeded:
    source = chain_of(plain_places(weights.pieces))
    if isinstance(source, str):
        raise CheckpointError(
            f"warm start: {weights.origin} is neither a network of this space nor a chain of "
            f"inverted residuals: {source}",
            hint="weights of a MobileNet-like network, or of an earlier run in the same space",
        )
    target = chain_of(_places(supernet))
    if isinstance(target, str):
        raise CheckpointError(
            f"warm start: {type(supernet).__name__} is no chain of inverted residuals ({target}), "
            f"and the tensors of {weights.origin} are not its own",
            hint="weights of an earlier run in the same space, or train without warm_start",
        )
    seeded = seed_chain(target, source, elastic=elastic)
    if not any(layer.name in seeded.used for layer in _inner(source)):
        raise CheckpointError(
            f"warm start: no block of {weights.origin} fits the supernet",
            hint="weights of a network whose stages expand like those of the space",
        )
    return seeded


def _inner(chain: Chain) -> list[Layer]:
    blocks = [block for stage in chain.stages for place in stage for block in place.blocks]
    return [layer for block in blocks for layer in block.layers]


def _places(supernet: nn.Module) -> list[Place]:
    """The places of a supernet with live tensors; one per block where there is nothing to choose.

    Only a chain says what its choices are; of another supernet the modules are read in order.
    """
    if not isinstance(supernet, ChainSupernet):
        state = supernet.state_dict(keep_vars=True)
        return plain_places(pieces_of(with_first(_live(state, supernet))))
    places: list[Place] = []
    for number, position in enumerate(supernet.chain):
        found: dict[str, list[Block | Layer]] = {}
        for choice in position.choices:
            prefix = f"blocks.{position.name}.{choice}"
            module = supernet.get_submodule(prefix)
            state = module.state_dict(prefix=f"{prefix}.", keep_vars=True)
            layers = _live(state, supernet)
            found[choice] = pieces_of(layers if number else with_first(layers))
        if len(found) == 1:
            places += plain_places(next(iter(found.values())))
            continue
        single = {c: _only(pieces, position.name) for c, pieces in found.items() if pieces}
        places.append(Place(name=position.name, choices=single))
    return places


def _only(pieces: list[Block | Layer], where: str) -> Block | Layer:
    if len(pieces) > 1:
        raise CheckpointError(
            f"warm start: the choices at {where} are no inverted residuals, and the file is not "
            "of an earlier run in the same space",
            hint="weights of an earlier run in the same space, or train without warm_start",
        )
    return pieces[0]


def _live(state: Mapping[str, Tensor], supernet: nn.Module) -> tuple[Layer, ...]:
    """Layers whose tensors are the supernet's own, with the epsilons of its batch norms."""
    found = []
    for layer in layers_of(state):
        if layer.norm is not None:
            epsilon = float(getattr(supernet.get_submodule(layer.norm.name), "eps"))  # noqa: B009
            layer = replace(layer, norm=replace(layer.norm, epsilon=epsilon))
        found.append(layer)
    return tuple(found)
