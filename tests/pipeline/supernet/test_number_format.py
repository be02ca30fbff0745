"""Whether bf16 may be used: faster by a margin, and no accuracy moves beyond its own noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from latency_tables.arch import Arch
from pipeline.supernet.number_format import standard_error, try_formats

N_IMAGES = 400
ARCHS = [Arch({"block": str(i)}) for i in range(6)]


class Formula:
    """A scorer whose accuracies and seconds are given."""

    def __init__(self, seconds: float, change: float) -> None:
        self.cost, self.change, self.seconds = seconds, change, 0.0

    def score(self, arch: Arch) -> Any:
        first = arch["block"] == "0"
        self.seconds += 100.0 if first else self.cost  # the first one warms up
        accuracy = 0.5 + 0.05 * int(str(arch["block"])) + self.change
        return SimpleNamespace(accuracy=accuracy, n_images=N_IMAGES)


def trial(seconds: float, change: float) -> Any:
    made = {"fp32": Formula(1.0, 0.0), "bf16": Formula(seconds, change)}
    return try_formats(lambda name: made[name], ARCHS)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("seconds", "change", "choice"),
    [
        (0.5, 0.0, "bf16"),
        (0.8, 0.0025, "bf16"),  # one image of 400
        (0.9, 0.0, "fp32"),  # not worth it
        (0.5, 0.02, "fp32"),  # 0.8 standard errors
        (0.5, -0.02, "fp32"),
    ],
)
def test_bf16_is_taken_where_it_is_faster_and_no_accuracy_moves_beyond_its_noise(
    seconds: float, change: float, choice: str
) -> None:
    found = trial(seconds, change)
    assert found.choice == choice == found.to_dict()["choice"]
    assert str(found).startswith(choice)


def test_the_trial_tells_time_change_and_order_without_the_warm_up() -> None:
    found = trial(0.5, 0.01)
    assert (found.n_subnets, found.n_images) == (6, N_IMAGES)
    assert (found.fp32_seconds, found.bf16_seconds) == (5.0, 2.5)
    assert found.change == pytest.approx(0.01 / standard_error(0.75, N_IMAGES))
    assert found.tau == pytest.approx(1.0)


def test_subnets_that_differ_by_a_standard_error_keep_their_order_where_bf16_is_safe() -> None:
    """The bound by itself: each moves by at most half an error, towards the other."""
    for p in (0.1, 0.5, 0.9):
        error = max(standard_error(p, N_IMAGES), standard_error(p + 0.02, N_IMAGES))
        higher, lower = p + error, p
        assert higher - 0.5 * error >= lower + 0.5 * standard_error(lower, N_IMAGES)
