"""What a model is marked with: alternatives, and layers that may be smaller than they are.

A marked model stays a plain ``nn.Module``: called as it is, a :class:`Choice` runs its first
alternative and an :class:`Elastic` layer its whole self.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from latency_tables.errors import SpaceError

WIDE = (nn.Conv1d, nn.Conv2d, nn.Linear)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


class Choice(nn.Module):
    """Exactly one of several modules stands here; ``label`` names the decision.

    Any module will do, ``nn.Identity()`` too: with :class:`Elastic` layers or further choices
    inside, as long as all of them give tensors of one shape.

    >>> block = Choice("block3", {"k3": nn.Conv2d(8, 8, 3, padding=1), "skip": nn.Identity()})
    >>> block.label, list(block.branches)
    ('block3', ['k3', 'skip'])

    Raises:
        SpaceError: fewer than two alternatives, a name or an alternative that cannot be one.
    """

    def __init__(self, label: str, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        _check_label(label)
        if not isinstance(branches, Mapping) or len(branches) < 2:
            raise SpaceError(
                f"Choice({label!r}) needs a dictionary of two or more named modules, not {branches}"
            )
        for name, module in branches.items():
            if not isinstance(name, str) or not name or "." in name:
                raise SpaceError(f"Choice({label!r}): {name!r} is no name; text without dots is")
            if not isinstance(module, nn.Module):
                raise SpaceError(
                    f"Choice({label!r}): {name!r} is of type {type(module).__name__}; an nn.Module "
                    "is needed",
                    hint="nn.Identity() stands for doing nothing",
                )
        self.label = label
        self.branches = nn.ModuleDict(dict(branches))

    def forward(self, x: Tensor) -> Tensor:
        """Run the first alternative."""
        y: Tensor = next(iter(self.branches.values()))(x)
        return y

    def extra_repr(self) -> str:
        """The label."""
        return repr(self.label)


class Elastic(nn.Module):
    """A layer that may be narrower, have a smaller kernel, or be shallower.

    ``width``: output channels of a Conv1d, Conv2d or Linear; the largest is the layer's own. What
    follows adapts by itself (batch norms, depthwise convolutions, inputs of the next layers).
    ``kernel``: odd kernel sizes of a convolution, cut out of the middle of the largest one.
    ``depth``: how many of the first modules of an ``nn.Sequential`` run.

    Decisions are named after the place in the model: ``stem.width``, ``stem.kernel``,
    ``layer1.depth``. ``label`` names the width (or depth) instead, and layers with the same label
    have the same width, as those must whose outputs are added.

    >>> stem = Elastic(nn.Conv2d(3, 64, 3, padding=1), width=(32, 48, 64), label="stage1")
    >>> stem.label, stem.width
    ('stage1', (32, 48, 64))

    Raises:
        SpaceError: a kind of module or options that do not fit; says what would.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        width: Sequence[int] | None = None,
        kernel: Sequence[int] | None = None,
        depth: Sequence[int] | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__()
        what = f"Elastic({type(module).__name__})"
        if width is None and kernel is None and depth is None:
            raise SpaceError(f"{what} is told nothing to vary; width, kernel or depth is needed")
        if label is not None:
            _check_label(label)
            if width is None and depth is None:
                raise SpaceError(f"{what}: label names a width or a depth, not a kernel")
        self.module, self.label = module, label
        self.width = None if width is None else self._checked_width(what, width)
        self.kernel = None if kernel is None else self._checked_kernel(what, kernel)
        self.depth = None if depth is None else self._checked_depth(what, depth)
        if self.depth is not None and (self.width is not None or self.kernel is not None):
            raise SpaceError(f"{what}: a sequence has a depth, its layers have widths and kernels")

    def forward(self, x: Tensor) -> Tensor:
        """Run the whole layer."""
        y: Tensor = self.module(x)
        return y

    def extra_repr(self) -> str:
        """The options."""
        shown = {k: getattr(self, k) for k in ("width", "kernel", "depth", "label")}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items() if v is not None)

    def _checked_width(self, what: str, width: Sequence[int]) -> tuple[int, ...]:
        module = self.module
        if not isinstance(module, WIDE):
            raise SpaceError(
                f"{what} cannot have a width; Conv1d, Conv2d and Linear can",
                hint="wrap the convolution or linear layer itself; what follows it adapts",
            )
        largest = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        return _checked(what, "width", width, largest, "its number of outputs")

    def _checked_kernel(self, what: str, kernel: Sequence[int]) -> tuple[int, ...]:
        module = self.module
        if not isinstance(module, CONVOLUTIONS):
            raise SpaceError(f"{what} has no kernel; Conv1d and Conv2d have one")
        size, padding = module.kernel_size, module.padding
        if len(set(size)) != 1:
            raise SpaceError(f"{what}: a kernel of {size} is not square, so it is not cut")
        sizes = _checked(what, "kernel", kernel, size[0], "its kernel size")
        if any(k % 2 == 0 for k in sizes):
            raise SpaceError(f"{what}: kernel {sizes} has even sizes, which have no middle")
        wanted = tuple(d * (size[0] // 2) for d in module.dilation)
        if (padding != "same" and tuple(padding) != wanted) or module.padding_mode != "zeros":
            raise SpaceError(
                f"{what}: padding={padding}, padding_mode={module.padding_mode!r} lets the "
                f"output's size depend on the kernel; padding={wanted[0]} with zeros does not"
            )
        return sizes

    def _checked_depth(self, what: str, depth: Sequence[int]) -> tuple[int, ...]:
        if not isinstance(self.module, nn.Sequential):
            raise SpaceError(f"{what} has no depth; nn.Sequential has one")
        return _checked(what, "depth", depth, len(self.module), "its number of modules")


class Opaque(nn.Module):
    """A module that is used as it is and not looked into: for a ``forward`` with branches.

    Its input must have one size in all architectures, whatever is elastic before it.

    >>> import torch
    >>> Opaque(nn.Linear(4, 2))(torch.zeros(1, 4)).shape
    torch.Size([1, 2])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Run the module."""
        y: Tensor = self.module(x)
        return y


def _check_label(label: object) -> None:
    if not isinstance(label, str) or not label:
        raise SpaceError(f"{label!r} cannot be a label; some text can")


def _checked(
    what: str, kind: str, options: Sequence[int], largest: int, meaning: str
) -> tuple[int, ...]:
    """The options in order, the largest of which must be what the module has."""
    if not isinstance(options, list | tuple | range):
        raise SpaceError(f"{what}: {kind}={options!r} is no list of whole numbers")
    found = tuple(options)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in found)
    if not whole or len(found) < 2 or list(found) != sorted(set(found)):
        raise SpaceError(
            f"{what}: {kind}={found} must be two or more different whole numbers, rising from 1 up"
        )
    if found[-1] != largest:
        raise SpaceError(
            f"{what}: the largest {kind} must be {meaning}, {largest}, not {found[-1]}",
            hint=f"{kind}={(*(n for n in found if n < largest), largest)}",
        )
    return found
