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


RK3588 = {
    "allowed_cores": list(range(8)),
    "clusters": [
        {"name": "big", "cores": [4, 5, 6, 7]},
        {"name": "little", "cores": [0, 1, 2, 3]},
    ],
}


@pytest.mark.parametrize(
    ("pin", "threads", "cores"),
    [("big", 1, (7,)), ("big", 2, (6, 7)), ("little", 4, (0, 1, 2, 3)), ("", 4, (4, 5, 6, 7))],
)
def test_the_last_cores_of_the_pinned_cluster_are_taken(
    pin: str, threads: int, cores: tuple[int, ...]
) -> None:
    assert cores_of(RK3588, (), threads, pin) == cores


def test_a_pinned_cluster_offers_only_cores_that_the_agent_may_use() -> None:
    assert cores_of({**RK3588, "allowed_cores": [0, 1, 4]}, (), 1, "big") == (4,)
    with pytest.raises(UsageError, match=r"'big' offers cores \[4\]"):
        cores_of({**RK3588, "allowed_cores": [0, 1, 4]}, (), 2, "big")


def test_a_cluster_that_the_board_lacks_is_refused_naming_those_it_has() -> None:
    with pytest.raises(UsageError, match=r"no cluster 'mid'.*big = 4, 5, 6, 7; little = 0"):
        cores_of(RK3588, (), 1, "mid")


@pytest.mark.parametrize(("asked", "threads"), [((3, 4), 2), ((), 6)])
def test_cores_of_different_clusters_are_refused(asked: tuple[int, ...], threads: int) -> None:
    with pytest.raises(UsageError, match="different clusters") as caught:
        cores_of(RK3588, asked, threads)
    assert caught.value.hint is not None
    assert 'pin = "big"' in caught.value.hint


def test_cores_of_different_clusters_are_taken_on_demand() -> None:
    assert cores_of(RK3588, (3, 4), 2, mixed=True) == (3, 4)


def test_clusters_that_make_no_sense_are_left_out() -> None:
    said = [{"name": "huge", "cores": [1]}, {"name": "big", "cores": ["x", True, -1]}, 7]
    assert cores_of({"allowed_cores": [0, 1], "clusters": said}, (), 2) == (0, 1)


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
