"""Retraining a network of a run whose devices answer by formula."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from latency_tables.arch import Arch
from latency_tables.errors import InvalidArchError, RunError, UsageError
from latency_tables.files import sha256_file
from pipeline.export.check import check_export
from pipeline.export.manifest import AccuracyBlock, AccuracyEntry
from pipeline.retraining.config import retrain_config
from pipeline.run.folder import RunFolder
from pipeline.run.retraining import choose_arch, retrain
from pipeline.run.teacher import open_teacher
from pipeline.supernet.scoring import materialise
from pipeline.training.config import TeacherConfig
from tests.pipeline.run import small

SMALL = (*small.SMALL, "search.population=6")
FAST = ("steps=12", "batch_size=16", "log_every=4")


@pytest.fixture
def run(open_run, made_once):
    """A run up to its front, made once and copied: a function that opens it."""
    made_once(*SMALL, until="search")
    return lambda: open_run(*SMALL)


@pytest.fixture
def unexported(monkeypatch):
    """Leave out torch's exporter, which takes seconds, where a test is not about the file."""

    def write(context, network, arch, *, validation, to, **_):
        for name in ("subnet.onnx", "golden.npz", "manifest.json"):
            (to / name).write_bytes(b"left out")
        test = AccuracyEntry(value=0.5, n_images=10)
        return SimpleNamespace(accuracy=AccuracyBlock(search_validation=validation, test=test))

    monkeypatch.setattr("pipeline.run.stages.retrain.write_export", write)


def go(job, *overrides, arch=None, recipe=None, name="retrained", **flags):
    config = retrain_config(recipe, job.source.config.train, [*FAST, *overrides], flags)
    return retrain(job, config, arch=arch, recipe=recipe, name=name)


def winner(tmp_path):
    front = json.loads((tmp_path / "run/front.json").read_text())
    return Arch.from_dict(front["points"][front["winner"]]["arch"])


def weights(tmp_path, name="retrained"):
    return load_file(tmp_path / f"run/{name}/network.safetensors")


def test_the_winner_is_retrained_exported_and_compared(run, tmp_path, said):
    summary = go(run())
    folder = tmp_path / "run/retrained"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert Arch(manifest["arch"]) == winner(tmp_path)
    assert manifest["weights_sha256"] == sha256_file(folder / "network.safetensors")
    # the network is the same, so what was measured of it holds
    front = json.loads((tmp_path / "run/front.json").read_text())
    measured = front["points"][front["winner"]]["measured"]["local"]["latency_ms"]
    assert manifest["devices"][0]["latency"]["latency_ms"] == measured
    check_export(folder)
    assert summary["retrained"]["test"] == manifest["accuracy"]["test"]
    assert summary["inherited"]["n_images"] == summary["retrained"]["test"]["n_images"]
    assert not (folder / "supernet.safetensors").exists()
    assert "the winner: fresh weights, train split" in said.getvalue()


@pytest.mark.usefixtures("unexported")
def test_the_report_of_the_run_tells_of_it(run, tmp_path):
    (tmp_path / "run/report.html").write_text("of the run")
    go(run(), recipe="spos", augment=None)
    text = (tmp_path / "run/report.html").read_text()
    assert "Trained alone (retrained: the winner, fresh weights, recipe spos; 12 steps)" in text
    assert "test accuracy <b>50" in text


@pytest.mark.usefixtures("unexported")
def test_a_second_call_does_nothing_and_other_settings_put_the_first_aside(run, tmp_path, said):
    go(run())
    first = sha256_file(tmp_path / "run/retrained/network.safetensors")
    go(run())
    assert "retrained up to date" in said.getvalue()
    go(run(), "optimizer.lr=0.02")
    assert sha256_file(tmp_path / "run/retrained/network.safetensors") != first
    (aside,) = (tmp_path / "run/superseded").glob("retrained-*")
    assert sha256_file(aside / "network.safetensors") == first
    go(run(), "optimizer.lr=0.03", name="retrained-b")
    assert (tmp_path / "run/retrained/subnet.onnx").is_file()


@pytest.mark.usefixtures("unexported")
def test_fine_tuning_starts_from_the_supernet_and_from_scratch_does_not(run, tmp_path):
    still = ("steps=1", "optimizer.lr=1e-12", "optimizer.weight_decay=0")
    go(run(), *still, start="inherited", name="retrained-tuned")
    go(run(), *still, name="retrained-fresh")
    job = run()
    with job.context() as context:
        cut = materialise(context.space, winner(tmp_path), context.supernet)
    inherited = {k: v.detach().cpu() for k, v in cut.named_parameters()}
    tuned, fresh = (weights(tmp_path, f"retrained-{kind}") for kind in ("tuned", "fresh"))
    assert all(torch.allclose(tuned[k], v, atol=1e-6) for k, v in inherited.items())
    matrices = {k: v for k, v in inherited.items() if v.ndim > 1}
    assert not any(torch.allclose(fresh[k], v, atol=1e-3) for k, v in matrices.items())


@pytest.mark.usefixtures("unexported")
def test_held_out_images_are_trained_on_only_when_asked_for(run, tmp_path, said):
    assert go(run())["retrained"]["search_validation"]["n_images"] > 0
    told = go(run(), name="retrained-all", all_data=True)
    assert told["retrained"]["search_validation"] is None
    sizes = json.loads((tmp_path / "run/data.json").read_text())["splits"]
    train = sizes["train"]["images"]
    everything = train + sizes["calibration"]["images"] + sizes["search-validation"]["images"]
    assert f"train split, {train} images" in said.getvalue()
    assert f"train and held-out split, {everything} images" in said.getvalue()


@pytest.mark.usefixtures("unexported")
def test_an_interrupted_retraining_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch):
    go(run(), "ema=0.9", "checkpoint.steps=3", name="retrained-whole")
    from pipeline.run.stages import retrain as stage

    def stopping(*args, on_progress, **more):
        def stop(progress):
            on_progress(progress)
            if progress.step == 7:
                raise OSError("the power fails")

        return original(*args, on_progress=stop, **more)

    original = stage.train
    with monkeypatch.context() as patched:
        patched.setattr(stage, "train", stopping)
        with pytest.raises(OSError, match="power"):
            go(run(), "ema=0.9", "checkpoint.steps=3")
    steps = [p.name for p in (tmp_path / "run/retrained/checkpoints").glob("*.json")]
    assert "step-000000006.json" in steps
    go(run(), "ema=0.9", "checkpoint.steps=3")
    one, two = (tmp_path / f"run/{n}/network.safetensors" for n in ("retrained", "retrained-whole"))
    assert one.read_bytes() == two.read_bytes()
    log = (tmp_path / "run/retrained/train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [4, 8, 12]


@pytest.mark.usefixtures("unexported")
def test_another_row_of_the_front_may_be_chosen(run, tmp_path):
    front = json.loads((tmp_path / "run/front.json").read_text())
    last = len(front["points"])
    summary = go(run(), arch=str(last))
    assert Arch(summary["arch"]) == Arch.from_dict(front["points"][-1]["arch"])
    assert summary["chosen"] == f"row {last} of the front"


def test_a_network_that_was_never_measured_is_exported_without_latencies(run, tmp_path):
    genes = dict.fromkeys(winner(tmp_path), "mb6_k5")
    (tmp_path / "mine.json").write_text(json.dumps({"arch": genes}))
    summary = go(run(), arch=str(tmp_path / "mine.json"))
    assert (summary["arch"], summary["chosen"]) == (genes, "mine.json")
    manifest = json.loads((tmp_path / "run/retrained/manifest.json").read_text())
    front = json.loads((tmp_path / "run/front.json").read_text())
    assert Arch(genes) not in [Arch.from_dict(point["arch"]) for point in front["points"]]
    assert manifest["devices"] == []
    assert manifest["limits"][0]["value"] is None


@pytest.mark.parametrize(
    ("arch", "error", "words"),
    [
        ("0", UsageError, "the front has the rows 1 to"),
        ("99", UsageError, "the front has the rows 1 to"),
        ("nothing.json", UsageError, "neither a row of the front nor a JSON file"),
        ("foreign.json", InvalidArchError, "missing: layer2"),
    ],
)
def test_what_is_no_network_of_the_run_is_refused(run, tmp_path, arch, error, words):
    (tmp_path / "foreign.json").write_text('{"layer1": "mb9_k9"}')
    with pytest.raises(error, match=words):
        go(run(), arch=arch if arch.isdigit() else str(tmp_path / arch))


def test_a_run_without_a_front_names_the_command_that_makes_one(open_run):
    with pytest.raises(RunError, match="no front yet") as caught:
        go(open_run())
    assert "hilnas run" in caught.value.hint


def test_a_name_that_could_hide_files_of_the_run_is_refused(run):
    with pytest.raises(UsageError, match="must begin with 'retrained'"):
        go(run(), name="checkpoints")


@pytest.mark.usefixtures("unexported")
def test_recalibrated_statistics_are_those_of_the_calibration_images(run, tmp_path):
    go(run(), 'batch_norm="recalibrate"')
    found = weights(tmp_path)
    job = run()
    with job.context() as context:
        network = context.space.network(winner(tmp_path))
        network.load_state_dict(found)
        from pipeline.supernet.scoring import recalibrate

        recalibrate(network, context.eval_batches("calibration"))
        again = network.state_dict()
    means = [k for k in found if k.endswith("running_mean")]
    assert means
    assert all(torch.allclose(found[k], again[k], atol=1e-5) for k in means)


# -- teachers ------------------------------------------------------------------------------


def taught(run, tmp_path, model, **more):
    """A teacher as the run would load it."""
    with run().context() as context:
        return open_teacher(context, TeacherConfig(model=str(model), **more)), context


def test_a_retrained_network_teaches_with_its_own_normalisation(run, tmp_path):
    go(run())
    folder = tmp_path / "run/retrained"
    teacher, context = taught(run, tmp_path, folder)
    batch = context.eval_batches("search-validation").batch(0)
    network = context.space.network(winner(tmp_path))
    network.load_state_dict(weights(tmp_path))
    with torch.no_grad():
        assert torch.allclose(teacher.logits(batch), network.eval()(batch.images), atol=1e-4)

    # the same network, said to want pixels of 0 ... 255: images are brought to that
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["preprocessing"] |= {"mean": [0.0], "std": [1.0], "scale": 1.0}
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(folder / "subnet.onnx", other)
    raw, _ = taught(run, tmp_path, other)
    how = context.dataset.preprocessing
    pixels = (batch.images * how.std[0] + how.mean[0]) / how.scale
    with torch.no_grad():
        assert torch.allclose(raw.logits(batch), network(pixels), rtol=1e-3, atol=1e-2)


def test_the_largest_network_of_a_supernet_teaches(run, tmp_path):
    teacher, context = taught(run, tmp_path, tmp_path / "run/supernet.safetensors")
    batch = context.eval_batches("search-validation").batch(0)
    from pipeline.supernet.scoring import recalibrate

    largest = materialise(context.space, context.cost_table.maximum("macs")[1], context.supernet)
    recalibrate(largest, context.eval_batches("calibration"))
    with torch.no_grad():
        assert torch.allclose(teacher.logits(batch), largest(batch.images), atol=1e-4)


@pytest.mark.usefixtures("unexported")
def test_a_student_learns_from_it(run, tmp_path, said):
    model = f'teacher.model="{tmp_path}/run/supernet.safetensors"'
    summary = go(run(), model, "teacher.weight=1.0")
    assert "teacher: supernet.safetensors, weight 1" in said.getvalue()
    assert summary["teacher_sha256"] == sha256_file(tmp_path / "run/supernet.safetensors")
    assert str(tmp_path) not in (tmp_path / "run/retrained/retrain.json").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [("absent.onnx", "there is no teacher"), ("weights.pth", "is neither .onnx, .pt2")],
)
def test_what_cannot_teach_is_refused(run, tmp_path, name, words):
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=words):
        taught(run, tmp_path, tmp_path / name)


def test_a_run_with_a_teacher_that_does_not_fit_ends_before_anything_is_measured(
    open_run, script, tmp_path
):
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7)).eval()
    program = torch.export.export(teacher, (torch.zeros(1, 1, 8, 8),))
    torch.export.save(program, tmp_path / "seven.pt2")
    with pytest.raises(UsageError, match="tells 7 classes apart; this run's images have 10"):
        open_run(*SMALL, f'train.teacher.model="{tmp_path}/seven.pt2"').run()
    assert not (tmp_path / "run/table.jsonl").exists()
    assert not (tmp_path / "run/profile.json").exists()


def test_a_supernet_learns_from_the_teacher_of_the_run_file(open_run, tmp_path, said):
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    torch.export.save(
        torch.export.export(teacher, (torch.zeros(1, 1, 8, 8),)), tmp_path / "flat.pt2"
    )
    taught = (*SMALL, f'train.teacher.model="{tmp_path}/flat.pt2"')
    open_run(*taught).run(until="train")
    assert said.getvalue().count("teacher: flat.pt2, weight 0.5") == 1
    before = sha256_file(tmp_path / "run/supernet.safetensors")
    with torch.no_grad():
        teacher[1].bias.add_(3.0)
    torch.export.save(
        torch.export.export(teacher, (torch.zeros(1, 1, 8, 8),)), tmp_path / "flat.pt2"
    )
    open_run(*taught).run(until="train")  # the same name, another network: trained again
    assert sha256_file(tmp_path / "run/supernet.safetensors") != before


def test_without_a_network_for_all_devices_a_board_s_own_is_named_instead(tmp_path):
    front = {"schema": 1, "points": [], "winner": None, "reason": "none of the 8 subnets keeps all"}
    (tmp_path / "front.json").write_text(json.dumps(front))
    with pytest.raises(RunError, match="none of the 8 subnets keeps all") as caught:
        choose_arch(RunFolder(tmp_path), None)
    assert "boards/NAME/manifest.json" in caught.value.hint
