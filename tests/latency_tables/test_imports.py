"""The façade, and life without torch."""

import subprocess
import sys

import pytest

import latency_tables

WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "onnxruntime", "scipy"):
    sys.modules[name] = None
import tempfile
from pathlib import Path
import latency_tables
from latency_tables import *
with TableStore(Path(tempfile.mkdtemp()) / "tables.sqlite") as store:
    assert store.summaries() == []
import latency_tables.gates, latency_tables.interchange, latency_tables.oracle
import latency_tables.predictor
print("ok")
"""

LIGHT = """
import sys
import latency_tables.errors, latency_tables.arch, latency_tables.records, latency_tables.oracle
print([name for name in ("numpy", "sqlite3", "torch") if name in sys.modules])
"""


def run(code):
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.parametrize("name", latency_tables.__all__)
def test_every_public_name_exists(name):
    assert getattr(latency_tables, name) is not None


def test_public_names_are_sorted_and_named_once():
    assert latency_tables.__all__ == sorted(set(latency_tables.__all__))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        latency_tables.nothing_like_it  # noqa: B018


def test_tables_work_where_torch_onnx_and_scipy_cannot_be_imported():
    assert run(WITHOUT_TORCH) == "ok"


def test_errors_and_records_import_neither_numpy_nor_sqlite():
    assert run(LIGHT) == "[]"
