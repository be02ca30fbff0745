"""How layers pass widths on, and which part of their weights an architecture uses.

A rule gets the layer, what comes in, and the shape of what goes out at the largest sizes; it gives
the axes of the output and fills in a :class:`Layer`: the axes of the layer's tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from torch import Tensor, fx, nn

from latency_tables.errors import SpaceError
from pipeline.spaces.own_model import dims, rules
from pipeline.spaces.own_model.dims import Atom, Dim, Part
from pipeline.spaces.own_model.pieces import Layer
from pipeline.spaces.own_model.trace import site
from pipeline.spaces.own_model.values import Ties, Value

Rule = Callable[[Ties, fx.Node, nn.Module, Layer, Value, Tensor, Atom | None], Value]


def call(
    ties: Ties,
    node: fx.Node,
    module: nn.Module,
    layer: Layer,
    value: Value,
    out: Tensor,
    width: Atom | None = None,
) -> Value:
    """What a layer gives; fills in ``layer``. ``width`` is its elastic width, if it has one.

    Raises:
        SpaceError: widths that the layer cannot follow; names the layers.
    """
    for kind, rule in RULES.items():
        if hasattr(module, "parametrizations"):
            break  # its weights are computed from others
        if isinstance(module, kind):
            return rule(ties, node, module, layer, value, out, width)
    own = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
    for kinds, keep in _WITHOUT_WEIGHTS:
        if isinstance(module, kinds) and not own:
            found: Value = keep(ties, node, (value,), {}, out)
            return found
    if own or isinstance(module, _MOVES_ENTRIES):
        ties.fix(node, value, range(len(value.axes)), f"{type(module).__name__} needs fixed sizes")
        made: Value = rules.opaque(ties, node, (value,), {}, out)
        return _made_by(layer, made) if own else made
    passed: Value = rules.aligned(ties, node, (value,), {}, out)
    return passed


def _made_by(layer: Layer, value: Value) -> Value:
    return Value(tensor=value.tensor, axes=value.axes, maker=layer.name)


def _convolution(
    ties: Ties,
    node: fx.Node,
    module: nn.Module,
    layer: Layer,
    value: Value,
    out: Tensor,
    width: Atom | None,
) -> Value:
    """Slices rows by the output's parts and columns by the input's."""
    conv: nn.Conv2d = module  # type: ignore[assignment]
    axis = value.tensor.ndim - len(conv.kernel_size) - 1
    incoming = value.axes[axis]
    if axis == 0:
        raise SpaceError(f"{layer.name!r} gets a tensor without batch at {site(node)}")
    kernel = (None,) * len(conv.kernel_size)
    if conv.groups == 1:
        made = _outputs(width, conv.out_channels, layer)
        weight: tuple[Dim | None, ...] = (made, incoming, *kernel)
    else:
        made = _grouped(ties, node, conv, layer, value, axis, width)
        weight = (made, None, *kernel)
        tied = width is None or conv.groups == conv.in_channels == conv.out_channels
        if tied:
            block = Fraction(1, conv.in_channels // conv.groups)
            layer.attributes["groups"] = dims.scaled(incoming, block)
    layer.tensors |= {"weight": weight, "bias": (made,)}
    layer.attributes |= {"in_channels": incoming, "out_channels": made}
    axes = [dims.fixed(n, "it is a picture's size") for n in out.shape]
    axes[:axis], axes[axis] = value.axes[:axis], made
    return Value(tensor=out, axes=tuple(axes), maker=layer.name)


def _outputs(width: Atom | None, size: int, layer: Layer) -> Dim:
    return dims.free(size, layer.name) if width is None else (Part(width),)


def _grouped(
    ties: Ties,
    node: fx.Node,
    conv: nn.Conv2d,
    layer: Layer,
    value: Value,
    axis: int,
    width: Atom | None,
) -> Dim:
    """Outputs of a convolution with groups.

    A plain one keeps the size of its groups, so that a narrower input has fewer of them; depthwise
    is the case of size one. An elastic one keeps its input and the number of groups.
    """
    incoming, groups = value.axes[axis], conv.groups
    if width is None:
        n_in, n_out = conv.in_channels // groups, conv.out_channels // groups
        parts = dims.resolve(incoming)
        if any(part.size % n_in for part in parts):
            ties.fix(node, value, [axis], f"{layer.name!r} has groups across concatenated inputs")
        return dims.scaled(incoming, Fraction(n_out, n_in))
    if groups == conv.in_channels == conv.out_channels:
        ties.tie(node, incoming, value.maker, (Part(width),), layer.name)
        return (Part(width),)
    if dims.elastic_atom(incoming) is not None:
        raise SpaceError(
            f"'{layer.name}' (width {', '.join(map(str, width.options))}) has {groups} groups and "
            f"an elastic input, which {value.maker!r} sets ({', '.join(dims.labels_of(incoming))})",
            hint="leave its own width out: a plain grouped convolution follows its input",
        )
    bad = [n for n in width.options if n % groups]
    if bad:
        raise SpaceError(
            f"'{layer.name}': {groups} groups do not divide the widths {bad}",
            hint=f"use multiples of {groups}",
        )
    ties.fix(node, value, [axis], f"{layer.name!r} has groups and a width of its own")
    return (Part(width, Fraction(1, groups)),) * groups


def _linear(
    ties: Ties,
    node: fx.Node,
    module: nn.Module,
    layer: Layer,
    value: Value,
    out: Tensor,
    width: Atom | None,
) -> Value:
    """The last axis becomes another."""
    linear: nn.Linear = module  # type: ignore[assignment]
    made, incoming = _outputs(width, linear.out_features, layer), value.axes[-1]
    layer.tensors |= {"weight": (made, incoming), "bias": (made,)}
    layer.attributes |= {"in_features": incoming, "out_features": made}
    return Value(tensor=out, axes=(*value.axes[:-1], made), maker=layer.name)


def _channel_norm(
    ties: Ties,
    node: fx.Node,
    module: nn.Module,
    layer: Layer,
    value: Value,
    out: Tensor,
    width: Atom | None,
) -> Value:
    """Batch, instance and group norms: vectors over axis 1."""
    dim = value.axes[1]
    names = ("weight", "bias", "running_mean", "running_var")
    layer.tensors |= {name: (dim,) for name in names if getattr(module, name, None) is not None}
    layer.attributes["num_channels" if isinstance(module, nn.GroupNorm) else "num_features"] = dim
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        layer.checks.append((dim, module.num_groups))
    return Value(tensor=out, axes=value.axes, maker=value.maker)


def _layer_norm(
    ties: Ties,
    node: fx.Node,
    module: nn.Module,
    layer: Layer,
    value: Value,
    out: Tensor,
    width: Atom | None,
) -> Value:
    """Tensors over the last axes."""
    last = value.axes[len(value.axes) - len(module.normalized_shape) :]  # type: ignore[arg-type]
    names = ("weight", "bias")
    layer.tensors |= {name: last for name in names if getattr(module, name, None) is not None}
    layer.attributes["normalized_shape"] = last
    return Value(tensor=out, axes=value.axes, maker=value.maker)


def _prelu(
    ties: Ties,
    node: fx.Node,
    module: nn.Module,
    layer: Layer,
    value: Value,
    out: Tensor,
    width: Atom | None,
) -> Value:
    """One slope for all, or one per channel."""
    if module.num_parameters != 1:
        layer.tensors["weight"] = (value.axes[1],)
        layer.attributes["num_parameters"] = value.axes[1]
    return Value(tensor=out, axes=value.axes, maker=value.maker)


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.modules.batchnorm._BatchNorm: _channel_norm,
    nn.modules.instancenorm._InstanceNorm: _channel_norm,
    nn.GroupNorm: _channel_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.PReLU: _prelu,
}
"""Kind of a layer with weights → its rule; other layers with weights need fixed sizes."""

_RESAMPLING = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.Upsample,
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
)
_WITHOUT_WEIGHTS: tuple[tuple[tuple[type[nn.Module], ...], rules.Rule], ...] = (
    (_RESAMPLING, rules.resample),
    ((nn.Flatten, nn.Unflatten), rules.reshape),
)
_MOVES_ENTRIES = (nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)
