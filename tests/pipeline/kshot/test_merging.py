"""Mixing tensors: values, both gradients, number format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.kshot.merging import merge


def copies_of(k: int, *, requires_grad: bool = True) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(k)
    shapes = [(3, 2, 1, 1), (5,), (2, 4)]

    def drawn(shape: tuple[int, ...]) -> Tensor:
        tensor = torch.randn(shape, dtype=torch.float64, generator=generator)
        return tensor.requires_grad_(requires_grad)

    return [[drawn(shape) for shape in shapes] for _ in range(k)]


def code_of(k: int) -> Tensor:
    return torch.linspace(1, 2, k, dtype=torch.float64).softmax(0).requires_grad_()


def loss_of(mixed: list[Tensor]) -> Tensor:
    return sum((t.sin() * t).sum() for t in mixed)  # type: ignore[return-value]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_values_and_gradients_are_those_that_autograd_finds_through_all_copies(k: int) -> None:
    copies, code = copies_of(k), code_of(k)
    plain = [sum(code[i] * copies[i][n] for i in range(k)) for n in range(3)]
    everything = [code, *(t for copy in copies for t in copy)]
    expected = torch.autograd.grad(loss_of(plain), everything)  # type: ignore[arg-type]
    mixed = merge(code, copies)
    for found, wanted in zip(mixed, plain, strict=True):
        torch.testing.assert_close(found, wanted)
    for found, wanted in zip(
        torch.autograd.grad(loss_of(mixed), everything), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_equal_copies_under_equal_codes_get_equal_gradients() -> None:
    same = copies_of(1)[0]
    copies = [[t.detach().clone().requires_grad_() for t in same] for _ in range(4)]
    code = torch.full((4,), 0.25, dtype=torch.float64, requires_grad=True)
    loss_of(merge(code, copies)).backward()  # type: ignore[no-untyped-call]
    assert code.grad is not None
    assert len(set(code.grad.tolist())) == 1
    for others in zip(*copies, strict=True):
        first = others[0].grad
        assert first is not None
        assert all(o.grad is not None and o.grad.equal(first) for o in others)


def test_a_tensor_that_the_loss_does_not_use_gets_no_gradient() -> None:
    copies, code = copies_of(2), code_of(2)
    used, _, other = merge(code, copies)
    (used.sum() + other.sum()).backward()
    assert [t.grad is not None for t in copies[1]] == [True, False, True]
    expected = [(copy[0].sum() + copy[2].sum()).item() for copy in copies]
    assert code.grad is not None
    torch.testing.assert_close(code.grad, torch.tensor(expected, dtype=torch.float64))


def test_only_the_gradients_that_are_asked_for_are_made() -> None:
    copies = copies_of(2, requires_grad=False)
    code = code_of(2)
    loss_of(merge(code, copies)).backward()  # type: ignore[no-untyped-call]
    assert code.grad is not None
    copies = copies_of(2)
    copies[0][1].requires_grad_(False)
    loss_of(merge(code.detach(), copies)).backward()  # type: ignore[no-untyped-call]
    assert [[t.grad is not None for t in copy] for copy in copies] == [
        [True, False, True],
        [True, True, True],
    ]


def test_mixing_stays_in_fp32_under_autocast() -> None:
    copies = [[t.detach().float() for t in copy] for copy in copies_of(3)]
    code = code_of(3).detach().float()
    expected = merge(code, copies)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = merge(code, copies)
    assert all(
        f.dtype == torch.float32 and f.equal(e) for f, e in zip(found, expected, strict=True)
    )


def test_mixed_tensors_keep_the_memory_layout_of_the_copies() -> None:
    copies = [[torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)] for _ in range(2)]
    (mixed,) = merge(torch.tensor([0.5, 0.5]), copies)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
