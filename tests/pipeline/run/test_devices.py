"""Measuring the front in the state in which the table was built."""

from types import SimpleNamespace

import pytest

from pipeline.run.devices import (
    PAUSES_S,
    RunDevice,
    closest_sessions,
    drifted_networks,
    reference_of,
)


def record(name, reference_ns):
    return SimpleNamespace(net_id=name, provenance={"rounds": {"reference_ns": reference_ns}})


class Scripted(RunDevice):
    """A device whose reference network takes the scripted times, one per attempt."""

    def __init__(self, references):
        self.references, self.attempts = references, 0
        self.config = SimpleNamespace(name="board")

    def measure(self, archs, on_progress=None):
        self.attempts += 1
        return [record(arch, self.references[self.attempts - 1]) for arch in archs]


@pytest.fixture
def pauses():
    return []


def measured(device, pauses):
    said = []
    records = device.measure_settled(["a"], 100.0, said.append, sleep=pauses.append)
    return records[0].provenance["rounds"]["reference_ns"], said


def test_a_device_in_its_old_state_is_measured_once(pauses):
    device = Scripted([105.0])
    assert measured(device, pauses) == (105.0, [])
    assert pauses == []


def test_a_busy_device_is_measured_again_after_a_pause_and_says_so(pauses):
    device = Scripted([180.0, 101.0])
    found, said = measured(device, pauses)
    assert found == 101.0
    assert pauses == [PAUSES_S[0]]
    assert "80% off its speed of the table" in said[0]


def test_a_device_that_stays_busy_gives_the_attempt_nearest_to_the_table(pauses):
    device = Scripted([180.0, 130.0, 150.0])
    assert measured(device, pauses)[0] == 130.0
    assert device.attempts == 1 + len(PAUSES_S)


def test_records_without_a_reference_are_taken_as_they_are(pauses):
    device = Scripted([None])
    assert measured(device, pauses)[0] is None
    assert reference_of([record("a", None)]) is None


def test_networks_of_a_batch_in_another_state_are_found():
    records = [record("a", 100.0), record("b", 104.0), record("c", 170.0)]
    assert drifted_networks(records) == ["c"]


def test_of_several_sessions_the_one_nearest_to_the_usual_state_counts():
    old, new = record("c", 170.0), record("c", 101.0)
    records = [record("a", 100.0), record("b", 104.0), old, new]
    assert closest_sessions(records)[-1] is new
    assert drifted_networks(records) == []


def test_without_a_reference_the_first_session_counts():
    first, second = record("a", None), record("a", None)
    assert closest_sessions([first, second]) == [first]
