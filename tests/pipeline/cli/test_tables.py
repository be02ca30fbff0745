"""``hilnas tables``: every verb on small tables, in text and in JSON, with its exit code."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latency_tables.store import SpaceInfo, TableStore
from pipeline.cli.main import run_cli

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shared():
    """Records and cost tables of the tests of latency_tables."""
    place = ROOT / "tests/latency_tables/conftest.py"
    spec = importlib.util.spec_from_file_location("shared_records", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def fill(shared, path, *, shuffled=False, device_name="local"):
    table, rng = shared.cost_table(), np.random.default_rng(0)
    genes = rng.permutation(np.unique(rng.integers(0, 3, (150, 8)), axis=0))[:110]
    latency = table.batch(genes)[:, 0] * np.exp(rng.normal(0, 0.005, 110))
    rows = rng.permutation(latency) if shuffled else latency
    with TableStore(path) as store:
        store.add_device(device_name, shared.DEVICE)
        store.add_space(SpaceInfo(space_id="space", name="tiny", cost_table_hash="h"))
        store.add_all(
            shared.measurement(i, float(ms), run=run, arch=table.arch(g), device_name=device_name)
            for run in ("r1", "r2")
            for i, (g, ms) in enumerate(zip(genes, rows, strict=True))
        )


@pytest.fixture
def table(shared, at_home):
    path = at_home / "data/hilnas/tables.sqlite"
    fill(shared, path)
    return path


def run(capsys, *arguments, code=0):
    assert run_cli(["tables", *arguments]) == code
    return capsys.readouterr().out


def test_show_tells_device_sessions_and_soc(table, capsys):
    out = run(capsys, "show")
    assert "local 75d37ed8, onnxruntime, 2 threads: test; measured 2026-11-22" in out
    (line,) = json.loads(run(capsys, "show", "--json"))
    assert (line["n_networks"], line["n_sessions"], line["soc"]) == (110, 2, "test")


def test_verify_says_usable_and_lists_the_gates(table, capsys):
    out = run(capsys, "verify")
    assert "usable" in out
    assert "signal: cross-validated tau" in out
    found = json.loads(run(capsys, "verify", str(table), "--json"))
    assert (found["refused"], found["tables"][0]["n_networks"]) == (False, 110)


def test_verify_refuses_a_random_table_until_somebody_accepts_it_on_record(shared, at_home, capsys):
    fill(shared, at_home / "random.sqlite", shuffled=True)
    assert "no architecture signal" in run(capsys, "verify", "random.sqlite", code=6)
    found = json.loads(run(capsys, "verify", "random.sqlite", "--json", code=6))
    assert found["refused"]
    assert "accepted" in run(capsys, "verify", "random.sqlite", "--accept", "signal")
    assert "refusals accepted: signal" in run(capsys, "show", "--table", "random.sqlite")
    assert run_cli(["tables", "verify", "random.sqlite", "--accept", "magic"]) == 2
    assert "signal" in capsys.readouterr().err


def test_acceptances_of_a_file_are_not_kept_in_it(table, capsys):
    run(capsys, "export", "t.jsonl")
    assert run_cli(["tables", "verify", "t.jsonl", "--accept", "signal"]) == 2
    assert "hilnas tables import t.jsonl" in capsys.readouterr().err


def test_a_damaged_file_is_refused_salvaged_and_its_bad_lines_are_put_aside(table, at_home, capsys):
    run(capsys, "export", "t.jsonl")
    lines = Path("t.jsonl").read_text().splitlines(keepends=True)
    lines[6] = lines[6].replace("median_ns", "median_ms")
    Path("t.jsonl").write_text("".join(lines))
    assert "line 7: statistics: field 'median_ns' is missing" in run(
        capsys, "verify", "t.jsonl", code=6
    )
    assert run_cli(["tables", "import", "t.jsonl", "--table", "new.sqlite"]) == 6
    assert "--salvage" in capsys.readouterr().err
    out = run(capsys, "import", "t.jsonl", "--salvage", "--table", "new.sqlite", "--json")
    found = json.loads(out)
    assert (found["n_new"], found["bad_lines"][0]["line"]) == (219, 7)
    assert json.loads(Path("t.jsonl.rejected").read_text().splitlines()[0])["line"] == 7


def test_diff_compares_sessions_files_and_devices(table, capsys):
    out = run(capsys, "diff", "r1", "r2")
    assert "110 networks in both" in out
    assert "B / A: median 1.0000" in out
    run(capsys, "export", "t.jsonl")
    found = json.loads(run(capsys, "diff", "t.jsonl", "local", "--json"))
    assert (found["n_common"], found["median_ratio"], found["n_moved"]) == (110, 1.0, 0)
    assert run_cli(["tables", "diff", "r1", "r9"]) == 6
    assert "there are local, r1, r2" in capsys.readouterr().err


def test_merge_writes_a_union_and_doing_it_again_changes_nothing(table, capsys):
    run(capsys, "export", "t.jsonl")
    assert "220 records of 110 networks" in run(capsys, "merge", "m.jsonl", str(table), "t.jsonl")
    before = Path("m.jsonl").read_bytes()
    found = json.loads(run(capsys, "merge", "m.jsonl", "t.jsonl", "--json"))
    assert (found["n_records"], found["n_copies"]) == (220, 220)
    assert Path("m.jsonl").read_bytes() == before
    run(capsys, "verify", "m.jsonl")


def test_export_writes_csv_and_says_so_in_json(table, capsys):
    said = json.loads(run(capsys, "export", "t.csv", "--json"))
    assert said == {"file": "t.csv", "n_records": 220}
    assert Path("t.csv").read_text().startswith("key,net_id,")


def test_names_from_files_cannot_write_to_the_terminal(shared, at_home, capsys):
    fill(shared, at_home / "evil.sqlite", device_name="\x1b[2Jevil[red]")
    for verb in ("show", "verify"):
        where = ["--table", "evil.sqlite"] if verb == "show" else ["evil.sqlite"]
        out = run(capsys, verb, *where)
        assert "\x1b" not in out
        assert "evil[red]" in out


def fill_digits(shared, path):
    """40 networks of the digits starter whose latency is their MACs, in ms; the mean is 1."""
    from pipeline.run.profile import space_of
    from pipeline.run.source import read_source

    space = space_of(read_source("digits").config, Path())
    costs, rng = space.cost_table(), np.random.default_rng(0)
    archs = list({a: None for a in (space.sample(rng) for _ in range(60))})[:40]
    macs = costs.column("macs", costs.genes(archs))
    with TableStore(path) as store:
        store.add_device("local", shared.DEVICE)
        store.add_all(
            shared.measurement(i, float(m / macs.mean()), space_id=space.space_id, arch=arch)
            for i, (arch, m) in enumerate(zip(archs, macs, strict=True))
        )
    return costs, macs.mean()


def test_space_profile_counts_networks_by_predicted_latency(shared, at_home, capsys):
    costs, macs_of_1_ms = fill_digits(shared, at_home / "t.sqlite")
    limit = ["--set", "device=[{name='local', limits={latency_ms=0.8}}]"]
    arguments = ["space", "profile", "digits", *limit, "--table", "t.sqlite", "--levels", "2"]
    assert run_cli([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (kept,) = found["latency"]["local"]["kept"]
    genes = np.array(list(np.ndindex(*[len(d.choices) for d in costs.decisions])))
    expected = (costs.column("macs", genes) <= 0.8 * macs_of_1_ms).mean()
    assert kept["share"] == pytest.approx(expected, abs=0.03)
    assert len(found["levels"]["latency_ms on local"]) == 2
    assert run_cli(arguments) == 0
    out = capsys.readouterr().out
    assert "limit 0.8 ms on local" in out
    assert "networks keep it, by prediction" in out
    assert "levels of latency on local" in out


def test_evaluate_prints_cross_validated_errors_and_keeps_them(shared, at_home, capsys):
    fill_digits(shared, at_home / "t.sqlite")
    arguments = ("evaluate", "digits", "--table", "t.sqlite", "--folds", "3")
    (found,) = json.loads(run(capsys, *arguments, "--json"))
    assert found["all"]["n"] == 40
    assert set(found["terciles"]) == {"cheapest third", "middle third", "dearest third"}
    assert "without session" not in run(capsys, *arguments)
    assert "the last latency model was off by" in run(capsys, "show", "--table", "t.sqlite")
    assert run_cli(["tables", "evaluate", "digits", "--table", "t.sqlite", "--device", "pi"]) == 6
    assert "hilnas tables build digits" in capsys.readouterr().err


def test_all_but_build_and_evaluate_work_where_torch_cannot_be_imported(table):
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from pipeline.cli.main import run_cli\n"
        "codes = [run_cli(['tables', *a.split()]) for a in ('show', 'verify', 'diff r1 r2',"
        " 'export t.jsonl', 'merge m.sqlite t.jsonl', 'import t.jsonl --table n.sqlite')]\n"
        "sys.exit(0 if codes == [0] * 6 else str(codes))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_guide_run(table, capsys):
    (block,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/tables.md").read_text(), re.M | re.S)
    lines = [shlex.split(line) for line in block.splitlines()]
    assert len(lines) >= 8
    for hilnas, *arguments in lines:
        assert (hilnas, run_cli(arguments)) == ("hilnas", 0), arguments


def test_the_guide_names_every_gate_and_every_verb():
    from latency_tables.gates import GATES
    from pipeline.cli.tables import tables

    text = (ROOT / "docs/tables.md").read_text()
    assert [gate for gate in GATES if f"| `{gate}` |" not in text] == []
    assert [verb for verb in tables.commands if f"hilnas tables {verb}" not in text] == []
