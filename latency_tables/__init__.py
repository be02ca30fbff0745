"""What a network costs on a device: records, tables, gates, a model, and the oracle above them.

The names below are the public face; they are imported when they are first used, so that reading an
error class costs neither numpy nor SQLite. Nothing here imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latency_tables.arch import Arch, Choice, Decision, check_arch
    from latency_tables.cost_table import Column, CostTable, Factor
    from latency_tables.diff import Difference, compare_sides
    from latency_tables.estimate import Estimate, Source
    from latency_tables.evaluate import Evaluation, evaluate
    from latency_tables.gates import Gate, GateReport
    from latency_tables.gates import check as check_gates
    from latency_tables.gates import enforce as enforce_gates
    from latency_tables.interchange import (
        Header,
        Imported,
        export_table,
        import_table,
        read_table,
        write_table,
    )
    from latency_tables.keys import measurement_key, net_id
    from latency_tables.merge import Merged, merge_tables
    from latency_tables.oracle import Deployment, MeasureJob, Measurer, Note, Oracle, Ticket
    from latency_tables.pooling import pool
    from latency_tables.predictor import Diagnostics, LatencyModel, Prediction
    from latency_tables.ranking import kendall_tau
    from latency_tables.records import (
        DeviceFingerprint,
        Failure,
        Measurement,
        Statistics,
        Verdict,
    )
    from latency_tables.remarks import Remark
    from latency_tables.salvage import Salvaged, salvage_table
    from latency_tables.store import (
        Device,
        Rejected,
        SpaceInfo,
        TableStore,
        TableSummary,
        default_table_path,
    )
    from latency_tables.verify import Verification, verify

__all__ = [
    "Arch",
    "Choice",
    "Column",
    "CostTable",
    "Decision",
    "Deployment",
    "Device",
    "DeviceFingerprint",
    "Diagnostics",
    "Difference",
    "Estimate",
    "Evaluation",
    "Factor",
    "Failure",
    "Gate",
    "GateReport",
    "Header",
    "Imported",
    "LatencyModel",
    "MeasureJob",
    "Measurement",
    "Measurer",
    "Merged",
    "Note",
    "Oracle",
    "Prediction",
    "Rejected",
    "Remark",
    "Salvaged",
    "Source",
    "SpaceInfo",
    "Statistics",
    "TableStore",
    "TableSummary",
    "Ticket",
    "Verdict",
    "Verification",
    "check_arch",
    "check_gates",
    "compare_sides",
    "default_table_path",
    "enforce_gates",
    "evaluate",
    "export_table",
    "import_table",
    "kendall_tau",
    "measurement_key",
    "merge_tables",
    "net_id",
    "pool",
    "read_table",
    "salvage_table",
    "verify",
    "write_table",
]

_MODULES = {
    "arch": ("Arch", "Choice", "Decision", "check_arch"),
    "cost_table": ("Column", "CostTable", "Factor"),
    "diff": ("Difference", "compare_sides"),
    "estimate": ("Estimate", "Source"),
    "evaluate": ("Evaluation", "evaluate"),
    "gates": ("Gate", "GateReport", "check_gates", "enforce_gates"),
    "interchange": (
        "Header",
        "Imported",
        "export_table",
        "import_table",
        "read_table",
        "write_table",
    ),
    "keys": ("measurement_key", "net_id"),
    "merge": ("Merged", "merge_tables"),
    "predictor": ("Diagnostics", "LatencyModel", "Prediction"),
    "oracle": ("Deployment", "MeasureJob", "Measurer", "Note", "Oracle", "Ticket"),
    "pooling": ("pool",),
    "ranking": ("kendall_tau",),
    "records": ("DeviceFingerprint", "Failure", "Measurement", "Statistics", "Verdict"),
    "remarks": ("Remark",),
    "salvage": ("Salvaged", "salvage_table"),
    "store": (
        "Device",
        "Rejected",
        "SpaceInfo",
        "TableStore",
        "TableSummary",
        "default_table_path",
    ),
    "verify": ("Verification", "verify"),
}
_RENAMED = {"check_gates": "check", "enforce_gates": "enforce"}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
