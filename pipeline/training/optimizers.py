"""Optimizers for networks of which every step uses a part.

Three rules keep sampled paths right, each with a test:

* gradients are dropped, not zeroed: a parameter with a zero gradient would still be moved by its
  momentum and its decay, so paths that were not sampled would drift;
* SGD runs with ``foreach``: ``fused`` raises TypeError as soon as a parameter gets its first
  gradient later than another one. AdamW runs ``fused``, which does not have that fault;
* state is saved by parameter name, because a parameter that was never sampled has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latency_tables.errors import CheckpointError, UsageError
from pipeline.training.config import OptimizerConfig


class NamedOptimizer:
    """An optimizer over named parameters.

    Args:
        name: what updates call it.
        parameters: name → parameter; those without ``requires_grad`` are left out.
        config: its settings.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig
    ) -> None:
        self.name, self.config = name, config
        self.parameters = {k: p for k, p in parameters.items() if p.requires_grad}
        if not self.parameters:
            raise UsageError(f"optimizer {name!r} has no parameter that takes a gradient")
        self.optimizer = _make(list(self.parameters.values()), config)

    def clear(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Put ready gradients in place. Raises UsageError for a name or shape that is not ours."""
        for name, gradient in gradients.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                raise UsageError(f"optimizer {self.name!r} has no parameter {name!r}")
            if gradient.shape != parameter.shape:
                raise UsageError(
                    f"the gradient of {name!r} has shape {tuple(gradient.shape)}, the parameter "
                    f"{tuple(parameter.shape)}"
                )
            # a copy: scaling and clipping must not change what the strategy keeps
            parameter.grad = torch.empty_like(parameter).copy_(gradient.detach())

    def scale_and_clip(
        self, *, scale: float, clip_norm: float | None, clip_value: float | None
    ) -> None:
        """Multiply all gradients, then clip by norm, then by value."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if scale != 1.0 and gradients:
            torch._foreach_mul_(gradients, scale)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), clip_norm)
        if clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters.values(), clip_value)

    def step(self, lr: float) -> None:
        """Move the parameters that have a gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """State as ``<parameter>/<slot>`` → tensor."""
        return {
            f"{name}/{slot}": value
            for name, parameter in self.parameters.items()
            for slot, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state_tensors` gave."""
        self.optimizer.state.clear()
        for key, value in tensors.items():
            name, slot = key.rsplit("/", 1)
            parameter = self.parameters.get(name)
            if parameter is None:
                raise CheckpointError(
                    f"a checkpoint has optimizer state of {name!r}, which this run does not have"
                )
            # in the memory format of the parameter, which safetensors does not keep
            like = parameter if value.shape == parameter.shape else value
            kept = torch.empty_like(like, device=parameter.device, dtype=value.dtype)
            self.optimizer.state[parameter][slot] = kept.detach().copy_(value)


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop as TensorFlow's ``RMSPropOptimizer`` has it; MobileNet recipes mean this one.

        g ← g + weight_decay · w
        s ← ρ s + (1 − ρ) g²                s starts at 1
        b ← momentum · b + lr · g / √(s + ε)     b starts at 0
        w ← w − b

    ``torch.optim.RMSprop`` differs in three ways, and with the recipes' ε = 1e-3 all three matter:
    s starts at 0 (its first steps are large), ε is added after the root, and lr multiplies b when
    it is applied, so a change of the rate also changes what momentum carries over.

    Parameters without a gradient are not touched, nor is their state.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        rho: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "rho": rho, "momentum": momentum, "eps": eps, "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the parameters that have a gradient; a closure is not supported."""
        if closure is not None:
            raise UsageError("RMSpropTF takes no closure")
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._step(moved, group)

    def _step(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        gradients: list[Tensor] = [p.grad for p in moved if p.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, moved, alpha=group["weight_decay"]))
        squares = [self._slot(p, "mean_square", 1.0) for p in moved]
        torch._foreach_mul_(squares, group["rho"])
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["rho"])
        roots = torch._foreach_sqrt(torch._foreach_add(squares, group["eps"]))
        if not group["momentum"]:
            torch._foreach_addcdiv_(moved, gradients, roots, value=-group["lr"])
            return
        buffers = [self._slot(p, "momentum_buffer", 0.0) for p in moved]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_addcdiv_(buffers, gradients, roots, value=group["lr"])
        torch._foreach_add_(moved, buffers, alpha=-1)

    def _slot(self, parameter: Tensor, name: str, start: float) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.full_like(parameter, start)
        tensor: Tensor = state[name]
        return tensor


def _make(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD foreach, AdamW fused or RMSprop foreach; a group that decays and one that does not."""
    decays = [p for p in parameters if config.decay == "all" or p.ndim > 1]
    kept = [p for p in parameters if not (config.decay == "all" or p.ndim > 1)]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decays, config.weight_decay), (kept, 0.0))
        if members
    ]
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if config.kind == "rmsprop":
        return RMSpropTF(
            groups, lr=config.lr, rho=config.rho, momentum=config.momentum, eps=config.eps
        )
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, foreach=True
    )
