"""The main job as a user sees it: from nothing to a network that runs anywhere."""

import json
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

INDEPENDENT = """
import json, sys
import numpy as np
import onnxruntime
from sklearn.datasets import load_digits

folder = sys.argv[1]
manifest = json.load(open(f"{folder}/manifest.json"))
session = onnxruntime.InferenceSession(f"{folder}/subnet.onnx")
how = manifest["preprocessing"]
test = json.load(open(f"{folder}/data.json"))["test_indices"]
images = np.round(load_digits().images[test] * 255 / 16)
x = (images[:, None] * how["scale"] - how["mean"][0]) / how["std"][0]
names = manifest["model"]["input"]["name"], manifest["model"]["output"]["name"]
right = [
    session.run([names[1]], {names[0]: one[None].astype("float32")})[0].argmax() == label
    for one, label in zip(x, load_digits().target[test])
]
print(np.mean(right))
"""


@pytest.fixture(scope="module")
def manifest(finished):
    return json.loads((finished.path / "runs/digits/manifest.json").read_text())


def test_the_first_command_leaves_every_file_that_the_readme_names(finished):
    folder = finished.path / "runs/digits"
    for name in ("run.lock.toml", "data.json", "profile.json", "supernet.safetensors",
                 "train.jsonl", "table.jsonl", "search.jsonl", "front.json", "subnet.onnx",
                 "manifest.json", "report.html"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name


def test_the_winner_keeps_its_limit_as_measured(manifest):
    limit = next(x for x in manifest["limits"] if x["name"] == "latency_ms")
    (device,) = manifest["devices"]
    assert device["latency"]["source"] == "measured"
    assert device["latency"]["latency_ms"] <= limit["limit"]
    assert limit["kept"] is True


def test_the_network_has_learnt_the_digits(manifest):
    assert manifest["accuracy"]["test"]["value"] > 0.9


def test_an_independent_script_finds_the_accuracy_of_the_manifest(finished, manifest):
    done = subprocess.run(
        [sys.executable, "-c", INDEPENDENT, finished.path / "runs/digits"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) == pytest.approx(manifest["accuracy"]["test"]["value"], abs=1e-9)


def test_no_file_that_is_handed_on_names_this_machine(finished):
    for name in ("manifest.json", "subnet.onnx", "report.html"):
        content = (finished.path / "runs/digits" / name).read_bytes()
        assert str(finished.path).encode() not in content, name


def test_a_finished_run_has_nothing_left_to_do(finished):
    before = (finished.path / "runs/digits/stages.json").read_text()
    finished.hilnas("run", "digits")
    assert (finished.path / "runs/digits/stages.json").read_text() == before


def test_a_run_goes_on_from_its_folder_alone(finished):
    out = finished.hilnas("run", "runs/digits", "--json")
    assert json.loads(out)["stages"]["report"] is True


def test_the_lock_file_names_every_setting(finished):
    lock = tomllib.loads((finished.path / "runs/digits/run.lock.toml").read_text())
    assert lock["search"]["mutation_probability"] == 0.1


def test_check_passes_and_prints_json(finished):
    found = json.loads(finished.hilnas("check", "runs/digits", "--json"))
    assert found["golden"]["n_images"] > 0
    assert found["accuracy"]["n_images"] > 300


def test_a_network_that_was_tampered_with_fails_the_check(finished, home):
    folder = home.path / "copy"
    folder.mkdir()
    for name in ("subnet.onnx", "golden.npz", "manifest.json", "run.lock.toml"):
        (folder / name).write_bytes((finished.path / "runs/digits" / name).read_bytes())
    model = bytearray((folder / "subnet.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (folder / "subnet.onnx").write_bytes(model)
    assert "is not the file that manifest.json describes" in home.hilnas(
        "check", "copy", "--no-data", code=7
    )


def test_measure_agrees_with_the_manifest_on_the_network(finished, manifest):
    found = json.loads(
        finished.hilnas("measure", "runs/digits/subnet.onnx", "--measuring", "quick", "--json")
    )
    measured_ms = found["measurement"]["statistics"]["median_ns"] / 1e6
    promised_ms = manifest["devices"][0]["latency"]["latency_ms"]
    # a shared machine: the point is that units and network are the same, not the last per cent
    assert promised_ms / 3 < measured_ms < promised_ms * 3


def test_the_table_is_exported_and_imported_without_loss(finished, home):
    finished.hilnas("tables", "export", "table.jsonl")
    lines = (finished.path / "table.jsonl").read_text().splitlines()
    out = home.hilnas("tables", "import", str(finished.path / "table.jsonl"))
    n_new = int(re.match(r"(\d+) new", out)[1])
    assert n_new == sum('"measurement"' in line for line in lines)
    assert "local" in home.hilnas("tables", "show")


def test_a_second_run_reuses_the_table(finished):
    before = json.loads(finished.hilnas("tables", "show", "--json"))[0]["n_records"]
    finished.hilnas("tables", "build", "digits", "--out", "again")
    assert json.loads(finished.hilnas("tables", "show", "--json"))[0]["n_records"] == before


def test_plan_says_what_would_happen_and_starts_nothing(home):
    plan = json.loads(home.hilnas("run", "digits", "--plan", "--json"))
    assert [s["name"] for s in plan["stages"]][:3] == ["data", "profile", "table"]
    assert all(s["seconds"] > 0 for s in plan["stages"] if s["name"] in ("table", "train"))
    assert not (home.path / "runs").exists()


def test_an_impossible_latency_limit_names_the_fastest_network(home):
    out = home.small_run("device=[{name='local', limits={latency_ms=0.000001}}]", code=6)
    assert "is below the fastest subnet" in out
    assert "ms on local" in out or "on local)" in out
    assert not (home.path / "runs/digits/supernet.safetensors").exists()


def test_own_images_give_a_network_for_them(home):
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    images = rng.integers(0, 60, (240, 12, 12, 3)).astype(np.uint8)
    images[np.arange(240), 3:9, 3:9, labels] += 150  # a square in a colour per class
    np.savez(home.path / "mine.npz", images=images, labels=labels)
    home.hilnas("init", "own-images", "--to", "mine.toml")
    small = [w for s in ("train.epochs=12", "latency.samples=12", "latency.remeasure=2",
                         "search.population=6", "search.parents=3", "search.crossover=3",
                         "search.mutation=3", "search.generations=1", "train.precision=fp32",
                         "train.threads=1")
             for w in ("--set", s)]  # fmt: skip
    home.hilnas("run", "mine.toml", *small)
    manifest = json.loads((home.path / "runs/mine/manifest.json").read_text())
    assert manifest["model"]["input"]["shape"] == [1, 3, 12, 12]
    assert manifest["accuracy"]["test"]["value"] > 0.6
