"""``hilnas generate`` as a user meets it: a starter is trained, then networks come at once."""

import json
import re

import pytest

from tests.e2e.conftest import Home

# with scripted boards it is in the default tests: tests/pipeline/run/test_generate.py
pytestmark = pytest.mark.long

RUN = "runs/quick-shiftnas"
SMALL = ("train.epochs=6", "latency.samples=14")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home where the starter was trained for a moment; nothing was searched."""
    home = Home(path=tmp_path_factory.mktemp("generate"))
    home.hilnas("train", "quick-shiftnas", *(w for s in SMALL for w in ("--set", s)))
    return home


@pytest.fixture(scope="module")
def limit(trained):
    """A limit that most networks keep, in ms: an impossible one is answered with the range."""
    asked = ("generate", RUN, "--device", "local", "--limit-latency-ms")
    said = " ".join(trained.hilnas(*asked, "1e-6", code=6).split())
    low, high = map(float, re.search(r"reach from ([\d.]+) ms to ([\d.]+) ms", said).groups())
    assert "the generator's levels from" in said
    return f"{0.3 * low + 0.7 * high:.4g}"


def test_a_network_for_a_latency_is_there_at_once_and_passes_its_check(trained, limit):
    printed = trained.hilnas(
        "generate", RUN, "--limit-latency-ms", limit, "--device", "local", "--no-check"
    )
    assert "predicted, not measured" in printed
    assert re.search(r"\d of 8 +decisions changed", printed)
    assert re.search(r"[\d.]+ s +proposal and repair; [\d.]+ s in all", printed)
    folder = re.search(r"network: (\S+)/subnet.onnx", printed)[1]
    found = json.loads((trained.path / folder / "generated.json").read_text())
    assert found["predicted"]["local"]["latency_ms"] <= float(limit)
    assert found["seconds"]["proposal"] + found["seconds"]["repair"] < 5
    assert "accuracy" in trained.hilnas("check", folder)


def test_what_is_measured_keeps_the_limit_or_is_not_given(trained, limit):
    process = trained.start(
        "generate", RUN, "--limit-latency-ms", limit, "--device", "local", "--out", "measured"
    )
    out, err = process.communicate(timeout=600)
    written = trained.path / "measured/generated.json"
    if process.returncode == 0:
        found = json.loads(written.read_text())
        assert found["measured"]["local"]["latency_ms"] <= float(limit)
        assert re.search(r"measured +[\d.]+ ms", out)
    else:  # the machine is busier than when its table was built
        assert process.returncode == 9, err
        assert "networks keeps" in err
        assert not written.exists()


def test_a_sweep_leaves_a_family_with_one_report(trained):
    found = json.loads(
        trained.hilnas("generate", RUN, "--sweep", "60k:120k:30k", "--out", "family", "--json")
    )
    macs = [network["costs"]["macs"] for network in found["networks"]]
    assert macs == sorted(macs)
    assert all(m <= bound for m, bound in zip(macs, (60e3, 90e3, 120e3), strict=True))
    page = (trained.path / "family/report.html").read_text()
    for network in found["networks"]:
        assert f"<code>{network['folder']}</code>" in page
        assert (trained.path / "family" / network["folder"] / "subnet.onnx").is_file()


def test_a_run_that_trained_no_generator_says_how_to_get_one(home):
    home.hilnas("train", "digits", "--set", "train.epochs=1", "--set", "latency.samples=10")
    said = home.hilnas("generate", "runs/digits", "--limit-macs", "1M", code=8)
    assert "has no architecture generator" in said
    assert "--set train.strategy=shiftnas" in said
    assert "hilnas init quick-shiftnas" in said
