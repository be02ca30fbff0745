from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from latency_tables.errors import ConfigError, ExportError
from pipeline.export.config import ExportConfig
from pipeline.export.runtime_fit import READS, choose_format, fit_to_runtime, runtime_reads
from pipeline.onnx_runtime import import_onnxruntime


def ort(version: str) -> dict[str, str]:
    return {"name": "onnxruntime", "version": version}


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.6.0", (13, 7)), ("1.8.1", (14, 7)), ("1.10.0", (15, 8)), ("1.14.1", (18, 8)),
     ("1.22.0", (18, 8)), ("9.0.0+cpu", (18, 8))],
)  # fmt: skip
def test_the_format_follows_the_runtime(version: str, expected: tuple[int, int]) -> None:
    assert fit_to_runtime(ort(version)) == expected


def test_newer_runtimes_never_read_less() -> None:
    rows = [READS[release] for release in sorted(READS)]
    assert rows == sorted(rows)
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(rows))


def test_the_oldest_device_decides() -> None:
    assert choose_format(ExportConfig(), [ort("1.22.0"), ort("1.9.0"), ort("1.16.0")]) == (15, 8)


def test_the_installed_runtime_is_at_least_what_the_table_says() -> None:
    assert fit_to_runtime(ort(import_onnxruntime().__version__)) == (18, 8)


def test_a_runtime_that_is_too_old_is_refused() -> None:
    with pytest.raises(ExportError, match=r"1\.5\.3"):
        runtime_reads(ort("1.5.3"))


@pytest.mark.parametrize("runtime", [{"name": "tflite", "version": "2.1"}, {}, ort("newest")])
def test_an_unknown_runtime_is_refused(runtime: dict[str, str]) -> None:
    with pytest.raises(ExportError):
        runtime_reads(runtime)


def test_a_demanded_opset_that_the_device_cannot_read_is_refused() -> None:
    with pytest.raises(ExportError, match=r"opset = 18, but onnxruntime 1\.10\.0 reads 15"):
        choose_format(ExportConfig(opset=18), [ort("1.10.0")])


def test_a_demanded_ir_version_that_the_device_cannot_read_is_refused() -> None:
    with pytest.raises(ExportError, match="ir_version = 10"):
        choose_format(ExportConfig(ir_version=10), [ort("1.16.0")])


def test_a_demanded_format_is_used() -> None:
    assert choose_format(ExportConfig(opset=13, ir_version=7), [ort("1.22.0")]) == (13, 7)


def test_int8_is_refused_and_says_so() -> None:
    with pytest.raises(ConfigError, match="not available yet"):
        ExportConfig(int8=True)


@pytest.mark.parametrize(
    "settings", [{"opset": 12}, {"ir_version": 99}, {"opsett": 13}, {"tolerance": 0.0}]
)
def test_settings_outside_the_allowed_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExportConfig(**settings)
