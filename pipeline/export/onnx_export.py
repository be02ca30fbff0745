"""Write a trained subnet as one self-contained ONNX file.

Batch norms are folded into the convolutions before them, weights are embedded, the batch is fixed
at one: input ``image`` (1, C, H, W) float32, normalised; output ``logits`` (1, n_classes). Doc
strings and metadata are removed, because torch's exporter writes source paths into them, and a
file must not tell on whose machine it was made. The same network gives the same bytes.

torch's exporter leaves the model at 18 when asked for an older opset, so it is asked for 18 and
:mod:`pipeline.export.convert_down` does the rest.
"""

from __future__ import annotations

import copy
import io
import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from latency_tables.errors import ConfigError, ExportError
from latency_tables.files import write_bytes
from pipeline.export.config import MAX_IR, MAX_OPSET, MIN_IR, MIN_OPSET
from pipeline.export.convert_down import EXPORTER_OPSET, convert_down
from pipeline.export.onnx_file import INPUT_NAME, OUTPUT_NAME, ExportedModel, describe_model
from pipeline.export.runtime_fit import PREFERRED_IR, PREFERRED_OPSET
from pipeline.onnx_runtime import open_session

PRODUCER = "hilnas"


def export_subnet(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    path: Path,
    *,
    opset: int = PREFERRED_OPSET,
    ir_version: int = PREFERRED_IR,
    output_names: Sequence[str] = (OUTPUT_NAME,),
) -> ExportedModel:
    """Write ``network`` for images (C, H, W) to ``path`` and load it once with onnxruntime.

    The network is copied; it may live on any device and in any mode and is left as it was. Choose
    ``opset`` and ``ir_version`` with :func:`pipeline.export.runtime_fit.choose_format`. A network
    that gives a tuple needs as many ``output_names``.

    Raises:
        ConfigError: an opset or IR version that cannot be written.
        ExportError: torch's exporter, onnx's checker or onnxruntime refuses the network.
    """
    _check_format(opset, ir_version)
    folded = plain_gelu(plain_pooling(fold_batch_norms(network)))
    example = torch.zeros(1, *input_shape)
    model = _run_exporter(folded, example, max(opset, EXPORTER_OPSET), output_names)
    _strip(model)
    if opset < EXPORTER_OPSET:
        convert_down(model, opset)
    model.ir_version = ir_version
    model.producer_name, model.producer_version = PRODUCER, ""
    model.graph.name = "subnet"
    _check(model, opset)
    data = model.SerializeToString(deterministic=True)
    open_session(data)
    write_bytes(path, data)
    return describe_model(model, path, data)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """An fp32 CPU copy in eval mode whose batch norms are folded into the convolutions before them.

    Folds inside ``nn.Sequential`` where a batch norm directly follows a convolution; others are
    left to the exporter. The scale is computed in float64, so that folding costs no accuracy.
    """
    copied = copy.deepcopy(network).cpu().double().eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
        if parameter.grad is not None:
            parameter.grad = None
    for module in list(copied.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (name, conv), (bn_name, bn) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())  # keeps the names of what follows
    folded: nn.Module = copied.float()
    for parameter in folded.parameters():  # training may have left them in channels_last
        parameter.data = parameter.data.contiguous()
    return folded


class _GlobalMean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3), keepdim=True)  # (N, C, H, W) -> (N, C, 1, 1)


def plain_pooling(network: nn.Module) -> nn.Module:
    """Say global average pooling as a mean, in place.

    torch decomposes ``AdaptiveAvgPool2d(1)`` into a mean and a copy with other strides, which
    becomes a Reshape and a Gather: 9 % of the latency of a small network. Guarded by
    ``test_the_exported_file_has_the_operators_of_the_measured_candidate``.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, _GlobalMean())
    return network


class _GELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.erf(x / math.sqrt(2.0)) + 1.0) * 0.5


def plain_gelu(network: nn.Module) -> nn.Module:
    """Say exact GELUs in the order of products that runtimes fuse, in place.

    torch's exporter writes x · (0.5 · (1 + erf)) before opset 20, which onnxruntime runs as five
    operators. Guarded by ``test_the_exported_file_runs_the_operators_that_were_measured``.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GELU) and child.approximate == "none":
                setattr(module, name, _GELU())
    return network


def _check_format(opset: int, ir_version: int) -> None:
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ConfigError(f"opset {opset} cannot be written; {MIN_OPSET} to {MAX_OPSET} can")
    if not MIN_IR <= ir_version <= MAX_IR:
        raise ConfigError(f"IR version {ir_version} cannot be written; {MIN_IR} to {MAX_IR} can")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter and onnxscript, and nobody else, while a model is exported."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # onnxscript 0.6 prints what its optimiser did
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _run_exporter(
    network: nn.Module, example: torch.Tensor, opset: int, output_names: Sequence[str]
) -> onnx.ModelProto:
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                external_data=False,
                input_names=[INPUT_NAME],
                output_names=list(output_names),
                opset_version=opset,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever a module's forward raises
        raise ExportError(f"torch's exporter cannot export the network: {error}") from error
    if program is None:
        raise ExportError("torch's exporter returned no model")
    model: onnx.ModelProto = program.model_proto
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Remove doc strings and metadata: they hold source paths and change from run to run."""
    del model.metadata_props[:]
    model.doc_string = model.domain = ""
    graph = model.graph
    graph.doc_string = ""
    parts: list[Any] = [graph, *graph.node, *graph.initializer]
    parts += [*graph.value_info, *graph.input, *graph.output]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


def _check(model: onnx.ModelProto, opset: int) -> None:
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset:
        raise ExportError(f"opset {opset} was asked for, the exporter wrote {found}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx's checker refuses the exported network: {error}") from error
