"""Measuring with the real runtime on this machine, and what happens when the link breaks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from device_agents.devices import DeviceSpec, load_device
from device_agents.local import LocalTransport, ProcessChannel
from device_agents.measurer import DeviceMeasurer, Progress
from device_agents.profiles import PROFILES, Profile, counted
from device_agents.reference import SIZES, reference_model
from latency_tables.errors import LeasedError, LinkLostError, UsageError
from latency_tables.files import sha256_bytes
from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement
from latency_tables.weights_spec import WeightsSpec, WeightTensor

REFERENCE_SHA256 = {
    "tiny": "75a97f4b4172cde3",
    "small": "fb16c83554ab5f68",
    "medium": "3e89c74d5258c461",
}

Job = Callable[..., MeasureJob]
Make = Callable[..., DeviceMeasurer]


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, make_job: Job, make_onnx: Callable[..., bytes]
) -> list[Measurement]:
    """Three real networks, measured once by the quick profile, the largest one first."""
    folder = tmp_path_factory.mktemp("agent")
    sizes = {"large": (32, 12), "small": (4, 2), "middle": (16, 8)}
    jobs = [
        make_job(name, make_onnx(channels=channels, blocks=blocks))
        for name, (channels, blocks) in sizes.items()
    ]
    device = replace(load_device("local"), workdir=folder)
    return DeviceMeasurer(device, peak_memory=True, command="pytest").measure(jobs)


def test_records_come_in_the_order_asked_with_latencies_that_follow_size(
    measured: list[Measurement],
) -> None:
    assert [record.net_id for record in measured] == ["large", "small", "middle"]
    large, small, middle = (record.statistics for record in measured)
    assert large is not None
    assert middle is not None
    assert small is not None
    assert small.median_ns < middle.median_ns < large.median_ns


def test_a_record_survives_its_own_strict_reader(measured: list[Measurement]) -> None:
    for record in measured:
        assert Measurement.from_dict(record.to_dict()) == record


def test_a_record_says_under_which_circumstances_it_was_taken(measured: list[Measurement]) -> None:
    record = measured[0]
    assert (record.threads, len(record.cores), record.device_name) == (1, 1, "local")
    assert set(record.cores) <= os.sched_getaffinity(0)
    assert set(record.runtime) == {"name", "version", "provider", "graph_optimization"}
    assert record.provenance["profile"] == "quick"
    assert record.provenance["command"] == "pytest"
    assert record.provenance["rounds"]["n_threads"] >= 1


def test_times_are_ordered_as_times_must_be(measured: list[Measurement]) -> None:
    for record in measured:
        found = record.statistics
        assert found is not None
        assert 0 < found.min_ns <= found.p10_ns <= found.median_ns * 1.5
        assert found.ci_low_ns <= found.median_ns <= found.ci_high_ns
        assert found.load_ns > found.min_ns
        assert found.n_rounds == len(found.round_medians_ns) == 3


def test_a_larger_network_has_the_larger_ratio_to_the_reference(
    measured: list[Measurement],
) -> None:
    ratios = [r.statistics.ratio_to_reference for r in measured if r.statistics]
    assert None not in ratios
    assert ratios[0] > ratios[2] > ratios[1]  # type: ignore[operator]


def test_peak_memory_is_the_growth_over_the_loaded_runtime(measured: list[Measurement]) -> None:
    for record in measured:
        memory = record.provenance["rounds"]["memory"]
        assert memory["baseline_bytes"] > 10 << 20  # the interpreter and the runtime
        assert record.peak_memory_bytes == memory["peak_bytes"] - memory["baseline_bytes"]


def test_no_thread_left_the_chosen_core(measured: list[Measurement]) -> None:
    assert "MIGRATED" not in {v.code for record in measured for v in record.verdicts}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_threads_are_pinned_to_two_cores(
    device: DeviceSpec, fast: Profile, make_job: Job
) -> None:
    record = DeviceMeasurer(replace(device, threads=2), profile=fast).measure([make_job("n")])[0]
    assert (record.threads, len(record.cores)) == (2, 2)
    assert record.provenance["spinning"] is True
    assert record.provenance["rounds"]["n_threads"] == 2
    assert "MIGRATED" not in {verdict.code for verdict in record.verdicts}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_thread_that_leaves_the_chosen_core_is_found(fake_measurer: Make, fake_job: Job) -> None:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    measurer = fake_measurer(spec={"cores": (first,)})
    record = measurer.measure([fake_job("n", stray=second)])[0]
    migrated = [verdict for verdict in record.verdicts if verdict.code == "MIGRATED"]
    assert [verdict.severity for verdict in migrated] == ["fail"]
    assert not record.ok


def test_counted_settings_give_exactly_that_many_runs(device: DeviceSpec, make_job: Job) -> None:
    record = DeviceMeasurer(device, profile=counted(7, 2)).measure([make_job("n")])[0]
    assert record.statistics is not None
    assert (record.statistics.n_samples, record.statistics.n_rounds) == (14, 2)


def test_each_batch_is_handed_out_before_the_next_one_starts(
    fake_measurer: Make, fake_job: Job
) -> None:
    story: list[object] = []
    measurer = fake_measurer(
        batch_size=2,
        on_progress=lambda progress: story.append(progress.done),
        on_result=lambda records: story.append([record.net_id for record in records]),
    )
    measurer.measure([fake_job(name) for name in "abc"])
    assert story == [1, 2, ["a", "b"], 2, 3, ["c"], 3]


def test_two_calls_are_two_sessions_so_that_a_repeated_network_is_a_new_record(
    fake_measurer: Make, fake_job: Job
) -> None:
    with fake_measurer() as measurer:
        first = measurer.measure([fake_job("n")])[0]
        second = measurer.measure([fake_job("n")])[0]
    assert first.key == second.key
    assert first.run_id != second.run_id


def test_weights_are_synthesised_on_the_device(
    device: DeviceSpec, fast: Profile, make_job: Job, make_external: Callable[..., bytes]
) -> None:
    matrix = WeightTensor(name="matrix", n_elements=12, fan_in=3, offset_bytes=0)
    spec = WeightsSpec(seed=3, tensors=(matrix,))
    record = DeviceMeasurer(device, profile=fast).measure(
        [make_job("n", make_external("weights.bin"), spec)]
    )[0]
    assert record.error is None
    assert record.onnx_sha256 == sha256_bytes(make_external("weights.bin"))


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "absent.bin"])
def test_external_data_that_was_not_sent_is_refused_without_touching_the_board(
    fake_measurer: Make,
    fake_job: Job,
    make_job: Job,
    make_external: Callable[..., bytes],
    location: str,
) -> None:
    bad, good = fake_measurer().measure([make_job("bad", make_external(location)), fake_job("ok")])
    assert bad.error is not None
    assert bad.error["code"] == "LOAD_FAILED"
    assert good.error is None


class Fragile(LocalTransport):
    """Kills the agent when told to; remembers the agents it started."""

    def __init__(self, device: DeviceSpec) -> None:
        assert device.workdir is not None
        super().__init__(device.workdir)
        self.channels: list[ProcessChannel] = []

    def run(self, agent: str, arguments: Sequence[str] = ()) -> ProcessChannel:
        self.channels.append(super().run(agent, arguments))
        return self.channels[-1]

    def break_link(self) -> None:
        os.kill(self.channels[-1].pid, signal.SIGKILL)


def test_an_agent_killed_in_a_round_is_replaced_and_the_round_repeated(
    device: DeviceSpec, fake_measurer: Make, fake_job: Job
) -> None:
    transport = Fragile(device)
    notes: list[str] = []

    def on_progress(progress: Progress) -> None:
        if progress.note:
            notes.append(progress.note)
        elif len(transport.channels) == 1:
            transport.break_link()

    measurer = fake_measurer(transport=transport, on_progress=on_progress)
    records = measurer.measure([fake_job("a"), fake_job("b")])
    assert [record.error for record in records] == [None, None]
    assert any("vanished" in note for note in notes)


def test_an_agent_that_dies_every_time_is_a_lost_link_after_three_attempts(
    device: DeviceSpec, fake_measurer: Make, fake_job: Job
) -> None:
    transport = Fragile(device)

    def on_progress(progress: Progress) -> None:
        if not progress.note:
            transport.break_link()

    start = time.monotonic()
    with pytest.raises(LinkLostError):
        fake_measurer(transport=transport, on_progress=on_progress).measure([fake_job("a")])
    assert len(transport.channels) == 3
    assert time.monotonic() - start < 20


def test_rounds_taken_before_a_reboot_are_taken_again(
    device: DeviceSpec, fake_measurer: Make, fake_job: Job, tmp_path: Path
) -> None:
    boot_id = tmp_path / "tree" / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text("first")
    transport = Fragile(device)
    transport.arguments = ("--root", str(tmp_path / "tree"))
    notes: list[str] = []

    def on_progress(progress: Progress) -> None:
        if progress.note:
            notes.append(progress.note)
        elif progress.done == 2 and len(transport.channels) == 1:  # in the second round
            boot_id.write_text("second")
            transport.break_link()

    two_rounds = counted(4, 2, warmup_runs=1)
    measurer = fake_measurer(profile=two_rounds, transport=transport, on_progress=on_progress)
    record = measurer.measure([fake_job("n")])[0]
    assert record.statistics is not None
    assert record.statistics.n_rounds == 2
    assert record.provenance["rounds"]["boot_id"] == "second"
    assert "BOARD_REBOOTED" not in {verdict.code for verdict in record.verdicts}
    assert any("rebooted" in note for note in notes)


def test_a_leased_device_is_refused_after_waiting(device: DeviceSpec, fake_measurer: Make) -> None:
    with fake_measurer() as holder:
        holder.fingerprint()
        with pytest.raises(LeasedError, match="leased by hilnas process"):
            fake_measurer(lease_wait_s=0).fingerprint()
    assert fake_measurer().fingerprint().identity["cpu_count"] == os.cpu_count()


def test_measuring_waits_for_the_host_to_finish_computing(
    fake_measurer: Make, fake_job: Job
) -> None:
    story: list[str] = []
    measurer, trainer = fake_measurer(on_result=lambda _: story.append("measured")), fake_measurer()
    with trainer.exclusive():
        thread = threading.Thread(target=lambda: measurer.measure([fake_job("n")]))
        thread.start()
        thread.join(0.5)
        story.append("trained")
    thread.join(30)
    assert story == ["trained", "measured"]


def test_the_same_thread_may_measure_while_it_holds_the_machine(
    fake_measurer: Make, fake_job: Job
) -> None:
    measurer = fake_measurer()
    with measurer.exclusive():
        assert measurer.measure([fake_job("n")])[0].error is None


def test_quick_measures_forty_tiny_networks_in_half_a_minute_by_its_own_estimate() -> None:
    quick = DeviceMeasurer(load_device("local"))
    assert 10 < quick.estimate_seconds(40) < 30
    strict = DeviceMeasurer(load_device("local"), profile="strict")
    assert strict.estimate_seconds(40) > 10 * quick.estimate_seconds(40)


def test_no_jobs_start_no_agent(fake_measurer: Make, device: DeviceSpec) -> None:
    transport = Fragile(device)
    assert fake_measurer(transport=transport).measure([]) == []
    assert transport.channels == []


def test_an_unknown_device_profile_transport_or_reference_names_what_exists() -> None:
    with pytest.raises(UsageError, match="there are: local"):
        load_device("rk3588-a")
    with pytest.raises(UsageError, match=", ".join(PROFILES)):
        DeviceMeasurer(load_device("local"), profile="fast")
    with pytest.raises(UsageError, match="there is: local"):
        DeviceMeasurer(DeviceSpec(name="b", transport="pigeon"))
    with pytest.raises(UsageError, match="tiny"):
        reference_model("huge")


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 0},
        {"cores": (1, 1)},
        {"cores": (-1,)},
        {"threads": 2, "cores": (1,)},
        {"optimization": "most"},
    ],
)
def test_impossible_settings_of_a_device_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        DeviceSpec(name="b", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_reference_networks_never_change(size: str) -> None:
    assert sha256_bytes(reference_model(size))[:16] == REFERENCE_SHA256[size]


def test_drift_is_judged_against_earlier_batches_too(fake_measurer: Make, fake_job: Job) -> None:
    measurer = fake_measurer()
    measurer._reference_ns = [1.0] * 1000  # as if the reference had been far faster before
    record = measurer.measure([fake_job("n")])[0]
    assert "DRIFT" in {verdict.code for verdict in record.verdicts}
