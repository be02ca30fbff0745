"""A network that breaks its process is found and named; the others are measured all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from device_agents.devices import DeviceSpec
from device_agents.link.zipapp import agent_archive
from device_agents.measuring.batches import Net
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.profiles import Profile, counted
from latency_tables.errors import DeviceError, MissingRuntimeError
from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement

Make = Callable[..., DeviceMeasurer]
Job = Callable[..., MeasureJob]


def codes(records: list[Measurement]) -> dict[str, str]:
    """Error code by net, '' where it was measured."""
    return {r.net_id: r.error["code"] if r.error else "" for r in records}


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, fake_archive: bytes
) -> Iterator[DeviceMeasurer]:
    """One agent for all tests that need nothing special; starting it is most of their time."""
    device = DeviceSpec(name="local", runtime="fake", workdir=tmp_path_factory.mktemp("agent"))
    fast = counted(4, 1, warmup_runs=1)
    with DeviceMeasurer(device, profile=fast, archive=fake_archive) as measurer:
        yield measurer


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ({"load": "segv"}, "RUN_CRASHED"),
        ({"run": "segv"}, "RUN_CRASHED"),
        ({"run": "exit"}, "RUN_CRASHED"),
        ({"run": "kill"}, "OOM"),
    ],
    ids=str,
)
def test_one_bad_network_is_blamed_and_the_rest_is_measured(
    shared: DeviceMeasurer, fake_job: Job, script: dict[str, str], code: str
) -> None:
    jobs = [fake_job("a"), fake_job("bad", **script), fake_job("c")]
    records = shared.measure(jobs)
    assert codes(records) == {"a": "", "bad": code, "c": ""}
    error = records[1].error
    assert error is not None
    assert error["blames"] == "candidate"


def test_errors_that_the_runtime_raises_are_typed(shared: DeviceMeasurer, fake_job: Job) -> None:
    jobs = [
        fake_job("unloadable", load="raise"),
        fake_job("greedy", load="memory"),
        fake_job("kernel", run="raise"),
        fake_job("good"),
    ]
    assert codes(shared.measure(jobs)) == {
        "unloadable": "LOAD_FAILED",
        "greedy": "OOM",
        "kernel": "RUN_CRASHED",
        "good": "",
    }


def test_several_bad_networks_are_all_found(shared: DeviceMeasurer, fake_job: Job) -> None:
    jobs = [fake_job(str(i), **({"run": "segv"} if i in (1, 4) else {})) for i in range(5)]
    found = codes(shared.measure(jobs))
    assert {name for name, code in found.items() if code} == {"1", "4"}


def test_a_network_that_never_ends_is_stopped_and_blamed(
    fake_measurer: Make, fake_job: Job, fast: Profile
) -> None:
    impatient = replace(fast, net_timeout_s=1.2)
    jobs = [fake_job("a"), fake_job("endless", run="hang")]
    assert codes(fake_measurer(profile=impatient).measure(jobs)) == {
        "a": "",
        "endless": "RUN_TIMEOUT",
    }


def test_a_network_over_the_memory_limit_is_stopped_and_blamed(
    fake_measurer: Make, fake_job: Job
) -> None:
    measurer = fake_measurer(spec={"memory_limit_bytes": 180 << 20})
    jobs = [fake_job("a"), fake_job("huge", allocate=260 << 20, run="hang")]
    assert codes(measurer.measure(jobs)) == {"a": "", "huge": "OOM"}


def test_a_network_that_dies_of_what_another_left_behind_is_not_blamed(
    shared: DeviceMeasurer, fake_job: Job
) -> None:
    jobs = [fake_job("poison", poison=True), *(fake_job(str(i)) for i in range(3))]
    found = codes(shared.measure(jobs))
    assert set(found.values()) == {""}


def test_a_blamed_network_is_not_tried_in_later_rounds(
    fake_measurer: Make, fake_job: Job, fast: Profile
) -> None:
    twice = replace(fast, min_rounds=2, max_rounds=2)
    records = fake_measurer(profile=twice).measure([fake_job("a"), fake_job("bad", run="segv")])
    assert codes(records) == {"a": "", "bad": "RUN_CRASHED"}
    statistics = records[0].statistics
    assert statistics is not None
    assert statistics.n_rounds == 2


def test_nan_in_the_outputs_is_told(shared: DeviceMeasurer, fake_job: Job) -> None:
    record = shared.measure([fake_job("nan", run="nan")])[0]
    assert "NOT_FINITE" in [verdict.code for verdict in record.verdicts]


def test_a_missing_runtime_blames_no_network(fake_measurer: Make, fake_job: Job) -> None:

    with pytest.raises(MissingRuntimeError, match="'fake' does not work"):
        fake_measurer(archive=agent_archive()).measure([fake_job("a")])


def test_a_slow_network_that_goes_on_is_not_taken_for_a_hanging_one(
    fake_measurer: Make, fake_job: Job
) -> None:
    patient = replace(counted(5, 1, warmup_runs=0), net_timeout_s=2.2)
    record = fake_measurer(profile=patient).measure([fake_job("slow", burn_us=450_000)])[0]
    assert record.error is None


def test_a_file_that_is_gone_from_the_device_is_its_fault_and_not_the_networks(
    shared: DeviceMeasurer,
) -> None:
    with shared.connected(), pytest.raises(DeviceError, match="device failed") as caught:
        shared.run_nets([Net(name="0", blob="0" * 64)])
    assert caught.value.blames == "board"
