"""What a device's latency model may start from: other tables of its space in the same file."""

import pytest

from pipeline.run import priors
from pipeline.run.priors import find_priors
from pipeline.run.table_records import usable_records


@pytest.fixture
def few(monkeypatch):
    """Tables of 16 networks are enough."""
    monkeypatch.setattr(priors, "LEAST", 16)


def found(job):
    with job.context() as context:
        device = context.devices[-1]
        return find_priors(context, device, usable_records(device))


def test_another_device_of_the_same_space_is_a_prior_of_one_latency_column(few, open_run, script):
    job = open_run(devices=("board", "local"))
    job.run(until="table")
    (name,) = table = found(job)
    assert name.startswith("board (onnxruntime, ")
    assert [column.name for column in table[name].columns] == ["latency_ms"]
    arch = table[name].arch([0] * len(table[name].decisions))
    truth_ms = script.latency_ns("board", arch) / 1e6
    assert table[name].cost(arch, "latency_ms") == pytest.approx(truth_ms, rel=0.1)


def test_a_device_is_no_prior_of_itself(few, open_run):
    job = open_run(devices=("local",))
    job.run(until="table")
    assert found(job) == {}


def test_small_tables_tell_nothing(open_run):
    job = open_run(devices=("board", "local"))
    job.run(until="table")
    assert found(job) == {}


def test_a_table_that_the_gates_refuse_is_no_prior(few, open_run, script):
    script.noise["board"] = 3.0  # nothing of the network is left in the latency
    job = open_run("latency.accept=['signal']", "latency.samples=40", devices=("board", "local"))
    job.run(until="table")
    assert found(job) == {}


def test_times_of_operators_are_offered_under_their_name(few, open_run, monkeypatch, digits_space):
    job = open_run(devices=("local",))
    job.run(until="table")
    offered = digits_space.cost_table()
    monkeypatch.setattr(priors, "operator_prior", lambda *_: offered)
    assert found(job) == {"operators": offered}
