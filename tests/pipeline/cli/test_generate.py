"""``hilnas generate``: options, what is printed, refusals, JSON."""

import errno
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cli.generate import generate as command
from pipeline.cli.main import EXIT_DISK, run_cli

MEASURED = {"latency_ms": 4.71, "low_ms": 4.6, "high_ms": 5.1, "key": "k", "source": "measured",
            "n": 90, "level": 0.9, "in_support": True}  # fmt: skip
PREDICTED = {**MEASURED, "latency_ms": 4.8, "low_ms": 4.5, "high_ms": 5.0, "source": "predicted"}
LIMIT = {"metric": "latency_ms", "bound": 5.0, "device": "rpi[red]", "text": ""}
FOUND = {
    "run": "digits", "folder": "runs/x/generated/5ms", "device": "rpi[red]",
    "limits": [LIMIT], "arch": {"a": 1, "b": 2, "c": 3},
    "accuracy": {"search_validation": {"value": 0.91, "n_images": 300},
                 "test": {"value": 0.9, "n_images": 200}},
    "predicted": {"rpi[red]": PREDICTED}, "measured": {"rpi[red]": MEASURED},
    "tries": [{}], "costs": {"macs": 1.5e6, "params": 4e4}, "hamming": 2, "repaired_by": "beam",
    "seconds": {"proposal": 0.004, "repair": 0.02, "all": 3.2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Every test has folders of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for, in place of doing it; ``answer`` is what it gets."""
    calls = SimpleNamespace(requests=[], answer=FOUND)

    def generate(job, request):
        calls.requests.append(request)
        return calls.answer

    monkeypatch.setattr("pipeline.run.generating.generate.generate", generate)
    monkeypatch.setattr("pipeline.cli.generate.open_job", lambda source, **options: None)
    return calls


def test_options_reach_the_request(asked):
    arguments = ["--limit-latency-ms", "5", "--limit-macs", "300M", "--limit-params", "5.5M",
                 "--device", "rpi", "--tolerance", "0.1", "--candidates", "4", "--tries", "2",
                 "--no-check", "--out", "here"]  # fmt: skip
    assert run_cli(["generate", "runs/x", *arguments]) == 0
    (request,) = asked.requests
    assert (request.latency_ms, request.macs, request.params) == (5.0, 3e8, 5.5e6)
    assert (request.device, request.tolerance, request.candidates) == ("rpi", 0.1, 4)
    assert (request.tries, request.check, request.out) == (2, False, Path("here"))
    assert run_cli(["generate", "runs/x", "--sweep", "3:12:0.5", "--device", "rpi"]) == 0
    assert (asked.requests[1].sweep, asked.requests[1].check) == ("3:12:0.5", None)


def test_the_summary_tells_what_was_measured_and_how_long_it_took(asked, capsys):
    assert run_cli(["generate", "runs/x", "--limit-latency-ms", "5"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "5 ms on rpi[red] kept, but its interval reaches beyond" in out
    assert "measured 4.71 ms 4.60 … 5.10 ms at 90%" in out
    assert "predicted 4.80 ms 4.50 … 5.00 ms at 90%" in out
    assert "accuracy 91.00 % 300 search images" in out
    assert "repair 2 of 3 decisions changed of the proposal" in out
    assert "0.024 s proposal and repair; 3.2 s in all" in out
    assert "hilnas check runs/x/generated/5ms --device rpi[red]" in out


def test_a_prediction_is_never_printed_as_a_promise(asked, capsys):
    asked.answer = {**FOUND, "measured": {}}
    assert run_cli(["generate", "runs/x", "--limit-latency-ms", "5"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "predicted, not measured" in out
    assert "kept" not in out


def test_a_family_is_a_table_with_the_limits_that_none_keeps(asked, capsys):
    network = {**FOUND, "folder": "5ms", "generator": {}}
    asked.answer = {
        "run": "digits", "folder": "runs/x/generated/sweep", "device": "rpi[red]",
        "space": {"name": "s", "preset": "tiny"}, "networks": [network],
        "generator": {"levels": [1e6, 2e6], "unit": "MAC", "device": None},
        "refused": [{"limit": {**LIMIT, "bound": 1.0}, "why": "below the fastest"}],
    }  # fmt: skip
    assert run_cli(["generate", "runs/x", "--sweep", "1:5:4", "--device", "rpi"]) == 0
    out = capsys.readouterr().out
    assert "4.71 (4.6…5.1)" in out
    assert "4.80" in out
    assert "0.024 s each for proposal and repair, 3.2 s in all" in out
    assert "2 of 3" in out
    assert "no network for 1 ms on rpi[red]: below the fastest" in " ".join(out.split())
    assert "runs/x/generated/sweep/report.html" in out


def test_json_is_all_that_stdout_holds(asked, capsys):
    assert run_cli(["generate", "runs/x", "--limit-macs", "1e6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit-macs", "many"], "'many' is not a positive number such as 5, 2.5e6 or 300M"),
        (["--limit-latency-ms", "0"], "is not a positive number"),
        (["--tolerance", "0.9"], "tolerance"),
        (["--candidates", "0"], "candidates"),
    ],
)
def test_what_cannot_be_meant_is_refused(asked, capsys, arguments, words):
    assert run_cli(["generate", "runs/x", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert asked.requests == []


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run_cli(["generate", "empty", "--limit-macs", "1e6"]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_the_name_of_a_starter_is_not_a_run_yet(capsys):
    assert run_cli(["generate", "digits", "--limit-macs", "1e6"]) == 8
    err = capsys.readouterr().err
    assert "there is no run folder" in err
    assert not Path("runs").exists()


def test_a_full_disk_is_said_in_one_line(asked, capsys, monkeypatch):
    def full(job, request):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/generated/5ms")

    monkeypatch.setattr("pipeline.run.generating.generate.generate", full)
    assert run_cli(["generate", "runs/x", "--limit-macs", "1e6"]) == EXIT_DISK
    assert "No space left on device: runs/x/generated/5ms" in capsys.readouterr().err


def test_the_page_names_every_option_and_no_other():
    page = (Path(__file__).resolve().parents[3] / "docs/shiftnas.md").read_text()
    _, _, section = page.partition("## Networks for any limit")
    named = set(re.findall(r"`(--[a-z-]+)", section))
    options = {
        text
        for option in command.params
        for text in (*option.opts, *option.secondary_opts)
        if text.startswith("--")
    }
    common = {"--json", "--quiet", "--module", "--table"}
    assert named == options - common
