"""Backbones of a run whose devices answer by formula."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from latency_tables.arch import Arch
from latency_tables.errors import CheckpointError, InvalidArchError, RunError, UsageError
from latency_tables.files import canonical_json, sha256_file
from pipeline.cli.main import run_cli
from pipeline.export.onnx_file import describe_onnx
from pipeline.onnx_runtime import open_session
from pipeline.retraining.config import retrain_config
from pipeline.run.features import export_features, render
from pipeline.run.retraining import retrain
from pipeline.run.stages.retrain import load_retrained
from pipeline.supernet.scoring import materialise, recalibrate
from pipeline.training.checkpoint import pack
from tests.pipeline.run.small import SMALL


@pytest.fixture
def run(open_run, made_once):
    """A run up to its front, made once and copied: a function that opens it."""
    made_once(*SMALL, until="search")
    return lambda: open_run(*SMALL)


def front(tmp_path):
    return json.loads((tmp_path / "run/front.json").read_text())


def test_the_winner_becomes_a_backbone_with_calibrated_inherited_weights(run, tmp_path):
    job = run()
    ((folder, manifest),) = export_features(job).items()
    assert folder == tmp_path / "run"
    written = json.loads((folder / "backbone.json").read_text())
    assert written == json.loads(json.dumps(manifest))
    assert manifest["model"]["sha256"] == sha256_file(folder / "backbone.onnx")
    assert manifest["weights_sha256"] == sha256_file(folder / "supernet.safetensors")
    points = front(tmp_path)
    arch = Arch.from_dict(points["points"][points["winner"]]["arch"])
    assert Arch(manifest["arch"]) == arch
    with job.context() as context:
        network = materialise(context.space, arch, context.supernet)
        recalibrate(network, context.eval_batches("calibration"))
        x = next(iter(context.eval_batches("search-validation"))).images[:1].contiguous()
    of_file = open_session(folder / "backbone.onnx").run(None, {"image": x.numpy()})
    pieces = [name for name, _ in network.named_children()]
    for found, entry in zip(of_file, manifest["features"], strict=True):
        expected = network[: pieces.index(entry["after"]) + 1](x).detach().numpy()
        assert list(found.shape) == entry["shape"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=entry["parity"]["allowed"])


def test_the_manifest_says_what_the_outputs_are(run, tmp_path):
    ((folder, manifest),) = export_features(run()).items()
    session = open_session(folder / "backbone.onnx")
    told = [(f["name"], f["shape"]) for f in manifest["features"]]
    assert told == [(t.name, t.shape) for t in session.get_outputs()]
    # pictures of 8 px: no stride of 8 that leaves more than a vector
    assert [f["stride"] for f in manifest["features"]] == [[1, 1], [2, 2], [4, 4]]
    assert manifest["n_missing_features"] == 1
    assert manifest["input"] == {"name": "image", "shape": [1, 1, 8, 8], "dtype": "float32"}
    assert manifest["preprocessing"]["mean"]
    assert describe_onnx(folder / "backbone.onnx").opset == manifest["model"]["opset"]
    out = io.StringIO()
    render({folder: manifest}, Console(file=out, width=200, highlight=False))
    assert "features_1" in out.getvalue()
    assert "stride 4" in out.getvalue()
    assert "gives 3 of the 4 maps" in out.getvalue()


def test_another_row_of_the_front_can_be_taken(run, tmp_path):
    best = max(front(tmp_path)["points"], key=lambda p: p["accuracy"])
    (manifest,) = export_features(run(), arch="1").values()
    assert Arch(manifest["arch"]) == Arch.from_dict(best["arch"])


def test_a_retrained_network_gives_the_maps_of_its_own_weights(run, tmp_path):
    job = run()
    config = retrain_config(None, job.source.config.train, ["steps=3", "batch_size=16"], {})
    retrain(job, config, arch=None, recipe=None, name="retrained")
    ((folder, manifest),) = export_features(run(), retrained="retrained").items()
    assert folder == tmp_path / "run/retrained"
    assert manifest["weights_sha256"] == sha256_file(folder / "network.safetensors")
    with job.context() as context:
        network = load_retrained(
            context.space, Arch(manifest["arch"]), folder / "network.safetensors"
        )
        x = next(iter(context.eval_batches("search-validation"))).images[:1].contiguous()
        logits = open_session(folder / "subnet.onnx").run(None, {"image": x.numpy()})[0]
        np.testing.assert_allclose(network(x).detach().numpy(), logits, atol=1e-4)
        last = open_session(folder / "backbone.onnx").run(None, {"image": x.numpy()})[-1]
        expected = network[:-1](x).detach().numpy()
    np.testing.assert_allclose(last, expected, atol=manifest["features"][-1]["parity"]["allowed"])


def test_retrained_weights_of_another_network_are_refused(run, tmp_path):
    job = run()
    with job.context() as context:
        one, other = (context.space.sample(np.random.default_rng(seed)) for seed in (0, 1))
        told = {"schema": "hilnas.retrain/1", "space_id": context.space.space_id, "arch": dict(one)}
        weights = context.space.network(one).state_dict()
        path = tmp_path / "network.safetensors"
        path.write_bytes(pack(weights, {"hilnas": canonical_json(told)}))
        load_retrained(context.space, one, path)
        with pytest.raises(CheckpointError, match="its arch differs"):
            load_retrained(context.space, other, path)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="hilnas retrain"):
        load_retrained(context.space, one, path)


def test_a_folder_without_a_retrained_network_says_how_to_make_one(run):
    with pytest.raises(RunError, match="hilnas retrain"):
        export_features(run(), retrained="retrained")
    with pytest.raises(UsageError, match="--arch"):
        export_features(run(), retrained="retrained", arch="1")


def test_a_run_without_a_front_says_what_to_run(run, tmp_path):
    (tmp_path / "run/front.json").unlink()
    with pytest.raises(RunError, match="hilnas run"):
        export_features(run())


def test_a_row_that_is_not_there_and_a_foreign_architecture_are_refused(run, tmp_path):
    with pytest.raises(UsageError, match="the front has the rows 1 to"):
        export_features(run(), arch="99")
    (tmp_path / "foreign.json").write_text('{"embed_dim": 192}')
    with pytest.raises(InvalidArchError):
        export_features(run(), arch=str(tmp_path / "foreign.json"))
    assert not (tmp_path / "run/backbone.onnx").exists()


def test_a_search_that_found_nothing_is_told_with_its_reason(run, tmp_path):
    found = front(tmp_path) | {"winner": None, "reason": "no subnet keeps 1 ms"}
    (tmp_path / "run/front.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match="no subnet keeps 1 ms"):
        export_features(run())


@pytest.mark.long
def test_every_board_gets_the_backbone_of_its_own_network(open_run, tmp_path):
    devices = ("local", "board")
    job = open_run(*SMALL, devices=devices)
    job.run(until="search")
    written = export_features(open_run(*SMALL, devices=devices))
    run = tmp_path / "run"
    assert list(written) == [run / "boards/local", run / "boards/board", run]
    for folder, manifest in written.items():
        points = json.loads((folder / "front.json").read_text())
        winner = Arch.from_dict(points["points"][points["winner"]]["arch"])
        assert Arch(manifest["arch"]) == winner
        assert (folder / "backbone.onnx").is_file()


@pytest.mark.parametrize("choice", [("--arch", "2"), ("--retrained", "retrained")])
def test_the_command_refuses_a_choice_of_network_without_features(capsys, choice):
    assert run_cli(["export", "run", *choice]) == 2
    assert "--features" in capsys.readouterr().err
