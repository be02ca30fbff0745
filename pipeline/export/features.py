"""A backbone: a subnet without its classifier, whose outputs are its feature maps.

Heads for dense prediction (segmentation, detection) read several maps of one network, usually four.

* Convolutional networks: the last map of each of the last four resolutions, at a stride of 4, 8, 16
  and 32 pixels where the network halves its pictures five times. A network with fewer resolutions
  gives fewer maps. Maps of 1×1 are vectors and do not count.
* Transformers: the tokens after four evenly spaced blocks, the i-th of them after block
  round(i · depth / 4), halves rounded up: 3, 6, 9 and 12 of twelve, which is customary for heads on
  plain vision transformers (2, 5, 8, 11 where blocks are counted from zero). The class token is
  dropped, tokens (N, 1 + h · w, E) become a map (N, E, h, w); the classifier's layer norm is not
  applied. A network of fewer than four blocks gives one map per block.

The head's own layers (last 1×1 convolution, pooling, classifier) are no part of the file.

A map's stride is the product of the steps that lead to it; a step is size before / size after,
rounded to a whole number, because odd sizes are halved upwards. Learned resampling in front of a
network counts as the ratio that it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latency_tables.errors import ExportError, ParityError
from latency_tables.files import write_bytes
from pipeline.export.compare import ParityReport, compare_logits
from pipeline.export.onnx_export import export_subnet
from pipeline.export.onnx_file import ExportedModel, describe_onnx
from pipeline.export.parity import torch_logits
from pipeline.onnx_runtime import FloatArray, open_session
from pipeline.spaces.autoformer.blocks import Block, PatchEmbedding
from pipeline.spaces.resampled import Resample

N_MAPS = 4
"""Maps that heads for dense prediction usually read."""

Stride = tuple[float, float]
"""Pixels of the picture that a cell stands for: down, across."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """One output of a backbone: float32 (N, ``channels``, ``height``, ``width``).

    ``after`` names the piece of the network that it is the output of.
    """

    name: str
    after: str
    channels: int
    height: int
    width: int
    stride: Stride

    @property
    def size(self) -> int:
        """Numbers per picture."""
        return self.channels * self.height * self.width


class Backbone(nn.Module):
    """The pieces of a subnet up to its last feature map; :attr:`maps` describes the outputs."""

    def __init__(self, trunk: nn.Sequential, maps: tuple[FeatureMap, ...], *, tokens: bool) -> None:
        super().__init__()
        self.trunk, self.maps, self.tokens = trunk, maps, tokens

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Pictures (N, C, H, W) → maps (N, C_i, H_i, W_i), from the first to the last."""
        found, wanted = [], {m.after: m for m in self.maps}
        for name, piece in self.trunk.named_children():
            x = piece(x)
            if name in wanted:
                m = wanted[name]
                # a copy, because a later piece may work in place; the exporter drops it elsewhere
                found.append(_as_map(x, m) if self.tokens else x.clone())
        return tuple(found)


def _as_map(tokens: Tensor, m: FeatureMap) -> Tensor:
    patches = tokens[:, 1:].transpose(1, 2)  # (N, E, h · w)
    return patches.reshape(-1, m.channels, m.height, m.width)


class _Flat(nn.Module):
    """The maps of a backbone as one row per picture, so that they are compared as logits are."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([m.flatten(1) for m in self.backbone(x)], dim=1)  # (N, Σ size)


def backbone_of(network: nn.Sequential, input_shape: tuple[int, int, int]) -> Backbone:
    """The backbone of a subnet for pictures (C, H, W); it shares the weights of ``network``.

    Raises:
        ExportError: no piece of the network gives maps (N, C, H, W).

    >>> from latency_tables.arch import Arch
    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 32, 32), n_classes=10)
    >>> arch = Arch({d.label: "mb3_k3" for d in space.decisions})
    >>> backbone = backbone_of(space.network(arch), space.input_shape)
    >>> [(m.after, m.stride[0], m.channels) for m in backbone.maps]  # nothing is halved after that
    [('stem', 1.0, 8), ('layer2', 2.0, 16), ('layer5', 4.0, 32), ('layer8', 8.0, 64)]
    >>> [tuple(m.shape) for m in backbone(torch.zeros(2, 1, 32, 32))]
    [(2, 8, 32, 32), (2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4)]
    """
    shapes = _shapes(network, input_shape)
    pieces = dict(network.named_children())
    tokens = any(isinstance(piece, PatchEmbedding) for piece in pieces.values())
    maps = (_token_maps if tokens else _maps)(pieces, shapes, input_shape)
    if not maps:
        shown = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ExportError(
            f"the network has no feature maps: its pieces give, per picture, {shown}; a backbone "
            "needs pieces that end in maps (C, H, W) larger than 1x1"
        )
    last = list(pieces).index(maps[-1].after) + 1
    trunk = nn.Sequential(OrderedDict(list(pieces.items())[:last]))
    return Backbone(trunk, maps, tokens=tokens)


def _shapes(
    network: nn.Sequential, input_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """What every piece gives for one picture, without the batch."""
    weight = next(network.parameters(), torch.empty(0))
    x = torch.zeros(1, *input_shape, device=weight.device)
    was_training, found = network.training, {}
    network.eval()
    try:
        with torch.inference_mode():
            for name, piece in network.named_children():
                x = piece(x)
                found[name] = tuple(x.shape[1:])
    finally:
        network.train(was_training)
    return found


def _maps(
    pieces: Mapping[str, nn.Module],
    shapes: Mapping[str, tuple[int, ...]],
    input_shape: tuple[int, int, int],
) -> tuple[FeatureMap, ...]:
    """The last map at each of the last few strides, once there is a layer that sees a picture."""
    at_stride: dict[Stride, str] = {}
    size, stride, seen = input_shape[1:], (1.0, 1.0), False
    for name, shape in shapes.items():
        resamples = isinstance(pieces[name], Resample)
        seen = seen or (not resamples and any(True for _ in pieces[name].parameters()))
        if len(shape) != 3 or shape[1:] == (1, 1):
            continue  # a vector, pooled or flat
        ratio = (size[0] / shape[1], size[1] / shape[2])
        step = ratio if resamples else tuple(round(r) if r > 1 else r for r in ratio)
        size, stride = (shape[1], shape[2]), (stride[0] * step[0], stride[1] * step[1])
        if seen:
            at_stride.pop(stride, None)  # the order is that of the last maps
            at_stride[stride] = name
    chosen = list(at_stride.items())[-N_MAPS:]
    return tuple(
        _feature_map(i, name, (shapes[name][0], shapes[name][1], shapes[name][2]), stride)
        for i, (stride, name) in enumerate(chosen, start=1)
    )


def _token_maps(
    pieces: Mapping[str, nn.Module],
    shapes: Mapping[str, tuple[int, ...]],
    input_shape: tuple[int, int, int],
) -> tuple[FeatureMap, ...]:
    """The tokens after evenly spaced blocks, as maps."""
    (embedding,) = (p for p in pieces.values() if isinstance(p, PatchEmbedding))
    patch = embedding.project.kernel_size
    blocks = [name for name, piece in pieces.items() if isinstance(piece, Block)]
    grid = (input_shape[1] // patch[0], input_shape[2] // patch[1])
    stride = (float(patch[0]), float(patch[1]))
    return tuple(
        _feature_map(i, blocks[n - 1], (shapes[blocks[n - 1]][-1], *grid), stride)
        for i, n in enumerate(evenly_spaced(len(blocks)), start=1)
    )


def evenly_spaced(depth: int) -> tuple[int, ...]:
    """After which blocks of a transformer its maps are taken, counted from one.

    >>> evenly_spaced(12), evenly_spaced(13), evenly_spaced(14), evenly_spaced(3)
    ((3, 6, 9, 12), (3, 7, 10, 13), (4, 7, 11, 14), (1, 2, 3))
    """
    n = min(depth, N_MAPS)
    return tuple((2 * i * depth + n) // (2 * n) for i in range(1, n + 1))  # halves go up


def _feature_map(
    number: int, after: str, shape: tuple[int, int, int], stride: Stride
) -> FeatureMap:
    channels, height, width = shape
    return FeatureMap(
        name=f"features_{number}",
        after=after,
        channels=channels,
        height=height,
        width=width,
        stride=stride,
    )


def export_backbone(
    backbone: Backbone,
    images: FloatArray,
    path: Path,
    *,
    opset: int,
    ir_version: int,
    tolerance: float,
    threads: int = 1,
) -> tuple[ExportedModel, tuple[ParityReport, ...]]:
    """Write ``backbone`` as ONNX once it agrees with torch on ``images`` (N, C, H, W).

    The batch is fixed at one, as that of an exported subnet is. A map may differ by ``tolerance``
    times its largest number, or times one where all are smaller. A file that disagrees is left as
    ``<stem>.refused.onnx``; an older one at ``path`` stays untouched.

    Returns:
        The file, and one report per map.

    Raises:
        ParityError: torch and the file disagree; the message names the maps.
        ExportError: the network cannot be exported.
    """
    candidate = path.with_name(f"{path.stem}.refused{path.suffix}")
    _, channels, height, width = images.shape
    names = tuple(m.name for m in backbone.maps)
    export_subnet(
        backbone,
        (channels, height, width),
        candidate,
        opset=opset,
        ir_version=ir_version,
        output_names=names,
    )
    reports = _compare(backbone, candidate, images, tolerance=tolerance, threads=threads)
    _require(reports, backbone.maps, candidate.name)
    write_bytes(path, candidate.read_bytes())
    candidate.unlink()
    return describe_onnx(path), reports


def _compare(
    backbone: Backbone, path: Path, images: FloatArray, *, tolerance: float, threads: int
) -> tuple[ParityReport, ...]:
    expected = torch_logits(_Flat(backbone), images)  # (N, Σ size)
    actual = _run(path, backbone.maps, images, threads=threads)
    ends = np.cumsum([m.size for m in backbone.maps])[:-1]
    return tuple(
        compare_logits(of_torch, of_file, tolerance=tolerance)
        for of_torch, of_file in zip(
            np.split(expected, ends, axis=1), np.split(actual, ends, axis=1), strict=True
        )
    )


def _run(path: Path, maps: Sequence[FeatureMap], images: FloatArray, *, threads: int) -> FloatArray:
    """The file's maps, one row per picture."""
    session = open_session(path, threads=threads)
    given, wanted = session.get_inputs()[0].name, [m.name for m in maps]
    rows = []
    for i in range(len(images)):
        found = session.run(wanted, {given: images[i : i + 1]})
        rows.append(np.concatenate([m.reshape(1, -1) for m in found], axis=1))
    return np.concatenate(rows)


def _require(reports: Sequence[ParityReport], maps: Sequence[FeatureMap], name: str) -> None:
    """Raise unless every number is close enough; which number of a map is largest says nothing."""
    wrong = [
        f"{m.name} by up to {r.max_abs_diff:.3g} ({r.allowed:.3g} is allowed)"
        for r, m in zip(reports, maps, strict=True)
        if not r.max_abs_diff <= r.allowed  # no number is not close, either
    ]
    if wrong:
        raise ParityError(
            f"{name} and torch disagree on {reports[0].n_images} real images: {', '.join(wrong)}",
            hint="another opset in [export]; a larger tolerance only if the difference is harmless",
        )
