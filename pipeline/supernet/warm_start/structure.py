"""The structure of a MobileNet-like network: stem, stages of inverted residuals, head, classifier.

Read from shapes alone: an inverted residual is a depthwise convolution with the 1×1 convolution
before it that writes its channels (if any), a pair of 1×1 convolutions behind it that squeezes
and expands (if any), and the 1×1 convolution that reads its channels. A stage begins where the
number of channels changes. The same reading serves a file and the supernet that it is to seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline.supernet.warm_start.layers import Layer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """One inverted residual; ``squeeze`` are the two 1×1 convolutions of its SE.

    ``shortcut`` is a convolution beside the block, in place of a residual.
    """

    expand: Layer | None
    depthwise: Layer
    squeeze: tuple[Layer, Layer] | None
    project: Layer
    shortcut: Layer | None = None

    @property
    def in_channels(self) -> int:
        """Channels that it reads."""
        return (self.expand or self.depthwise).in_channels

    @property
    def out_channels(self) -> int:
        """Channels that it writes."""
        return self.project.out_channels

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All its layers, in order."""
        before = () if self.expand is None else (self.expand,)
        after = () if self.shortcut is None else (self.shortcut,)
        return (*before, self.depthwise, *(self.squeeze or ()), self.project, *after)


Piece = Block | Layer


@dataclass(slots=True, kw_only=True, eq=False)
class Place:
    """One place of the chain and everything that may stand there (one entry in a plain network).

    Choices without weights (identities) are left out.
    """

    name: str
    choices: dict[str, Piece]

    @property
    def blocks(self) -> list[Block]:
        """The inverted residuals among the choices."""
        return [piece for piece in self.choices.values() if isinstance(piece, Block)]

    @property
    def starts_stage(self) -> bool:
        """Whether it changes the number of channels."""
        return any(block.in_channels != block.out_channels for block in self.blocks)


@dataclass(slots=True, kw_only=True, eq=False)
class Chain:
    """A whole network. ``stages`` hold places of inverted residuals.

    ``tail`` are 1×1 convolutions between the head and the classifier, which stay fresh.
    """

    stem: Layer | None = None
    stages: list[list[Place]] = field(default_factory=list)
    head: Layer | None = None
    tail: list[Layer] = field(default_factory=list)
    classifier: Layer | None = None


def pieces_of(layers: Sequence[Layer]) -> list[Piece]:
    """Group layers into inverted residuals; what belongs to none stays a layer of its own."""
    pieces: list[Piece] = []
    index = 0
    while index < len(layers):
        layer = layers[index]
        index += 1
        if not layer.is_depthwise:
            pieces.append(layer)
            continue
        after = layers[index : index + 3]
        squeeze = _squeeze(layer, after)
        project = after[2 if squeeze else 0] if len(after) > (2 if squeeze else 0) else None
        if project is None or not _joins(layer, project):
            pieces.append(layer)
            continue
        index += 3 if squeeze else 1
        before = pieces[-1] if pieces else None
        expand = before if isinstance(before, Layer) and _expands(before, layer) else None
        if expand is not None:
            pieces.pop()
        block = Block(expand=expand, depthwise=layer, squeeze=squeeze, project=project)
        if index < len(layers) and _goes_beside(layers[index], block):
            block = replace(block, shortcut=layers[index])
            index += 1
        pieces.append(block)
    return pieces


def _joins(first: Layer, second: Layer) -> bool:
    return second.is_pointwise and second.weight.shape[1] == first.out_channels


def _expands(layer: Layer, depthwise: Layer) -> bool:
    return layer.is_pointwise and layer.out_channels == depthwise.out_channels


def _goes_beside(layer: Layer, block: Block) -> bool:
    """Whether a layer is the block's shortcut: only its name tells it from a head."""
    shape = (block.out_channels, block.in_channels)
    fits = layer.is_pointwise and tuple(layer.weight.shape[:2]) == shape
    return fits and any(word in layer.name for word in ("shortcut", "downsample"))


def _squeeze(depthwise: Layer, after: Sequence[Layer]) -> tuple[Layer, Layer] | None:
    """The two layers of an SE: they lead back to the same channels and have no batch norm."""
    if len(after) < 3 or not _joins(depthwise, after[0]) or not _joins(after[0], after[1]):
        return None
    first, second, third = after
    leads_back = second.out_channels == depthwise.out_channels and _joins(depthwise, third)
    plain = first.norm is None and second.norm is None
    return (first, second) if leads_back and plain else None


def chain_of(places: Sequence[Place]) -> Chain | str:
    """Put places together, or say in words why they are no chain of inverted residuals."""
    chain = Chain()
    channels = 0
    for place in places:
        piece = next(iter(place.choices.values()), None)
        if place.blocks:
            wrong = [b for b in place.blocks if channels and b.in_channels != channels]
            if wrong or chain.head or chain.classifier:
                found = wrong[0].in_channels if wrong else "an inverted residual behind the head"
                return f"{place.name} reads {found} where {channels} channels come in"
            if not chain.stages or place.starts_stage:
                chain.stages.append([])
            chain.stages[-1].append(place)
            channels = place.blocks[0].out_channels
        elif isinstance(piece, Layer) and len(place.choices) == 1:
            if piece.is_linear and chain.classifier is None:
                chain.classifier = piece
            elif piece.is_dense and chain.stem is None and not chain.stages:
                chain.stem, channels = piece, piece.out_channels
            elif piece.is_pointwise and chain.stages and chain.head is None:
                chain.head, channels = piece, piece.out_channels
            elif piece.is_pointwise and chain.head is not None and chain.classifier is None:
                chain.tail.append(piece)
            else:
                return f"{piece.name} {tuple(piece.weight.shape)} is part of no inverted residual"
        elif place.choices:
            return f"{place.name} has no inverted residual among its choices"
        elif chain.stages:
            chain.stages[-1].append(place)
    if not chain.stages:
        return "no inverted residual (1×1, depthwise, 1×1) was found"
    return chain


def plain_places(pieces: Sequence[Piece]) -> list[Place]:
    """A place with one choice for every piece of a network that has nothing to choose."""
    places = []
    for piece in pieces:
        name = piece.depthwise.name if isinstance(piece, Block) else piece.name
        places.append(Place(name=name, choices={"": piece}))
    return places


def in_chain_order(pieces: Sequence[Piece]) -> list[Piece]:
    """Put the pieces of a file that keeps no order into the order in which channels fit.

    The stem comes first and the classifier last. Of several inverted residuals that read the
    channels at hand the first one as given is next; those without expansion precede the others.
    """
    layers = [p for p in pieces if isinstance(p, Layer)]
    blocks = [p for p in pieces if isinstance(p, Block)]
    waiting = sorted(blocks, key=lambda block: block.expand is not None)
    ordered: list[Piece] = [layer for layer in layers if layer.is_dense]
    channels = ordered[-1].out_channels if ordered else None
    while waiting:
        at = next((i for i, b in enumerate(waiting) if channels in (None, b.in_channels)), 0)
        block = waiting.pop(at)
        ordered.append(block)
        channels = block.out_channels
    ordered += [layer for layer in layers if not layer.is_dense and not layer.is_linear]
    return [*ordered, *(layer for layer in layers if layer.is_linear)]
