"""Which setting is fastest, and when a sweep cannot say."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from device_agents.devices import DeviceSpec
from device_agents.measuring.batches import Net, NetResult
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.profiles import counted
from device_agents.measuring.statistics import summarise
from device_agents.measuring.sweeps import judged, option_sweep, rounds_of, thread_sweep
from latency_tables.errors import UsageError
from latency_tables.records import Failure, Verdict
from tests.device_agents.rounds import make_round


def result(medians: Sequence[int], **fields: Any) -> NetResult:
    rounds = [make_round([[median, median]] * 3) for median in medians]
    statistics = summarise(rounds, [None] * len(rounds), target_half_width=0.05)
    return NetResult(statistics=statistics, **fields)


class Scripted:
    """Rounds that only remember when they were taken."""

    def __init__(self, label: str, story: list[str], medians: Sequence[int]) -> None:
        self.label, self.story, self.medians, self.taken = label, story, medians, 0

    def next_round(self) -> bool:
        if self.taken == len(self.medians):
            return False
        self.taken += 1
        self.story.append(self.label)
        return True

    def result(self) -> NetResult:
        return result(self.medians)


def test_rounds_of_all_settings_are_interleaved_in_changing_order() -> None:
    story: list[str] = []
    thread_sweep(
        DeviceSpec(name="b"),
        [1, 2, 4],
        lambda device: Scripted(str(device.threads), story, [100] * 6),
    )
    turns = [story[i : i + 3] for i in range(0, len(story), 3)]
    assert len(turns) == 6
    assert all(sorted(turn) == ["1", "2", "4"] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_a_setting_that_needs_fewer_rounds_leaves_the_others_going() -> None:
    story: list[str] = []
    option_sweep(
        {"core 0": {"core_mask": 1}, "all": {"core_mask": 7}},
        lambda options: Scripted(
            str(options["core_mask"]), story, [100] * (2 if options["core_mask"] == 1 else 5)
        ),
    )
    assert (story.count("1"), story.count("7")) == (2, 5)


def test_the_fastest_setting_is_the_best() -> None:
    rows = judged({"1": result([200, 201, 202]), "2": result([120, 121, 122])})
    assert [(row.label, row.best, row.tied) for row in rows] == [
        ("1", False, False),
        ("2", True, False),
    ]


def test_settings_whose_intervals_overlap_are_tied_with_the_best() -> None:
    rows = judged(
        {"1": result([200, 210, 220]), "2": result([118, 121, 126]), "4": result([119, 122, 127])}
    )
    assert [(row.label, row.best, row.tied) for row in rows] == [
        ("1", False, False),
        ("2", True, True),
        ("4", False, True),
    ]


def test_a_setting_that_failed_is_never_the_best() -> None:
    failed = NetResult(failure=Failure(code="OOM", message="too large", blames="candidate"))
    hot = Verdict(code="THROTTLED", severity="fail", evidence="")
    rows = judged({"a": failed, "b": result([10], verdicts=(hot,)), "c": result([30])})
    assert [row.label for row in rows if row.best] == ["c"]
    assert not any(row.best or row.tied for row in judged({"a": failed}))


@pytest.mark.parametrize("threads", [[], [2, 2], [0]])
def test_impossible_sweeps_are_refused(threads: list[int]) -> None:
    with pytest.raises(UsageError):
        thread_sweep(DeviceSpec(name="b"), threads, lambda device: Scripted("", [], []))
    with pytest.raises(UsageError):
        option_sweep({}, lambda options: Scripted("", [], []))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_thread_sweep_uses_one_session_and_as_many_cores_as_threads(
    fake_measurer: Callable[..., DeviceMeasurer], fake_job: Callable[..., Any]
) -> None:
    measurer = fake_measurer(profile=counted(4, 2, warmup_runs=1))
    asked = []
    with measurer, measurer.connected():
        blob = measurer.upload([fake_job("n").onnx])[0]
        net = Net(name="n", blob=blob)
        request = measurer.session.request

        def spy(operation: str, parameters: Any, **rest: Any) -> Any:
            if operation == "measure":
                asked.append((parameters["threads"], len(parameters["cores"])))
            return request(operation, parameters, **rest)

        measurer.session.request = spy  # type: ignore[method-assign]
        rows = thread_sweep(
            measurer.device, [1, 2], lambda device: rounds_of(measurer, net, device)
        )
    assert sorted(asked) == [(1, 1), (1, 1), (2, 2), (2, 2)]
    assert [row.statistics.n_rounds for row in rows if row.statistics] == [2, 2]
