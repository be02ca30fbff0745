"""Rounds in which something else used the processor are taken again, a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from device_agents.devices import load_device
from device_agents.measuring.batches import Batch, Net
from device_agents.measuring.profiles import Profile, load_profile

NET = Net(name="a", blob="0" * 64)


def visit(ns: int, position: int) -> dict[str, Any]:
    return {"position": position, "block_medians_ns": [ns] * 3}


def net_event(ns: int) -> dict[str, Any]:
    return {
        "name": "a", "block_medians_ns": [ns] * 5, "block_counts": [20] * 5,
        "samples_ns": [[ns] * 4] * 5, "min_ns": ns, "load_ns": 10, "first_ns": ns,
        "warmup_runs": 3, "steady": True, "calls_per_sample": 1, "involuntary_switches": 0,
        "n_threads": 1, "masks_outside": [], "finite": True, "child": 0, "position": 0,
    }  # fmt: skip


class Scripted:
    """A session whose n-th round is slower by the n-th factor, reference and network alike."""

    boot_id = "boot"

    def __init__(self, factors: Sequence[float]) -> None:
        self.factors, self.rounds = list(factors), 0

    def request(
        self, operation: str, parameters: Any, *, timeout_s: float, on_event: Callable[..., None]
    ) -> dict[str, Any]:
        factor = self.factors[self.rounds]
        self.rounds += 1
        on_event("net", net_event(round(1_000_000 * factor)))
        reference = round(500_000 * factor)
        return {
            "children": [
                {
                    "before": {}, "after": {}, "cpu_s": 0.1, "clock_khz": {},
                    "references": [visit(reference, 0), visit(reference, 1)],
                }
            ]
        }  # fmt: skip


def measured(
    factors: Sequence[float], *, retakes: int = 3, earlier_ns: Sequence[float] = ()
) -> tuple[Batch, Scripted, list[int]]:
    session, steps = Scripted(factors), []
    profile: Profile = replace(load_profile("quick"), retakes=retakes)
    batch = Batch(
        session,  # type: ignore[arg-type]
        [NET],
        device=load_device("local"),
        profile=profile,
        cores=(0,),
        reference={"blob": "1" * 64},
        seed=0,
        earlier_ns=earlier_ns,
        advance=steps.append,
    )
    while batch.run_round():
        pass
    return batch, session, steps


def median_ns(batch: Batch) -> int:
    statistics = batch.result("a").statistics
    assert statistics is not None
    return statistics.median_ns


def test_quiet_rounds_are_taken_once() -> None:
    batch, session, _ = measured([1.0, 1.05, 0.98])
    assert session.rounds == 3
    assert batch.result("a").details["retaken_rounds"] == 0


def test_busy_rounds_are_dropped_and_taken_again() -> None:
    batch, session, _ = measured([1.0, 1.6, 1.6, 1.01, 0.99])
    assert session.rounds == 5
    assert median_ns(batch) == 1_000_000
    assert batch.result("a").details["retaken_rounds"] == 2


def test_a_device_that_stays_busy_is_measured_as_it_is() -> None:
    batch, session, _ = measured([1.0, *[1.6] * 9], retakes=3)
    assert session.rounds == 1 + 3 + 2
    assert median_ns(batch) == 1_600_000


def test_a_profile_without_retakes_keeps_every_round() -> None:
    _, session, _ = measured([1.0, 1.6, 1.6], retakes=0)
    assert session.rounds == 3


def test_earlier_batches_say_what_quiet_is() -> None:
    _, session, _ = measured([1.6, 1.0, 1.0, 1.0], earlier_ns=[500_000.0] * 20)
    assert session.rounds == 4


def test_progress_does_not_count_dropped_rounds() -> None:
    _, _, steps = measured([1.0, 1.6, 1.0, 1.0])
    assert sum(steps) == 3


def test_later_batches_hear_of_dropped_rounds_too() -> None:
    batch, _, _ = measured([1.0, 1.6, 1.0, 1.0])
    assert len(batch.all_visits_ns()) == 8
    assert len(batch.reference_visits_ns()) == 6
