"""The AutoFormer spaces: transformers with one embedding dimension, a depth, heads and MLP ratios.

Chen et al., "AutoFormer: Searching Transformers for Visual Recognition", 2021, section 3 and
table 1; the choices are those of the authors' run files.

Decisions: ``embed_dim`` and ``depth`` hold for the whole network; each block has ``heads`` and
``mlp_ratio``. Blocks from ``depth`` on are left out and their genes mean nothing: the canonical
form sets them to their first choice.

The supernet is one network of the largest sizes (weight entanglement): a subnet runs the leading
entries of every weight, layer norms see the active entries only, attention is scaled by the
dimension of a head.

Presets: ``tiny``, ``small``, ``base`` (patches of 16, for 224 px) and ``micro`` (patches of 4,
for tests). ``tiny-absolute`` and so on have no relative positions: the same without the tables of
2 (for keys, for values) · 2 (axes) · 30 · 64 weights per block, and without their products, which
double the MACs of attention.

As in the authors' recipe the classifier sees the mean over the patches. Drop path, 0.1 there, is
``train.drop_path``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import CostTable
from latency_tables.errors import SpaceError
from pipeline.spaces.autoformer.blocks import (
    Block,
    BlockSize,
    Classifier,
    Grid,
    PatchEmbedding,
    initialise,
)
from pipeline.spaces.autoformer.masked import policy_logits
from pipeline.spaces.autoformer.sizes import (
    DEPTH,
    EMBED_DIM,
    PRESETS,
    Preset,
    Subnet,
    block_name,
    hidden_width,
    own_labels,
)
from pipeline.spaces.base import Segment, Supernet
from pipeline.spaces.described import DescribedSpace
from pipeline.spaces.entangled import inherit_part

if TYPE_CHECKING:
    from pipeline.spaces.policy import Policy


class AutoFormerSupernet(Supernet):
    """The largest network; a subnet uses the leading part of the first ``depth`` blocks."""

    def __init__(self, space: AutoFormerSpace) -> None:
        super().__init__()
        self.space = space
        for segment in space.largest():
            self.add_module(segment.name, segment.build())
        initialise(self)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (B, n_classes) of ``arch``."""
        subnet = self.space.subnet(arch)
        x = self.get_submodule("patch_embed")(x, subnet.embed_dim)  # (B, N, E)
        for i, size in enumerate(subnet.blocks()):
            x = self.get_submodule(block_name(i))(x, size)
        logits: Tensor = self.get_submodule("head")(x)
        return logits

    def policy_forward(self, x: Tensor, policy: Policy, *, dense: bool = False) -> Tensor:
        """Logits (B, n_classes) of ``policy.arch``; see :class:`Supernet`."""
        return policy_logits(self, self.space.sizes, x, policy, dense=dense)

    def subnet_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """Every parameter of which ``arch`` uses a part."""
        names = [segment.name for segment in self.space.segments(arch)]
        return [p for name in names for p in self.get_submodule(name).parameters()]


class AutoFormerSpace(DescribedSpace):
    """See :class:`pipeline.spaces.base.Space` for the methods."""

    def __init__(
        self, preset: str, sizes: Preset, input_shape: tuple[int, int, int], n_classes: int
    ) -> None:
        self.sizes = sizes
        self.grid = Grid(
            height=input_shape[1] // sizes.patch,
            width=input_shape[2] // sizes.patch,
            max_distance=sizes.max_distance,
        )
        blocks = [own_labels(block_name(i)) for i in range(sizes.depths[-1])]
        super().__init__(
            name="autoformer",
            preset=preset,
            options=asdict(sizes),
            input_shape=input_shape,
            n_classes=n_classes,
            decisions=(
                Decision(label=EMBED_DIM, choices=sizes.embed_dims),
                Decision(label=DEPTH, choices=sizes.depths),
                *(
                    Decision(label=label, choices=choices)
                    for labels in blocks
                    for label, choices in zip(labels, (sizes.heads, sizes.mlp_ratios), strict=True)
                ),
            ),
        )
        self._cost_table: CostTable | None = None

    def canonical(self, arch: Arch) -> Arch:
        """Set the genes of absent blocks to their first choices."""
        beyond = range(int(arch[DEPTH]), self.sizes.depths[-1])
        absent = {label for i in beyond for label in own_labels(block_name(i))}
        first = {d.label: d.choices[0] for d in self.decisions if d.label in absent}
        return Arch({**arch, **first})

    def graph_key(self, arch: Arch) -> str:
        """Embedding dimension, then heads and hidden width of every present block."""
        subnet = self.subnet(arch)
        blocks = "-".join(f"{block.heads}x{block.hidden}" for block in subnet.blocks())
        return f"{subnet.embed_dim}|{blocks}"

    def subnet(self, arch: Arch) -> Subnet:
        """The sizes that ``arch`` stands for."""
        own = [own_labels(block_name(i)) for i in range(int(arch[DEPTH]))]
        return Subnet(
            embed_dim=int(arch[EMBED_DIM]),
            heads=tuple(int(arch[heads]) for heads, _ in own),
            mlp_ratios=tuple(float(arch[ratio]) for _, ratio in own),
        )

    def arch_of(self, subnet: Subnet) -> Arch:
        """The architecture of these sizes, in canonical form.

        Raises:
            InvalidArchError: the space does not have them; the message names what is allowed.
        """
        choices = {d.label: d.choices[0] for d in self.decisions}
        choices |= {EMBED_DIM: subnet.embed_dim, DEPTH: len(subnet.heads)}
        for i, own in enumerate(zip(subnet.heads, subnet.mlp_ratios, strict=True)):
            choices |= dict(zip(own_labels(block_name(i)), own, strict=True))
        arch = Arch(choices)
        self.validate(arch)
        return arch

    # -- networks --------------------------------------------------------------------------------

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name and labels of every piece."""
        blocks = [block_name(i) for i in range(self.sizes.depths[-1])]
        names = ["patch_embed", *blocks, "head"]
        return tuple((name, self._labels(name)) for name in names)

    def _labels(self, name: str) -> tuple[str, ...]:
        """A block that the shallowest network lacks also depends on the depth."""
        if name in ("patch_embed", "head"):
            return (EMBED_DIM,)
        always = name in {block_name(i) for i in range(self.sizes.depths[0])}
        return (EMBED_DIM, *(() if always else (DEPTH,)), *own_labels(name))

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        """Patch embedding, the blocks that are present, head."""
        subnet = self.subnet(arch)
        return self._pieces(subnet.embed_dim, subnet.blocks())

    def largest(self) -> tuple[Segment, ...]:
        """The pieces of the supernet."""
        sizes = self.sizes
        e = sizes.supernet_embed_dim
        hidden = hidden_width(e, sizes.mlp_ratios[-1])
        block = BlockSize(embed_dim=e, heads=sizes.heads[-1], hidden=hidden)
        return self._pieces(e, (block,) * sizes.depths[-1])

    def _pieces(self, embed_dim: int, blocks: tuple[BlockSize, ...]) -> tuple[Segment, ...]:
        sizes, grid, channels = self.sizes, self.grid, self.input_shape[0]
        relative = grid if sizes.relative_position else None

        def piece(name: str, key: tuple[object, ...], build: Callable[[], nn.Module]) -> Segment:
            return Segment(name=name, labels=self._labels(name), key=key, build=build)

        return (
            piece(
                "patch_embed",
                ("patch_embed", channels, embed_dim, sizes.patch, grid),
                partial(PatchEmbedding, channels, embed_dim, sizes.patch, grid.n_tokens),
            ),
            *(
                piece(
                    block_name(i),
                    ("block", size, sizes.head_dim, relative),
                    partial(Block, size, head_dim=sizes.head_dim, grid=relative),
                )
                for i, size in enumerate(blocks)
            ),
            piece(
                "head",
                ("head", embed_dim, self.n_classes),
                partial(Classifier, embed_dim, self.n_classes),
            ),
        )

    def supernet(self) -> AutoFormerSupernet:
        """A freshly initialised supernet."""
        return AutoFormerSupernet(self)

    def network(self, arch: Arch) -> nn.Sequential:
        """The structure of one subnet with fresh weights."""
        self.validate(arch)
        return self.network_of(self.subnet(arch))

    def network_of(self, subnet: Subnet) -> nn.Sequential:
        """A network of these sizes, whether or not they are in the space, with fresh weights."""
        pieces = self._pieces(subnet.embed_dim, subnet.blocks())
        network = nn.Sequential(OrderedDict((s.name, s.build()) for s in pieces))
        if next(network.parameters()).device.type != "meta":
            initialise(network)
        return network

    def inherit(
        self, network: nn.Sequential, arch: Arch, supernet: Supernet, *, share: bool = False
    ) -> None:
        """Give ``network`` the leading part of the supernet's weights; see :class:`Space`."""
        if not isinstance(supernet, AutoFormerSupernet):
            raise SpaceError(f"{type(supernet).__name__} is not a supernet of {self.name}")
        for segment in self.segments(arch):
            source = supernet.get_submodule(segment.name)
            inherit_part(network.get_submodule(segment.name), source, share=share)

    def cost_table(self) -> CostTable:
        """Exact costs of every choice (cached)."""
        if self._cost_table is None:
            from pipeline.export.record import space_cost_table

            self._cost_table = space_cost_table(self)
        return self._cost_table


def autoformer(
    *, preset: str, input_shape: tuple[int, int, int], n_classes: int
) -> AutoFormerSpace:
    """Make the space.

    >>> space = autoformer(preset="tiny", input_shape=(3, 224, 224), n_classes=1000)
    >>> len(space.decisions), space.decisions[0].choices
    (30, (192, 216, 240))

    Raises:
        SpaceError: an unknown preset, or pictures that patches do not cover.
    """
    if preset not in PRESETS:
        raise SpaceError(f"autoformer has no preset {preset!r}; known: {', '.join(PRESETS)}")
    sizes = PRESETS[preset]
    _, height, width = input_shape
    if height % sizes.patch or width % sizes.patch or not height * width:
        raise SpaceError(
            f"patches of {sizes.patch}x{sizes.patch} do not cover pictures of {height}x{width}; "
            f"height and width must be multiples of {sizes.patch}"
        )
    return AutoFormerSpace(preset, sizes, input_shape, n_classes)
