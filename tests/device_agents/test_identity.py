"""From what a board says to the settings of a measurement."""

from __future__ import annotations

import pytest

from device_agents.identity import clean_json, cores_of, runtime_of
from latency_tables.errors import MissingRuntimeError, UsageError

ORT = {"name": "onnxruntime", "version": "1.22.0", "provider": "CPUExecutionProvider"}


def test_the_last_allowed_cores_are_taken_unless_others_are_asked_for() -> None:
    probe = {"allowed_cores": [0, 1, 4, 5]}
    assert cores_of(probe, (), 2) == (4, 5)
    assert cores_of(probe, (0,), 1) == (0,)


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(UsageError, match="3 threads"):
        cores_of({"allowed_cores": [0, 1]}, (), 3)


def test_the_runtime_of_a_record_has_what_its_key_needs() -> None:
    assert runtime_of({"runtimes": [ORT]}, "onnxruntime", "all") == {
        **ORT,
        "graph_optimization": "all",
    }


def test_a_broken_installation_is_quoted() -> None:
    broken = {"name": "onnxruntime", "broken": "OSError: libgomp.so.1 is missing"}
    with pytest.raises(MissingRuntimeError, match=r"libgomp\.so\.1"):
        runtime_of({"runtimes": [broken]}, "onnxruntime", "all")


def test_a_board_cannot_smuggle_control_codes_or_endless_lists() -> None:
    assert clean_json({"so\x1bc": ["a\x07"] * 1000}) == {"soc": ["a"] * 256}
