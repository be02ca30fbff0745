"""Runs whose supernet is trained by levels of a device's latency."""

from __future__ import annotations

import json

import pytest

from latency_tables import LatencyModel
from latency_tables.errors import ConfigError, RunError
from pipeline.generator.file import FILE_NAME, load_generator
from pipeline.run.held_out import HeldOutTurns
from pipeline.run.level_costs import latency_settings
from pipeline.run.stages.train import TRAIN

SHIFT = (
    'train.strategy="shiftnas"',
    "train.epochs=0.3",
    "train.options={cost='latency:local', levels=3, update_every=2, freeze=0.0}",
)


@pytest.fixture
def trained(open_run, made_once):
    """A run up to ``train``, made once, and the call that makes others in its folder."""
    made_once(*SHIFT, until="train")
    return open_run


def lines(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_levels_are_milliseconds_of_the_run_s_own_table(trained, tmp_path, digits_space) -> None:
    folder = tmp_path / "run"
    last = lines(folder)[-1]
    model = json.loads((folder / "latency.json").read_text())["devices"]["local"]["model"]
    costs = digits_space.cost_table()
    table = LatencyModel.from_dict(model, costs).with_latency_column(costs)
    low, high = table.minimum("latency_ms")[0], table.maximum("latency_ms")[0]
    assert (last["level_cost"], last["level_unit"]) == ("latency:local", "ms")
    assert low < last["level_targets"][0] < last["level_targets"][-1] < high
    assert last["level_updates"] >= 3
    loaded = load_generator(folder / FILE_NAME, digits_space, device="local", table=table)
    assert loaded.targets == tuple(last["level_targets"])


def test_the_generator_is_a_file_that_the_stage_vouches_for(trained, tmp_path, said) -> None:
    trained(*SHIFT).run(until="train")
    assert "train    up to date" in said.getvalue()
    (tmp_path / "run" / FILE_NAME).unlink()
    trained(*SHIFT).run(until="train")
    assert (tmp_path / "run" / FILE_NAME).exists()


def fingerprint(job) -> str:
    with job.context() as context:
        return TRAIN.fingerprint(context)


def test_training_follows_the_table_only_where_it_uses_it(trained, tmp_path) -> None:
    folder = tmp_path / "run"
    spos, macs = ('train.strategy="spos"',), (*SHIFT[:2], "train.options={levels=3}")
    others = [fingerprint(trained(*settings)) for settings in (spos, macs)]
    before = fingerprint(trained(*SHIFT))
    latency = json.loads((folder / "latency.json").read_text())
    latency["limits"][0]["bound"] *= 2
    (folder / "latency.json").write_text(json.dumps(latency))
    assert fingerprint(trained(*SHIFT)) == before  # limits decide nothing here
    for key, value in (("device_fp", "another"), ("model", {"of": "another table"})):
        changed = json.loads(json.dumps(latency))
        changed["devices"]["local"][key] = value
        (folder / "latency.json").write_text(json.dumps(changed))
        assert fingerprint(trained(*SHIFT)) != before
    assert [fingerprint(trained(*settings)) for settings in (spos, macs)] == others


def test_a_table_that_is_not_built_yet_is_said(open_run) -> None:
    with open_run(*SHIFT).context() as context, pytest.raises(RunError, match="'table' has not"):
        latency_settings(context)


def test_an_unknown_device_is_refused_before_anything_is_measured(open_run, script) -> None:
    options = "train.options={cost='latency:pi', levels=3}"
    with pytest.raises(ConfigError, match=r"latency:pi.*local") as caught:
        open_run(*SHIFT[:2], options).run()
    assert caught.value.hint == 'cost = "latency:local"'
    assert script.asked == []


def test_held_out_batches_of_equal_size_take_turns(open_run) -> None:
    with open_run().context() as context:
        calibration = context.splits.indices("calibration")
        turns = HeldOutTurns(context, 50, batch_size=16)
        assert turns.batches_per_epoch == 3
        seen = [turns.batch(number).ids.tolist() for number in range(6)]
        assert [len(ids) for ids in seen] == [16] * 6
        assert [i for ids in seen[:3] for i in ids] == calibration[:48].tolist()
        assert seen[3:] == seen[:3]
        few = HeldOutTurns(context, 5, batch_size=16)
        assert (few.batches_per_epoch, len(few.batch(7).ids)) == (1, 5)
