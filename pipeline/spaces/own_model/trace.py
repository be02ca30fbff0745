"""From a model's ``forward`` to a graph of calls.

``torch.fx`` runs ``forward`` once with stand-ins for tensors. Layers of torch, :class:`Choice`,
:class:`Elastic` and :class:`Opaque` modules stay whole; everything else is looked into. What
``forward`` decides from the contents or shape of a tensor cannot be followed and is refused.
"""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from latency_tables.errors import SpaceError
from pipeline.spaces.own_model.layers import Choice, Elastic, Opaque

DROPOUTS = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}
_QUIET = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class _Holder(nn.Module):
    """Calls one module, so that a module which is a leaf by itself can be traced."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        y: Tensor = self.body(x)
        return y


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole; with ``whole``, small ones without weights do, too."""
        if isinstance(m, Choice | Elastic | Opaque):
            return True
        bare = not (m._modules or m._parameters or m._buffers)
        return (self.whole and bare) or bool(super().is_leaf_module(m, module_qualified_name))


def trace(module: nn.Module, where: str) -> fx.Graph:
    """The calls of ``module``; targets are paths inside it, "body" is the module itself.

    Dropout that is called as a function becomes a call of ``nn.Dropout``, so that training and
    evaluation differ; ``dropouts`` of the graph holds these modules. The user's own modules without
    weights stay whole where looking into them fails, as for drop path.

    Raises:
        SpaceError: names file and line of what cannot be followed.
    """
    _check_inputs(module, where)
    try:
        return _one_graph(module, where, whole=False)
    except SpaceError as error:
        try:
            return _one_graph(module, where, whole=True)
        except SpaceError:
            raise error from None


def _check_inputs(module: nn.Module, where: str) -> None:
    """``forward`` can be called with one tensor."""
    try:
        inspect.signature(module.forward).bind(None)
    except TypeError as error:
        raise SpaceError(
            f"forward of {where} cannot be called with one tensor: {error}",
            hint="one tensor of images comes in; other inputs need defaults",
        ) from None


def _one_graph(module: nn.Module, where: str, *, whole: bool) -> fx.Graph:
    """One graph for training and evaluation."""
    graphs = []
    was_training = module.training
    for training in (True, False):
        module.train(training)
        graphs.append(_traced(module, where, whole=whole))
    module.train(was_training)
    graph, evaluated = graphs
    dropouts = _plain_dropout(graph, training=True)
    _plain_dropout(evaluated, training=False)
    if _shown(graph) != _shown(evaluated):
        raise SpaceError(
            f"{where} calls other operators in training than in evaluation; one graph is needed",
            hint="use modules that know the difference (nn.Dropout), or wrap the part in "
            "Opaque(...)",
        )
    _inside(graph)
    graph.dropouts = dropouts  # type: ignore[attr-defined]
    return graph


def _traced(module: nn.Module, where: str, *, whole: bool) -> fx.Graph:
    try:
        return _Tracer(whole=whole).trace(_Holder(module))
    except SpaceError:
        raise
    except Exception as error:  # forward may raise anything when it meets a stand-in
        raise SpaceError(
            f"forward of {where} cannot be followed at {_raised_at(error)}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="no if, loop or number may depend on a tensor; wrap the submodule that needs it "
            "in Opaque(...)",
        ) from error


def _raised_at(error: BaseException) -> str:
    """The innermost line of the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_QUIET)]
    frame = (own or frames)[-1]
    return f"line {frame.lineno} of {Path(frame.filename).name} ({frame.line or frame.name})"


def site(node: fx.Node) -> str:
    """What a call is and, where known, its line: ``'view' in line 12 of net.py``."""
    name = f"{node.target!r}" if isinstance(node.target, str) else f"{name_of(node)!r}"
    for line in reversed((node.stack_trace or "").splitlines()):
        if line.strip().startswith("File "):
            file, number = line.strip().removeprefix("File ").split(", ")[:2]
            file = file.strip('"')
            if not file.startswith(_QUIET) and not file.startswith("<frozen"):
                return f"{name} in {number} of {Path(file).name}"
    return name


def name_of(node: fx.Node) -> str:
    """Name of the called function or method, without the underscores of in-place forms."""
    if node.op == "call_module":
        return ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).rstrip("_")


def substitute(user: fx.Node, old: fx.Node, new: Any) -> None:
    """Let a call read ``new``, a node or a plain value, instead of ``old``."""

    def swap(node: fx.Node) -> Any:
        return new if node is old else node

    user.args = map_arg(user.args, swap)
    user.kwargs = map_arg(user.kwargs, swap)


def _plain_dropout(graph: fx.Graph, *, training: bool) -> dict[str, nn.Module]:
    """Replace calls that were recorded with this value of ``training``."""
    found: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in DROPOUTS:
            settings = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False))
            settings |= node.kwargs
            if settings.get("training", True) is not training:
                continue
            module = DROPOUTS[node.target](p=settings.get("p", 0.5))
            name = f"body.dropout_call_{len(found) + 1}"
            found[name.removeprefix("body.")] = module
            with graph.inserting_before(node):
                new: Any = graph.call_module(name, (settings["input"],))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    return found


def _shown(graph: fx.Graph) -> list[str]:
    return [str((n.op, str(n.target), str(n.args), str(n.kwargs))) for n in graph.nodes]


def _inside(graph: fx.Graph) -> None:
    """Drop the holder's name from targets."""
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target != "body":
            node.target = str(node.target).removeprefix("body.")
