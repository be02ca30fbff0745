"""What the study of ShiftNAS stands on: equal trainings, paired tables, pieces that are kept."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.bench.shiftnas import arguments, main, require_same_scale, scaled
from tests.bench.shiftnas_study import tables
from tests.bench.shiftnas_study.methods import GENERATED, LEVELS, UNIFORM, parts_of


def scale(tmp_path, *more):
    given = ["--images", str(tmp_path / "images.npz"), "--out", str(tmp_path / "out"), *more]
    return scaled(arguments().parse_args(given))


def test_every_method_spends_the_same_image_passes(tmp_path):
    options = scale(tmp_path, "--steps", "1600")
    for methods in parts_of(options).values():
        assert {round(options.steps / m.passes) * m.passes for m in methods} == {1600}


def test_an_ablation_changes_one_option_of_the_main_training(tmp_path):
    parts = parts_of(scale(tmp_path))
    for part, option, values in [
        ("level-step", "levels", {8, 4, 16}),
        ("frequency", "update_every", {20, 10, 100, 200}),
    ]:
        main_one, *others = parts[part]
        assert main_one.name == GENERATED
        changed = [{k for k in o.options if o.options[k] != main_one.options[k]} for o in others]
        assert changed == [{option}] * len(others)
        assert {m.options[option] for m in parts[part]} == values


def test_names_and_folders_of_trainings_are_their_own(tmp_path):
    every = {m for methods in parts_of(scale(tmp_path)).values() for m in map(repr, methods)}
    by_name = {m.name: m for methods in parts_of(scale(tmp_path)).values() for m in methods}
    assert len(every) == len(by_name) == len({m.folder for m in by_name.values()})


def test_a_folder_with_a_study_of_another_scale_is_refused(tmp_path):
    require_same_scale(scale(tmp_path))
    require_same_scale(scale(tmp_path, "--seeds", "7", "--parts", "sampling"))
    with pytest.raises(SystemExit, match="steps = 1600, not 10; choose another --out"):
        require_same_scale(scale(tmp_path, "--steps", "10"))


def test_differences_are_taken_seed_by_seed_where_both_are_there(tmp_path):
    methods = [m for m in parts_of(scale(tmp_path))["inherited"] if m.name in (UNIFORM, LEVELS)]
    accuracies = {LEVELS: {0: 0.50, 1: 0.60}, UNIFORM: {0: 0.51, 1: 0.63, 2: 0.90}}
    world = SimpleNamespace(
        levels=SimpleNamespace(targets=(1000.0, 2000.0)),
        seeds=lambda: [0, 1, 2],
        folder=lambda name, seed: tmp_path / f"{name}-{seed}",
    )
    for method in methods:
        for seed, accuracy in accuracies[method.name].items():
            folder = tmp_path / f"{method.folder}-{seed}"
            folder.mkdir()
            scores = {"accuracy": [[accuracy, accuracy + 0.02], [accuracy, accuracy + 0.02]]}
            (folder / "scores.json").write_text(json.dumps(scores))
    rows = [line.split(" | ") for line in tables.inherited(world, "inherited", methods).split("\n")]
    by_name = {row[0].removeprefix("| "): row for row in rows}
    assert by_name["method"][2:4] == ["1 k", "2 k"]
    assert by_name[LEVELS][1:6] == ["2", "56.0 ± 7.1", "56.0 ± 7.1", "56.00 ± 7.07", ""]
    assert by_name[UNIFORM][5] == "+2.00 ± 1.41 (2 of 2 up)"  # 1 and 3; seed 2 has no partner


@pytest.mark.long
def test_a_study_runs_keeps_its_pieces_and_prints_them_again(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "images.npz",
        images=rng.integers(0, 256, (800, 16, 16, 3), dtype=np.uint8),
        labels=np.arange(800) % 4,
    )
    small = (
        "--images", str(tmp_path / "images.npz"), "--out", str(tmp_path / "out"),
        "--spaces", "autoformer", "--seeds", "1", "--steps", "8", "--batch", "16",
        "--train-images", "64", "--update-every", "2", "--archs", "2", "--score-images", "40",
        "--held-out", "40", "--tau-archs", "3", "--tune-steps", "2", "--retrain-levels", "2",
    )  # fmt: skip
    assert main([*small]) == 0
    first = capsys.readouterr()
    for title in ("Inherited accuracy", "What the generators choose", "B at the end",
                  "Sampling time", "Kendall's tau", "Inherited and retrained",
                  "Step between levels", "Steps between updates", "Sandwich rule"):  # fmt: skip
        assert title in first.out
    assert "8 steps of 16" in first.out
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    assert main([*small]) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err == ""  # nothing took time
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
