"""Measuring with the real runtime on this machine, and what happens when the link breaks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agents.devices import DeviceSpec, load_device
from device_agents.link.local import LocalTransport, ProcessChannel
from device_agents.measuring.measurer import DeviceMeasurer, Progress
from device_agents.measuring.profiles import PROFILES, Profile, counted
from device_agents.measuring.reference import SIZES, reference_model
from latency_tables.errors import LeasedError, LinkLostError, MissingRuntimeError, UsageError
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
    with pytest.raises(UsageError, match="there are: local, ssh"):
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


class Counting(LocalTransport):
    """Remembers what was offered to the device in each upload."""

    def __init__(self, device: DeviceSpec) -> None:
        assert device.workdir is not None
        super().__init__(device.workdir)
        self.uploads: list[int] = []

    def put_all(self, sources: Sequence[bytes | Path]) -> list[str]:
        self.uploads.append(len(sources))
        return super().put_all(sources)


def test_all_files_of_a_batch_travel_in_one_upload(
    device: DeviceSpec, fake_measurer: Make, fake_job: Job
) -> None:
    transport = Counting(device)
    records = fake_measurer(transport=transport, batch_size=3).measure(
        [fake_job(name) for name in "abcde"]
    )
    assert [record.error for record in records] == [None] * 5
    assert transport.uploads == [1 + 3, 1 + 2]  # with the reference network


class Forgetful(Fragile):
    """A device whose work folder is empty after each loss of the link, as after a reboot."""

    def open(self) -> None:
        blobs = self._folder / "blobs"
        for blob in blobs.iterdir() if blobs.exists() else ():
            blob.unlink()
        super().open()


def test_files_that_a_reboot_took_away_are_sent_again(
    device: DeviceSpec, fake_measurer: Make, fake_job: Job
) -> None:
    transport = Forgetful(device)

    def on_progress(progress: Progress) -> None:
        if not progress.note and len(transport.channels) == 1:
            transport.break_link()

    measurer = fake_measurer(transport=transport, on_progress=on_progress)
    records = measurer.measure([fake_job("a"), fake_job("b")])
    assert [record.error for record in records] == [None, None]
    assert len(transport.channels) == 2


def test_an_upload_that_loses_the_link_is_repeated(
    device: DeviceSpec, fake_measurer: Make, fake_job: Job
) -> None:
    class Flaky(Counting):
        def put_all(self, sources: Sequence[bytes | Path]) -> list[str]:
            names = super().put_all(sources)
            if len(self.uploads) == 1:
                raise LinkLostError("the cable was pulled")
            return names

    transport = Flaky(device)
    assert fake_measurer(transport=transport).measure([fake_job("n")])[0].error is None
    assert len(transport.uploads) == 2


def test_a_provider_that_the_runtime_lacks_is_refused_with_those_it_has(
    device: DeviceSpec, make_job: Job, fast: Profile
) -> None:
    wrong = replace(device, provider="NoSuchExecutionProvider")
    with pytest.raises(MissingRuntimeError, match=r"it has .*CPUExecutionProvider"):
        DeviceMeasurer(wrong, profile=fast).measure([make_job("n")])


def test_provider_and_options_are_part_of_the_key_and_of_the_request(
    device: DeviceSpec, make_job: Job, fast: Profile
) -> None:
    asked: list[dict[str, object]] = []

    def key(spec: DeviceSpec, **settings: Any) -> str:
        with DeviceMeasurer(spec, profile=fast, **settings) as measurer:
            measurer.cores()
            request = measurer.session.request

            def spy(operation: str, parameters: Any, **rest: Any) -> Any:
                if operation == "measure":
                    asked.append({k: parameters[k] for k in ("provider", "runtime_options")})
                return request(operation, parameters, **rest)

            measurer.session.request = spy  # type: ignore[method-assign]
            record = measurer.measure([make_job("n")])[0]
        assert record.runtime["provider"].startswith("CPUExecutionProvider")
        return record.key

    usual = key(device)
    named = key(replace(device, provider="CPUExecutionProvider"))
    optioned = replace(device, runtime_options={"note": 1})
    assert key(optioned) != usual == named
    assert asked == [
        {"provider": "", "runtime_options": {}},
        {"provider": "CPUExecutionProvider", "runtime_options": {}},
        {"provider": "", "runtime_options": {"note": 1}},
    ]


def test_a_batch_over_its_time_budget_takes_no_rounds_beyond_the_least(
    fake_measurer: Make, fake_job: Job
) -> None:
    never = replace(
        counted(4, 2, warmup_runs=1), max_rounds=6, target_half_width=0.0, time_budget_s=0.0
    )
    record = fake_measurer(profile=never).measure([fake_job("n")])[0]
    assert record.statistics is not None
    assert (record.statistics.n_rounds, record.statistics.converged) == (2, False)


@pytest.fixture
def clocked_tree(tmp_path: Path) -> Path:
    """A board with one policy of all cores, whose clock may be 1.8 or 2.2 GHz."""
    folder = tmp_path / "tree/sys/devices/system/cpu/cpufreq/policy0"
    folder.mkdir(parents=True)
    nodes = {
        "affected_cpus": " ".join(map(str, range(os.cpu_count() or 1))),
        "scaling_available_frequencies": "1800000 2200000",
        "scaling_available_governors": "ondemand performance userspace",
        "scaling_governor": "ondemand",
        "scaling_cur_freq": "2200000",
        "scaling_setspeed": "<unsupported>",
        "scaling_min_freq": "1800000",
        "scaling_max_freq": "2200000",
        "cpuinfo_min_freq": "1800000",
        "cpuinfo_max_freq": "2200000",
    }
    for name, text in nodes.items():
        (folder / name).write_text(text)
    boot_id = tmp_path / "tree/proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text("b1")
    return tmp_path / "tree"


def clocked(fake_measurer: Make, tree: Path, **spec: object) -> DeviceMeasurer:
    measurer = fake_measurer(spec={"clocks": {"policy0": 2_200_000}, **spec})
    measurer.transport.arguments = ("--root", str(tree))  # type: ignore[attr-defined]
    return measurer


def test_clocks_are_set_for_the_measurement_told_in_the_record_and_put_back(
    fake_measurer: Make, fake_job: Job, clocked_tree: Path
) -> None:
    policy = clocked_tree / "sys/devices/system/cpu/cpufreq/policy0"
    during: list[str] = []
    measurer = clocked(fake_measurer, clocked_tree, power="direct")
    measurer.on_progress = lambda _: during.append((policy / "scaling_min_freq").read_text())
    record = measurer.measure([fake_job("n")])[0]
    assert record.provenance["rounds"]["clocks"] == {
        "asked": {"policy0": 2_200_000},
        "got": {"policy0": 2_200_000},
        "refused": {},
    }
    assert {text.strip() for text in during if text} >= {"2200000"}
    assert (policy / "scaling_min_freq").read_text().strip() == "1800000"
    assert (policy / "scaling_governor").read_text().strip() == "ondemand"
    assert "CLOCKS_REFUSED" not in {verdict.code for verdict in record.verdicts}


def test_clocks_that_may_not_be_set_are_a_warning(
    fake_measurer: Make, fake_job: Job, clocked_tree: Path
) -> None:
    policy = clocked_tree / "sys/devices/system/cpu/cpufreq/policy0"
    record = clocked(fake_measurer, clocked_tree).measure([fake_job("n")])[0]
    refused = [v for v in record.verdicts if v.code == "CLOCKS_REFUSED"]
    assert [verdict.severity for verdict in refused] == ["warn"]
    assert (policy / "scaling_min_freq").read_text() == "1800000"


def test_the_time_in_networks_is_known_and_less_than_the_whole(
    fake_measurer: Make, fake_job: Job
) -> None:
    measurer = fake_measurer(profile=counted(50, 2))
    began = time.monotonic()
    record = measurer.measure([fake_job("n", burn_us=1000)])[0]
    wall_s = time.monotonic() - began
    assert 0.1 <= record.provenance["rounds"]["busy_ns"] / 1e9 <= measurer.busy_s < wall_s
