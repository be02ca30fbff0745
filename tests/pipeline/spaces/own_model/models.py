"""Models as a user might write them, with choices and elastic layers in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.own_model import Choice, Elastic


class Plain(nn.Module):
    """Convolutions one after the other, then flattened pictures."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = Elastic(nn.Conv2d(3, 16, 3, padding=1, bias=False), width=(8, 12, 16))
        self.norm = nn.BatchNorm2d(16)
        self.second = Elastic(nn.Conv2d(16, 24, 5, 2, 2), width=(16, 24), kernel=(3, 5))
        self.block = Choice(
            "block",
            {
                "k3": nn.Conv2d(24, 24, 3, padding=1),
                "k5": nn.Conv2d(24, 24, 5, padding=2),
                "skip": nn.Identity(),
            },
        )
        self.drop = nn.Dropout(0.1)
        self.fc1 = Elastic(nn.Linear(24 * 4 * 4, 32), width=(16, 32))
        self.fc2 = nn.Linear(32, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.second(x))
        x = torch.relu(self.block(x))
        x = x.view(x.size(0), -1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


class Basic(nn.Module):
    """A residual block whose inner width and kernel are its own."""

    def __init__(self, n_in: int, n_out: int, stride: int, stage: str) -> None:
        super().__init__()
        wide = (n_out // 2, n_out)
        self.conv1 = Elastic(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), width=wide, kernel=(1, 3)
        )
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = Elastic(
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), width=wide, label=f"{stage}.width"
        )
        self.bn2 = nn.BatchNorm2d(n_out)
        self.down = None
        if stride != 1 or n_in != n_out:
            # plain: it follows what it is added to
            self.down = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        same = x if self.down is None else self.down(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += same
        return self.relu(x)


class Residual(nn.Module):
    """Two residual stages with linked widths, the second of elastic depth."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)  # follows stage 1
        self.stage1 = nn.Sequential(Basic(8, 8, 1, "stage1"), Basic(8, 8, 1, "stage1"))
        self.stage2 = Elastic(
            nn.Sequential(
                Basic(8, 16, 2, "stage2"), Basic(16, 16, 1, "stage2"), Basic(16, 16, 1, "stage2")
            ),
            depth=(1, 2, 3),
        )
        self.fc = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.stage1(self.stem(x)))
        return self.fc(x.mean((2, 3)))


class Inception(nn.Module):
    """Branches of different widths side by side, dense connections, batch norms after them."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.one = Elastic(nn.Conv2d(3, 8, 1), width=(4, 8))
        self.three = Elastic(nn.Conv2d(3, 12, 3, padding=1), width=(6, 9, 12))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 4, 1))
        self.norm = nn.BatchNorm2d(24)
        self.mix = nn.Conv2d(24, 24, 1)  # added to the concatenation: follows all its parts
        self.spread = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.dense = Elastic(nn.Conv2d(24, 8, 3, padding=1), width=(4, 8))
        self.fc = nn.Linear(32 * 16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.one(x), self.three(x), self.pool(x)], dim=1)
        x = F.relu(self.norm(x))
        x = F.relu(x + self.mix(x))
        x = self.spread(x)
        x = torch.cat((x, F.relu(self.dense(x))), 1)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 4), 1))


class Squeeze(nn.Module):
    """Squeeze-and-excitation as it is often written."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 4)
        self.fc2 = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.fc2(F.relu(self.fc1(y)))).view(b, c, 1, 1)
        return x * y


def inverted(n_in: int, n_mid: int, n_out: int, k: int, *, se: bool) -> nn.Sequential:
    """An inverted bottleneck whose middle is elastic."""
    return nn.Sequential(
        Elastic(nn.Conv2d(n_in, n_mid, 1, bias=False), width=(n_mid // 2, n_mid)),
        nn.BatchNorm2d(n_mid),
        nn.ReLU6(),
        nn.Conv2d(n_mid, n_mid, k, padding=k // 2, groups=n_mid, bias=False),
        nn.BatchNorm2d(n_mid),
        nn.ReLU6(),
        Squeeze(n_mid) if se else nn.Identity(),
        nn.Conv2d(n_mid, n_out, 1, bias=False),
        nn.BatchNorm2d(n_out),
    )


class Skip(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Mobile(nn.Module):
    """Depthwise convolutions, squeeze-and-excitation, choices with elastic layers inside."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Elastic(nn.Conv2d(3, 16, 3, 2, 1), width=(8, 16), label="body"),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
        )
        self.blocks = nn.ModuleList(
            Choice(
                f"block{i}",
                {
                    "mb3": Skip(inverted(16, 32, 16, 3, se=False)),
                    "mb5se": Skip(inverted(16, 48, 16, 5, se=True)),
                    "skip": nn.Identity(),
                },
            )
            for i in range(3)
        )
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(self.norm(self.grouped(x))))


class Attention(nn.Module):
    """Self-attention with a number of heads that follows the width."""

    def __init__(self, dim: int, head: int, name: str) -> None:
        super().__init__()
        self.head = head
        widths = (dim // 2, dim)
        self.q = Elastic(nn.Linear(dim, dim), width=widths, label=f"{name}.heads")
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            layer(x).view(b, n, -1, self.head).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-2, -1)) * self.head**-0.5
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        return self.out(y)


class Transformer(nn.Module):
    """A vision transformer: elastic embedding, heads and hidden widths."""

    def __init__(self, n_classes: int = 10, dim: int = 24) -> None:
        super().__init__()
        self.embed = Elastic(nn.Conv2d(3, dim, 4, 4), width=(16, dim), label="embed")
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 5, dim) * 0.02)
        self.blocks = nn.ModuleList()
        for i in range(2):
            block = nn.Module()
            block.norm1, block.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            block.attention = Attention(dim, 6, f"block{i}")
            block.mlp = nn.Sequential(
                Elastic(nn.Linear(dim, 2 * dim), width=(dim, 2 * dim)),
                nn.GELU(),
                nn.Linear(2 * dim, dim),
            )
            self.blocks.append(block)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = x + block.attention(block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        return self.head(self.norm(x)[:, 0])


class Mixer(nn.Module):
    """Linear layers over patches and over channels in turn."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.embed = Elastic(nn.Conv2d(3, 12, 2, 2), width=(8, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.tokens = nn.Sequential(
            Elastic(nn.Linear(16, 32), width=(16, 32)), nn.GELU(), nn.Linear(32, 16)
        )
        self.channels = nn.Sequential(
            Elastic(nn.Linear(12, 24), width=(12, 24)), nn.GELU(), nn.Linear(24, 12)
        )
        self.head = nn.Linear(12, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(dim=1))


class Nested(nn.Module):
    """A choice inside a choice, an elastic layer inside both, equal counts outside."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        inner = Choice(
            "inner",
            {
                "narrow": nn.Sequential(
                    Elastic(nn.Conv2d(8, 16, 1), width=(4, 8, 16)), nn.ReLU(), nn.Conv2d(16, 8, 1)
                ),
                "pool": nn.AvgPool2d(3, 1, 1),
            },
        )
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.outer = Choice(
            "outer", {"deep": nn.Sequential(inner, nn.ReLU()), "shallow": nn.Conv2d(8, 8, 1)}
        )
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.outer(F.relu(self.stem(x))))
        return self.fc(F.relu(x).mean(dim=[2, 3]))


MODELS = {
    "plain": Plain,
    "residual": Residual,
    "inception": Inception,
    "mobile": Mobile,
    "transformer": Transformer,
    "mixer": Mixer,
    "nested": Nested,
}
SHAPE = (3, 8, 8)
