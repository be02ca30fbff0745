from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latency_tables.errors import ExportError, ParityError
from latency_tables.files import sha256_file
from pipeline.export.check import check_export
from pipeline.export.golden import Golden, read_golden, write_golden


def rewrite_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_whole_folder_passes_with_its_numbers(bundle, copied: Path) -> None:
    report = check_export(copied, [(bundle.images, bundle.labels)])
    assert report.onnx_sha256 == bundle.model.sha256
    assert report.golden.n_images == 4
    assert report.accuracy is not None
    assert (report.accuracy.value, report.promised) == (1.0, 1.0)
    assert "accuracy 100.00% on 24 images, the manifest says 100.00%" in report.lines()[-1]


@pytest.mark.parametrize("name", ["subnet.onnx", "golden.npz", "manifest.json"])
def test_a_missing_file_is_named_with_the_next_command(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ExportError, match=rf"{name}.*try: hilnas export"):
        check_export(copied)


@pytest.mark.parametrize("name", ["subnet.onnx", "golden.npz"])
def test_one_changed_bit_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(bytes(data))
    with pytest.raises(ExportError, match=f"{name} is not the file"):
        check_export(copied)


def test_logits_that_changed_are_a_parity_error(copied: Path) -> None:
    golden = read_golden(copied / "golden.npz")
    changed = Golden(images=golden.images, logits=golden.logits + np.float32(0.5))
    sha256 = write_golden(copied / "golden.npz", changed)
    rewrite_manifest(copied, lambda d: d["golden"].update(sha256=sha256))
    with pytest.raises(ParityError, match="disagree on 4 real images"):
        check_export(copied)


def test_another_input_than_promised_is_found(copied: Path) -> None:
    rewrite_manifest(copied, lambda d: d["model"]["input"].update(shape=[1, 3, 8, 8]))
    with pytest.raises(ExportError, match="the model's input is"):
        check_export(copied)


def test_another_accuracy_than_promised_is_found(bundle, copied: Path) -> None:
    wrong = (bundle.labels + 1) % 10
    with pytest.raises(ParityError, match=r"accuracy is 0\.00% .* says 100\.00%"):
        check_export(copied, [(bundle.images, wrong)])


def test_a_model_that_onnxruntime_cannot_load_is_found(copied: Path) -> None:
    (copied / "subnet.onnx").write_bytes(b"")
    sha256 = sha256_file(copied / "subnet.onnx")
    rewrite_manifest(copied, lambda d: d["model"].update(sha256=sha256))
    with pytest.raises(ExportError, match=r"subnet\.onnx"):
        check_export(copied)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    np.savez(tmp_path / "golden.npz", images=np.array([Bomb()], object), logits=np.zeros((1, 2)))
    with pytest.raises(ExportError, match="damaged"):
        read_golden(tmp_path / "golden.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 short", b"no archive at all"])
def test_a_damaged_golden_file_is_an_export_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(ExportError, match="damaged"):
        read_golden(tmp_path / "golden.npz")


def test_golden_files_of_equal_data_are_equal(bundle, tmp_path: Path) -> None:
    golden = read_golden(bundle.folder / "golden.npz")
    assert write_golden(tmp_path / "g.npz", golden) == bundle.manifest.golden.sha256


def test_checking_an_export_works_without_torch(copied: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from pipeline.export.check import check_export\n"
        f"print(check_export(Path({str(copied)!r})).golden.ok)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "True", done.stderr
