"""The weights of a Graph, computed from a trained network of the same architecture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from latency_tables.errors import GraphError
from latency_tables.graph import Graph, Source


def graph_weights(graph: Graph, network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Weights of ``graph`` computed from a network of the same architecture (BN folded, float64).

    Raises:
        GraphError: the network lacks a tensor or its shape is another; names it.
    """
    state = {
        name: tensor.detach().cpu().double().numpy()
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        if tensor.is_floating_point()
    }
    weights: dict[str, NDArray[np.float32]] = {}
    for parameter in graph.parameters:
        try:
            value = _computed(parameter.source, state)
        except KeyError as error:
            raise GraphError(
                f"the network has no tensor {error}, from which {parameter.name!r} follows"
            ) from None
        if value.shape != parameter.shape:
            raise GraphError(
                f"{parameter.source.tensors[0]!r} has shape {value.shape} in the network, "
                f"{parameter.shape} in the graph"
            )
        weights[parameter.name] = np.ascontiguousarray(value, dtype=np.float32)
    return weights


def _computed(source: Source, state: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """One weight from the tensors that it follows from."""
    if source.transform == "copy":
        return state[source.tensors[0]]
    if source.transform == "transposed":
        return state[source.tensors[0]].T
    if source.transform == "folded_weight":
        weight, scale, variance = (state[t] if t else 1.0 for t in source.tensors)
        factor = np.asarray(scale / np.sqrt(variance + source.epsilon))
        folded: NDArray[np.float64] = weight * factor.reshape(-1, *[1] * (np.ndim(weight) - 1))
        return folded
    bias, scale, shift, mean, variance = (
        state[t] if t else absent
        for t, absent in zip(source.tensors, (0.0, 1.0, 0.0, 0.0, 1.0), strict=True)
    )
    return np.asarray((bias - mean) * scale / np.sqrt(variance + source.epsilon) + shift)
