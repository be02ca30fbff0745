"""The tables of layers that the RKNN tools print, as data: which operator runs where, how long.

librknnrt.so fills in times, the converter prints the same table without them.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List

_PREFIX = re.compile(r"^[A-Z] RKNN: (\[[0-9:.]+\] ?)?")
_TWO_WORDS = re.compile(r"\b(DDR|NPU|Total|Max) Cycles\b")
_EDGES = ("InputOperator", "OutputOperator")
_TARGETS = ("NPU", "CPU", "GPU")


def parse_detail(text: str) -> List[Dict[str, Any]]:
    """Rows of the table as ``{"name", "op", "ns", "provider"}``, [] where there is no table.

    Columns differ between releases, so the header says which one is the time; without one, ``ns``
    is 0. Later columns may be empty; those up to the time never are.

    >>> table = '''
    ... ID  OpType  DataType Target InputShape OutputShape Cycles(DDR/NPU/Total) Time(us) FullName
    ... 1   Conv    INT8     NPU    (1,3,8,8)  (1,8,8,8)   10/20/20              31       Conv:stem
    ... 2   Softmax INT8     CPU    (1,8)      (1,8)       0/0/0                 9        Softmax:s
    ... '''
    >>> [(row["op"], row["provider"], row["ns"]) for row in parse_detail(table)]
    [('Conv', 'NPU', 31000), ('Softmax', 'CPU', 9000)]
    """
    rows: List[Dict[str, Any]] = []
    columns: List[str] = []
    for raw in text.splitlines():
        line = _TWO_WORDS.sub(r"\1Cycles", _PREFIX.sub("", raw.strip()))
        words = line.split()
        if words[:2] == ["ID", "OpType"] and "Target" in words:
            columns = words
            rows = []  # a second table replaces the first
        elif columns and words and words[0].isdigit():
            row = _row(words, columns)
            if row is not None:
                rows.append(row)
        elif columns and line.startswith("Total"):
            columns = []
    return rows


def _row(words: List[str], columns: List[str]) -> Any:
    target = columns.index("Target")
    at = columns.index("Time(us)") if "Time(us)" in columns else target
    if len(words) <= at or words[target] not in _TARGETS:
        return None
    if at != target and not words[at].isdigit():
        return None
    name = words[-1] if columns[-1] == "FullName" and len(words) > at + 1 else words[1]
    return {
        "name": name,
        "op": words[1],
        "ns": 1000 * int(words[at]) if at != target else 0,
        "provider": words[target],
    }


def npu_share(rows: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Share of operators on the NPU by count and by time; entry and exit of data are told apart.

    >>> rows = [{"op": "Conv", "ns": 30, "provider": "NPU"}, {"op": "Add", "ns": 10, "provider":
    ... "CPU"}, {"op": "InputOperator", "ns": 5, "provider": "CPU"}]
    >>> share = npu_share(rows)
    >>> share["by_count"], share["by_time"], share["elsewhere"], share["edges_ns"]
    (0.5, 0.75, ['Add'], 5)
    """
    inner = [row for row in rows if row["op"] not in _EDGES]
    on_npu = [row for row in inner if row["provider"] == "NPU"]
    total_ns = sum(row["ns"] for row in inner)
    return {
        "n_operators": len(inner),
        "by_count": len(on_npu) / len(inner) if inner else None,
        "by_time": sum(row["ns"] for row in on_npu) / total_ns if total_ns else None,
        "elsewhere": sorted({row["op"] for row in inner if row["provider"] != "NPU"}),
        "edges_ns": sum(row["ns"] for row in rows if row["op"] in _EDGES),
    }
