"""One command, several boards: a network for each, and one that keeps the limits of all."""

from __future__ import annotations

import json

import pytest

from latency_tables.errors import LimitError, UnreachableError
from latency_tables.files import sha256_file
from pipeline.export.check import check_export
from pipeline.run.checking import check_run
from pipeline.search.journal import read_journal
from tests.pipeline.run.small import SMALL

BOTH = ("local", "board")


def opposite(device, arch):
    """Each board is slow with what the other one is fast with."""
    large = sum(choice == "mb6_k5" for choice in arch.values()) / len(arch)
    return 1.0 + (large if device == "local" else 1.0 - large)


@pytest.fixture
def both(open_run, script, made_once):
    """Opens a run on two boards whose supernet is trained: both(*overrides)."""
    script.factor = opposite
    made_once(*SMALL, until="train", devices=BOTH)
    return lambda *overrides: open_run(*SMALL, *overrides, devices=BOTH)


def front_of(job, device=None):
    at = f"boards/{device}/front.json" if device else "front.json"
    return json.loads(job.folder.file(at).read_text())


def winner_of(front):
    return front["points"][front["winner"]]


def test_every_board_gets_a_network_under_its_own_limits_and_all_get_one_together(both):
    job = both()
    job.run(until="search")
    for device in BOTH:
        front = front_of(job, device)
        assert [x["device"] for x in front["limits"]] == [device]
        won = winner_of(front)
        assert set(won["measured"]) == {device}  # no other board is asked
        assert won["measured"][device]["latency_ms"] <= front["limits"][0]["bound"]
        asked = read_journal(job.folder.file(f"boards/{device}/search.jsonl"))
        assert {d for g in asked.generations for c in g for d in c.latency} <= {device}
    common = front_of(job)
    won = winner_of(common)
    assert set(won["measured"]) == set(BOTH)
    for limit in common["limits"]:
        assert won["measured"][limit["device"]]["latency_ms"] <= limit["bound"]


def test_a_board_is_not_given_less_than_the_network_for_all(both):
    """Whatever any search has scored is open to all of them."""
    job = both()
    job.run(until="search")
    common = winner_of(front_of(job))["accuracy"]
    assert all(winner_of(front_of(job, device))["accuracy"] >= common for device in BOTH)


def test_a_candidate_is_scored_once_for_all_searches(both, monkeypatch):
    scored = []
    from pipeline.supernet.scoring import Scorer

    real = Scorer.score

    def score(self, arch):
        scored.append(arch)
        return real(self, arch)

    monkeypatch.setattr(Scorer, "score", score)
    job = both()
    job.run(until="search")
    journals = [
        job.folder.file(f) for f in ("search.jsonl", *(f"boards/{b}/search.jsonl" for b in BOTH))
    ]
    asked = [c.arch for j in journals for g in read_journal(j).generations for c in g]
    assert len(set(scored)) == len(scored) < len(asked)


def test_the_whole_job_exports_checks_and_reports_every_network(both, capsys):
    job = both()
    job.run()
    for at in (".", *(f"boards/{device}" for device in BOTH)):
        folder = job.folder.file(at)
        report = check_export(folder)
        assert report.golden.n_images > 0
        manifest = json.loads((folder / "manifest.json").read_text())
        assert all(limit["kept"] for limit in manifest["limits"])
        assert json.loads((folder / "check.json").read_text())["accuracy"]["n_images"] > 300
    for device in BOTH:
        manifest = json.loads(job.folder.file(f"boards/{device}/manifest.json").read_text())
        assert [d["name"] for d in manifest["devices"]] == [device]
        assert {limit["device"] for limit in manifest["limits"]} == {device}
    page = job.folder.file("report.html").read_text()
    assert "A network for each device, and one for all" in page
    assert all(f"<code>boards/{device}</code>" in page for device in BOTH)
    capsys.readouterr()
    job.print_summary(as_json=True)
    told = json.loads(capsys.readouterr().out)
    sources = {
        name: found["manifest"]["devices"][0]["latency"]["source"]
        for name, found in told["boards"].items()
    }
    assert sources == dict.fromkeys(BOTH, "measured")
    job.print_summary(as_json=False)
    said = capsys.readouterr().out
    assert "all devices" in said
    assert "boards/board" in said
    job.require_winners()
    # the folder of a board is checked like any run
    assert check_run(job.folder.file("boards/board"), with_data=True).accuracy is not None
    before = job.folder.file("stages.json").read_text()
    both().run()
    assert job.folder.file("stages.json").read_text() == before


def contrary(device, arch):
    """What one board runs fast is what the other one runs slowly."""
    first = next(iter(arch.values()))
    return 8.0 if (first == "mb3_k3") == (device == "local") else 1.0


EXCLUSIVE = (
    "latency.remeasure=6",
    "device=[{name='local', limits={latency='45%'}}, {name='board', limits={latency='25%'}}]",
)
"""On contrary boards: limits that either's own network keeps, and none that is for both."""


@pytest.fixture
def no_common(both, script, tmp_path):
    """Opens a run on contrary boards, each with a limit that its own network keeps."""
    script.factor = contrary
    (tmp_path / "tables.sqlite").unlink()  # measured on other boards
    (tmp_path / "run/latency.json").unlink()
    return lambda: both(*EXCLUSIVE)


def test_without_a_network_for_all_each_board_still_gets_its_own(no_common):
    job = no_common()
    job.run(until="search")
    front = front_of(job)
    assert front["winner"] is None
    assert front["points"] == []
    assert "none of the" in front["reason"]
    for device in BOTH:
        assert winner_of(front_of(job, device))["verdict"] == "keeps"
    with pytest.raises(LimitError, match="for all devices: none of the") as caught:
        job.require_winners()
    assert all(f"boards/{device}" in str(caught.value) for device in BOTH)
    assert caught.value.exit_code == 6


@pytest.mark.long
def test_without_a_network_for_all_the_others_are_exported_and_the_report_says_so(
    no_common, capsys
):
    job = no_common()
    job.run()
    for device in BOTH:
        assert check_export(job.folder.file(f"boards/{device}")).golden.n_images > 0
    assert not job.folder.file("manifest.json").exists()
    assert "There is no network for all devices." in job.folder.file("report.html").read_text()
    capsys.readouterr()
    job.print_summary(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["manifest"] is None
    assert told["no_common"] == front_of(job)["reason"]
    assert set(told["boards"]) == set(BOTH)
    job.run()  # nothing is left to do, and it is still said
    with pytest.raises(LimitError, match="for all devices"):
        job.require_winners()


def test_only_the_network_for_all_is_looked_for_where_that_is_asked(both):
    job = both("search.targets=common")
    job.run(until="search")
    assert winner_of(front_of(job))["verdict"] == "keeps"
    assert not job.folder.file("boards").exists()


def test_the_search_of_a_board_has_no_objective_on_another_board(both):
    from pipeline.run.searching import target_config
    from pipeline.run.targets import run_targets

    objectives = "search.objectives=['error','latency:local','latency:board','macs']"
    job = both("search.method=nsga2", objectives)
    with job.context() as context:
        found = {str(t): target_config(context, t).objectives for t in run_targets(context)}
    assert found == {
        "local": ("error", "latency:local", "macs"),
        "board": ("error", "latency:board", "macs"),
        "all devices": ("error", "latency:local", "latency:board", "macs"),
    }


def test_a_front_under_several_objectives_is_one_of_these(both):
    job = both("search.method=nsga2", "search.objectives=['error','macs']", "latency.remeasure=6")
    job.run(until="search")
    for device in (None, *BOTH):
        front = front_of(job, device)
        assert front["objectives"] == ["accuracy", "macs"]
        points = [p for p in front["points"] if p["on_front"]]
        for p in points:
            assert not any(
                q["accuracy"] >= p["accuracy"] and q["costs"]["macs"] < p["costs"]["macs"]
                for q in points
            )


def test_what_a_run_no_longer_asks_for_is_put_aside(both):
    job = both()
    job.run(until="search")
    both("search.targets=common").run(until="search")
    assert not job.folder.file("boards/board/front.json").exists()
    assert list(job.folder.file("superseded").glob("search-*/boards/board/front.json"))


def test_a_board_that_is_gone_stops_its_own_search_only_and_the_same_command_goes_on(
    both, script, made_once
):
    quiet = both()
    quiet.run(until="search")
    expected = {device: front_of(quiet, device) for device in (None, *BOTH)}
    made_once(*SMALL, until="train", devices=BOTH, table=False)
    script.offline = ("board",)
    job = both()
    with pytest.raises(UnreachableError, match="board does not answer"):
        job.run(until="search")
    assert front_of(job, "local")["winner"] is not None
    assert job.folder.file("boards/local/front.jsonl").exists()
    assert not job.folder.file("boards/board/front.json").exists()
    script.offline = ()
    again = both()
    again.run(until="search")
    assert {device: front_of(again, device) for device in (None, *BOTH)} == expected


@pytest.mark.long
def test_each_search_shifts_its_own_copy_of_the_weights_and_its_network_is_cut_out_of_it(both):
    job = both("search.shifting={batches=1, images_per_batch=16}")
    job.run(until="export")
    weights, learnt = [sha256_file(job.folder.file("supernet.safetensors"))], [()]
    for at in ("", *(f"boards/{device}/" for device in BOTH)):
        manifest = json.loads(job.folder.file(f"{at}manifest.json").read_text())
        weights.append(manifest["weights_sha256"])
        assert weights[-1] == sha256_file(job.folder.file(f"{at}shifted.safetensors"))
        asked = read_journal(job.folder.file(f"{at}search.jsonl")).generations[1:]
        learnt.append(tuple(c.arch for generation in asked for c in generation))
    # weights are the same where the same candidates were learnt, and only there
    assert len(set(weights)) == len(set(learnt)) >= 3


@pytest.mark.long
def test_boards_that_measure_every_candidate_do_so_once_per_search(both):
    job = both("search.measure=all", "search.measure_budget=10", "search.remeasure_every=1")
    job.run(until="search")
    for at, devices in (("", BOTH), *((f"boards/{device}/", (device,)) for device in BOTH)):
        found = read_journal(job.folder.file(f"{at}search.jsonl")).measurements
        for device in devices:
            asked = [arch for phase, name, arch in found if (phase, name) == ("search", device)]
            assert len(asked) == len(set(asked)) == 10
        assert {device for _, device, _ in found} == set(devices)
