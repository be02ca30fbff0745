"""The command line: exit codes, messages that name the next command, JSON, start-up time."""

import errno
import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline.cli.main import EXIT_DISK, EXIT_INTERRUPTED, run_cli
from pipeline.run.starters import starter_names, starter_text


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Every test has folders of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_help_lists_every_command(capsys):
    assert run_cli(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("run", "init", "train", "search", "export", "check", "report", "measure",
                    "retrain", "rank", "transfer", "generate", "devices", "tables", "space",
                    "doctor"):  # fmt: skip
        assert f"\n  {command} " in out


def test_help_starts_without_torch_or_onnxruntime():
    script = (
        "import sys\n"
        "from pipeline.cli.main import run_cli\n"
        "run_cli(['--help'])\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.bench
def test_help_takes_less_than_three_tenths_of_a_second():
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from pipeline.cli.main import run_cli; run_cli(['--help'])"],
            check=True, capture_output=True,
        )  # fmt: skip
        spent.append(time.perf_counter() - began)
    assert sorted(spent)[2] <= 0.3


def test_an_unknown_starter_names_those_that_exist(capsys):
    assert run_cli(["run", "digit"]) == 2
    err = capsys.readouterr().err
    assert "digits" in err
    assert "try: hilnas run digits" in err


def test_a_missing_run_file_says_how_to_make_one(capsys):
    assert run_cli(["run", "mine.toml"]) == 2
    assert "hilnas init" in capsys.readouterr().err


def test_a_wrong_key_names_the_nearest(capsys):
    assert run_cli(["run", "digits", "--set", "train.epoch=3"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err


def test_a_folder_that_is_no_run_folder_is_refused(at_home, capsys):
    (at_home / "here").mkdir()
    assert run_cli(["report", "here"]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_init_writes_a_run_file_that_is_valid(at_home, capsys):
    assert run_cli(["init", "own-images", "--to", "mine.toml"]) == 0
    assert (at_home / "mine.toml").read_text() == starter_text("own-images")


def test_init_replaces_nothing(at_home, capsys):
    (at_home / "digits.toml").write_text("mine")
    assert run_cli(["init", "digits"]) == 2
    assert (at_home / "digits.toml").read_text() == "mine"


def test_init_list_says_what_each_starter_is_for(capsys):
    assert run_cli(["init", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in starter_names())


@pytest.mark.parametrize("name", starter_names())
def test_every_starter_is_a_valid_run_file(name):
    from pipeline.config import parse_run_config

    assert parse_run_config(starter_text(name)).device


def test_an_impossible_limit_on_macs_names_the_cheapest_network(capsys):
    arguments = ["run", "digits", "--set", "device=[{name='local', limits={macs=1000}}]"]
    assert run_cli(arguments) == 6
    err = capsys.readouterr().err
    assert "limit 1,000 MACs is below the subnet with the fewest" in err
    assert "hilnas space profile" in err


def test_space_profile_prints_json(capsys):
    assert run_cli(["space", "profile", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["size"] == 6561
    assert found["costs"]["macs"]["min"] < found["costs"]["macs"]["max"]


def test_space_profile_counts_the_networks_that_keep_a_limit_exactly(capsys):
    limits = ["--set", "device=[{name='local', limits={macs=1.2e6, peak_memory_bytes=3e5}}]"]
    assert run_cli(["space", "profile", "digits", *limits, "--levels", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    from pipeline.spaces import load_space

    table = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    genes = np.array(list(itertools.product(range(3), repeat=8)))
    table = table.cost_table()
    macs, memory = (table.column(c, genes) for c in ("macs", "peak_memory_bytes"))
    assert [k["networks"] for k in found["kept"]] == [(macs <= 1.2e6).sum(), (memory <= 3e5).sum()]
    assert [k["largest"] for k in found["kept"]] == [
        macs[macs <= 1.2e6].max(), memory[memory <= 3e5].max(),
    ]  # fmt: skip
    both = ((macs <= 1.2e6) & (memory <= 3e5)).mean()
    assert found["share_within_limits"] == pytest.approx(both, abs=0.01)
    levels = found["levels"]["macs"]
    assert [round(v["probability"] * len(genes)) for v in levels] == [
        ((macs >= v["low"]) & (macs <= v["high"])).sum() for v in levels
    ]


def test_space_profile_prints_shares_and_levels(capsys):
    limits = ["--set", "device=[{name='local', limits={macs=1.2e6}}]"]
    assert run_cli(["space", "profile", "digits", *limits, "--levels", "3"]) == 0
    out = capsys.readouterr().out
    assert "limit 1,200,000 MACs: 78.4 % = 5141 networks keep it\n" in out
    assert "levels of macs" in out


def test_space_show_lists_decisions(capsys):
    assert run_cli(["space", "show", "digits"]) == 0
    assert "layer1" in capsys.readouterr().out


def test_tables_show_says_that_an_empty_table_is_empty(capsys):
    assert run_cli(["tables", "show"]) == 0
    assert "empty" in capsys.readouterr().out


def test_a_table_that_is_not_there_is_not_made_by_looking(at_home, capsys):
    assert run_cli(["tables", "show", "--table", "mine.sqlite"]) == 2
    assert "no latency table at mine.sqlite" in capsys.readouterr().err
    assert not (at_home / "mine.sqlite").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("space.name=shuflenet", "shufflenetv2"),
        ("train.strategy=fairness", "fairnas"),
        ("device=[{name='rk3588'}]", "local"),
        ("export.int8=true", "not available yet"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_starts(at_home, capsys, setting, named):
    assert run_cli(["run", "digits", "--set", setting]) == 2
    assert named in capsys.readouterr().err
    assert not (at_home / "runs").exists()


def test_a_file_that_is_no_table_is_refused(at_home, capsys):
    (at_home / "notes.sqlite").write_text(
        "this is not SQLite, and long enough to have a header" * 9
    )
    assert run_cli(["tables", "show", "--table", "notes.sqlite"]) == 6
    assert "notes.sqlite" in capsys.readouterr().err


def test_measuring_a_missing_file_is_a_usage_error(capsys):
    assert run_cli(["measure", "nothing.onnx"]) == 2
    assert "nothing.onnx" in capsys.readouterr().err


def test_measuring_a_damaged_file_says_that_it_does_not_load(at_home, capsys):
    (at_home / "broken.onnx").write_bytes(b"\x08\x08\xff\xff\xff")
    assert run_cli(["measure", "broken.onnx", "--measuring", "quick"]) == 5


def test_an_unknown_device_names_those_that_exist(capsys):
    assert run_cli(["devices", "probe", "rk3588"]) == 2
    assert "local" in capsys.readouterr().err


def test_devices_list_prints_json(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "devices.toml").write_text(
        '[[device]]\nname = "pi"\nhost = "10.0.0.8"\nport = 22\n'
    )
    assert run_cli(["devices", "list", "--json"]) == 0
    board, local = sorted(
        json.loads(capsys.readouterr().out), key=lambda row: row["name"] == "local"
    )
    assert (board["name"], board["address"], board["file"]) == (
        "pi",
        "ssh 10.0.0.8:22",
        "devices.toml",
    )
    assert (local["name"], local["transport"], local["file"]) == ("local", "local", None)


def test_ctrl_c_says_that_nothing_is_lost(monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.run.starters.starter_summaries", stop)
    assert run_cli(["init", "list"]) == EXIT_INTERRUPTED
    assert "goes on" in capsys.readouterr().err


def test_a_full_disk_is_said_in_one_line(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/digits/data.json")

    monkeypatch.setattr("pipeline.run.starters.starter_summaries", full)
    assert run_cli(["init", "list"]) == EXIT_DISK
    assert "No space left on device: runs/digits/data.json" in capsys.readouterr().err


def test_another_error_of_the_system_is_not_hidden(monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pipeline.run.starters.starter_summaries", broken)
    with pytest.raises(OSError, match="Input/output"):
        run_cli(["init", "list"])


def test_commands_for_boards_work_where_torch_cannot_be_imported(at_home):
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from pipeline.cli.main import run_cli\n"
        "codes = [run_cli(['tables', 'show']), run_cli(['devices', 'probe', 'local', '--json'])]\n"
        "sys.exit(0 if codes == [0, 0] else str(codes))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
