"""``hilnas rank``: options, what is printed, refusals, JSON."""

import json
import subprocess
import sys

import pytest

from pipeline.cli.main import run_cli
from pipeline.ranking.report import rank_report

TRUTH = [90 + i / 10 for i in range(40)]
FOUND = {
    "truth": {"source": "table[red].csv", "form": "NAS-Bench-Macro", "column": "mean_acc",
              "n_networks": 120, "n_isomorphic": 7, "n_blank": 0, "n_unknown": 0},
    "weights": {"file": "supernet.safetensors"},
    "sample": {"seed": 3},
    "scoring": {"n_images": 1000, "n_scored_now": 40, "seconds": 12.3},
    "winner": {"truth": 93.5, "better": 4, "of": 120},
}  # fmt: skip
FOLLOWED = {
    "good": [{}, {}], "random": [{}], "truly_better": 0.5,
    "rows": [{"generations": 0, "good": [0.5, 0.7], "random": [0.4], "global_count": 2.0,
              "local_tau": None},
             {"generations": 2, "good": [0.6, 0.8], "random": [0.3], "global_count": 1.0,
              "local_tau": 0.25}],
}  # fmt: skip


def found(scores, **baselines):
    return {**FOUND, "report": rank_report(scores, TRUTH, baselines=baselines).to_dict()}


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for, in place of doing it."""
    calls = []
    monkeypatch.setattr("pipeline.cli.rank.open_job", lambda source, **job: (source, job))

    def rank(job, request):
        calls.append((job, request))
        return found([t / 100 for t in TRUTH], MACs=TRUTH[::-1])

    def follow(job, request):
        calls.append((job, request))
        return FOLLOWED

    monkeypatch.setattr("pipeline.run.ranking.rank", rank)
    monkeypatch.setattr("pipeline.run.following.follow_run", follow)
    monkeypatch.setenv("COLUMNS", "120")
    return calls


def test_alone_it_draws_five_hundred_networks_and_scores_them_on_all_images(asked):
    assert run_cli(["rank", "runs/macro", "--truth", "t.csv"]) == 0
    ((source, _), request) = asked[0]
    assert source == "runs/macro"
    assert str(request.truth) == "t.csv"
    assert (request.n, request.n_images, request.seed, request.shifted) == (500, None, None, False)


def test_options_reach_the_request(asked):
    arguments = ["--column", "acc", "--genomes", "net", "--n", "30", "--images", "200", "--seed",
                 "4", "--isomorphic", "--shifted", "--set", "seed=1", "--out", "o"]  # fmt: skip
    assert run_cli(["rank", "macro.toml", "--truth", "t.csv", *arguments]) == 0
    ((_, job), request) = asked[0]
    assert (request.column, request.genomes, request.n, request.n_images, request.seed) == (
        "acc", "net", 30, 200, 4,
    )  # fmt: skip
    assert request.isomorphic
    assert request.shifted
    assert job["overrides"] == ("seed=1",)
    assert str(job["out"]) == "o"


@pytest.mark.parametrize("arguments", [["--all"], ["--archs", "mine.csv"]])
def test_all_of_a_table_or_all_that_are_listed_are_no_sample(asked, arguments):
    assert run_cli(["rank", "r", "--truth", "t.csv", *arguments]) == 0
    assert asked[0][1].n is None


def test_the_measures_are_printed_with_their_intervals_and_the_baselines(asked, capsys):
    assert run_cli(["rank", "r", "--truth", "t.csv"]) == 0
    out = capsys.readouterr().out
    for words in ("table[red].csv (NAS-Bench-Macro), column mean_acc",
                  "7 genomes are isomorphic to another", "40 of 120 networks (seed 3)",
                  "on 1,000 images each", "40 scored now in 12.3 s", "Kendall tau-b",
                  "1.000 … 1.000", "by MACs", "-1.000", "top-10 overlap", "random-select-5",
                  "global, of 10", "93.5; 4 of 120 networks are truly better"):  # fmt: skip
        assert words in out, words
    assert "does as well or better" not in out


def test_a_supernet_that_is_no_better_than_counting_is_told_so(asked, capsys, monkeypatch):
    reversed_scores = found([-t for t in TRUTH], MACs=TRUTH)
    monkeypatch.setattr("pipeline.run.ranking.rank", lambda *_: reversed_scores)
    assert run_cli(["rank", "r", "--truth", "t.csv"]) == 0
    assert "ranking by MACs alone does as well or better: tau-b 1.000 against -1.000" in (
        capsys.readouterr().out
    )


def test_json_is_all_that_stdout_holds(asked, capsys):
    assert run_cli(["rank", "r", "--truth", "t.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["n"] == 40


def test_following_needs_no_truth_and_prints_a_line_per_step(asked, capsys):
    assert run_cli(["rank", "r", "--follow"]) == 0
    assert asked[0][1].truth is None
    out = capsys.readouterr().out
    for words in ("2 good of 3 followed", "60.00%", "2 of 2", "0.250", "in 50% of the pairs"):
        assert words in out, words


def test_without_a_truth_there_is_nothing_to_compare_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert run_cli(["rank", "digits", "--quiet"]) == 2
    assert "--truth table.csv" in capsys.readouterr().err


def test_help_of_rank_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from pipeline.cli.main import run_cli\n"
        "run_cli(['rank', '--help'])\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'pydantic', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
