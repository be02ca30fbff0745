"""``hilnas transfer`` as a user meets it: after a run, to other images, checked by itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from latency_tables.files import sha256_file
from tests.e2e.conftest import SMALL, Home

# a run on a board that answers by formula is in the default tests: tests/pipeline/run
pytestmark = pytest.mark.long

RUN_FILE = """
[data]
name = "npz"
path = "halves.npz"
heldout = 0.35
[train]
threads = 1
[[device]]
name = "local"
limits = { latency = "60%" }
"""
LEARN = ("search.shifting.lr=0.01", *(s for s in SMALL if not s.startswith("train.")))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    """A finished small run of digits, and wider colour images of five classes."""
    home = Home(path=tmp_path_factory.mktemp("transfer"))
    home.small_run()
    digits = load_digits()
    grey = np.pad(np.round(digits.images * 255 / 16).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    images, labels = np.stack([grey] * 3, axis=-1), (digits.target // 2).astype(np.int64)
    np.savez(home.path / "halves.npz", images=images, labels=labels)
    (home.path / "halves.toml").write_text(RUN_FILE)
    return home


@pytest.mark.parametrize("resample", ["resize", "learned"])
def test_a_transfer_ends_in_a_checked_network_that_knows_the_new_classes(home, resample) -> None:
    before = sha256_file(home.path / "runs/digits/supernet.safetensors")
    overrides = [w for s in (*LEARN, f"transfer.resample={resample}") for w in ("--set", s)]
    arguments = ("transfer", "runs/digits", "halves.toml", "--head-steps", "50", *overrides)
    told = json.loads(home.hilnas(*arguments, "--out", resample, "--quiet", "--json"))
    manifest = told["manifest"]
    assert manifest["accuracy"]["test"]["value"] > 0.6  # five classes: chance is 0.2
    assert all(limit["kept"] for limit in manifest["limits"])
    side = 12 if resample == "learned" else 8
    assert manifest["model"]["input"]["shape"][1:] == [1, side, side]
    checked = json.loads(home.hilnas("check", resample, "--json"))["accuracy"]
    assert checked["n_correct"] / checked["n_images"] == manifest["accuracy"]["test"]["value"]
    report = (home.path / resample / "report.html").read_text()
    assert "transfer from digits" in report
    assert sha256_file(home.path / "runs/digits/supernet.safetensors") == before
    # the folder goes on like any other, and nothing is out of date
    stamps = (home.path / resample / "stages.json").read_text()
    home.hilnas("run", resample, "--quiet")
    assert (home.path / resample / "stages.json").read_text() == stamps


def test_without_a_trained_source_it_says_what_to_run(home) -> None:
    said = home.hilnas("transfer", "nowhere", "halves.toml", code=2)
    assert "nowhere is no run folder" in said
    assert "hilnas transfer RUN FILE|STARTER" in said
