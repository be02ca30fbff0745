"""Which ONNX file a runtime can read: operator set and IR version from its version number.

A board's runtime is often years older than the exporter; a file that is too new fails there with
"unsupported model IR version" or "opset under development". The table is onnxruntime's published
compatibility matrix (https://onnxruntime.ai/docs/reference/compatibility.html); newer releases
read everything that older ones do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from latency_tables.errors import ExportError
from pipeline.export.config import MIN_IR, MIN_OPSET, ExportConfig

# onnxruntime (major, minor) → newest opset and IR version it reads
READS: dict[tuple[int, int], tuple[int, int]] = {
    (1, 6): (13, 7),
    (1, 7): (13, 7),
    (1, 8): (14, 7),
    (1, 9): (15, 8),
    (1, 10): (15, 8),
    (1, 11): (16, 8),
    (1, 12): (17, 8),
    (1, 13): (17, 8),
    (1, 14): (18, 8),
    (1, 15): (19, 8),
    (1, 16): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 19): (21, 10),
    (1, 20): (21, 10),
    (1, 21): (22, 10),
}

PREFERRED_OPSET = 18
"""What torch's exporter writes without conversion; newer sets hold nothing these networks need."""

PREFERRED_IR = 8
"""The IR version that was current with opset 18; later ones add types and fields we do not use."""


def runtime_reads(runtime: Mapping[str, Any]) -> tuple[int, int]:
    """Newest (opset, IR version) that a runtime, given by ``name`` and ``version``, can read.

    Raises:
        ExportError: another runtime than onnxruntime, no version, or one before 1.6.

    >>> runtime_reads({"name": "onnxruntime", "version": "1.16.3"})
    (19, 9)
    """
    name, version = str(runtime.get("name")), str(runtime.get("version"))
    if not re.fullmatch(r"onnxruntime(-[a-z]+)*", name):
        raise ExportError(
            f"which ONNX files the runtime {name!r} reads is not known; onnxruntime is",
            hint="opset = 13 in [export]",
        )
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise ExportError(f"{version!r} is not a version of onnxruntime such as 1.16.3")
    release = int(found[1]), int(found[2])
    if release < min(READS):
        raise ExportError(
            f"onnxruntime {version} reads no opset that can be exported ({MIN_OPSET} or newer); "
            "1.6 is the oldest release that does",
            hint="install a newer onnxruntime on the device",
        )
    return READS[min(release, max(READS))]


def fit_to_runtime(runtime: Mapping[str, Any]) -> tuple[int, int]:
    """Opset and IR version to write for one runtime. Raises ExportError like runtime_reads.

    >>> fit_to_runtime({"name": "onnxruntime", "version": "1.10.0"})
    (15, 8)
    """
    opset, ir_version = runtime_reads(runtime)
    return min(opset, PREFERRED_OPSET), min(ir_version, PREFERRED_IR)


def choose_format(config: ExportConfig, runtimes: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Opset and IR version that all ``runtimes`` read, or what the config demands.

    Raises:
        ExportError: the demanded version is newer than a runtime reads, or a runtime is unknown
            and no version is demanded.

    >>> runtimes = [{"name": "onnxruntime", "version": v} for v in ("1.22.0", "1.12.1")]
    >>> choose_format(ExportConfig(), runtimes)
    (17, 8)
    """
    opset, ir_version = PREFERRED_OPSET, PREFERRED_IR
    wanted_opset, wanted_ir = config.opset, config.ir_version
    for runtime in runtimes:
        if wanted_opset != "auto" and wanted_ir != "auto" and runtime.get("name") != "onnxruntime":
            continue  # everything is said, and nothing is known that could contradict it
        newest_opset, newest_ir = runtime_reads(runtime)
        shown = f"{runtime.get('name')} {runtime.get('version')}"
        if wanted_opset != "auto" and wanted_opset > newest_opset:
            raise ExportError(
                f"opset = {wanted_opset}, but {shown} reads {newest_opset} at most",
                hint='opset = "auto" in [export]',
            )
        if wanted_ir != "auto" and wanted_ir > newest_ir:
            raise ExportError(
                f"ir_version = {wanted_ir}, but {shown} reads {newest_ir} at most",
                hint='ir_version = "auto" in [export]',
            )
        opset, ir_version = min(opset, newest_opset), min(ir_version, newest_ir)
    if wanted_opset != "auto":
        opset = wanted_opset
    if wanted_ir != "auto":
        ir_version = wanted_ir
    return opset, max(ir_version, MIN_IR)
