"""Which records of the live table a run uses."""

from dataclasses import replace

import pytest

from latency_tables.errors import MissingLatencyError
from pipeline.run.job import Job
from pipeline.run.table_build import build_table
from pipeline.run.table_plan import Planner
from pipeline.run.table_records import chosen_records, known_networks
from pipeline.run.table_target import Extension
from tests.pipeline.run.conftest import SAMPLES


@pytest.fixture
def built(script, open_run):
    """A run whose table holds ten networks more than it asks for."""
    job: Job = open_run()
    build_table(job, Extension(more=10))
    with job.context() as context:
        yield context


def asked(context):
    return Planner(context).first(SAMPLES)


def with_reference(record, reference_ns, session):
    rounds = {**record.provenance["rounds"], "reference_ns": reference_ns}
    provenance = {**record.provenance, "rounds": rounds, "session_id": session}
    return replace(record, provenance=provenance)


def test_networks_asked_for_and_others_are_told_apart(built):
    found = chosen_records(built.devices[0], asked(built))
    assert (len(found.asked), len(found.others)) == (SAMPLES, 10)
    assert len({m.net_id for m in found.all}) == SAMPLES + 10


def test_others_that_met_the_device_in_another_state_are_left_out(built):
    (device,) = built.devices
    before = chosen_records(device, asked(built))
    slow = with_reference(before.others[0], 200_000, "slow")
    other = replace(slow, net_id="f" * 64)
    device.store.add(other)
    assert chosen_records(device, asked(built)) == before


def test_of_several_sessions_of_a_network_the_usual_one_counts(built):
    (device,) = built.devices
    before = chosen_records(device, asked(built))
    device.store.add(with_reference(before.others[0], 200_000, "slow"))
    assert chosen_records(device, asked(built)) == before


def test_records_of_another_device_setting_or_space_are_not_used(built):
    (device,) = built.devices
    before = chosen_records(device, asked(built))
    some = before.others[0]
    for change in ({"threads": 4}, {"space_id": "other"}, {"device_fp": "0" * 64}):
        device.store.add(replace(some, net_id="e" * 64, **change))
    assert chosen_records(device, asked(built)) == before
    assert len(known_networks(device)) == SAMPLES + 10


def test_a_table_without_one_network_asked_for_is_an_error(script, open_run):
    script.fails = lambda job: True
    with pytest.raises(MissingLatencyError, match=f"not one of {SAMPLES} networks") as error:
        build_table(open_run(), Extension())
    assert "hilnas devices doctor local" in error.value.hint


def test_networks_that_met_a_busy_device_are_measured_once_more(script, open_run, monkeypatch):
    from tests.pipeline.run import scripted_board

    make = scripted_board.ScriptedMeasurer._record
    disturbed = []

    def record(self, job):
        found = make(self, job)
        if len(script.asked) == 10 and not disturbed:
            disturbed.append(job.net_id)
            return with_reference(found, 200_000, "busy")
        return found

    monkeypatch.setattr(scripted_board.ScriptedMeasurer, "_record", record)
    build_table(open_run(), Extension())
    again = [net for _, net in script.asked[SAMPLES:]]
    assert again == disturbed
