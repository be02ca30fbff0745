"""Generating networks for limits on boards that answer by formula; see scripted_board."""

import errno
import json
from dataclasses import replace

import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.errors import (
    BudgetMissedError,
    CheckpointError,
    ForeignTableError,
    LimitBelowFastestError,
    LimitError,
    MissingLatencyError,
    RunError,
    UnreachableError,
    UsageError,
)
from pipeline.export.check import check_export
from pipeline.generator.file import FILE_NAME, save_generator
from pipeline.generator.generator import ArchitectureGenerator
from pipeline.run.generating.generate import GenerateRequest, generate
from tests.pipeline.run.small import SMALL

TARGETS = (0.8e6, 1.0e6, 1.2e6)


def write_generator(path, space, *, targets=TARGETS, **more):
    """A generator with opinions, though it has learned nothing."""
    torch.manual_seed(1)
    generator = ArchitectureGenerator(space.decisions, n_levels=len(targets))
    for head in generator.heads:
        torch.nn.init.normal_(head.weight, std=0.5)
        torch.nn.init.normal_(head.bias, std=0.5)
    how = {"table": space.cost_table(), "column": "macs"} | more
    save_generator(path, generator, space=space, targets=targets, **how)


@pytest.fixture
def run(open_run, made_once, digits_space, tmp_path):
    """A trained run with a generator of MACs, made once and copied: a function that opens it."""
    made_once(*SMALL, until="train")
    write_generator(tmp_path / "run" / FILE_NAME, digits_space)
    return lambda: open_run(*SMALL)


@pytest.fixture
def unexported(monkeypatch):
    """Leave out torch's exporter, which takes seconds, where a test is not about the file."""
    from types import SimpleNamespace

    from pipeline.export.manifest import AccuracyBlock, AccuracyEntry

    def write(context, network, arch, *, validation, to, **_):
        (to / "subnet.onnx").write_bytes(b"left out")
        test = AccuracyEntry(value=0.5, n_images=10)
        return SimpleNamespace(accuracy=AccuracyBlock(search_validation=validation, test=test))

    monkeypatch.setattr("pipeline.run.stages.export.write_export", write)
    monkeypatch.setattr("pipeline.export.check.check_export", lambda folder: None)


def go(job, **request):
    return generate(job, GenerateRequest(**request))


def test_a_network_for_a_latency_is_measured_exported_and_checked(run, script, tmp_path):
    found = go(run(), latency_ms=1.2, device="local")
    folder = tmp_path / "run/generated/1.2ms-local"
    assert found["folder"] == str(folder)
    check_export(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    arch = Arch.from_dict(found["arch"])
    assert Arch(manifest["arch"]) == arch
    measured = found["measured"]["local"]
    assert measured["source"] == "measured"
    assert measured["latency_ms"] == script.latency_ns("local", arch) / 1e6 <= 1.2
    assert measured["latency_ms"] > 1.2 * 0.9
    (limit,) = manifest["limits"]
    assert (limit["limit"], limit["value"], limit["kept"]) == (1.2, measured["latency_ms"], True)
    assert manifest["devices"][0]["latency"]["latency_ms"] == measured["latency_ms"]
    assert found["kept"] == {"latency_ms": True}
    assert manifest["accuracy"]["search_validation"]["value"] == pytest.approx(
        found["accuracy"]["search_validation"]["value"]
    )
    assert (folder / "run.lock.toml").is_file()
    stored = json.loads((folder / "generated.json").read_text())
    assert stored == {k: v for k, v in found.items() if k != "folder"}


@pytest.mark.usefixtures("unexported")
def test_asked_twice_the_same_network_comes(run, script):
    first = go(run(), latency_ms=1.2, device="local", check=False)
    again = go(run(), latency_ms=1.2, device="local", check=False)
    assert (first["arch"], first["log_probability"]) == (again["arch"], again["log_probability"])


@pytest.mark.usefixtures("unexported")
def test_the_proposal_aims_at_the_window_and_its_repair_is_counted(run, script, digits_space):
    found = go(run(), macs=1.1e6)
    costs = digits_space.cost_table()
    assert found["window"]["high"] == 1.1e6
    assert found["target"] == (found["window"]["low"] + found["window"]["high"]) / 2
    assert found["window"]["low"] <= costs.cost(found["arch"], "macs") <= 1.1e6
    proposal = found["proposal"]["arch"]
    assert found["proposal"]["cost"] == costs.cost(proposal, "macs")
    differ = sum(proposal[label] != found["arch"][label] for label in proposal)
    assert found["hamming"] == differ
    assert found["kept"] == {"macs": True}
    assert found["seconds"]["all"] >= found["seconds"]["proposal"] + found["seconds"]["repair"] > 0


@pytest.mark.usefixtures("unexported")
def test_a_limit_on_macs_needs_neither_device_nor_table(run, script, tmp_path):
    for name in ("latency.json", "table.jsonl"):
        (tmp_path / "run" / name).unlink()
    asked = len(script.asked)
    found = go(run(), macs=1.0e6, params=40e3)
    assert (found["latency_is"], found["measured"], found["predicted"]) == (None, {}, {})
    assert found["costs"]["macs"] <= 1.0e6
    assert found["costs"]["params"] <= 40e3
    assert len(script.asked) == asked


@pytest.mark.long  # of the exporter's seconds one test is enough by default
def test_without_a_table_a_network_for_macs_is_exported_all_the_same(run, tmp_path):
    for name in ("latency.json", "table.jsonl"):
        (tmp_path / "run" / name).unlink()
    found = go(run(), macs=1.0e6, out=tmp_path / "mine")
    check_export(tmp_path / "mine")
    manifest = json.loads((tmp_path / "mine/manifest.json").read_text())
    assert manifest["devices"] == []
    assert manifest["limits"] == [
        {"name": "macs", "device": None, "limit": 1e6, "value": found["costs"]["macs"],
         "unit": "MAC", "kept": True}
    ]  # fmt: skip


@pytest.mark.usefixtures("unexported")
def test_of_several_limits_the_tightest_leads_and_all_are_kept(run, script):
    loose = go(run(), latency_ms=1.4, device="local", macs=0.9e6)
    assert loose["window"] == {"cost": "macs", "low": 0.9e6 * 0.95, "high": 0.9e6}
    assert loose["kept"] == {"macs": True, "latency_ms": True}
    tight = go(run(), latency_ms=0.95, device="local", macs=1.3e6)
    assert tight["window"]["cost"] == "latency_ms"
    assert tight["kept"] == {"macs": True, "latency_ms": True}
    assert tight["measured"]["local"]["latency_ms"] <= 0.95


@pytest.mark.usefixtures("unexported")
def test_of_several_candidates_the_most_accurate_is_taken(run, monkeypatch, digits_space):
    from pipeline.run.generating import subnets

    accuracies = iter([(0.3, 0.0, 100), (0.9, 0.0, 100), (0.5, 0.0, 100)])
    cut = []
    original = subnets.materialise
    monkeypatch.setattr(subnets, "evaluate", lambda *_: next(accuracies))
    monkeypatch.setattr(
        subnets, "materialise",
        lambda space, arch, supernet: cut.append(arch) or original(space, arch, supernet),
    )  # fmt: skip
    found = go(run(), macs=1.0e6, candidates=3)
    assert len(set(cut)) == 3
    assert Arch.from_dict(found["arch"]) == cut[1]
    assert found["accuracy"]["search_validation"]["value"] == 0.9


# -- the generator of a latency ------------------------------------------------------------


@pytest.fixture
def latency_run(open_run, made_once, digits_space, tmp_path):
    """The same with a generator whose levels are milliseconds on ``local``."""
    made_once(*SMALL, until="train")
    from pipeline.run.generating.latency import additive_table

    job = open_run(*SMALL)
    with job.context() as context:
        table = additive_table(context, "local")
    write_generator(
        tmp_path / "run" / FILE_NAME, digits_space, targets=(1.0, 1.2, 1.4), table=table,
        column="latency_ms", device="local",
    )  # fmt: skip
    return lambda: open_run(*SMALL)


@pytest.mark.usefixtures("unexported")
def test_a_generator_of_milliseconds_is_asked_for_milliseconds(latency_run, said):
    found = go(latency_run(), latency_ms=1.25)
    assert found["generator"]["cost"] == "latency_ms"
    assert found["target"] == pytest.approx(1.25 * 0.975, rel=0.02)
    assert "asked for 1.2" in said.getvalue()
    assert "has changed since" not in said.getvalue()


@pytest.mark.usefixtures("unexported")
def test_beyond_its_levels_the_generator_is_asked_for_its_last_one(latency_run, said):
    found = go(latency_run(), latency_ms=1.6)
    assert "asked for 1.4 ms, the end of its levels (1 ms to 1.4 ms on local)" in said.getvalue()
    assert 1.6 * 0.9 < found["measured"]["local"]["latency_ms"] <= 1.6


@pytest.mark.usefixtures("unexported")
def test_a_table_that_was_measured_anew_since_is_said(latency_run, tmp_path, said, digits_space):
    table = digits_space.cost_table().with_column(
        "latency_ms", "ms", [f.values[..., 0] / 1e6 for f in digits_space.cost_table().factors]
    )
    write_generator(
        tmp_path / "run" / FILE_NAME, digits_space, targets=(1.0, 1.2, 1.4), table=table,
        column="latency_ms", device="local",
    )  # fmt: skip
    go(latency_run(), latency_ms=1.2, check=False)
    assert "has changed since the generator was trained" in " ".join(said.getvalue().split())


@pytest.mark.usefixtures("unexported")
def test_a_generator_of_milliseconds_answers_for_macs_as_well(latency_run):
    found = go(latency_run(), macs=1.0e6)
    assert found["kept"] == {"macs": True}
    assert found["target"] == pytest.approx(0.2 + 0.975, rel=0.1)  # of networks of that window


# -- measuring -----------------------------------------------------------------------------


@pytest.mark.usefixtures("unexported")
def test_a_network_that_is_too_slow_on_the_board_makes_room_for_a_smaller_one(run, script, said):
    job = run()
    script.factor = lambda device, arch: 1.07  # the board has become slower than its table
    found = go(job, latency_ms=1.2, device="local")
    first, *_, last = found["tries"]
    assert first["measured"]["latency_ms"] > 1.2 >= last["measured"]["latency_ms"]
    assert first["predicted"]["latency_ms"] <= 1.2
    assert last["arch"] == found["arch"] != first["arch"]
    assert "the limit is 1.2 ms; next: a network of" in said.getvalue()


@pytest.mark.usefixtures("unexported")
def test_after_so_many_tries_the_measurements_are_told_and_nothing_is_written(
    run, script, tmp_path
):
    job = run()
    script.factor = lambda device, arch: 2.5 if arch else 1.0
    with pytest.raises(BudgetMissedError, match=r"none of \d networks keeps 1.2 ms on local"):
        go(job, latency_ms=1.2, device="local")
    assert not (tmp_path / "run/generated").exists()


@pytest.mark.usefixtures("unexported")
def test_a_device_that_does_not_answer_leaves_a_prediction_that_says_so(run, script, said):
    script.offline = ("local",)
    found = go(run(), latency_ms=1.2, device="local")
    assert (found["latency_is"], found["measured"]) == ("predicted", {})
    printed = " ".join(said.getvalue().split())
    assert "latencies are predicted, not measured" in printed
    with pytest.raises(UnreachableError):
        go(run(), latency_ms=1.2, device="local", check=True)


@pytest.mark.usefixtures("unexported")
def test_asked_not_to_check_no_device_is_disturbed(run, monkeypatch):
    def disturbed(self):
        pytest.fail("the device was asked who it is")

    job = run()
    monkeypatch.setattr("tests.pipeline.run.scripted_board.ScriptedMeasurer.fingerprint", disturbed)
    found = go(job, latency_ms=1.2, device="local", check=False)
    assert found["latency_is"] == "predicted"
    assert found["predicted"]["local"]["latency_ms"] <= 1.2


@pytest.mark.usefixtures("unexported")
def test_where_the_model_says_more_than_the_sum_over_blocks_the_model_counts(run, monkeypatch):
    from pipeline.run.generating.latency import DeviceLatency

    original = DeviceLatency.predict

    def slower(self, archs):
        return [
            replace(e, latency_ms=1.1 * e.latency_ms, high_ms=1.2 * e.high_ms)
            for e in original(self, archs)
        ]

    job = run()
    monkeypatch.setattr(DeviceLatency, "predict", slower)
    found = go(job, latency_ms=1.2, device="local", check=False)
    assert 1.2 * 0.85 < found["predicted"]["local"]["latency_ms"] <= 1.2
    assert found["window"]["high"] < 1.2


@pytest.mark.usefixtures("unexported")
def test_another_board_of_the_same_name_is_refused(run, monkeypatch):
    from latency_tables.records import DeviceFingerprint

    job = run()
    monkeypatch.setattr(
        "tests.pipeline.run.scripted_board.ScriptedMeasurer.fingerprint",
        lambda self: DeviceFingerprint(identity={"soc": "another"}, state={}),
    )
    with pytest.raises(ForeignTableError, match="was measured on another device") as caught:
        go(job, latency_ms=1.2, device="local")
    assert "hilnas tables build" in caught.value.hint


@pytest.mark.usefixtures("unexported")
def test_a_board_that_joins_after_training_needs_a_table_only(run, open_run, script, tmp_path):
    script.factor = lambda device, arch: 3.0 if device == "board" else 1.0
    with pytest.raises(MissingLatencyError, match="no latency table of 'board'") as caught:
        go(run(), latency_ms=3.6, device="board")
    assert """--set 'device=[{name="local"}, {name="board"}]'""" in caught.value.hint
    both = ("local", "board")
    open_run(*SMALL, devices=both).run(until="table")
    found = go(open_run(*SMALL, devices=both), latency_ms=3.6, device="board")
    assert 3.6 * 0.85 < found["measured"]["board"]["latency_ms"] <= 3.6
    assert found["target"] == pytest.approx(0.975e6, rel=0.1)  # a generator of MACs all the same


# -- sweeps --------------------------------------------------------------------------------


@pytest.mark.usefixtures("unexported")
def test_a_sweep_makes_a_family_and_one_report(run, tmp_path, script):
    found = go(run(), sweep="0.1:1.3:0.4", device="local")
    folder = tmp_path / "run/generated/sweep-0.1-1.3-0.4-local"
    assert [n["folder"] for n in found["networks"]] == ["0.5ms-local", "0.9ms-local", "1.3ms-local"]
    bounds = [n["limits"][0]["bound"] for n in found["networks"]]
    taken = [n["measured"]["local"]["latency_ms"] for n in found["networks"]]
    assert all(0.85 * bound < ms <= bound for ms, bound in zip(taken, bounds, strict=True))
    refused = [(r["limit"]["bound"], r["why"]) for r in found["refused"]]
    assert [bound for bound, _ in refused] == [0.1]
    assert "the generator's levels from 800,000 MACs to 1,200,000 MACs" in refused[0][1]
    assert json.loads((folder / "family.json").read_text())["networks"][0]["hamming"] >= 0
    page = (folder / "report.html").read_text()
    assert "Every network was measured on local." in page
    assert all(f"{bound:.4g} ms on local" in page for bound in bounds)


@pytest.mark.usefixtures("unexported")
def test_a_sweep_without_a_device_is_over_the_generator_s_cost(run, tmp_path):
    found = go(run(), sweep="900k:1.1M:100k", params=40e3)
    assert found["swept"] == "macs"
    assert [n["limits"][0]["metric"] for n in found["networks"]] == ["macs"] * 3
    page = (tmp_path / "run/generated/sweep-900k-1.1M-100k-macs/report.html").read_text()
    assert "predicted, not measured.</strong>" not in page


@pytest.mark.usefixtures("unexported")
def test_a_sweep_that_no_network_keeps_ends_with_the_range(run):
    with pytest.raises(LimitBelowFastestError, match="the networks of nasbench_macro reach from"):
        go(run(), sweep="0.01:0.02:0.01", device="local")


@pytest.mark.usefixtures("unexported")
def test_a_family_of_predictions_says_that_nothing_was_measured(run, tmp_path):
    go(run(), sweep="1:1.4:0.2", device="local", check=False, out=tmp_path / "family")
    page = (tmp_path / "family/report.html").read_text()
    assert "3 of 3 latencies are predicted, not measured." in page


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"latency_ms": 0.01, "device": "local"}, LimitBelowFastestError,
         r"below the fastest network: the networks of nasbench_macro reach from [\d.]+ ms to "
         r"[\d.]+ ms on local, by its table; the generator's levels from 800,000 MACs to"),
        ({"latency_ms": 900, "device": "local"}, LimitError, "above the dearest network"),
        ({"macs": 5}, LimitBelowFastestError, "below the cheapest network"),
        ({"params": 5}, LimitBelowFastestError, "below the smallest network"),
        ({"macs": 5e9}, LimitError, r"above the dearest network, so that every one keeps it: .* "
         r"levels from 800,000 MACs to 1,200,000 MACs"),
        ({"macs": 1e6, "params": 5}, LimitBelowFastestError, "below the smallest network"),
        ({"latency_ms": 1.2, "device": "board"}, MissingLatencyError,
         "no latency table of 'board'; it is for local"),
        ({"latency_ms": 1.2, "device": "rk"}, UsageError, "device 'rk' does not exist"),
        ({}, UsageError, "what the network may cost is not given"),
        ({"sweep": "1:2"}, UsageError, "a sweep is FROM:TO:STEP"),
        ({"sweep": "1:2:1", "latency_ms": 1.2, "device": "local"}, UsageError, "already"),
    ],
)  # fmt: skip
def test_what_cannot_be_generated_is_refused(run, asked, error, words, tmp_path):
    with pytest.raises(error, match=words):
        go(run(), **asked)
    assert not (tmp_path / "run/generated").exists()


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize("asked", [5, 5e9])
def test_a_hint_is_a_limit_that_is_not_refused(run, asked):
    with pytest.raises(LimitError) as caught:
        go(run(), macs=asked)
    hinted = float(caught.value.hint.split()[3].replace(",", ""))
    assert go(run(), macs=hinted)["kept"] == {"macs": True}


def test_without_a_table_no_latency_is_promised(run, tmp_path):
    for name in ("latency.json", "table.jsonl"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(MissingLatencyError, match="a latency is never guessed") as caught:
        go(run(), latency_ms=1.2, device="local")
    assert "hilnas tables build" in caught.value.hint


def test_a_table_of_another_space_is_refused(run, tmp_path):
    path = tmp_path / "run/latency.json"
    latency = json.loads(path.read_text())
    latency["devices"]["local"]["model"]["cost_table_hash"] = "0" * 64
    path.write_text(json.dumps(latency))
    with pytest.raises(ForeignTableError):
        go(run(), latency_ms=1.2, device="local")


def test_a_run_without_a_generator_says_how_to_train_one(run, tmp_path):
    (tmp_path / "run" / FILE_NAME).unlink()
    with pytest.raises(RunError, match="trained with strategy 'spos', which trains none") as caught:
        go(run(), macs=1e6)
    assert "--set train.strategy=shiftnas" in caught.value.hint
    assert "hilnas init quick-shiftnas" in caught.value.hint


def test_a_run_folder_is_never_written_over(run, tmp_path):
    with pytest.raises(UsageError, match="is a run folder, whose network would be replaced"):
        go(run(), macs=1e6, out=tmp_path / "run")


@pytest.mark.usefixtures("unexported")
def test_a_network_that_stops_half_way_leaves_no_summary_of_the_one_before(
    run, tmp_path, monkeypatch
):
    go(run(), macs=1e6, out=tmp_path / "mine")
    assert (tmp_path / "mine/generated.json").exists()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.run.stages.export.write_export", full)
    with pytest.raises(OSError, match="No space left"):
        go(run(), macs=0.9e6, out=tmp_path / "mine")
    assert not (tmp_path / "mine/generated.json").exists()


def test_a_run_of_exact_paths_says_how_to_train_a_generator(run, open_run, tmp_path):
    run()  # puts the folder into place
    (tmp_path / "run" / FILE_NAME).unlink()
    exact = open_run(*SMALL, 'train.strategy="shiftnas"', 'train.options.paths="exact"')
    with pytest.raises(RunError, match="it was trained on exact paths") as caught:
        go(exact, macs=1e6)
    assert "--set train.options.paths=generator" in caught.value.hint


def test_a_run_that_is_not_trained_yet_is_refused(open_run, tmp_path):
    open_run(*SMALL).run(until="profile")
    with pytest.raises(RunError, match="no trained supernet yet") as caught:
        go(open_run(*SMALL), macs=1e6)
    assert caught.value.hint == f"hilnas train {tmp_path / 'run'}"


def test_a_damaged_generator_is_refused(run, tmp_path):
    path = tmp_path / "run" / FILE_NAME
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="the hash of its weights is wrong"):
        go(run(), macs=1e6)
    path.write_bytes(bytes(data[:100]))
    with pytest.raises(CheckpointError, match="cannot be read"):
        go(run(), macs=1e6)


def test_a_generator_of_another_space_is_refused(run, tmp_path):
    from pipeline.spaces import load_space

    other = load_space("nasbench_macro", preset="tiny", input_shape=(3, 8, 8), n_classes=10)
    write_generator(tmp_path / "run" / FILE_NAME, other)
    with pytest.raises(CheckpointError, match="was trained in the space"):
        go(run(), macs=1e6)


def test_a_full_disk_leaves_no_half_of_a_network(run, tmp_path, monkeypatch, unexported):
    def full(path, data, **_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pipeline.run.generating.generate.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        go(run(), macs=1e6)
    assert not list((tmp_path / "run/generated").rglob("generated.json"))
