"""Estimated times follow from what is known of a device, and say from what."""

import pytest

from pipeline.run.table_build import build_table, plan_table
from pipeline.run.table_target import Extension
from pipeline.run.table_time import TimeEstimate

PLAIN = Extension()


def planned(job, more):
    (found,) = plan_table(job, Extension(more=more))
    return found


def test_seconds_follow_from_how_long_known_networks_kept_the_device_busy(script, open_run):
    build_table(open_run(), PLAIN)
    few, many = planned(open_run(), 20), planned(open_run(), 200)
    assert few.basis == many.basis == "records"
    assert many.seconds == pytest.approx(10 * few.seconds, rel=0.05)
    # 0.2 s timed, 3 loads of 0.02 s, 0.03 s to prepare: 0.29 s; then the reference and processes
    assert 20 * 0.29 < few.seconds < 20 * 1.2


def test_another_profile_tells_nothing_about_this_one(script, open_run):
    build_table(open_run(), PLAIN)
    other = open_run('device=[{name = "local", measuring = "strict"}]', out="strict")
    assert planned(other, 20).basis == "profile"


def test_another_space_on_the_device_lends_the_time_of_the_reference_network(
    script, open_run, digits_space, monkeypatch
):
    build_table(open_run(), PLAIN)
    from pipeline.spaces import load_space

    other = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=7)
    assert other.space_id != digits_space.space_id
    monkeypatch.setattr("pipeline.run.context.space_for", lambda dataset, config: other)
    assert planned(open_run(out="other"), 20).basis == "reference"


@pytest.mark.parametrize(
    ("n", "basis", "said"),
    [
        (40, "records", "40 networks on pi, about 3 min (from 25 measured there before)"),
        (1, "reference", "1 network on pi, about 3 min (from the reference network's time there)"),
        (9, "profile", "nothing was measured there yet"),
        (9, "offline", "the device does not answer"),
        (0, "records", "0 networks on pi: the table has them all"),
    ],
)
def test_an_estimate_says_what_it_is_known_from(n, basis, said):
    estimate = TimeEstimate(device="pi", n=n, seconds=180.0, basis=basis, n_known=25)
    assert said in str(estimate)
