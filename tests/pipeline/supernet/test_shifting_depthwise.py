import pytest
import torch
from torch import nn

from pipeline.supernet.shifting_depthwise import fast_gradients, large_depthwise


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_are_those_of_torch(kernel: int, size: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=6, bias=False)
    conv.to(memory_format=layout)
    x = torch.randn(4, 6, size, size + 1).contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn(4, 6, size, size + 1)
    results = []
    for convolutions in ([], large_depthwise([conv])):
        conv.weight.grad = x.grad = None
        with fast_gradients(convolutions):
            y = conv(x)
        y.backward(dy)
        results.append((y.detach(), x.grad, conv.weight.grad))
    assert convolutions == [conv]
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_is_its_own_again_afterwards() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
    with fast_gradients([conv]):
        assert "_conv_forward" in vars(conv)
        assert conv(torch.zeros(1, 4, 3, 3)).grad_fn.name() == "_DepthwiseBackward"
    assert "_conv_forward" not in vars(conv)
    assert "Convolution" in conv(torch.zeros(1, 4, 3, 3)).grad_fn.name()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 5, padding=2, groups=2, bias=False),
        nn.Conv2d(4, 8, 5, padding=2, groups=4, bias=False),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False, stride=2),
        nn.Conv2d(4, 4, 5, padding=4, groups=4, bias=False, dilation=2),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False, padding_mode="reflect"),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False).double(),
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    assert large_depthwise([conv]) == []
