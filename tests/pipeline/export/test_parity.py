from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from latency_tables.errors import ExportError, ParityError
from pipeline.export import parity as parity_module
from pipeline.export.accuracy import onnx_accuracy
from pipeline.export.compare import compare_logits
from pipeline.export.parity import check_parity, export_with_parity, torch_logits

LOGITS = np.array([[4.0, 1.0, 0.0], [0.0, 3.0, 1.0]], np.float32)


def doctor(source: Path, target: Path, scale: float) -> None:
    """Multiply the last layer's weights."""
    model = onnx.load(source)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    for tensor in model.graph.initializer:
        if tensor.name == gemm.input[1]:
            changed = numpy_helper.from_array(numpy_helper.to_array(tensor) * scale, tensor.name)
            tensor.CopyFrom(changed.__class__.FromString(changed.SerializeToString()))
    onnx.save(model, target)


def test_an_exported_network_agrees_with_torch(bundle) -> None:
    assert bundle.parity.ok
    assert bundle.parity.agreement == 1.0
    assert 0 < bundle.parity.max_abs_diff < 1e-5
    assert bundle.parity.n_images == len(bundle.images)


def test_a_doctored_file_is_caught(bundle, tmp_path: Path) -> None:
    doctor(bundle.model.path, tmp_path / "bad.onnx", np.float32(1.01))
    report = check_parity(bundle.network, tmp_path / "bad.onnx", bundle.images, tolerance=1e-4)
    assert not report.ok
    with pytest.raises(ParityError, match="24 real images: logits differ by up to"):
        report.require("bad.onnx")


def test_a_file_that_disagrees_never_gets_the_final_name(bundle, tmp_path: Path, monkeypatch):
    def wrong(network, input_shape, path, **kwargs) -> None:
        doctor(bundle.model.path, path, np.float32(-1.0))

    monkeypatch.setattr(parity_module, "export_subnet", wrong)
    target = tmp_path / "subnet.onnx"
    target.write_bytes(b"the older file")
    with pytest.raises(ParityError, match=r"subnet\.refused\.onnx"):
        export_with_parity(
            bundle.network, bundle.images, target, opset=18, ir_version=8, tolerance=1e-4
        )
    assert target.read_bytes() == b"the older file"
    assert (tmp_path / "subnet.refused.onnx").exists()


def test_a_logit_that_is_no_number_is_never_parity() -> None:
    broken = LOGITS.copy()
    broken[0, 2] = np.nan
    assert not compare_logits(LOGITS, broken, tolerance=1e-3).ok
    assert not compare_logits(broken, broken, tolerance=1e-3).ok


def test_the_tolerance_grows_with_the_logits() -> None:
    assert compare_logits(LOGITS * 1000, LOGITS * 1000 + 0.3, tolerance=1e-4).ok
    assert not compare_logits(LOGITS, LOGITS + 0.3, tolerance=1e-4).ok
    assert not compare_logits(LOGITS / 1000, LOGITS / 1000 + 2e-4, tolerance=1e-4).ok


def test_a_flip_between_equal_classes_does_not_count_but_a_clear_one_does() -> None:
    tied = np.array([[1.0, 1.0 + 1e-6]], np.float32)
    flipped = tied[:, ::-1].copy()
    report = compare_logits(tied, flipped, tolerance=1e-4)
    assert (report.ok, report.agreement, report.n_decided) == (True, 0.0, 0)
    clear = compare_logits(
        np.array([[1.0, 1.15]], np.float32), np.array([[1.08, 1.07]], np.float32), tolerance=0.09
    )
    assert clear.max_abs_diff <= clear.allowed
    assert (clear.ok, clear.n_flipped) == (False, 1)


def test_other_shapes_and_no_images_are_refused() -> None:
    with pytest.raises(ParityError, match="those of the file"):
        compare_logits(LOGITS, LOGITS[:, :2], tolerance=1e-4)
    with pytest.raises(ParityError, match="at least one"):
        compare_logits(LOGITS[:0], LOGITS[:0], tolerance=1e-4)


def test_asking_torch_leaves_the_mode_of_the_network(bundle) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).train()
    torch_logits(network, bundle.images[:3], batch_size=2)
    assert network.training


def test_accuracy_of_the_file_counts_right_answers(bundle) -> None:
    labels = bundle.labels.copy()
    labels[:6] = (labels[:6] + 1) % 10
    batches = [(bundle.images[:10], labels[:10]), (bundle.images[10:], labels[10:])]
    accuracy = onnx_accuracy(bundle.model.path, batches)
    assert (accuracy.n_correct, accuracy.n_images, accuracy.value) == (18, 24, 0.75)


def test_accuracy_of_nothing_is_refused(bundle) -> None:
    with pytest.raises(ExportError, match="at least one image"):
        onnx_accuracy(bundle.model.path, [])
