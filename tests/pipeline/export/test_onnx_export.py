from __future__ import annotations

import getpass
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from latency_tables.errors import ConfigError, ExportError, LimitError
from latency_tables.onnx_writer import to_onnx
from pipeline.export.convert_down import convert_down
from pipeline.export.onnx_export import export_subnet, fold_batch_norms
from pipeline.export.onnx_file import check_size, describe_onnx
from pipeline.export.record import graph_of
from pipeline.onnx_runtime import open_session, run_one_by_one
from pipeline.spaces import load_space


def small_network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip


def test_the_file_has_one_input_image_and_one_output_logits(bundle) -> None:
    session = open_session(bundle.model.path)
    assert [(t.name, t.shape, t.type) for t in session.get_inputs()] == [
        ("image", [1, 1, 8, 8], "tensor(float)")
    ]
    assert [(t.name, t.shape) for t in session.get_outputs()] == [("logits", [1, 10])]


def test_batch_norms_are_folded_into_convolutions(bundle) -> None:
    assert "BatchNormalization" not in bundle.model.operator_histogram
    n_convolutions = sum(isinstance(m, nn.Conv2d) for m in bundle.network.modules())
    assert bundle.model.operator_histogram["Conv"] == n_convolutions


def test_weights_are_inside_the_file(bundle) -> None:
    model = onnx.load(bundle.model.path, load_external_data=False)
    assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    stored = sum(numpy_helper.to_array(t).size for t in model.graph.initializer)
    convolutions = sum(
        m.weight.numel() for m in bundle.network.modules() if hasattr(m, "kernel_size")
    )
    assert stored >= convolutions
    assert sorted(p.name for p in bundle.folder.iterdir()) == [
        "golden.npz", "manifest.json", "subnet.onnx",
    ]  # fmt: skip


def test_the_file_tells_neither_user_nor_paths(bundle) -> None:
    data = bundle.model.path.read_bytes()
    secrets = [str(Path.home()), str(Path.cwd()), getpass.getuser(), "site-packages", ".py"]
    assert [s for s in secrets if s.encode() in data] == []
    model = onnx.load_model_from_string(data)
    assert (model.producer_name, model.doc_string, list(model.metadata_props)) == ("hilnas", "", [])
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    network = small_network()
    first, second = (export_subnet(network, (1, 6, 6), tmp_path / n) for n in ("a", "b"))
    assert first.sha256 == second.sha256


def test_exporting_leaves_the_network_as_it_was(bundle) -> None:
    assert not bundle.network.training
    assert any(isinstance(m, nn.BatchNorm2d) for m in bundle.network.modules())
    assert all(p.dtype == torch.float32 for p in bundle.network.parameters())


def test_folding_changes_outputs_by_rounding_only(bundle) -> None:
    x = torch.from_numpy(bundle.images)
    with torch.no_grad():
        difference = (fold_batch_norms(bundle.network)(x) - bundle.network(x)).abs().max()
    assert 0 < difference < 1e-5


def test_exporting_neither_warns_nor_prints(tmp_path: Path, capfd) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_subnet(small_network(), (1, 6, 6), tmp_path / "quiet.onnx")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17])
def test_older_opsets_give_the_same_logits(bundle, opset: int) -> None:
    model = onnx.load(bundle.model.path)
    convert_down(model, opset)
    model.ir_version = 7
    onnx.checker.check_model(model, full_check=True)
    expected = run_one_by_one(open_session(bundle.model.path), bundle.images[:4])
    actual = run_one_by_one(open_session(model.SerializeToString()), bundle.images[:4])
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize(("opset", "ir_version"), [(13, 7), (20, 9)])
def test_the_demanded_format_is_written(tmp_path: Path, opset: int, ir_version: int) -> None:
    network, path = small_network(), tmp_path / "m.onnx"
    model = export_subnet(network, (1, 6, 6), path, opset=opset, ir_version=ir_version)
    written = onnx.load(path)
    assert (model.opset, model.ir_version) == (opset, ir_version)
    assert (written.opset_import[0].version, written.ir_version) == (opset, ir_version)


def test_an_operator_without_an_older_form_is_refused_by_name() -> None:
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"])
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", 1, [1, 4])], [value("y", 1, [1, 4])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(ExportError, match="LayerNormalization"):
        convert_down(model, 15)


def test_a_reshape_to_a_zero_is_not_silently_changed() -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], allowzero=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", 1, [0, 4])], [value("y", 1, [0, 2])],
        [numpy_helper.from_array(np.array([0, 2]), "shape")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(ExportError, match="zero"):
        convert_down(model, 13)


@pytest.mark.parametrize(("opset", "ir_version"), [(12, 8), (99, 8), (18, 3), (18, 99)])
def test_a_format_that_cannot_be_written_is_refused(tmp_path, opset, ir_version) -> None:
    with pytest.raises(ConfigError, match="can"):
        export_subnet(
            small_network(), (1, 6, 6), tmp_path / "m.onnx", opset=opset, ir_version=ir_version
        )
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    class Capricious(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ExportError, match="exporter"):
        export_subnet(nn.Sequential(Capricious()), (1, 4, 4), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_size_limit_is_checked_against_the_real_file(bundle) -> None:
    size = bundle.model.path.stat().st_size
    assert bundle.model.size_bytes == size
    assert check_size(bundle.model, size) == 0
    with pytest.raises(LimitError, match="1 more than"):
        check_size(bundle.model, size - 1)


def test_a_damaged_file_is_not_described(tmp_path: Path) -> None:
    path = tmp_path / "subnet.onnx"
    path.write_bytes(b"\xff not onnx")
    with pytest.raises(ExportError, match=r"subnet\.onnx cannot be read"):
        describe_onnx(path)


def test_weights_outside_the_file_are_refused(bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.model.path)
    path = tmp_path / "subnet.onnx"
    onnx.save(model, path, save_as_external_data=True, location="../../etc/passwd.bin"[-8:])
    with pytest.raises(ExportError, match="outside"):
        describe_onnx(path)


@pytest.mark.parametrize("name", ["nasbench_macro", "shufflenetv2", "proxyless"])
def test_the_exported_file_has_the_operators_of_the_measured_candidate(
    name: str, tmp_path: Path
) -> None:
    """What the search measured and what is deployed must be equally fast."""
    space = load_space(name, preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    arch = space.sample(np.random.default_rng(0))
    exported = export_subnet(space.network(arch), (1, 8, 8), tmp_path / "subnet.onnx")
    candidate = onnx.ModelProto()
    candidate.ParseFromString(to_onnx(graph_of(space, arch)).model)
    measured = Counter(node.op_type for node in candidate.graph.node)
    assert exported.operator_histogram == dict(measured)
