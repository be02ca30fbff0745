"""Amounts, sweeps and limits of ``hilnas generate``, before any run is opened."""

import pytest

from latency_tables.errors import UsageError
from pipeline.run.generating.generate import GenerateRequest, request_limits
from pipeline.run.generating.limits import parse_amount, parse_sweep


@pytest.mark.parametrize(
    "text", ["3:12", "3:12:0", "12:3:0.5", "a:b:c", "1:1000:0.1", "3:-1:1", ""]
)
def test_a_malformed_sweep_is_refused(text):
    with pytest.raises(UsageError):
        parse_sweep(text)


@pytest.mark.parametrize("text", ["0", "-3", "ten", "1e400", "5 ms", "nan", "300m"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(UsageError, match="is not a positive number"):
        parse_amount(text)


def test_steps_of_a_sweep_do_not_drift():
    assert parse_sweep("0.1:0.7:0.1") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def test_a_limit_on_latency_of_a_run_with_two_devices_must_say_on_which():
    with pytest.raises(UsageError, match=r"on which device may it take 5 ms\? .* rpi, nuc"):
        request_limits(GenerateRequest(latency_ms=5.0), ["rpi", "nuc"])
