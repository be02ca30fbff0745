"""Runs that measure on boards while they search; what answers is always said."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from pipeline.run.search_plan import plan_search
from pipeline.run.searching import Oracles
from pipeline.search.journal import read_journal
from pipeline.search.sources import answer_of
from pipeline.spaces.base import net_id
from tests.pipeline.run import small

SMALL = (*small.SMALL, "search.generations=2")
BUDGET = ("search.measure=all", "search.measure_budget=12")


@pytest.fixture
def run(open_run, made_once):
    """Opens a run whose supernet is trained."""
    made_once(*SMALL, until="train")
    return lambda *overrides: open_run(*SMALL, *overrides)


def sources_in(job):
    """Where the latencies of the front's points came from while they were searched."""
    front = json.loads(job.folder.file("front.json").read_text())
    return [point["predicted"]["local"]["source"] for point in front["points"]], front


def test_architectures_that_are_one_network_are_measured_once_and_learnt_once(run, script):
    """A session keeps one latency per network, so a second one would have no record."""
    job = run()
    with job.context() as context:
        device, space = context.devices[0], context.space
        same: dict[str, list] = {}
        for seed in range(400):
            arch = space.sample(np.random.default_rng(seed))
            same.setdefault(net_id(space, arch), []).append(arch)
        first, second = next(found for found in same.values() if len(set(found)) > 1)[:2]
        before = len(script.asked)
        records = device.measure([first, second])
        assert len(script.asked) == before + 1
        assert [m.latency_ms for m in records] == [records[0].latency_ms] * 2
        with Oracles.opened(context) as oracles:
            relearn = oracles.relearning(device)
            measured = dict(zip((first, second), map(answer_of, records), strict=True))
            assert relearn(measured)([first]) == relearn({first: measured[first]})([first])


def test_candidates_are_measured_while_the_budget_lasts(run, said):
    job = run(*BUDGET)
    job.run(until="search")
    journal = read_journal(job.folder.file("search.jsonl"))
    live = [arch for phase, _, arch in journal.measurements if phase == "search"]
    assert len(live) == len(set(live)) == 12
    n = sum(len(g) for g in journal.generations)
    assert n == 24
    told = " ".join(said.getvalue().split())
    assert f"local: latencies of {n} candidates: 12 measured while searching" in told


def test_a_search_with_a_budget_that_was_stopped_ends_like_one_that_was_not(run, script, made_once):
    job = run(*BUDGET, "search.remeasure_every=1")
    job.run(until="search")
    whole = job.folder.file("search.jsonl").read_bytes()
    front = job.folder.file("front.json").read_bytes()
    made_once(*SMALL, until="train", table=False)
    script.stop_after = len(script.asked) + 15  # in the middle of the search
    with pytest.raises(KeyboardInterrupt):
        run(*BUDGET, "search.remeasure_every=1").run(until="search")
    cut = job.folder.file("search.jsonl").read_bytes()
    assert 0 < len(cut) < len(whole)
    script.stop_after = None
    run(*BUDGET, "search.remeasure_every=1").run(until="search")
    assert job.folder.file("search.jsonl").read_bytes() == whole
    assert job.folder.file("front.json").read_bytes() == front


def test_the_front_is_measured_every_few_generations_also_where_nothing_else_is(run):
    job = run("search.remeasure_every=2")
    job.run(until="search")
    journal = read_journal(job.folder.file("search.jsonl"))
    assert list(journal.remeasurements) == [1]
    asked = journal.remeasurements[1]
    phases = Counter(phase for phase, _, _ in journal.measurements)
    assert phases["again"] == len(asked) > 0
    assert phases["search"] == 0


def test_every_latency_says_whether_it_was_measured_looked_up_or_predicted(run, capsys):
    job = run(*BUDGET)
    job.run()
    sources, front = sources_in(job)
    assert set(sources) <= {"measured", "table", "predicted"}
    measured = [point["measured"]["local"]["source"] for point in front["points"]]
    assert set(measured) == {"measured"}
    manifest = json.loads(job.folder.file("manifest.json").read_text())
    assert manifest["devices"][0]["latency"]["source"] == "measured"
    capsys.readouterr()
    job.print_summary(as_json=False)
    printed = capsys.readouterr().out
    for source in set(sources):
        assert f"ms {source}" in printed
    page = job.folder.file("report.html").read_text()
    assert all(f"{source}, " in page for source in {*sources, "measured"})


def test_the_table_says_how_well_macs_order_the_networks_of_a_device(run, said):
    job = run("seed=1")
    job.run(until="table")
    about = json.loads(job.folder.file("latency.json").read_text())["devices"]["local"]
    rank = about["macs_rank"]
    assert rank["n"] == about["diagnostics"]["n"]
    assert 0.9 < rank["low"] <= rank["tau"] <= rank["high"]  # this board goes by MACs alone
    told = " ".join(said.getvalue().split())
    assert f"Kendall tau of MACs and measured latency {rank['tau']:.2f} (95% interval" in told
    assert f"over {rank['n']} networks of its latency table, chosen to spread" in told


@pytest.mark.parametrize(
    ("overrides", "n_measured"),
    [
        ((), 2),
        (BUDGET, 14),
        (("search.measure=all",), 26),
        (("search.remeasure_every=1",), 32),
        (("search.measure=refine", "search.refine_budget=5", "search.remeasure_every=2"), 17),
    ],
)
def test_the_plan_adds_up_what_each_device_may_measure(open_run, overrides, n_measured):
    plan = plan_search(open_run(*SMALL, *overrides).source.config)
    assert (plan.n_targets, plan.n_candidates, plan.n_measured) == (1, 24, n_measured)


def test_the_plan_counts_a_search_per_board_and_one_for_all(open_run):
    plan = plan_search(open_run(*SMALL, devices=("local", "board")).source.config)
    assert (plan.n_targets, plan.n_scored, plan.n_measured) == (3, 72, 4)
    assert str(plan) == "3 searches, each of 24 candidates, at most 4 measured on each device"
