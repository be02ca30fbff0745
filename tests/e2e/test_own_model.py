"""The main job on a model of the user's own."""

import json

import pytest

from tests.e2e.conftest import SMALL

MODEL = '''
"""Residual blocks for small images."""

from torch import nn

from pipeline.own_model import Choice, Elastic


class Block(nn.Module):
    def __init__(self, width, name):
        super().__init__()
        self.body = nn.Sequential(
            Elastic(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
                    width=(width, 2 * width), kernel=(1, 3)),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            Choice(name, {
                "depthwise": nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width),
                "none": nn.Identity(),
            }),
            nn.Conv2d(2 * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return (x + self.body(x)).relu()


class MyNet(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        blocks = (Block(12, f"block{i}") for i in range(3))
        self.blocks = Elastic(nn.Sequential(*blocks), depth=(1, 2, 3))
        self.fc = nn.Linear(12 * 4 * 4, n_classes)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).flatten(1))
'''
RUN_FILE = """
[data]
name = "digits"

[space]
name = "MyNet"
"""
MODULE = ("--module", "my_model.py")


def started(home, command, *more):
    """Run a command on the model with small settings; gives what it said on stderr."""
    (home.path / "my.toml").write_text(RUN_FILE)
    small = [word for setting in (*SMALL, *more) for word in ("--set", setting)]
    process = home.start(command, "my.toml", *MODULE, *small)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return " ".join(said.split())


def test_a_model_of_ones_own_goes_through_the_main_job(home) -> None:
    (home.path / "my_model.py").write_text(MODEL)
    started(home, "run")
    folder = home.path / "runs/my"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["space"]["name"] == "MyNet"
    assert manifest["accuracy"]["test"]["value"] > 0.5
    assert str(home.path) not in (folder / "manifest.json").read_text()

    # going on needs the file to be named again, and finds nothing left to do
    assert "--module my_model.py" in home.hilnas("run", "runs/my", code=2)
    before = (folder / "stages.json").read_text()
    home.hilnas("run", "runs/my", *MODULE)
    assert (folder / "stages.json").read_text() == before
    home.hilnas("check", "runs/my")


@pytest.mark.long
def test_a_changed_model_is_noticed_and_what_was_trained_is_kept(home) -> None:
    fewer = ("latency.samples=10", "train.epochs=1")
    (home.path / "my_model.py").write_text(MODEL)
    assert "is not the model" not in started(home, "train", *fewer)
    (home.path / "my_model.py").write_text(MODEL + "# a comment\n")
    assert "is not the model" not in started(home, "train", *fewer)
    (home.path / "my_model.py").write_text(MODEL.replace("bias=False", "bias=True"))
    said = started(home, "train", *fewer)
    assert "MyNet is not the model that this folder was made with" in said
    assert list((home.path / "runs/my/superseded").glob("train-*/supernet.safetensors"))
