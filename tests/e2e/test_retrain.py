"""``hilnas retrain`` as a user meets it: after a run, killed on the way, checked by itself."""

import json
import os
import re
import shutil
import signal
import time

import pytest

from latency_tables.files import sha256_file
from tests.e2e.conftest import Home

PATIENCE_S = 240

# a run in one process is in the default tests: tests/pipeline/run/test_retrain.py
pytestmark = pytest.mark.long
SETTINGS = ("epochs=6", "checkpoint.steps=10", "ema=0.99", "drop_path=0.1")


def arguments(*more):
    return ["retrain", "runs/digits", *(w for s in SETTINGS for w in ("--set", s)), *more]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small run with its winner retrained, undisturbed; and what was printed."""
    home = Home(path=tmp_path_factory.mktemp("retrained"))
    home.small_run()
    return home, home.hilnas(*arguments())


def test_both_accuracies_are_printed_and_the_network_passes_its_check(done):
    home, printed = done
    found = re.search(r"([\d.]+)% inherited, ([\d.]+)% retrained", printed)
    manifest = json.loads((home.path / "runs/digits/retrained/manifest.json").read_text())
    assert float(found[2]) == pytest.approx(100 * manifest["accuracy"]["test"]["value"], abs=0.01)
    run = json.loads((home.path / "runs/digits/manifest.json").read_text())
    assert float(found[1]) == pytest.approx(100 * run["accuracy"]["test"]["value"], abs=0.3)
    checked = json.loads(home.hilnas("check", "runs/digits/retrained", "--json"))["accuracy"]
    assert checked["n_correct"] / checked["n_images"] == manifest["accuracy"]["test"]["value"]


def test_the_run_it_belongs_to_is_still_up_to_date(done):
    home, _ = done
    before = sha256_file(home.path / "runs/digits/subnet.onnx")
    home.small_run()
    assert sha256_file(home.path / "runs/digits/subnet.onnx") == before
    assert not (home.path / "runs/digits/superseded").exists()


def test_killed_in_the_middle_it_ends_with_the_same_bytes(done, tmp_path):
    finished, _ = done
    home = Home(path=tmp_path)
    shutil.copytree(finished.path / "runs", home.path / "runs")
    shutil.copytree(finished.path / "data", home.path / "data")
    name = "runs/digits/retrained/network.safetensors"
    again = arguments("--name", "retrained-again", "--quiet")
    process = home.start(*again)
    checkpoints = home.path / "runs/digits/retrained-again/checkpoints"
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and not list(checkpoints.glob("step-0000000[1-9]*.json")):
        assert time.monotonic() < deadline, "there was never a checkpoint"
        time.sleep(0.005)  # polling with a deadline
    assert process.poll() is None, "it was done before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    home.hilnas(*again)
    mended = home.path / "runs/digits/retrained-again/network.safetensors"
    assert sha256_file(mended) == sha256_file(finished.path / name)
