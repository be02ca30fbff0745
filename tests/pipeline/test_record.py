"""Torch modules become Graphs that compute the same, cost what they should, or are refused."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latency_tables.costs import graph_costs
from latency_tables.errors import GraphError, UnsupportedOperatorError
from latency_tables.graph import Graph
from latency_tables.onnx_writer import to_onnx
from pipeline.export.record import export_or_fallback, graph_weights, record
from pipeline.export.record_ops import HANDLERS

torch.set_num_threads(1)


class Function(nn.Module):
    """A function as a module; keyword arguments become parameters."""

    def __init__(self, function, **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def fn(function, **parameters: Tensor) -> nn.Module:
    return Function(function, **parameters)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(inplace=True),
            nn.Conv2d(4, channels, 1), nn.Hardsigmoid(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class FusedAttention(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, tokens, width))


class RelativeAttention(nn.Module):
    """Swin's way: a learned bias per relative position, looked up by a constant index."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 2))
        index = torch.arange(4)[:, None] - torch.arange(4)[None, :] + 3
        self.register_buffer("index", index.reshape(-1))
        self.attention = FusedAttention()

    def forward(self, x: Tensor) -> Tensor:
        bias = self.table[self.index].view(4, 4, 2).permute(2, 0, 1)
        q = x.reshape(1, 4, 2, 8).transpose(1, 2)
        scores = q @ q.transpose(-2, -1) * 8**-0.5 + bias
        y = scores.softmax(dim=-1) @ q
        return self.attention(y.transpose(1, 2).reshape(1, 4, 16))


class TinyViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16, elementwise_affine=False)
        self.attention = FusedAttention()
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16, bias=False))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


PICTURE, ROW, TOKENS = (1, 8, 6, 6), (1, 12), (1, 4, 16)

MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolution with bias": (nn.Conv2d(8, 4, 3, 2, 1), PICTURE),
    "dilated grouped convolution": (nn.Conv2d(8, 8, 3, dilation=2, padding=2, groups=4), PICTURE),
    "same padding": (nn.Conv2d(8, 4, (3, 5), padding="same"), PICTURE),
    "convolution over one axis": (nn.Conv1d(4, 6, 3, padding=1), TOKENS),
    "group norm": (nn.GroupNorm(4, 8), PICTURE),
    "plain group norm": (nn.GroupNorm(2, 8, affine=False), PICTURE),
    "one learnt slope": (nn.PReLU(), PICTURE),
    "a learnt slope for every channel": (nn.PReLU(8), PICTURE),
    "repeated pixels": (nn.Upsample(scale_factor=2), PICTURE),
    "folded batch norm": (nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)), PICTURE),
    "folded plain batch norm": (
        nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)),
        PICTURE,
    ),
    "batch norm before": (nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), PICTURE),
    "plain batch norm before": (nn.BatchNorm2d(8, affine=False), PICTURE),
    "relu6": (nn.ReLU6(inplace=True), PICTURE),
    "F.relu6": (fn(lambda _, x: F.relu6(x)), PICTURE),
    "clamp": (fn(lambda _, x: x.clamp(min=-0.5)), PICTURE),
    "hardswish": (nn.Hardswish(), PICTURE),
    "hardsigmoid": (nn.Hardsigmoid(), PICTURE),
    "sigmoid": (nn.Sigmoid(), PICTURE),
    "swish": (nn.SiLU(inplace=True), PICTURE),
    "gelu": (nn.GELU(), TOKENS),
    "leaky relu": (nn.LeakyReLU(0.2), PICTURE),
    "tanh": (nn.Tanh(), ROW),
    "exp, sqrt, abs, neg, pow": (fn(lambda _, x: -(x.abs() + 1).sqrt() + x.exp() ** 2), ROW),
    "arithmetic": (fn(lambda _, x: (x + 2) * 3 - x / 4 + (1 - x) - x * x), ROW),
    "parameters as operands": (
        fn(lambda m, x: x * m.scale + m.shift, scale=torch.rand(12), shift=torch.rand(12)),
        ROW,
    ),
    "squeeze and excite": (SqueezeExcite(8), PICTURE),
    "channel shuffle": (nn.ChannelShuffle(2), PICTURE),
    "chunk and concat": (fn(lambda _, x: torch.cat(x.chunk(2, 1)[::-1], 1)), PICTURE),
    "uneven split": (fn(lambda _, x: x.split([2, 6], 1)[1]), PICTURE),
    "slice": (fn(lambda _, x: x[:, 1:-1:2, 2:]), PICTURE),
    "select": (fn(lambda _, x: x[:, -1]), TOKENS),
    "unbind": (fn(lambda _, x: x.unbind(1)[2]), TOKENS),
    "padding": (fn(lambda _, x: F.pad(x, (1, 2, 0, 1), value=0.5)), PICTURE),
    "zero padding": (nn.ZeroPad2d((1, 0, 1, 0)), PICTURE),
    "average pooling": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), PICTURE),
    "average pooling that counts padding": (nn.AvgPool2d(3, 1, 1), PICTURE),
    "maximum pooling": (nn.MaxPool2d(3, 2, 1), PICTURE),
    "maximum pooling with ceil": (nn.MaxPool2d(2, ceil_mode=True), (1, 2, 5, 5)),
    "adaptive pooling": (nn.AdaptiveAvgPool2d(3), PICTURE),
    "global pooling": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), PICTURE),
    "mean": (fn(lambda _, x: x.mean((2, 3))), PICTURE),
    "mean of everything": (fn(lambda _, x: x.mean()), PICTURE),
    "linear": (nn.Linear(12, 5), ROW),
    "linear without bias": (nn.Linear(12, 5, bias=False), ROW),
    "linear on tokens": (nn.Linear(16, 5), TOKENS),
    "addmm": (fn(lambda m, x: torch.addmm(m.b, x, m.w), w=torch.rand(12, 3), b=torch.rand(3)), ROW),
    "layer norm": (nn.LayerNorm(16), TOKENS),
    "softmax": (nn.Softmax(1), PICTURE),
    "expand": (fn(lambda _, x: x.mean(1, keepdim=True).expand_as(x) - x), PICTURE),
    "zeros": (fn(lambda _, x: x + torch.zeros_like(x) + x.new_full((6, 6), 2.0)), PICTURE),
    "unsqueeze and squeeze": (
        fn(lambda _, x: x.unsqueeze(1).squeeze(0).unflatten(1, (2, 4))),
        PICTURE),
    "dropout": (nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.ReLU()), PICTURE),
    "in place on a residual": (fn(lambda _, x: x.add_(1).relu_() + x.mul_(2)), PICTURE),
    "multi-head attention": (
        fn(lambda m, x: m.layer(x, x, x, need_weights=False)[0]),
        TOKENS,
    ),
    "fused attention": (FusedAttention(), TOKENS),
    "attention with a mask": (
        fn(lambda m, x: F.scaled_dot_product_attention(x, x, x, m.mask, scale=0.3),
           mask=torch.randn(4, 4)),
        TOKENS,
    ),
    "relative attention": (RelativeAttention(), TOKENS),
    "vision transformer": (TinyViT(), (1, 3, 8, 8)),
}  # fmt: skip
MODULES["multi-head attention"][0].layer = nn.MultiheadAttention(16, 2, batch_first=True)


def with_statistics(module: nn.Module) -> nn.Module:
    """Give batch norms statistics and affine values that are not neutral."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(part.bias, 0, 0.3, generator=generator)
    return module.eval()


def run_onnx(graph: Graph, module: nn.Module, x: Tensor, **options: int) -> Tensor:
    model = to_onnx(graph, graph_weights(graph, module), **options).model
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("name", MODULES)
def test_a_recorded_module_computes_what_torch_computes(name: str) -> None:
    module, shape = MODULES[name]
    module = with_statistics(module)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    graph = record(module, shape)
    with torch.no_grad():
        expected = module(x.clone())
    torch.testing.assert_close(run_onnx(graph, module, x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_reductions_are_written_for_old_and_new_opsets(opset: int) -> None:
    module, x = SqueezeExcite(8).eval(), torch.randn(PICTURE)
    with torch.no_grad():
        expected = module(x)
    got = run_onnx(record(module, PICTURE), module, x, opset=opset)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_every_batch_norm_after_a_convolution_is_folded() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    graph = record(module, (1, 3, 8, 8))
    assert graph.operator_histogram() == {"Conv": 1, "Relu": 1, "BatchNormalization": 1}
    assert graph.n_weights() == 3 * 4 * 9 + 4 + 4 * 4


def test_a_convolution_that_others_read_keeps_its_batch_norm_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    module, x = with_statistics(Shared()), torch.randn(1, 3, 5, 5)
    graph = record(module, (1, 3, 5, 5))
    assert graph.operator_histogram()["BatchNormalization"] == 1
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(graph, module, x), module(x), atol=1e-5, rtol=1e-4)


def test_recording_changes_neither_weights_nor_mode() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    record(module, (1, 3, 4, 4))
    assert module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_what_torch_refuses_is_refused_although_its_shapes_are_not_asked_for() -> None:
    with pytest.raises(RuntimeError, match="running_mean should contain 4 elements not 5"):
        record(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)), (1, 3, 4, 4))


def test_a_module_on_the_meta_device_gives_the_same_graph() -> None:
    with torch.device("meta"):
        meta = TinyViT()
    real, shape = TinyViT(), (1, 3, 8, 8)
    assert to_onnx(record(meta, shape)) == to_onnx(record(real, shape))


def test_attention_is_counted_by_the_closed_form() -> None:
    tokens, width = 4, 16
    macs = graph_costs(record(FusedAttention(width), (1, tokens, width)))
    expected = tokens * 3 * width**2 + 2 * tokens**2 * width + tokens * width**2
    assert macs["macs_matmul"] == macs["macs"] == expected


@pytest.mark.parametrize(
    ("module", "shape", "operator"),
    [
        (nn.ConvTranspose2d(8, 4, 2), PICTURE, "conv_transpose"),
        (nn.AdaptiveAvgPool2d(4), PICTURE, "adaptive pooling"),
        (nn.GELU(approximate="tanh"), TOKENS, "gelu"),
        (fn(lambda _, x: x.cumsum(1)), ROW, "cumsum"),
        (nn.BatchNorm2d(8, track_running_stats=False), PICTURE, "statistics of its batch"),
        (fn(lambda _, x: x.double()), ROW, "cast"),
        (fn(lambda _, x: x.chunk(2, 1)[0].relu_() + x[:, :4]), PICTURE, "views"),
    ],
    ids=["transposed", "uneven", "tanh gelu", "cumsum", "batch statistics", "cast", "view"],
)
def test_an_operator_outside_the_list_is_named(
    module: nn.Module, shape: tuple[int, ...], operator: str
) -> None:
    with pytest.raises(UnsupportedOperatorError, match=operator):
        record(module, shape)


def test_an_integer_buffer_without_values_is_refused() -> None:
    with torch.device("meta"):
        module = RelativeAttention()
    with pytest.raises(UnsupportedOperatorError, match="index"):
        record(module, TOKENS)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_unsupported_network_falls_back_to_torchs_exporter_and_says_so() -> None:
    exported = export_or_fallback(fn(lambda _, x: x.cumsum(1)), ROW)
    assert exported.fallback
    assert "cumsum" in exported.reason
    session = ort.InferenceSession(exported.candidate.model, providers=["CPUExecutionProvider"])
    x = torch.rand(ROW)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), x.cumsum(1))


def test_a_supported_network_needs_no_fallback() -> None:
    exported = export_or_fallback(nn.Linear(12, 40), ROW)
    assert not exported.fallback
    assert exported.candidate.weights_spec is not None


def test_weights_of_another_network_are_refused() -> None:
    graph = record(nn.Sequential(nn.Conv2d(3, 4, 1)), (1, 3, 4, 4))
    with pytest.raises(GraphError, match=r"0\.weight"):
        graph_weights(graph, nn.Sequential(nn.Conv2d(3, 5, 1)))
    with pytest.raises(GraphError, match="no tensor"):
        graph_weights(graph, nn.Sequential(nn.ReLU()))


def test_every_handler_is_reached_by_a_name_of_torch() -> None:
    unknown = [name for name in HANDLERS if not hasattr(torch.ops.aten, name)]
    assert unknown == []
