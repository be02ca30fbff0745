"""The dictionary of K-shot NAS: K supernets of one space, mixed anew for every subnet.

Su et al., "K-shot NAS: Learnable Weight-Sharing for NAS with K-shot Supernets", 2021, equations 4
to 6 and 11:

    Θ = θ_1 ... θ_K     ``copies``: weights of K supernets of the same structure
    λ = π(a, c)         ``code``: one point of the simplex for an architecture and its widths
    θ̃ = Σ_k λ_k θ_k     mixed before the forward pass, for the tensors that the subnet uses

A subnet is then run as in any supernet, so activations, and what autograd keeps of them, are those
of one network. λ applies to all its parameters, weights and biases of batch norms included. Running
statistics are not mixed: there is one set, as in a plain supernet; while training each batch is
normalised by itself, and scoring calibrates them for each subnet.

Our reading: λ is that of the *canonical* architecture. Genes that change nothing, such as the width
of an identity, must not change weights either.

How copies start is said in :mod:`pipeline.kshot.fresh`. K = 1 is the plain supernet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import CheckpointError, UsageError
from pipeline.kshot.merging import merge
from pipeline.kshot.simplex_net import HIDDEN, CodeKind, SimplexNet
from pipeline.spaces.base import Space, Supernet

MAX_COPIES = 64

_Slots = list[list[tuple[nn.Module, str]]]


class _Cache:
    """What follows from a dictionary's modules; copies of the dictionary make their own."""

    def __init__(self) -> None:
        self.parameters: list[list[nn.Parameter]] = []  # K lists of all N
        self.slots: _Slots = []  # where each of the N lives in the first copy
        self.places: dict[int, int] = {}  # id of a parameter of the first copy → its place
        self.active: dict[Arch, tuple[int, ...]] = {}  # places that an architecture uses
        self.cut: Supernet | None = None  # see KShotSupernet.source_of
        self.cut_slots: _Slots = []

    def __deepcopy__(self, memo: dict[int, Any]) -> _Cache:
        return _Cache()


class KShotSupernet(Supernet):
    """K copies of a space's weights and the net that says how to mix them.

    Args:
        space: the space of the supernet.
        first: its plain supernet, which becomes the first copy and runs the subnets.
        k: number of copies; the others start equal to the first one.
        codes: "learned" or "random" (simplex-net, never trained), "fixed" (1/K for all).
        hidden: units of the simplex-net's hidden layers.

    Raises:
        UsageError: ``k`` is not 1 ... 64.

    >>> from pipeline.spaces import load_space
    >>> import numpy as np
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> supernet = KShotSupernet(space, space.supernet(), 4)
    >>> arch = space.sample(np.random.default_rng(0))
    >>> supernet(torch.zeros(2, 1, 8, 8), arch).shape, supernet.code(arch).tolist()
    (torch.Size([2, 10]), [0.25, 0.25, 0.25, 0.25])
    """

    mixes = True

    def __init__(
        self,
        space: Space,
        first: Supernet,
        k: int,
        *,
        codes: CodeKind = "learned",
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__()
        if not 1 <= k <= MAX_COPIES:
            raise UsageError(f"{k} copies of a supernet; 1 to {MAX_COPIES} are allowed")
        self.space, self.k, self.kind, self.hidden = space, k, codes, hidden
        self.copies = nn.ModuleList([first, *(_bare_copy(first) for _ in range(1, k))])
        self.simplex_net: SimplexNet | None = None
        if codes != "fixed" and k > 1:
            sample = next(first.parameters())
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(0)
                net = SimplexNet(space.decisions, k, hidden=hidden, random=codes == "random")
            self.simplex_net = net.to(device=sample.device, dtype=sample.dtype)
        self._cache = _Cache()

    # -- running subnets ---------------------------------------------------------------------------

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of ``arch``; gradients reach the copies, not the code."""
        return self.run(x, arch, self.code(arch))

    def run(self, x: Tensor, arch: Arch, code: Tensor, *, fixed: bool = False) -> Tensor:
        """Logits (N, n_classes) of ``arch`` under a given code.

        Args:
            code: λ (K,); gradients reach it where it asks for them.
            fixed: give the copies no gradients.
        """
        first = self.first
        if self.k == 1 and not fixed:
            logits: Tensor = first(x, arch)
            return logits
        places = self._active(arch)
        copies = self._of_all(places)
        if fixed:
            copies = [[p.detach() for p in copy] for copy in copies]
        with self._holding(places, merge(code, copies)):
            logits = first(x, arch)
        return logits

    def code(self, arch: Arch) -> Tensor:
        """λ (K,) of an architecture, without a graph."""
        with torch.no_grad():
            return self.codes([arch])[0]

    def codes(self, archs: Sequence[Arch]) -> Tensor:
        """λ (n, K) of architectures, differentiable in the simplex-net's weights.

        In the weights' own number format, whatever autocast is active.
        """
        sample = next(self.first.parameters())
        if self.simplex_net is None:
            return sample.new_full((len(archs), self.k), 1 / self.k)
        with torch.autocast(sample.device.type, enabled=False):
            codes: Tensor = self.simplex_net([self.space.canonical(arch) for arch in archs])
        return codes

    @property
    def first(self) -> Supernet:
        """The copy whose modules run all subnets."""
        first = self.copies[0]
        if not isinstance(first, Supernet):
            raise TypeError(f"the first copy is a {type(first).__name__}, not a supernet")
        return first

    @contextmanager
    def _holding(self, places: Sequence[int], tensors: Sequence[Tensor]) -> Iterator[None]:
        """The first copy's modules hold ``tensors`` inside, and their own parameters afterwards."""
        cache = self._known()
        own = cache.parameters[0]
        try:
            for place, tensor in zip(places, tensors, strict=True):
                for module, name in cache.slots[place]:
                    # as torch.func.functional_call does, without looking names up
                    module._parameters[name] = tensor  # type: ignore[assignment]
            yield
        finally:
            for place in places:
                for module, name in cache.slots[place]:
                    module._parameters[name] = own[place]

    # -- what a supernet says of itself ------------------------------------------------------------

    def subnet_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """The parameters that ``arch`` uses in all copies."""
        places = self._active(arch)
        return [own[i] for own in self._known().parameters for i in places]

    def weights(self) -> dict[str, nn.Parameter]:
        """Θ: the parameters of all copies, by their names here."""
        return dict(self.copies.named_parameters(prefix="copies"))

    def layout(self) -> dict[str, Any]:
        """How many copies there are, and how codes are made."""
        return {"kshot": {"k": self.k, "codes": self.kind, "hidden": self.hidden}}

    def source_of(self, arch: Arch) -> Supernet:
        """A plain supernet whose tensors on the path of ``arch`` are mixed for it.

        It is the same object each time: the next call overwrites the weights. Its statistics are
        those that training left.
        """
        if self.k == 1:
            return self.first
        cache = self._known()
        places = self._active(arch)
        with torch.inference_mode(False), torch.no_grad():
            tensors = merge(self.code(arch), self._of_all(places))
            if cache.cut is None:
                cache.cut = self._empty_supernet()
                cache.cut_slots = _slots(cache.cut)
            for place, tensor in zip(places, tensors, strict=True):
                for module, name in cache.cut_slots[place]:
                    held = module._parameters[name]
                    if held is None or held.is_meta:
                        module._parameters[name] = nn.Parameter(tensor)
                    else:
                        held.copy_(tensor)
        return cache.cut

    def _empty_supernet(self) -> Supernet:
        """The structure without weights, with the first copy's own buffers."""
        with torch.device("meta"):
            empty = self.space.supernet()
        of_first = dict(self.first.named_modules())
        for name, module in empty.named_modules():
            module._buffers = of_first[name]._buffers
        return empty

    # -- what is looked up once --------------------------------------------------------------------

    def _known(self) -> _Cache:
        cache = self._cache
        if not cache.parameters:
            names = [name for name, _ in self.first.named_parameters()]
            cache.parameters = [[copy.get_parameter(n) for n in names] for copy in self.copies]
            cache.slots = _slots(self.first)
            cache.places = {id(p): i for i, p in enumerate(cache.parameters[0])}
        return cache

    def _active(self, arch: Arch) -> tuple[int, ...]:
        cache = self._known()
        if arch not in cache.active:
            if len(cache.active) >= 4096:
                cache.active.clear()
            used = dict.fromkeys(id(p) for p in self.first.subnet_parameters(arch))
            cache.active[arch] = tuple(cache.places[i] for i in used)
        return cache.active[arch]

    def _of_all(self, places: Sequence[int]) -> list[list[Tensor]]:
        return [[own[i] for i in places] for own in self._known().parameters]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._cache = _Cache()  # tensors may be replaced
        result: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return result


class Coded(Supernet):
    """A dictionary under one given code, for losses that ask a supernet.

    Args:
        code: λ (K,).
        fixed: give the copies no gradients.
    """

    def __init__(self, dictionary: KShotSupernet, code: Tensor, *, fixed: bool = False) -> None:
        super().__init__()
        self.dictionary, self.code, self.fixed = dictionary, code, fixed

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of ``arch``."""
        return self.dictionary.run(x, arch, self.code, fixed=self.fixed)


def kshot_of_layout(space: Space, layout: Mapping[str, Any]) -> KShotSupernet:
    """A dictionary with the tensors that :meth:`KShotSupernet.layout` described.

    Raises:
        CheckpointError: another version of hilnas wrote it.
    """
    if set(layout) != {"k", "codes", "hidden"} or layout["codes"] not in get_args(CodeKind):
        raise CheckpointError(
            f"a K-shot supernet is laid out as {dict(layout)}; k, codes "
            f"({', '.join(get_args(CodeKind))}) and hidden are known here"
        )
    kind: Literal["learned", "fixed", "random"] = layout["codes"]
    return KShotSupernet(
        space, space.supernet(), int(layout["k"]), codes=kind, hidden=int(layout["hidden"])
    )


def _bare_copy(network: nn.Module) -> nn.Module:
    """Modules that hold copies of all parameters under the same names, and do nothing else."""
    root = nn.Module()
    for name, parameter in network.named_parameters():
        *path, last = name.split(".")
        holder = root
        for part in path:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        value = parameter.detach().clone(memory_format=torch.preserve_format)
        holder.register_parameter(last, nn.Parameter(value, requires_grad=parameter.requires_grad))
    return root


def _slots(network: nn.Module) -> _Slots:
    """Modules and names under which each parameter is found, in the order of ``parameters()``."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((module, name))
    return [found[id(parameter)] for parameter in network.parameters()]
