from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.preprocessing import Preprocessing
from pipeline.export.config import ExportConfig
from pipeline.onnx_runtime import open_session, run_one_by_one

GUIDE = Path(__file__).parents[3] / "docs" / "export.md"


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.skipif(not GUIDE.exists(), reason="docs are not part of the installed package")
def test_the_ten_lines_of_the_guide_give_the_class_that_hilnas_gives(bundle, copied: Path) -> None:
    how = Preprocessing(height=8, width=8, color_order="GREY", mean=(0.3,), std=(0.4,))
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["preprocessing"] = how.to_dict()
    path.write_text(json.dumps(manifest))
    photo = np.random.default_rng(5).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    np.save(copied / "photo.npy", photo)
    code, n_replaced = re.subn(r"photo = .*", 'photo = np.load("photo.npy")', block("python"))
    assert n_replaced == 1
    code += "\nprint(','.join(map(str, logits.tolist())))\n"
    environment = {"ORT_DISABLE_TELEMETRY": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=copied, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = run_one_by_one(open_session(bundle.model.path), how.apply(photo[None]))[0]
    name, logits = done.stdout.split()
    assert name == bundle.manifest.classes[int(expected.argmax())]
    np.testing.assert_allclose([float(v) for v in logits.split(",")], expected, atol=1e-5)


@pytest.mark.skipif(not GUIDE.exists(), reason="docs are not part of the installed package")
def test_the_settings_in_the_guide_are_the_defaults() -> None:
    assert ExportConfig(**tomllib.loads(block("toml"))["export"]) == ExportConfig()
