"""What a board sends is checked before it becomes a number."""

from __future__ import annotations

from typing import Any

import pytest

from device_agents.link.client import clean_text
from device_agents.measuring.replies import children, failure, net_round
from latency_tables.errors import ProtocolError

GOOD: dict[str, Any] = {
    "name": "0",
    "block_medians_ns": [1000, 1001],
    "block_counts": [2, 2],
    "samples_ns": [[1000, 1000], [1001, 1001]],
    "min_ns": 1000,
    "load_ns": 5000,
    "first_ns": 2000,
    "warmup_runs": 3,
    "steady": True,
    "calls_per_sample": 1,
    "involuntary_switches": 0,
    "n_threads": 1,
    "masks_outside": [],
    "finite": True,
    "wall_ns": 9000,
    "child": 0,
    "position": 0,
}


def test_a_good_reply_is_read() -> None:
    assert net_round(GOOD).n_runs == 4


@pytest.mark.parametrize(
    "change",
    [
        {"min_ns": 0},
        {"min_ns": True},
        {"load_ns": "5000"},
        {"block_medians_ns": []},
        {"block_medians_ns": [1000]},
        {"block_medians_ns": [1000, -1]},
        {"block_medians_ns": [1000, 10**30]},
        {"samples_ns": [[1000, 1000], []]},
        {"samples_ns": [[1000, float("nan")], [1]]},
        {"samples_ns": 7},
        {"steady": 1},
        {"child": -1},
        {"masks_outside": None},
        {"golden": {"right": True}},
    ],
    ids=str,
)
def test_a_reply_with_a_wrong_field_is_a_protocol_error(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        net_round({**GOOD, **change})


@pytest.mark.parametrize("field", [name for name in GOOD if name not in ("name", "wall_ns")])
def test_a_reply_without_a_field_is_a_protocol_error(field: str) -> None:
    with pytest.raises(ProtocolError):
        net_round({name: value for name, value in GOOD.items() if name != field})


def test_a_failure_that_blames_nobody_known_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="nobody is called"):
        failure({"error": {"code": "OOM", "message": "", "blames": "the weather"}})


def test_evidence_that_is_no_list_of_children_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        children({"children": [{"before": []}]})


def test_text_of_a_board_loses_control_codes_and_is_cut() -> None:
    assert clean_text("\x1b]0;title\x07ok\x9b" + "x" * 5000, limit=10) == "]0;titleok"
