"""The AttentiveNAS and BigNAS spaces: mobile networks that are elastic in five dimensions.

Wang et al., "AttentiveNAS", 2021, table 7: 4.40e11 subnets, squeeze and excitation in some
stages, shortcuts that pool and project, the head of MobileNetV3. Yu et al., "BigNAS", 2020: also
the convolutional space of ShiftNAS; plain blocks, a stage's first one without a shortcut.

Decisions: ``resolution``; ``stem_width``; per stage ``mb1_width``, ``mb1_depth``, ``mb1_kernel``,
``mb1_expand``, … (one for all blocks of the stage, and only where there is more than one choice);
``last_width``. Middle channels are ``expand`` times the block's *input* channels as a multiple
of 8, those of SE a quarter of the middle. Every gene of every genome matters, so the canonical form
is the genome itself and no two genomes are one network.

The supernet is one network of the largest sizes. A subnet uses the leading channels of every
weight, the centre of every kernel (no matrix transforms it) and the first blocks of every stage.
The classifier is preceded by dropout, and residual branches of the last two stages are dropped for
whole images (drop path, growing with the depth), as in the authors' code. Strategies with a
sandwich rule switch both off for all but the largest subnet
(:func:`pipeline.strategies.passes.without_dropout`).

Resolution: the space's ``input_shape`` is the largest one, which is what data are prepared for;
the supernet shrinks images to that of a subnet. The presets' resolutions are for pictures of 288
(AttentiveNAS) or 320 pixels (BigNAS); for others they are scaled in proportion and rounded
(:func:`~pipeline.spaces.elastic_cnn.sizes.scaled_resolutions`). Height and width are scaled alike;
the gene is the height. On small pictures the first of the stages that should have stride 2 keep
stride 1, so that at least 2×2 positions are left at the lowest resolution.

Deviations from the authors' code: images are shrunk with an antialiased bilinear filter instead of
a bicubic one, and BigNAS has no SE: no count of a network with it is published to test against.

Presets: ``paper`` and ``tiny`` (for 8 to 32 px).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from latency_tables.arch import Arch, Choice, Decision
from latency_tables.cost_table import CostTable
from latency_tables.errors import SpaceError
from pipeline.spaces.base import Segment, Supernet
from pipeline.spaces.described import DescribedSpace
from pipeline.spaces.elastic_cnn.blocks import (
    Block,
    BlockKind,
    BlockSize,
    ElasticHead,
    Unit,
    initialise,
    part,
)
from pipeline.spaces.elastic_cnn.masked import policy_logits
from pipeline.spaces.elastic_cnn.sizes import (
    ATTENTIVE_PRESETS,
    BIG_PRESETS,
    LAST_WIDTH,
    RESOLUTION,
    STEM_WIDTH,
    Preset,
    Subnet,
    block_name,
    scaled_resolutions,
)
from pipeline.spaces.entangled import inherit_part
from pipeline.spaces.mobilenetv2 import fitted_strides
from pipeline.supernet.resolution import resized

if TYPE_CHECKING:
    from pipeline.spaces.policy import Policy

STEM, HEAD = "stem", "head"
STEM_KERNEL = 3


class ElasticSupernet(Supernet):
    """The largest network; a subnet runs a part of it."""

    def __init__(self, space: ElasticSpace) -> None:
        super().__init__()
        self.space = space
        for segment in space.largest():
            self.add_module(segment.name, segment.build())
        initialise(self)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of ``arch``; images (N, C, H, W) may have any resolution."""
        subnet = self.space.subnet(arch)
        x = resized(x, self.space.input_shape_of(arch)[1:])
        x = self.get_submodule(STEM)(x, subnet.stem)
        for name, size in self.space.named_blocks(subnet):
            x = self.get_submodule(name)(x, size)
        logits: Tensor = self.get_submodule(HEAD)(x, subnet.last)
        return logits

    def policy_forward(self, x: Tensor, policy: Policy, *, dense: bool = False) -> Tensor:
        """Logits (N, n_classes) of ``policy.arch``; see :class:`Supernet`."""
        return policy_logits(self, self.space, x, policy, dense=dense)

    def subnet_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """Every parameter of which ``arch`` uses a part."""
        subnet = self.space.subnet(arch)
        projected = {n: size.in_channels != size.channels
                     for n, size in self.space.named_blocks(subnet)}  # fmt: skip
        return [
            parameter
            for name in (STEM, *projected, HEAD)
            for own, parameter in self.get_submodule(name).named_parameters()
            if projected.get(name, True) or not own.startswith("shortcut.")
        ]


class ElasticSpace(DescribedSpace):
    """See :class:`pipeline.spaces.base.Space` for the methods."""

    def __init__(
        self,
        name: str,
        preset: str,
        sizes: Preset,
        input_shape: tuple[int, int, int],
        n_classes: int,
    ) -> None:
        _, height, width = input_shape
        heights = scaled_resolutions(sizes.resolutions, height)
        widths = scaled_resolutions(sizes.resolutions, width)
        smallest = -(-min(heights[0], widths[0]) // sizes.stem_stride)
        self.sizes = sizes
        self.strides = fitted_strides(smallest, tuple(s.stride for s in sizes.stages))
        self._picture = dict(zip(heights, zip(heights, widths, strict=True), strict=True))
        self._options: dict[str, tuple[int, ...]] = {
            RESOLUTION: heights,
            STEM_WIDTH: sizes.stem_widths,
        }
        for stage in sizes.stages:
            self._options |= {
                f"{stage.name}_width": stage.widths,
                f"{stage.name}_depth": stage.depths,
                f"{stage.name}_kernel": stage.kernels,
                f"{stage.name}_expand": stage.expands,
            }
        self._options[LAST_WIDTH] = sizes.last_widths
        super().__init__(
            name=name,
            preset=preset,
            options=asdict(sizes),
            input_shape=input_shape,
            n_classes=n_classes,
            decisions=tuple(
                Decision(label=label, choices=choices)
                for label, choices in self._options.items()
                if len(choices) > 1
            ),
        )
        self._cost_table: CostTable | None = None

    # -- architectures ---------------------------------------------------------------------------

    def canonical(self, arch: Arch) -> Arch:
        """Every gene changes the network: nothing can be dropped."""
        return arch

    def graph_key(self, arch: Arch) -> str:
        """Resolution, stem, then width, depth, kernel and expansion per stage, and the head."""
        s = self.subnet(arch)
        stages = zip(s.widths, s.depths, s.kernels, s.expands, strict=True)
        middle = "-".join(f"{width}x{d}k{k}e{e}" for width, d, k, e in stages)
        return f"{s.resolution}|{s.stem}|{middle}|{s.last}"

    def input_shape_of(self, arch: Arch) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the network of ``arch`` takes."""
        return self.input_shape[0], *self._picture[self._choice(arch, RESOLUTION)]

    def _choice(self, arch: Mapping[str, Choice], label: str) -> int:
        options = self._options[label]
        return int(arch[label]) if len(options) > 1 else options[0]

    def subnet(self, arch: Mapping[str, Choice]) -> Subnet:
        """The sizes that ``arch`` stands for."""

        def each(what: str) -> tuple[int, ...]:
            return tuple(self._choice(arch, f"{s.name}_{what}") for s in self.sizes.stages)

        return Subnet(
            resolution=self._choice(arch, RESOLUTION),
            stem=self._choice(arch, STEM_WIDTH),
            widths=each("width"),
            depths=each("depth"),
            kernels=each("kernel"),
            expands=each("expand"),
            last=self._choice(arch, LAST_WIDTH),
        )

    def arch_of(self, subnet: Subnet) -> Arch:
        """The architecture of these sizes.

        Raises:
            InvalidArchError: the space does not have them.

        >>> from pipeline.spaces.elastic_cnn.sizes import RELEASED
        >>> space = attentivenas(preset="paper", input_shape=(3, 288, 288), n_classes=1000)
        >>> space.input_shape_of(space.arch_of(RELEASED["A0"]))
        (3, 192, 192)
        """
        values = {
            RESOLUTION: subnet.resolution,
            STEM_WIDTH: subnet.stem,
            LAST_WIDTH: subnet.last,
        }
        for stage, *own in zip(
            self.sizes.stages, subnet.widths, subnet.depths, subnet.kernels, subnet.expands,
            strict=True,
        ):  # fmt: skip
            names = ("width", "depth", "kernel", "expand")
            values |= {f"{stage.name}_{n}": value for n, value in zip(names, own, strict=True)}
        arch = Arch({d.label: values[d.label] for d in self.decisions})
        self.validate(arch)
        return arch

    # -- networks --------------------------------------------------------------------------------

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Stem, every block that any network has, head."""
        names = (block_name(s, i) for s in self.sizes.stages for i in range(s.depths[-1]))
        return tuple((name, self._labels[name]) for name in (STEM, *names, HEAD))

    @cached_property
    def _labels(self) -> dict[str, tuple[str, ...]]:
        """Decisions that every position depends on, through its input as well."""
        labels = {STEM: [RESOLUTION, STEM_WIDTH]}
        before = STEM_WIDTH
        for stage in self.sizes.stages:
            own = [f"{stage.name}_{what}" for what in ("width", "kernel", "expand")]
            for i in range(stage.depths[-1]):
                depth = [f"{stage.name}_depth"] if i >= stage.depths[0] else []
                extra = [before] if i == 0 else depth
                labels[block_name(stage, i)] = [RESOLUTION, *extra, *own]
            before = own[0]
        labels[HEAD] = [RESOLUTION, before, LAST_WIDTH]
        return {
            name: tuple(label for label in wanted if len(self._options[label]) > 1)
            for name, wanted in labels.items()
        }

    def named_blocks(self, subnet: Subnet) -> tuple[tuple[str, BlockSize], ...]:
        """Name and size of every block, in order."""
        return tuple(
            (block_name(stage, i), size)
            for stage, sizes in zip(self.sizes.stages, subnet.blocks(), strict=True)
            for i, size in enumerate(sizes)
        )

    @cached_property
    def _kinds(self) -> dict[str, tuple[BlockKind, float]]:
        """What sizes do not change, and the drop rate, of every block."""
        stages, n_blocks = self.sizes.stages, sum(s.depths[-1] for s in self.sizes.stages)
        kinds: dict[str, tuple[BlockKind, float]] = {}
        for stage, stride in zip(stages, self.strides, strict=True):
            for i in range(stage.depths[-1]):
                kind = BlockKind(
                    stride=stride if i == 0 else 1,
                    se=stage.se,
                    shortcut=self.sizes.project or i > 0,
                )
                rate = self.sizes.drop_path * len(kinds) / n_blocks
                kinds[block_name(stage, i)] = (kind, rate if stage in stages[-2:] else 0.0)
        return kinds

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        """Stem, the blocks that are present, head."""
        return self._pieces(self.subnet(arch), {})

    def largest(self) -> tuple[Segment, ...]:
        """The pieces of the supernet: shortcuts project where any two widths differ."""
        project, before = {}, self.sizes.stem_widths
        for stage in self.sizes.stages:
            project[block_name(stage, 0)] = len({*before, *stage.widths}) > 1
            before = stage.widths
        largest = {label: choices[-1] for label, choices in self._options.items()}
        return self._pieces(self.subnet(largest), project)

    def _pieces(self, subnet: Subnet, project: Mapping[str, bool]) -> tuple[Segment, ...]:
        sizes, channels, labels, kinds = (
            self.sizes, self.input_shape[0], self._labels, self._kinds,
        )  # fmt: skip

        def piece(name: str, key: tuple[object, ...], build: Callable[[], nn.Module]) -> Segment:
            return Segment(name=name, labels=labels[name], key=key, build=build)

        def block(name: str, size: BlockSize) -> Segment:
            kind, rate = kinds[name]
            build = partial(Block, size, kind, drop_path=rate, project=project.get(name))
            return piece(name, ("block", size, kind, project.get(name)), build)

        stem = (channels, subnet.stem, STEM_KERNEL)
        head = (subnet.widths[-1], subnet.last, self.n_classes)
        return (
            piece(STEM, ("stem", *stem), partial(Unit, *stem, stride=sizes.stem_stride)),
            *(block(name, size) for name, size in self.named_blocks(subnet)),
            piece(
                HEAD,
                ("head", *head),
                partial(ElasticHead, *head, wide=sizes.wide_head, dropout=sizes.dropout),
            ),
        )

    def supernet(self) -> ElasticSupernet:
        """A freshly initialised supernet."""
        return ElasticSupernet(self)

    def network(self, arch: Arch) -> nn.Sequential:
        """The structure of one subnet, for images at its own resolution, with fresh weights."""
        self.validate(arch)
        network = nn.Sequential(OrderedDict((s.name, s.build()) for s in self.segments(arch)))
        if next(network.parameters()).device.type != "meta":
            initialise(network)
        return network

    def inherit(
        self, network: nn.Sequential, arch: Arch, supernet: Supernet, *, share: bool = False
    ) -> None:
        """Give ``network`` its part of the supernet's weights; see :class:`Space`."""
        if not isinstance(supernet, ElasticSupernet):
            raise SpaceError(f"{type(supernet).__name__} is not a supernet of {self.name}")
        for segment in self.segments(arch):
            source = supernet.get_submodule(segment.name)
            inherit_part(network.get_submodule(segment.name), source, share=share, part=part)

    def cost_table(self) -> CostTable:
        """Exact costs of every choice (cached)."""
        if self._cost_table is None:
            from pipeline.export.record import space_cost_table

            self._cost_table = space_cost_table(self)
        return self._cost_table


def _make(
    name: str,
    presets: Mapping[str, Preset],
    preset: str,
    input_shape: tuple[int, int, int],
    n_classes: int,
) -> ElasticSpace:
    if preset not in presets:
        raise SpaceError(f"{name} has no preset {preset!r}; known: {', '.join(presets)}")
    return ElasticSpace(name, preset, presets[preset], input_shape, n_classes)


def attentivenas(*, preset: str, input_shape: tuple[int, int, int], n_classes: int) -> ElasticSpace:
    """Make the space of AttentiveNAS.

    >>> space = attentivenas(preset="paper", input_shape=(3, 288, 288), n_classes=1000)
    >>> len(space.decisions), space.decisions[0].choices
    (28, (192, 224, 256, 288))

    Raises:
        SpaceError: an unknown preset, or pictures that are too small for its resolutions.
    """
    return _make("attentivenas", ATTENTIVE_PRESETS, preset, input_shape, n_classes)


def bignas(*, preset: str, input_shape: tuple[int, int, int], n_classes: int) -> ElasticSpace:
    """Make the space of BigNAS, which is ShiftNAS's convolutional space as well.

    >>> space = bignas(preset="paper", input_shape=(3, 320, 320), n_classes=1000)
    >>> len(space.decisions), space.decisions[0].choices
    (22, (192, 224, 288, 320))

    Raises:
        SpaceError: an unknown preset, or pictures that are too small for its resolutions.
    """
    return _make("bignas", BIG_PRESETS, preset, input_shape, n_classes)
