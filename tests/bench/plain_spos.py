"""SPOS in sixty lines, as a tutorial would write it: the rival of :mod:`tests.bench.ranking`.

Uniform paths, batch statistics in training and in scoring, SGD with a cosine, one precision, no
augmentation. It uses nothing of hilnas; the space is NAS-Bench-Macro's.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (2, 3, 3)


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
    norm = nn.BatchNorm2d(c_out, track_running_stats=False)
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), norm]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class MBConv(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int, expand: int, stride: int) -> None:
        super().__init__()
        mid = c_in * expand
        self.body = nn.Sequential(
            conv(c_in, mid, 1), conv(mid, mid, kernel, stride, mid), conv(mid, c_out, 1, relu=False)
        )
        self.skip = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


class PlainSupernet(nn.Module):
    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.layers, c = conv(3, width, 3), nn.ModuleList(), width
        for stage, length in enumerate(STAGES):
            for index in range(length):
                c_out, stride = width * 2 ** (stage + 1), 2 if index == 0 else 1
                skip = nn.Identity() if index else conv(c, c_out, 1, stride, relu=False)
                blocks = [skip, MBConv(c, c_out, 3, 3, stride), MBConv(c, c_out, 5, 6, stride)]
                self.layers.append(nn.ModuleList(blocks))
                c = c_out
        self.head, self.classify = conv(c, 40 * width, 1), nn.Linear(40 * width, classes)

    def forward(self, x: Tensor, genome: list[int]) -> Tensor:
        x = self.stem(x)
        for layer, choice in zip(self.layers, genome, strict=True):
            x = layer[choice](x)
        return self.classify(self.head(x).mean((2, 3)))


def plain_train(
    net: PlainSupernet, x: Tensor, y: Tensor, *, epochs: float, seed: int, bf16: bool = True
) -> None:
    """Train on pictures x (N, 3, H, W) with labels y (N,), for ``epochs`` passes over them."""
    torch.manual_seed(seed)
    rng, batch = np.random.default_rng(seed), 128
    steps = int(epochs * (len(x) // batch))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=4e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(x))
        chosen, order = order[:batch], order[batch:]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(x[chosen], rng.integers(0, 3, size=8).tolist())
        F.cross_entropy(logits.float(), y[chosen]).backward()
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def plain_score(
    net: PlainSupernet, x: Tensor, y: Tensor, genome: list[int], bf16: bool = True
) -> float:
    """Accuracy with the statistics of the (few, large) batches themselves."""
    right = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for images, labels in zip(x.split(500), y.split(500), strict=True):
            right += int((net(images, genome).argmax(1) == labels).sum())
    return right / len(x)
