from __future__ import annotations

from types import ModuleType

import pytest

from latency_tables.arch import Arch
from pipeline.report.figures import agreement, quantity, visible, wilson
from pipeline.report.model import FrontRow
from pipeline.report.svg import Axis


def test_agreement_counts_what_fell_into_the_predicted_interval(samples: ModuleType) -> None:
    def row(predicted: float, measured: float) -> FrontRow:
        return FrontRow(
            arch=Arch({}), accuracy=0.5,
            predicted={"b": samples.estimate(predicted, "predicted", spread=0.1)},
            measured={"b": samples.estimate(measured)},
        )  # fmt: skip

    found = agreement([row(1.0, 1.05), row(2.0, 1.0), row(3.0, 3.0)], "b")
    assert found is not None
    assert (found.n, found.inside) == (3, 2)
    assert found.error == pytest.approx(0.05 / 1.05)
    assert agreement([row(1.0, 1.0)], "another") is None


@pytest.mark.parametrize("source", ["measured", "table"])
def test_what_the_search_had_from_the_device_or_its_table_is_no_prediction(
    samples: ModuleType, source: str
) -> None:
    row = FrontRow(
        arch=Arch({}), accuracy=0.5,
        predicted={"b": samples.estimate(1.0, source)}, measured={"b": samples.estimate(1.0)},
    )  # fmt: skip
    assert agreement([row], "b") is None


def test_wilson_agrees_with_the_published_interval() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_stays_between_zero_and_one() -> None:
    assert wilson(1.0, 20)[1] == pytest.approx(1.0)
    assert wilson(0.0, 20)[0] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("value", "shown"), [(999, "999"), (999_900, "1.00 M"), (1_234, "1.23 k"), (None, "–")]
)
def test_quantities_take_the_right_prefix(value: float | None, shown: str) -> None:
    assert quantity(value) == shown


def test_long_texts_are_shortened() -> None:
    assert len(visible("x" * 10_000)) == 400


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0], [1e-6, 2e-6], [1e9, 3e9], [-1.0, 1.0]])
def test_every_axis_has_ticks_inside_its_range(values: list[float]) -> None:
    axis = Axis.around("x", values, lambda value, step: f"{value:g}")
    ticks = [value for value, _ in axis.ticks(5)]
    assert 2 <= len(ticks) <= 11
    assert all(axis.low <= value <= axis.high for value in ticks)
