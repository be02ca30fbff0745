"""The pieces of an elastic mobile network, which run whole or on a part of their weights.

Without a size, a module runs whole, as ordinary layers in ``nn.Sequential`` that exporters and
counters know. With one it runs the leading channels of its weights and the centre of its kernels.
Batch norms then use, and move, the leading entries of their statistics, which therefore mix
widths: use batch statistics or recalibrate.

Deviation: where a shortcut pools a map of odd size, windows at the border count their own entries
only. (At the paper's resolutions no such map occurs.)
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.spaces.drop_path import DropPath
from pipeline.spaces.mobile_blocks import SE_REDUCTION, SqueezeExcitation, make_divisible

HEAD_EXPANSION = 6


def part(weight: Tensor, *sizes: int) -> Tensor:
    """Leading entries of the first two axes and the centre of the others: a view.

    >>> import torch
    >>> part(torch.arange(50).reshape(2, 1, 5, 5), 1, 1, 3, 3).tolist()
    [[[[6, 7, 8], [11, 12, 13], [16, 17, 18]]]]
    """
    if tuple(weight.shape) == sizes:
        return weight
    index = [slice(n) for n in sizes[:2]]
    for have, wanted in zip(weight.shape[2:], sizes[2:], strict=True):
        start = (have - wanted) // 2
        index.append(slice(start, start + wanted))
    return weight[tuple(index)]


def _norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``norm`` with the leading entries of its weights and statistics."""
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    tracks = norm.training and norm.track_running_stats
    if mean is None or var is None or count is None or (norm.training and not tracks):
        mean, var = None, None
    else:
        mean, var = part(mean, x.shape[1]), part(var, x.shape[1])
        if tracks:
            count.add_(1)
    momentum = 1.0 / float(count) if norm.momentum is None and count is not None else norm.momentum
    return F.batch_norm(
        x, mean, var, part(norm.weight, x.shape[1]), part(norm.bias, x.shape[1]),
        norm.training, momentum or 0.0, norm.eps,
    )  # fmt: skip


class Unit(nn.Sequential):
    """Convolution without bias, batch norm and swish; output size is ceil(H / stride)."""

    conv: nn.Conv2d

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 1, *, stride: int = 1,
        depthwise: bool = False, norm: bool = True, swish: bool = True,
    ) -> None:  # fmt: skip
        groups = channels if depthwise else 1
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(
            in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        if norm:
            layers["norm"] = nn.BatchNorm2d(channels)
        if swish:
            layers["act"] = nn.SiLU()
        super().__init__(layers)
        self.depthwise = depthwise

    def forward(self, x: Tensor, channels: int | None = None, kernel: int | None = None) -> Tensor:
        """(N, C_in, H, W) → (N, channels, ceil(H / stride), ceil(W / stride))."""
        if channels is None:
            for layer in self:
                x = layer(x)
            return x
        k = self.conv.kernel_size[0] if kernel is None else kernel
        in_channels, groups = (1, channels) if self.depthwise else (x.shape[1], 1)
        weight = part(self.conv.weight, channels, in_channels, k, k)
        x = F.conv2d(x, weight, None, self.conv.stride, k // 2, groups=groups)
        for layer in list(self)[1:]:
            x = _norm(layer, x) if isinstance(layer, nn.BatchNorm2d) else layer(x)
        return x


class Gate(SqueezeExcitation):
    """Squeeze and excitation; fewer channels are also squeezed into fewer."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        squeeze, _, excite, _ = self.gate
        n = x.shape[1]
        if not isinstance(squeeze, nn.Conv2d) or n == squeeze.in_channels:
            return super().forward(x)
        squeezed = make_divisible(n // SE_REDUCTION)
        gate = F.relu(_biased(squeeze, x.mean((2, 3), keepdim=True), squeezed))
        return x * F.hardsigmoid(_biased(cast(nn.Conv2d, excite), gate, n))


def _biased(conv: nn.Conv2d, x: Tensor, channels: int) -> Tensor:
    """1×1 convolution with the leading part of weight and bias."""
    bias = None if conv.bias is None else part(conv.bias, channels)
    return F.conv2d(x, part(conv.weight, channels, x.shape[1], 1, 1), bias)


class Shortcut(nn.Module):
    """What is added to a block's output: its input, pooled and projected where shapes differ."""

    def __init__(self, channels: int, *, stride: int, project_from: int | None) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.conv = None
        if project_from is not None:
            self.conv = nn.Conv2d(project_from, channels, 1, bias=False)

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """(N, C_in, H, W) → (N, channels, ceil(H / stride), ceil(W / stride))."""
        channels = self.channels if channels is None else channels
        x = self.pooled(x)
        if self.conv is None or x.shape[1] == channels:
            return x
        return F.conv2d(x, part(self.conv.weight, channels, x.shape[1], 1, 1))

    def pooled(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_in, ceil(H / stride), ceil(W / stride))."""
        if self.stride == 1:
            return x
        padding = [n % self.stride for n in x.shape[2:]]
        return F.avg_pool2d(x, self.stride, padding=padding, count_include_pad=False)


def middle_channels(in_channels: int, expand: int) -> int:
    """Channels of a block's depthwise convolution.

    >>> middle_channels(24, 1), middle_channels(24, 4), middle_channels(25, 3)
    (24, 96, 72)
    """
    return in_channels if expand == 1 else make_divisible(in_channels * expand)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSize:
    """What a block may choose, and the channels that it gets."""

    in_channels: int
    channels: int
    kernel: int
    expand: int

    @property
    def mid(self) -> int:
        """Channels of the depthwise convolution."""
        return middle_channels(self.in_channels, self.expand)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockKind:
    """What all sizes of a block have in common. ``shortcut``: whether it has one."""

    stride: int
    se: bool
    shortcut: bool


class Block(nn.Module):
    """Expansion, depthwise convolution, SE if wanted, projection; any smaller size runs as well.

    ``project``: whether the shortcut has a projection; None means where the channels differ.
    ``drop_path``: rate at which images lose the branch while training.

    >>> import torch
    >>> kind = BlockKind(stride=2, se=True, shortcut=True)
    >>> block = Block(BlockSize(in_channels=16, channels=24, kernel=5, expand=6), kind)
    >>> small = BlockSize(in_channels=8, channels=16, kernel=3, expand=4)
    >>> block(torch.zeros(1, 8, 7, 7), small).shape
    torch.Size([1, 16, 4, 4])
    """

    def __init__(
        self,
        size: BlockSize,
        kind: BlockKind,
        *,
        drop_path: float = 0.0,
        project: bool | None = None,
    ) -> None:
        super().__init__()
        n, mid = size.in_channels, size.mid
        self.expand = None if size.expand == 1 else Unit(n, mid)
        self.depthwise = Unit(mid, mid, size.kernel, stride=kind.stride, depthwise=True)
        self.se = Gate(mid) if kind.se else None
        self.project = Unit(mid, size.channels, swish=False)
        self.shortcut = self.drop_path = None
        if kind.shortcut:
            project = n != size.channels if project is None else project
            self.shortcut = Shortcut(
                size.channels, stride=kind.stride, project_from=n if project else None
            )
            # as in the authors' code, a branch is dropped only where the input itself remains
            self.drop_path = DropPath(drop_path) if kind.stride == 1 else None

    def forward(self, x: Tensor, size: BlockSize | None = None) -> Tensor:
        """(N, C_in, H, W) → (N, C, ceil(H / stride), ceil(W / stride))."""
        mid, kernel, channels = (size.mid, size.kernel, size.channels) if size else (None,) * 3
        y = x if self.expand is None else self.expand(x, mid)
        y = self.depthwise(y, mid, kernel)
        if self.se is not None:
            y = self.se(y)
        y = self.project(y, channels)
        if self.shortcut is None:
            return cast(Tensor, y)
        if self.drop_path is not None and x.shape[1] == y.shape[1]:
            y = self.drop_path(y)
        return cast(Tensor, self.shortcut(x, channels) + y)


class ElasticHead(nn.Sequential):
    """A layer, global pooling, dropout and classifier.

    With ``wide`` the maps are expanded before pooling, and the layer, without batch norm, sees the
    pooled features only: Howard et al., "Searching for MobileNetV3", 2019, section 5.1.
    """

    mix: Unit

    def __init__(
        self, in_channels: int, features: int, n_classes: int, *, wide: bool, dropout: float
    ) -> None:
        pool = nn.AdaptiveAvgPool2d(1)
        layers: list[tuple[str, nn.Module]]
        if wide:
            expanded = HEAD_EXPANSION * in_channels
            layers = [
                ("expand", Unit(in_channels, expanded)),
                ("pool", pool),
                ("mix", Unit(expanded, features, norm=False)),
            ]
        else:
            layers = [("mix", Unit(in_channels, features)), ("pool", pool)]
        layers += [("flatten", nn.Flatten()), ("dropout", nn.Dropout(dropout))]
        super().__init__(OrderedDict([*layers, ("classifier", nn.Linear(features, n_classes))]))

    def forward(self, x: Tensor, features: int | None = None) -> Tensor:
        """(N, C, H, W) → (N, n_classes)."""
        for layer in self:
            if features is None:
                x = layer(x)
            elif isinstance(layer, Unit):
                wide = layer is not self.mix
                x = layer(x, HEAD_EXPANSION * x.shape[1] if wide else features)
            elif isinstance(layer, nn.Linear):
                x = F.linear(x, part(layer.weight, layer.out_features, features), layer.bias)
            else:
                x = layer(x)
        return x


def initialise(network: nn.Module) -> None:
    """Weights as in the authors' code; blocks with a shortcut start as the shortcut alone.

    He et al., "Delving Deep into Rectifiers", 2015 (fan out); Goyal et al., "Accurate, Large
    Minibatch SGD", 2017, section 5.1, for the last γ of a residual branch.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Block) and module.shortcut is not None:
            norm = module.project.get_submodule("norm")
            nn.init.zeros_(cast(nn.BatchNorm2d, norm).weight)
