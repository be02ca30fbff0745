"""A model in a Python file is found by name, given what the data set has, and never run unasked."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from latency_tables.errors import ConfigError, SpaceError, UsageError
from pipeline.cli.main import cli
from pipeline.config import parse_run_config
from pipeline.run.source import LOCK, read_source, require_own_model, write_lock
from pipeline.spaces.own_model.module_file import space_in_file

MODEL = """
from torch import nn
from pipeline.own_model import Elastic

{before}
class MyNet(nn.Module):
    def __init__(self, {arguments}):
        super().__init__()
        self.stem = Elastic(nn.Conv2d({channels}, 8, 3, padding=1), width=(4, 8))
        self.fc = nn.Linear(8, {classes})

    def forward(self, x):
        return self.fc(self.stem(x).relu().mean((2, 3)))

def small():
    return MyNet()
"""
RUN_FILE = '[data]\nname = "digits"\n[space]\nname = "MyNet"\n'


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes my_model.py into an empty working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(RUN_FILE)

    def writer(arguments="n_classes=10", channels="1", classes="n_classes", before="") -> Path:
        path = tmp_path / "my_model.py"
        text = MODEL.format(arguments=arguments, channels=channels, classes=classes, before=before)
        path.write_text(text)
        return path

    return writer


def load(path: Path, name: str = "MyNet", n_classes: int = 10, channels: int = 1):
    return space_in_file(path, name, input_shape=(channels, 8, 8), n_classes=n_classes)


@pytest.mark.parametrize("arguments", ["n_classes=10, in_channels=1", "num_classes=10, in_chans=1"])
def test_a_model_gets_what_the_data_set_has(write, arguments) -> None:
    classes, channels = (a.split("=")[0] for a in arguments.split(", "))
    path = write(arguments, channels=channels, classes=classes)
    space = load(path, n_classes=7, channels=3)
    assert (space.n_classes, space.input_shape) == (7, (3, 8, 8))


def test_a_function_makes_a_model_as_well_as_a_class(write) -> None:
    assert load(write(), "small").name == "small"


def test_another_number_of_classes_is_refused(write) -> None:
    with pytest.raises(SpaceError, match=r"MyNet of my_model.py gives 10 .* 7 classes.*n_classes"):
        load(write("", classes="10"), n_classes=7)


def test_files_beside_the_model_can_be_imported(write, tmp_path) -> None:
    (tmp_path / "beside_the_model.py").write_text("CLASSES = 10\n")
    path = write(before="from beside_the_model import CLASSES")
    assert load(path).n_classes == 10


def test_comments_do_not_change_the_space_and_the_file_may_move(write, tmp_path) -> None:
    before = load(write()).space_id
    moved = tmp_path / "elsewhere.py"
    moved.write_text("# moved\n" + write(before="# a comment").read_text())
    assert load(moved).space_id == before
    assert load(write(before="nn.ReLU")).space_id == before


def test_a_name_that_the_file_lacks_is_refused_with_its_models(write) -> None:
    with pytest.raises(UsageError, match=r"no class or function 'MyNot'; its models: MyNet; try"):
        load(write(), "MyNot")


def test_a_file_that_fails_is_refused_with_the_line(write) -> None:
    with pytest.raises(UsageError, match=r"cannot be run: ZeroDivisionError: .* \(line 5\)"):
        load(write(before="1 / 0"))
    with pytest.raises(UsageError, match=r"there is no file .*nix\.py"):
        load(Path("nix.py"))


def test_a_run_file_cannot_name_python() -> None:
    with pytest.raises(ConfigError, match=r"cannot name Python code.*--module"):
        parse_run_config(RUN_FILE + 'module = "my_model.py"\n')


def test_a_model_without_its_file_is_refused_with_the_option(write) -> None:
    write()
    done = CliRunner().invoke(cli, ["space", "show", "my.toml"])
    assert isinstance(done.exception, UsageError)
    assert "--module" in str(done.exception)


def test_the_space_of_a_file_is_shown(write) -> None:
    write()
    done = CliRunner().invoke(cli, ["space", "show", "my.toml", "--module", "my_model.py"])
    assert done.exit_code == 0
    assert "stem.width 4 8" in done.output


def test_a_run_folder_remembers_the_file_and_asks_for_it(write, tmp_path) -> None:
    path = write()
    source = read_source("my.toml", [f'space.module="{path}"'])
    assert require_own_model(source)
    folder = tmp_path / "runs/my"
    folder.mkdir(parents=True)
    write_lock(folder, source)
    lock = tomllib.loads((folder / LOCK).read_text())
    assert lock["origin"]["module"] == "../../my_model.py"
    assert len(lock["origin"]["module_sha256"]) == 64
    assert "module" not in lock["space"]
    again = read_source(str(folder))
    with pytest.raises(UsageError, match=r"'MyNet' of my_model\.py.*--module my_model\.py"):
        require_own_model(again)
    assert require_own_model(read_source(str(folder), [f'space.module="{path}"']))
