"""Read the weights of a trained network from a file; code is never run.

``.safetensors`` (also ``supernet.safetensors`` of a run folder), ``.pth``/``.pt`` (tensors only),
``.onnx`` (initialisers in the order of the graph). A safetensors file sorts its tensors by name,
so their order follows from numbers in names and from the channels that fit.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latency_tables.errors import CheckpointError
from latency_tables.files import sha256_file
from pipeline.supernet.warm_start.layers import Layer, Norm, layers_of, with_first
from pipeline.supernet.warm_start.structure import Piece, in_chain_order, pieces_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".onnx")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema")
_HINT = f"a {', '.join(SUFFIXES)} file, or the folder of a run that has trained"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """A trained network: its pieces in order, and its tensors by name where it has names."""

    origin: str
    pieces: tuple[Piece, ...] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)


def weights_file(path: Path) -> Path:
    """The file that ``path`` (a file, or the folder of a run) names.

    Raises:
        CheckpointError: it does not exist, or is of a kind that is not read.
    """
    if path.is_dir():
        path = path / "supernet.safetensors"
        if not path.is_file():
            raise CheckpointError(
                f"warm start: {path.parent} holds no supernet.safetensors",
                hint="a folder in which 'hilnas train' has finished",
            )
    if not path.is_file():
        raise CheckpointError(f"warm start: {path} does not exist", hint=_HINT)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"warm start: {path.name} ends in {path.suffix!r}; allowed: {', '.join(SUFFIXES)}",
            hint=_HINT,
        )
    return path


def weights_sha256(path: Path) -> str:
    """Hash of the weights' file: what a run depends on, wherever the file lies.

    Raises:
        CheckpointError: as :func:`weights_file`.
    """
    return sha256_file(weights_file(path))


def read_weights(path: Path) -> Weights:
    """Read a trained network as float32 on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, holds Python objects, no
            weights of layers, or a value that is not finite.
    """
    path = weights_file(path)
    if path.suffix == ".onnx":
        layers = _onnx_layers(path)
        tensors = {k: t for layer in layers for k, t in layer.tensors().items()}
        pieces = pieces_of(layers)
    elif path.suffix == ".safetensors":
        tensors = _safetensors(path)
        ordered = _by_structure(_largest_choices(tensors))
        pieces = in_chain_order(pieces_of(with_first(layers_of(ordered))))
    else:
        tensors = _torch_tensors(path)
        pieces = pieces_of(with_first(layers_of(tensors)))
    if not pieces:
        raise CheckpointError(
            f"warm start: {path.name} holds no weights of convolutions or matrices", hint=_HINT
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"warm start: {name} of {path.name} holds values not finite")
    return Weights(origin=path.name, pieces=tuple(pieces), tensors=tensors)


def _floats(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().float()
        for name, tensor in found.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as stream:
            found = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"warm start: {path.name} cannot be read: {error}") from error
    return _floats(found)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"warm start: {path.name} is damaged or holds Python objects, which are not loaded: "
            f"{_first_line(error)}",
            hint="torch.save(model.state_dict(), path)",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, LookupError) as error:
        raise CheckpointError(
            f"warm start: {path.name} cannot be read: {_first_line(error)}",
            hint="copy the file again",
        ) from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"warm start: {path.name} holds a {type(found).__name__}, not tensors by name",
            hint="torch.save(model.state_dict(), path)",
        )
    return _floats(found)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def _largest_choices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a supernet's choices (``blocks.POSITION.CHOICE...``) the one with most weights each."""
    sizes: dict[str, dict[str, int]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] != "blocks" or len(parts) < 4 or parts[1].isdigit():
            return dict(tensors)
        choices = sizes.setdefault(parts[1], {})
        choices[parts[2]] = choices.get(parts[2], 0) + tensor.numel()
    largest = {position: max(found, key=lambda c: found[c]) for position, found in sizes.items()}
    return {k: t for k, t in tensors.items() if largest[k.split(".")[1]] == k.split(".")[2]}


def _by_structure(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sort by the numbers in names; where siblings have no numbers, by what they can only be.

    Siblings are the stem, the 1×1 convolution that writes the depthwise one's channels, the
    depthwise one, other 1×1 convolutions, the classifier; the k-th batch norm belongs to the k-th
    convolution.
    """
    modules: dict[str, list[str]] = {}
    for name in sorted(tensors, key=_natural):
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    families: dict[str, list[str]] = {}
    for module in modules:
        parent, _, leaf = module.rpartition(".")
        families.setdefault(module if leaf.isdigit() else parent, []).append(module)
    ordered: list[str] = []
    for members in families.values():
        ordered += _siblings(members, tensors) if len(members) > 1 else members
    return {name: tensors[name] for module in ordered for name in modules[module]}


def _siblings(members: Sequence[str], tensors: Mapping[str, Tensor]) -> list[str]:
    norms = [m for m in members if f"{m}.running_mean" in tensors]
    layers = {
        m: Layer(name=m, weight=tensors[f"{m}.weight"])
        for m in members
        if m not in norms and f"{m}.weight" in tensors
    }
    mids = {layer.out_channels for layer in layers.values() if layer.is_depthwise}

    def rank(name: str) -> int:
        layer = layers[name]
        if layer.is_dense or layer.is_depthwise:
            return 2 if layer.is_depthwise else 0
        if layer.is_linear:
            return 4
        return 1 if layer.out_channels in mids and layer.weight.shape[1] not in mids else 3

    ordered: list[str] = []
    spare = iter(norms)
    for name in sorted(layers, key=rank):
        ordered.append(name)
        norm = None if layers[name].is_linear else next(spare, None)
        ordered += [] if norm is None else [norm]
    return ordered


def _onnx_layers(path: Path) -> tuple[Layer, ...]:
    """Convolutions and matrices of a graph in its order, with batch norms that are not folded."""
    import onnx
    from onnx import numpy_helper

    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError has no typed home to import it from
        raise CheckpointError(f"warm start: {path.name} cannot be read: {error}") from error
    values: dict[str, Tensor] = {}
    for found in model.graph.initializer:
        if found.data_location == onnx.TensorProto.EXTERNAL:
            raise CheckpointError(f"warm start: {path.name} keeps weights outside the file")
        array = numpy_helper.to_array(found)
        if array.dtype.kind == "f":
            values[found.name] = torch.from_numpy(array.astype("float32"))
    layers: list[Layer] = []
    for node in model.graph.node:
        held = [values.get(name) for name in node.input]
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(held) > 1 and held[1] is not None:
            weight = held[1]
            if node.op_type == "MatMul" or (node.op_type == "Gemm" and not given.get("transB")):
                weight = weight.T
            bias = held[2] if len(held) > 2 else None
            if weight.dim() in (2, 4):
                layers.append(Layer(name=node.input[1], weight=weight, bias=bias))
        elif (
            node.op_type == "BatchNormalization" and layers and all(t is not None for t in held[1:])
        ):
            scale, shift, mean, variance = held[1:5]
            last = layers[-1]
            if mean is not None and variance is not None and len(mean) == last.out_channels:
                norm = Norm(
                    name=node.name or node.output[0], mean=mean, variance=variance, weight=scale,
                    bias=shift, epsilon=float(given.get("epsilon", 1e-5)),
                )  # fmt: skip
                layers[-1] = replace(last, norm=norm)
    return with_first(tuple(layers))
