"""Teachers from files that other tools write: ONNX, and torch.export's .pt2.

Neither needs Python code of the network. A .pt2 file may hold pickled objects; such a file is
refused, because unpickling runs whatever its writer wanted. It still names torch operators to run,
so only take one from somebody you trust; an ONNX file is safer.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from latency_tables.errors import ExportError, UsageError
from pipeline.onnx_runtime import import_onnxruntime, open_session
from pipeline.training.teacher import Answer, batched, check_input, probe_images

FATAL_ONLY = 4
"""onnxruntime's severity scale: 3 is error."""

_HARMLESS = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|\w+_weights_config\.json)"
    r"|data/constants/(tensor_\d+|\w+_constants_config\.json)"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json"
    r"|archive_format|archive_version|byteorder|\.data/\w+)"
)
"""Members of a .pt2 archive that hold numbers or JSON; compiled code and objects have others."""


def onnx_answer(path: Path, input_shape: tuple[int, int, int], device: torch.device) -> Answer:
    """An ONNX classifier with one input and logits as its first output, on the CPU.

    A batch that is fixed at one, as deployed networks have it, is set free where the operators
    allow that; else images go through one by one.

    Raises:
        UsageError: it does not load, or takes other images.
    """
    name, threads = path.name, torch.get_num_threads()
    try:
        model = onnx.load(path)
        session = open_session(path, threads=threads)
    except ExportError as error:
        raise UsageError(f"the teacher {name} cannot be used: {error.message}") from error
    except Exception as error:  # protobuf raises types of its own
        raise UsageError(f"the teacher {path} cannot be read: {error}") from error
    inputs = session.get_inputs()
    shape = tuple(d if isinstance(d, int) else None for d in inputs[0].shape)
    if len(inputs) != 1:
        raise UsageError(f"the teacher {name} has {len(inputs)} inputs; one is needed")
    check_input(shape, input_shape, name=name)

    quiet = import_onnxruntime().RunOptions()
    quiet.log_severity_level = FATAL_ONLY  # that a batch does not fit is no news

    def run(opened: Any) -> Answer:
        def answer(images: Tensor) -> Tensor:
            fed = {inputs[0].name: images.detach().cpu().contiguous().numpy()}
            logits = opened.run(None, fed, quiet)[0]
            return torch.from_numpy(np.ascontiguousarray(logits, np.float32)).to(images.device)

        return answer

    single = run(session)
    if shape[0] is None:
        return single
    freed = free_batch(model)
    try:
        many = run(open_session(freed.SerializeToString(), threads=threads))
    except (ExportError, ValueError):  # ValueError: more than protobuf's 2 GB
        many = single
    return batched(many, single, probe_images(input_shape, device), name=name)


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose first dimension is free in inputs, outputs and reshapes that keep a 1 there.

    Whether it still computes the same is for the caller to try: see :func:`batched`.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims):
            dims[0].dim_param = "batch"
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        target = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        sizes = np.empty(0) if target is None else onnx.numpy_helper.to_array(target).copy()
        if target is not None and sizes.size and sizes[0] in (0, 1):
            sizes[0] = 0  # as in the tensor that is reshaped, unless allowzero makes it a zero
            target.CopyFrom(onnx.numpy_helper.from_array(sizes, target.name))
            kept = [a for a in node.attribute if a.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return model


def exported_answer(path: Path, input_shape: tuple[int, int, int], device: torch.device) -> Answer:
    """A classifier that ``torch.export.save`` wrote.

    Raises:
        UsageError: it cannot be read, holds pickled objects or compiled code, or takes other
            images.
    """
    name = path.name
    try:
        data = path.read_bytes()
        _require_plain(data, name)
        program = torch.export.load(io.BytesIO(data))
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
    except UsageError:
        raise
    except Exception as error:  # torch.export raises whatever its parsers do
        raise UsageError(
            f"the teacher {path} is not a program of torch.export: {error}",
            hint="torch.export.save(torch.export.export(network.eval(), (images,)), PATH)",
        ) from error
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    fed = [nodes[i].meta["val"] for i in program.graph_signature.user_inputs if isinstance(i, str)]
    if len(fed) != 1:
        raise UsageError(f"the teacher {name} has {len(fed)} inputs; one is needed")
    shape = tuple(d if isinstance(d, int) else None for d in fed[0].shape)
    check_input(shape, input_shape, name=name)
    network = program.module()

    def answer(images: Tensor) -> Tensor:
        logits = network(images)
        first: Tensor = logits[0] if isinstance(logits, tuple | list) else logits
        return first.float()

    if shape[0] is None:
        return answer
    return batched(answer, answer, probe_images(input_shape, device), name=name)


def _require_plain(data: bytes, name: str) -> None:
    """Raise UsageError unless every member of a .pt2 archive holds plain numbers or JSON."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.namelist():
            content = archive.read(member)
            bad = _HARMLESS.fullmatch(member) is None
            if member.endswith("_config.json"):
                entries = json.loads(content)["config"].values()
                bad = bad or any(entry["use_pickle"] for entry in entries)
            elif member.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(content), weights_only=True)
                except pickle.UnpicklingError:
                    bad = True
            if bad:
                raise UsageError(
                    f"the teacher {name} holds {member!r}, which is not plain numbers; pickled "
                    "objects and compiled code are not read",
                    hint="export the network to ONNX",
                )
