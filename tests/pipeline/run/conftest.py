"""Runs on boards that answer by formula."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from device_agents.inventory import read_inventory
from pipeline.run.job import Job
from pipeline.run.profile import space_of
from pipeline.run.progress import Reporter
from pipeline.run.source import read_source
from tests.pipeline.run.scripted_board import Script

SAMPLES = 16
_MADE: dict[tuple[object, ...], Path] = {}


@pytest.fixture(scope="session")
def digits_space():
    """The space of the starter ``digits``, recorded once."""
    space = space_of(read_source("digits").config, Path())
    space.cost_table()
    return space


@pytest.fixture
def script(digits_space, tmp_path, monkeypatch):
    """What the boards do; they stand in for every device."""
    script = Script(costs=digits_space.cost_table())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.run.devices.DeviceMeasurer", script.measurer)
    monkeypatch.setattr("pipeline.run.priors.operator_prior", lambda *_: None)  # no profiler
    monkeypatch.setattr("pipeline.run.context.space_for", lambda dataset, config: digits_space)
    return script


@pytest.fixture
def said():
    """What the reporter printed."""
    return io.StringIO()


@pytest.fixture
def open_run(tmp_path, said, script):
    """Opens a run of ``digits`` with 16 samples on one live table; ``devices`` of the inventory."""
    inventory_file = tmp_path / "devices.toml"
    inventory_file.write_text('[[device]]\nname = "board"\nssh = "board"\n')

    def make(*overrides, out="run", devices=("local",)):
        listed = ", ".join(f'{{name = "{d}", limits = {{latency = "40%"}}}}' for d in devices)
        settings = (f"latency.samples={SAMPLES}", f"device=[{listed}]", *overrides)
        console = Console(file=said, width=200, highlight=False)
        return Job.open(
            "digits",
            out=tmp_path / out,
            overrides=settings,
            table_path=tmp_path / "tables.sqlite",
            inventory=read_inventory(inventory_file, work_dir=tmp_path / "work"),
            reporter=Reporter(console),
        )

    return make


@pytest.fixture
def made_once(open_run, tmp_path, tmp_path_factory):
    """Puts the folder of a run up to a stage into place, and its live table where that is asked
    for; both are made once and copied from then on."""

    def make(*overrides, until, devices=("local",), table=True):
        key, run = (overrides, until, devices), tmp_path / "run"
        if key not in _MADE:
            open_run(*overrides, devices=devices).run(until=until)
            _MADE[key] = tmp_path_factory.mktemp("made")
            shutil.copytree(run, _MADE[key] / "run")
            shutil.copy(tmp_path / "tables.sqlite", _MADE[key])
            return
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(_MADE[key] / "run", run)
        if table:
            shutil.copy(_MADE[key] / "tables.sqlite", tmp_path)

    return make
