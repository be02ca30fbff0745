"""What the tests of elastic convolutional spaces share: two oracles and supernets to try them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from pipeline.spaces.elastic_cnn import ElasticSpace, ElasticSupernet, Subnet
from pipeline.spaces.elastic_cnn.blocks import BlockSize
from pipeline.spaces.mobile_blocks import make_divisible
from pipeline.strategies.passes import probing
from pipeline.supernet.resolution import resized
from pipeline.supernet.scoring import Scorer
from pipeline.training.config import CheckpointConfig
from pipeline.training.step import Strategy
from tests.pipeline.training.toys import ToyStream, toy_config, toy_train


def counted(space: ElasticSpace, subnet: Subnet) -> tuple[int, int]:
    """(MACs, parameters with BN) written out as sums over blocks, for square pictures."""
    image, _, _ = space.input_shape
    strides, sizes = space.strides, space.sizes
    n = -(-subnet.resolution // sizes.stem_stride)
    c = subnet.stem
    macs, parameters = n * n * 9 * image * c, 9 * image * c + 2 * c
    stages = zip(
        sizes.stages, strides, subnet.widths, subnet.depths, subnet.kernels, subnet.expands,
        strict=True,
    )  # fmt: skip
    for stage, first, width, depth, k, e in stages:
        for i in range(depth):
            out = -(-n // (first if i == 0 else 1))
            mid = make_divisible(c * e) if e > 1 else c
            if e > 1:
                macs, parameters = macs + n * n * c * mid, parameters + c * mid + 2 * mid
            macs += out * out * (k * k * mid + mid * width)
            parameters += k * k * mid + 2 * mid + mid * width + 2 * width
            if stage.se:
                q = make_divisible(mid // 4)
                macs, parameters = macs + 2 * q * mid, parameters + 2 * q * mid + q + mid
            if sizes.project and c != width:
                macs, parameters = macs + out * out * c * width, parameters + c * width
            c, n = width, out
    last = subnet.last
    if sizes.wide_head:
        macs += n * n * c * 6 * c + 6 * c * last
        parameters += 6 * c * c + 12 * c + 6 * c * last
    else:
        macs, parameters = macs + n * n * c * last, parameters + c * last + 2 * last
    macs += last * space.n_classes
    return macs, parameters + last * space.n_classes + space.n_classes


def lively(space: ElasticSpace, seed: int = 0) -> ElasticSupernet:
    """Weights and statistics that are not neutral, so that a swapped channel shows."""
    torch.manual_seed(seed)
    supernet = space.supernet().train()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        for arch in archs_of(space, 8, seed):  # statistics that fit keep the range of values
            supernet(torch.randn(8, *space.input_shape), arch)
    return supernet.eval()


def archs_of(space: ElasticSpace, n: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(n)]


def wholly(space: ElasticSpace, index: int) -> Arch:
    """All decisions at their first (0) or last (-1) choice."""
    return Arch({d.label: d.choices[index] for d in space.decisions})


def losses_around(space: ElasticSpace, strategy: Strategy, folder: Path) -> tuple[float, float]:
    """Mean loss of four recalibrated subnets before and after some steps."""
    torch.manual_seed(0)
    supernet = space.supernet()
    batches = [ToyStream(batch_size=64, seed=2).batch(0)]

    def mean_loss() -> float:
        scorer = Scorer(space, supernet, batches, batches)
        return float(np.mean([scorer.score(arch).loss for arch in archs_of(space, 4)]))

    before = mean_loss()
    toy_train(folder, space=space, supernet=supernet, strategy=strategy,
              config=toy_config(steps=12, checkpoint=CheckpointConfig()))  # fmt: skip
    return before, mean_loss()


def assert_one_function(space: ElasticSpace, n_archs: int, *, batch_statistics: bool) -> None:
    """By masks, by slices and cut out, random subnets give the same logits."""
    supernet = lively(space)
    x = torch.randn(4, *space.input_shape)
    outputs = set()
    for arch in archs_of(space, n_archs, seed=1):
        network = space.network(arch).eval()
        space.inherit(network, arch, supernet)
        small = resized(x, space.input_shape_of(arch)[1:])
        with torch.no_grad():
            masked = Masked(supernet, batch_statistics=batch_statistics).logits(x, arch)
            if batch_statistics:
                with probing(supernet), probing(network):
                    sliced, alone = supernet(x, arch), network(small)
            else:
                sliced, alone = supernet(x, arch), network(small)
        assert sliced.abs().max() > 0.05
        torch.testing.assert_close(alone, sliced, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(masked, sliced, atol=1e-5, rtol=1e-5)
        outputs.add(tuple(sliced.flatten().tolist()))
    assert len(outputs) == len(set(archs_of(space, n_archs, seed=1)))


class Masked:
    """A subnet by masks: tensors have the supernet's sizes, what is inactive is multiplied by 0."""

    def __init__(self, supernet: ElasticSupernet, *, batch_statistics: bool) -> None:
        self.supernet, self.space = supernet, supernet.space
        self.state = {**dict(supernet.named_parameters()), **dict(supernet.named_buffers())}
        self.batch_statistics = batch_statistics

    def logits(self, x: Tensor, arch: Arch) -> Tensor:
        subnet = self.space.subnet(arch)
        x = F.interpolate(
            x, self.space.input_shape_of(arch)[1:], mode="bilinear", align_corners=False,
            antialias=True,
        )  # fmt: skip
        x = self.unit("stem", x, subnet.stem, stride=self.space.sizes.stem_stride, swish=True)
        stages = zip(self.space.sizes.stages, self.space.strides, subnet.blocks(), strict=True)
        for stage, stride, blocks in stages:
            for i, size in enumerate(blocks):
                name, first = f"{stage.name}_{i + 1}", i == 0
                x = self.block(
                    name, x, size, stride=stride if first else 1, se=stage.se,
                    shortcut=self.space.sizes.project or not first,
                )  # fmt: skip
        return self.head(x, subnet)

    def block(
        self, name: str, x: Tensor, size: BlockSize, *, stride: int, se: bool, shortcut: bool
    ) -> Tensor:
        y, mid = x, size.in_channels
        if size.expand > 1:
            mid = make_divisible(size.in_channels * size.expand)
            y = self.unit(f"{name}.expand", y, mid, swish=True)
        y = self.unit(f"{name}.depthwise", y, mid, size.kernel, stride, swish=True, depthwise=True)
        if se:
            gate = self.biased(f"{name}.se.gate.0", y.mean((2, 3), keepdim=True)).relu()
            gate = first_channels(gate, make_divisible(mid // 4))
            y = y * ((self.biased(f"{name}.se.gate.2", gate) + 3).clamp(0, 6) / 6)
        y = self.unit(f"{name}.project", y, size.channels)
        if not shortcut:
            return y
        if stride > 1:
            x = F.avg_pool2d(x, 2, ceil_mode=True) if not any(n % 2 for n in x.shape[2:]) else (
                centred_means(x)
            )  # fmt: skip
        if size.in_channels != size.channels:
            x = first_channels(F.conv2d(x, self.state[f"{name}.shortcut.conv.weight"]),
                               size.channels)  # fmt: skip
        missing = y.shape[1] - x.shape[1]  # equal in what is active, if not in all
        return y + (F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, : y.shape[1]])

    def head(self, x: Tensor, subnet: Subnet) -> Tensor:
        if self.space.sizes.wide_head:
            x = self.unit("head.expand", x, 6 * subnet.widths[-1], swish=True)
            x = F.conv2d(x.mean((2, 3), keepdim=True), self.state["head.mix.conv.weight"])
            x = first_channels(F.silu(x), subnet.last)
        else:
            x = self.unit("head.mix", x, subnet.last, swish=True).mean((2, 3), keepdim=True)
        weight, bias = self.state["head.classifier.weight"], self.state["head.classifier.bias"]
        return F.linear(x.flatten(1), weight, bias)

    def unit(
        self, name: str, x: Tensor, n: int, kernel: int = 0, stride: int = 1, *,
        swish: bool = False, depthwise: bool = False,
    ) -> Tensor:  # fmt: skip
        weight = self.state[f"{name}.conv.weight"]
        k = weight.shape[-1]
        ring = (k - (kernel or k)) // 2
        inner = F.pad(torch.ones(k - 2 * ring, k - 2 * ring), (ring,) * 4)
        groups = weight.shape[0] if depthwise else 1
        x = F.conv2d(x, weight * inner, stride=stride, padding=k // 2, groups=groups)
        mean, var, scale, shift = (
            self.state[f"{name}.norm.{what}"]
            for what in ("running_mean", "running_var", "weight", "bias")
        )
        if self.batch_statistics:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - column(mean)) / (column(var) + 1e-5).sqrt() * column(scale) + column(shift)
        return first_channels(F.silu(x) if swish else x, n)

    def biased(self, name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def column(values: Tensor) -> Tensor:
    return values[:, None, None]


def first_channels(x: Tensor, n: int) -> Tensor:
    return x * column((torch.arange(x.shape[1]) < n).float())


def centred_means(x: Tensor) -> Tensor:
    """Means of 2×2 windows that start one before the border where a side is odd."""
    height, width = x.shape[2:]
    rows = [range(max(0, i), min(height, i + 2)) for i in range(-(height % 2), height, 2)]
    columns = [range(max(0, j), min(width, j + 2)) for j in range(-(width % 2), width, 2)]
    return torch.stack(
        [torch.stack([x[:, :, list(r)][:, :, :, list(c)].mean((2, 3)) for c in columns], -1)
         for r in rows], -2,
    )  # fmt: skip
