"""The layers of a network: weights with the batch norm behind them, in the order of a state dict.

Tensors are those that were given, not copies: writing to a target's layer writes to the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DEFAULT_EPSILON = 1e-5
"""What a batch norm adds to the variance where the file does not say (torch's default)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """One batch norm over C channels; ``weight`` and ``bias`` are None where it has none."""

    name: str
    mean: Tensor  # (C,)
    variance: Tensor  # (C,)
    weight: Tensor | None = None  # (C,)
    bias: Tensor | None = None  # (C,)
    epsilon: float = DEFAULT_EPSILON


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One convolution (out, in / groups, k, k) or matrix (out, in), with what follows it."""

    name: str
    weight: Tensor
    bias: Tensor | None = None
    norm: Norm | None = None
    reads_image: bool = False
    """Whether it is the first layer: of a grey picture it looks like a depthwise one."""

    @property
    def out_channels(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    @property
    def in_channels(self) -> int:
        """Channels that it reads; of a depthwise convolution as many as it writes."""
        return self.out_channels if self.is_depthwise else self.weight.shape[1]

    @property
    def is_linear(self) -> bool:
        """Whether it is a matrix."""
        return self.weight.dim() == 2

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel has a kernel of its own (larger than 1×1)."""
        w = self.weight
        if self.reads_image or w.dim() != 4:
            return False
        return w.shape[1] == 1 and w.shape[0] > 1 and w.shape[-1] > 1

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a 1×1 convolution."""
        return self.weight.dim() == 4 and self.weight.shape[-1] == 1

    @property
    def is_dense(self) -> bool:
        """Whether it is a convolution over all channels with a kernel larger than 1×1."""
        return self.weight.dim() == 4 and not self.is_depthwise and not self.is_pointwise

    def tensors(self) -> dict[str, Tensor]:
        """Everything that it holds, under the names of the state dict."""
        found = {f"{self.name}.weight": self.weight, f"{self.name}.bias": self.bias}
        if self.norm is not None:
            norm = self.norm
            found[f"{norm.name}.weight"], found[f"{norm.name}.bias"] = norm.weight, norm.bias
            found[f"{norm.name}.running_mean"] = norm.mean
            found[f"{norm.name}.running_var"] = norm.variance
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def layers_of(state: Mapping[str, Tensor], epsilon: float = DEFAULT_EPSILON) -> tuple[Layer, ...]:
    """Group a state dict into layers, in its order; a batch norm joins the layer before it.

    Tensors of other kinds (embeddings, layer norms, 3-D tokens) are left out.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    >>> [(layer.name, layer.norm is not None) for layer in layers_of(net.state_dict())]
    [('0', True), ('3', False)]
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = tensor
    layers: list[Layer] = []
    for module, held in modules.items():
        weight, bias = held.get("weight"), held.get("bias")
        if "running_mean" in held and "running_var" in held:
            norm = Norm(
                name=module,
                mean=held["running_mean"],
                variance=held["running_var"],
                weight=weight,
                bias=bias,
                epsilon=epsilon,
            )
            last = layers[-1] if layers else None
            if last and last.norm is None and last.out_channels == len(norm.mean):
                layers[-1] = replace(last, norm=norm)
        elif weight is not None and weight.dim() in (2, 4) and torch.is_floating_point(weight):
            layers.append(Layer(name=module, weight=weight, bias=bias))
    return tuple(layers)


def with_first(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Mark the layer that reads the image: the one called a stem, else the first one."""
    named = [i for i, layer in enumerate(layers) if "stem" in layer.name]
    at = named[0] if named else 0
    return tuple(
        replace(layer, reads_image=True) if i == at and layer.weight.dim() == 4 else layer
        for i, layer in enumerate(layers)
    )
