"""Tables that are built, extended, stopped and gone on with; boards answer by formula."""

import json
from collections import Counter

import pytest

from latency_tables.errors import TableError, UsageError
from latency_tables.interchange import read_measurements
from latency_tables.records import Verdict
from pipeline.run.table_build import build_table, plan_table
from pipeline.run.table_plan import PLAN_FILE
from pipeline.run.table_target import Extension, parse_target
from tests.pipeline.run.conftest import SAMPLES

PLAIN = Extension()


def frozen(job):
    """What the run folder says: latency.json, and the networks of table.jsonl by device."""
    latency = json.loads(job.folder.file("latency.json").read_text())
    records = read_measurements(job.folder.file("table.jsonl"))
    return latency, Counter(m.device_name for m in records)


def asked_once(script):
    return max(Counter(script.asked).values()) == 1


def until(text, at_most=300):
    return Extension(until=parse_target(text), at_most=at_most)


def test_more_measures_as_many_new_networks_and_fits_on_all(script, open_run):
    build_table(open_run(), PLAIN)
    assert len(script.asked) == SAMPLES
    build_table(open_run(), Extension(more=10))
    assert (len(script.asked), asked_once(script)) == (SAMPLES + 10, True)
    latency, networks = frozen(open_run())
    assert latency["devices"]["local"]["diagnostics"]["n"] == SAMPLES + 10
    assert networks == {"local": SAMPLES + 10}


def test_more_on_an_empty_table_comes_after_what_the_run_file_asks(script, open_run):
    build_table(open_run(), Extension(more=5))
    assert (len(script.asked), asked_once(script)) == (SAMPLES + 5, True)


def test_another_run_uses_what_the_table_holds_and_measures_nothing(script, open_run):
    build_table(open_run(), Extension(more=10))
    first, _ = frozen(open_run())
    build_table(open_run(out="other"), PLAIN)
    other, networks = frozen(open_run(out="other"))
    assert len(script.asked) == SAMPLES + 10
    assert networks == {"local": SAMPLES + 10}
    assert other["limits"] == first["limits"]


def test_a_limit_in_percent_does_not_move_with_further_networks(open_run):
    build_table(open_run(), PLAIN)
    before, _ = frozen(open_run())
    build_table(open_run(), Extension(more=20))
    assert frozen(open_run())[0]["limits"] == before["limits"]


def test_a_finished_table_stays_as_it_is_until_somebody_asks_for_more(script, open_run):
    build_table(open_run(), PLAIN)
    before = open_run().folder.file("table.jsonl").read_bytes()
    build_table(open_run(out="other"), Extension(more=10))
    build_table(open_run(), PLAIN)
    assert open_run().folder.file("table.jsonl").read_bytes() == before


@pytest.mark.parametrize("after", [3, SAMPLES + 1, SAMPLES + 7])
def test_a_stopped_call_goes_on_with_the_networks_that_it_chose(script, open_run, after):
    script.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        build_table(open_run(), Extension(more=10))
    lost = len(script.asked) % script.batch_size
    script.stop_after = None
    build_table(open_run(), Extension(more=10))
    names = {net for _, net in script.asked}
    assert len(names) == SAMPLES + 10
    assert len(script.asked) <= SAMPLES + 10 + max(lost, script.batch_size - 1)
    assert frozen(open_run())[1] == {"local": SAMPLES + 10}
    build_table(open_run(), Extension(more=10))
    assert frozen(open_run())[1] == {"local": SAMPLES + 20}


def test_what_is_finished_leaves_no_plan_behind(open_run):
    build_table(open_run(), Extension(more=10))
    assert not open_run().folder.file(PLAN_FILE).exists()


def test_networks_that_cannot_run_are_not_chosen_again(script, open_run):
    build_table(open_run(), PLAIN)
    script.fails = lambda job: job.net_id < "8"
    build_table(open_run(), Extension(more=10))
    build_table(open_run(), Extension(more=11))
    failed = [net for _, net in script.asked[SAMPLES:] if net < "8"]
    assert len(failed) > 3
    assert asked_once(script)


def test_until_stops_as_soon_as_the_model_is_good_enough(script, open_run, said):
    script.noise["local"] = 0.002
    build_table(open_run(), until("mape<4%"))
    latency, _ = frozen(open_run())
    assert latency["devices"]["local"]["diagnostics"]["loo_mape"] < 0.04
    assert len(script.asked) <= SAMPLES + 40
    assert "cross-validated MAPE" in said.getvalue()


def test_until_gives_up_with_what_was_reached_and_keeps_everything(script, open_run, said):
    script.noise["local"] = 0.1
    with pytest.raises(TableError, match=r"local reached MAPE .* with 40 networks") as error:
        build_table(open_run(), until("mape<1%", at_most=40))
    assert "--at-most 80" in str(error.value)
    assert (error.value.exit_code, len(script.asked), asked_once(script)) == (6, 40, True)
    assert frozen(open_run())[1] == {"local": 40}
    assert said.getvalue().count("cross-validated MAPE") == 3  # 16, 36 and 40 networks


def test_until_goes_on_where_it_was_stopped(script, open_run):
    script.noise["local"] = 0.1
    script.stop_after = SAMPLES + 8
    with pytest.raises(KeyboardInterrupt):
        build_table(open_run(), until("mape<1%", at_most=30))
    script.stop_after = None
    with pytest.raises(TableError, match="with 30 networks"):
        build_table(open_run(), until("mape<1%", at_most=30))
    assert len({net for _, net in script.asked}) == 30
    assert len(script.asked) < 30 + script.batch_size


def test_only_devices_that_are_not_good_enough_are_measured_further(script, open_run):
    script.noise = {"local": 0.001, "board": 0.1}
    with pytest.raises(TableError, match="board reached") as error:
        build_table(open_run(devices=("local", "board")), until("within10>99%", at_most=24))
    assert "local" not in error.value.message
    asked = Counter(device for device, _ in script.asked)
    assert asked == {"local": SAMPLES, "board": 24}


def test_until_ends_on_a_board_that_spoils_every_measurement(script, open_run):
    script.noise["local"] = 0.1
    build_table(open_run(), PLAIN)
    script.verdicts = (Verdict(code="THROTTLED", severity="fail", evidence="hot"),)
    with pytest.raises(TableError, match=f"with {SAMPLES} networks"):
        build_table(open_run(), until("mape<1%", at_most=30))
    assert len(script.asked) <= 30


def test_the_time_is_said_before_measuring_starts(script, open_run, said):
    build_table(open_run(), PLAIN)
    text = said.getvalue()
    assert "nothing was measured on local yet; 3 networks first" in text
    assert "13 networks on local, about" in text
    assert "(from 3 measured there before)" in text
    build_table(open_run(), Extension(more=10))
    assert "10 networks on local, about" in said.getvalue()


def test_a_plan_measures_nothing_and_counts_what_is_missing(script, open_run):
    (planned,) = plan_table(open_run(), PLAIN)
    assert (planned.n, planned.basis, script.asked) == (SAMPLES, "profile", [])
    build_table(open_run(), PLAIN)
    (planned,) = plan_table(open_run(), Extension(more=50))
    assert (planned.n, planned.basis, planned.n_known) == (50, "records", SAMPLES)
    (planned,) = plan_table(open_run(), until("mape<1%", at_most=100))
    assert planned.n == 100 - SAMPLES
    assert len(script.asked) == SAMPLES


def test_a_plan_counts_what_a_stopped_call_has_left(script, open_run):
    script.stop_after = SAMPLES + 5
    with pytest.raises(KeyboardInterrupt):
        build_table(open_run(), Extension(more=12))
    (planned,) = plan_table(open_run(), Extension(more=12))
    assert planned.n == 7


def test_a_plan_works_where_the_device_does_not_answer(script, open_run):
    script.offline = ("board",)
    (planned,) = plan_table(open_run(devices=("board",)), Extension(more=20))
    assert (planned.n, planned.basis) == (SAMPLES + 20, "offline")
    assert "does not answer" in str(planned)


@pytest.mark.parametrize(
    "arguments",
    [{"more": 0}, {"more": -3}, {"at_most": 2}, {"more": 5, "until": parse_target("mape<4%")}],
)
def test_extensions_that_make_no_sense_are_refused(arguments):
    with pytest.raises(UsageError):
        Extension(**arguments)
