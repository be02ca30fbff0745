from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from latency_tables.errors import UsageError
from pipeline.training.config import OptimizerConfig
from pipeline.training.optimizers import NamedOptimizer


def two() -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.ones(2, 2)), "b": nn.Parameter(torch.ones(2, 2))}


def drift(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], *, none: bool):
    """Train both once, then only b; return how far a moved while only b was trained."""
    (parameters["a"].sum() + parameters["b"].sum()).backward()
    optimizer.step()
    before = parameters["a"].detach().clone()
    for _ in range(3):
        optimizer.zero_grad(set_to_none=none)
        parameters["b"].sum().backward()
        optimizer.step()
    return float((parameters["a"] - before).detach().abs().max())


def test_dropped_gradients_keep_unsampled_weights_and_zeroed_ones_move_them() -> None:
    config = OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.1)
    kept, moved = two(), two()
    assert drift(NamedOptimizer("w", kept, config).optimizer, kept, none=True) == 0.0
    assert drift(NamedOptimizer("w", moved, config).optimizer, moved, none=False) > 0.1


def test_rmsprop_leaves_weights_without_a_gradient_and_their_state_alone() -> None:
    parameters = two()
    optimizer = NamedOptimizer("w", parameters, OptimizerConfig(kind="rmsprop", weight_decay=0.1))
    assert drift(optimizer.optimizer, parameters, none=True) == 0.0
    assert not torch.equal(
        optimizer.state_tensors()["a/mean_square"], optimizer.state_tensors()["b/mean_square"]
    )


def test_rmsprop_follows_the_formula_of_tensorflow() -> None:
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    config = OptimizerConfig(kind="rmsprop", rho=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-2)
    optimizer = NamedOptimizer("w", {"w": parameter}, config)
    expected, square, buffer = [1.0, -2.0], [1.0, 1.0], [0.0, 0.0]
    for lr, gradient in ((0.064, (3.0, 0.01)), (0.064, (-1.0, 0.02)), (0.03, (0.5, 0.0))):
        optimizer.set_gradients({"w": torch.tensor([gradient], dtype=torch.float64)})
        optimizer.step(lr)
        for i in (0, 1):
            g = gradient[i] + 1e-2 * expected[i]
            square[i] = 0.9 * square[i] + 0.1 * g**2
            buffer[i] = 0.9 * buffer[i] + lr * g / math.sqrt(square[i] + 1e-3)
            expected[i] -= buffer[i]
    assert parameter.detach().tolist()[0] == pytest.approx(expected, rel=1e-12)


def test_rmsprop_is_not_that_of_torch() -> None:
    ours, theirs = (nn.Parameter(torch.ones(1, 1)) for _ in range(2))
    config = OptimizerConfig(kind="rmsprop", weight_decay=0.0)
    optimizer = NamedOptimizer("w", {"w": ours}, config)
    rival = torch.optim.RMSprop([theirs], lr=0.1, alpha=0.9, momentum=0.9, eps=1e-3)
    for parameter, step in ((ours, lambda: optimizer.step(0.1)), (theirs, rival.step)):
        parameter.grad = torch.full((1, 1), 0.01)
        step()
    # torch divides by |g| sqrt(0.1) at first, TensorFlow by nearly 1
    assert 1 - ours.item() == pytest.approx(0.001 / math.sqrt(0.90001 + 1e-3), rel=1e-3)
    assert 1 - theirs.item() == pytest.approx(0.001 / (0.01 * math.sqrt(0.1) + 1e-3), rel=1e-3)


def test_rmsprop_goes_on_from_saved_state_as_if_nothing_had_happened() -> None:
    def train(optimizer: NamedOptimizer, parameters: dict[str, nn.Parameter], steps: range) -> None:
        for step in steps:
            optimizer.set_gradients({"a": torch.full((2, 2), 1.0 + step)})
            optimizer.step(0.1)

    config = OptimizerConfig(kind="rmsprop")
    whole, first, second = two(), two(), two()
    train(NamedOptimizer("w", whole, config), whole, range(4))
    stopped, resumed = NamedOptimizer("w", first, config), NamedOptimizer("w", second, config)
    train(stopped, first, range(2))
    second["a"].data.copy_(first["a"].data)
    resumed.load_state_tensors(stopped.state_tensors())
    train(resumed, second, range(2, 4))
    assert set(stopped.state_tensors()) == {"a/mean_square", "a/momentum_buffer"}
    assert torch.equal(whole["a"], second["a"])


def test_fused_sgd_crashes_when_a_parameter_gets_its_first_gradient_late() -> None:
    # the reason for foreach; when this test fails, torch has repaired fused SGD
    parameters = two()
    fused = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9, fused=True)
    parameters["a"].sum().backward()
    fused.step()
    parameters["b"].sum().backward()
    with pytest.raises(TypeError, match="NoneType"):
        fused.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw", "rmsprop"])
def test_our_optimizers_take_a_first_gradient_that_comes_late(kind: str) -> None:
    parameters = two()
    optimizer = NamedOptimizer("w", parameters, OptimizerConfig(kind=kind, lr=0.1))
    parameters["a"].sum().backward()
    optimizer.step(0.1)
    parameters["b"].sum().backward()
    optimizer.step(0.1)
    assert float(parameters["b"].detach().max()) < 1.0


def test_the_fast_implementations_are_used() -> None:
    sgd = NamedOptimizer("w", two(), OptimizerConfig(kind="sgd")).optimizer
    adamw = NamedOptimizer("w", two(), OptimizerConfig(kind="adamw")).optimizer
    assert sgd.defaults["foreach"]
    assert adamw.defaults["fused"]


@pytest.mark.parametrize(("decay", "bias_after"), [("matrices", 1.0), ("all", 0.95)])
def test_only_tensors_with_more_than_one_dimension_decay(decay: str, bias_after: float) -> None:
    parameters = {"w": nn.Parameter(torch.ones(1, 1)), "bias": nn.Parameter(torch.ones(1))}
    config = OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.5, decay=decay)
    optimizer = NamedOptimizer("w", parameters, config)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    assert parameters["w"].item() == pytest.approx(0.95)
    assert parameters["bias"].item() == pytest.approx(bias_after)


def test_state_is_saved_by_name_and_only_for_parameters_that_were_trained() -> None:
    parameters = two()
    optimizer = NamedOptimizer("w", parameters, OptimizerConfig(weight_decay=0))
    parameters["b"].sum().backward()
    optimizer.step(0.1)
    assert set(optimizer.state_tensors()) == {"b/momentum_buffer"}
    other = NamedOptimizer("w", two(), OptimizerConfig(weight_decay=0))
    other.load_state_tensors(optimizer.state_tensors())
    assert torch.equal(other.state_tensors()["b/momentum_buffer"], torch.ones(2, 2))


def test_scaling_and_clipping_do_not_touch_the_tensors_of_the_strategy() -> None:
    parameters = two()
    optimizer = NamedOptimizer("w", parameters, OptimizerConfig())
    ready = {"a": torch.full((2, 2), 4.0)}
    optimizer.set_gradients(ready)
    optimizer.scale_and_clip(scale=0.5, clip_norm=None, clip_value=1.5)
    gradient = parameters["a"].grad
    assert gradient is not None
    assert torch.equal(gradient, torch.full((2, 2), 1.5))
    assert torch.equal(ready["a"], torch.full((2, 2), 4.0))


def test_clipping_by_norm_bounds_all_gradients_together() -> None:
    parameters = two()
    optimizer = NamedOptimizer("w", parameters, OptimizerConfig())
    optimizer.set_gradients({"a": torch.full((2, 2), 3.0), "b": torch.full((2, 2), 4.0)})
    optimizer.scale_and_clip(scale=1.0, clip_norm=1.0, clip_value=None)
    squares = [float(p.grad.square().sum()) for p in parameters.values() if p.grad is not None]
    assert sum(squares) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("gradients", "message"),
    [({"c": torch.zeros(2, 2)}, "no parameter 'c'"), ({"a": torch.zeros(3)}, "shape")],
)
def test_a_gradient_that_fits_no_parameter_is_refused(
    gradients: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        NamedOptimizer("w", two(), OptimizerConfig()).set_gradients(gradients)
