"""Runs that shift their supernet while they search it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from latency_tables.errors import DivergedError
from latency_tables.files import sha256_file
from pipeline.supernet.shifting import Shifter

SHIFTING = "batches = 2, images_per_batch = 8, keep = 6"
SEARCH = "population = 6, parents = 4, crossover = 2, mutation = 2, generations = 2"


def settings(shifting: str | None = SHIFTING, **search: object) -> tuple[str, ...]:
    """A tiny training and search of ``digits``."""
    more = "".join(f", {key} = {value}" for key, value in search.items())
    on = "" if shifting is None else f", shifting = {{{shifting}}}"
    return ("train.epochs=0.2", "latency.remeasure=2", f"search={{{SEARCH}{on}{more}}}")


def front_of(folder: Path) -> dict:
    return json.loads((folder / "front.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dying(monkeypatch):
    """Makes the process die at the n-th candidate that is learnt."""

    def at(n: int) -> None:
        seen = iter(range(10_000))
        original = Shifter.learn

        def learn(self, arch, first):
            if next(seen) == n:
                raise KeyboardInterrupt
            original(self, arch, first)

        monkeypatch.setattr(Shifter, "learn", learn)

    return at


def test_a_run_ends_with_shifted_weights_that_its_front_and_manifest_name(open_run, said) -> None:
    job = open_run(*settings())
    job.run(until="export")
    folder = job.folder.path
    shifted = sha256_file(folder / "shifted.safetensors")
    assert shifted != sha256_file(folder / "supernet.safetensors")
    assert front_of(folder)["weights"] == {"file": "shifted.safetensors", "sha256": shifted}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["weights_sha256"] == shifted
    stamps = json.loads((folder / "stages.json").read_text())["stages"]
    assert stamps["search"]["outputs"]["shifted.safetensors"] == shifted
    assert re.search(r"shifting: 2 steps, .* × scoring alone; by arithmetic", said.getvalue())
    assert "18 candidates (" in said.getvalue()  # all that were scored, not only the kept


def test_the_exported_network_has_the_shifted_weights(open_run, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.run.shifting.make_shifter", far(make_shifter_of()))
    job = open_run(*settings())
    job.run(until="export")
    front = front_of(job.folder.path)
    with job.context() as context:
        from latency_tables.arch import Arch
        from pipeline.supernet.scoring import Scorer

        arch = Arch.from_dict(front["points"][front["winner"]]["arch"])
        scores = [
            Scorer(
                context.space,
                supernet,
                context.eval_batches("calibration"),
                context.eval_batches("search-validation"),
            ).score(arch)
            for supernet in (context.searched_supernet(), context.supernet)
        ]
    wanted = front["points"][front["winner"]]["score"]["loss"]
    assert scores[0].loss == wanted
    assert scores[1].loss != wanted


def make_shifter_of():
    from pipeline.run.shifting import make_shifter

    return make_shifter


def far(make):
    """Shifts by steps that are large enough to show in every score."""

    def made(context, supernet, stream, precision, timer):
        shifter = make(context, supernet, stream, precision, timer)
        shifter.config = shifter.config.model_copy(update={"lr": 0.05})
        return shifter

    return made


@pytest.mark.parametrize(
    "moment", [pytest.param(n, marks=pytest.mark.long) for n in (0, 3, 11)] + [6]
)
def test_a_killed_run_ends_with_the_same_front_and_the_same_weights(
    open_run, monkeypatch, dying, moment
) -> None:
    whole = open_run(*settings(), out="whole")
    whole.run(until="search")
    killed = open_run(*settings(), out="killed")
    with monkeypatch.context():
        original = Shifter.learn
        dying(moment)
        with pytest.raises(KeyboardInterrupt):
            killed.run(until="search")
        monkeypatch.setattr(Shifter, "learn", original)
    killed.run(until="search")
    assert (killed.folder.path / "shifted.safetensors").read_bytes() == (
        whole.folder.path / "shifted.safetensors"
    ).read_bytes()
    ours, theirs = front_of(whole.folder.path), front_of(killed.folder.path)
    assert [p["arch"] for p in ours["points"]] == [p["arch"] for p in theirs["points"]]
    assert [p["score"] for p in ours["points"]] == [p["score"] for p in theirs["points"]]
    assert ours["weights"] == theirs["weights"]


def test_a_run_without_shifting_knows_nothing_of_it(open_run) -> None:
    job = open_run(*settings(None))
    job.run(until="search")
    assert not list(job.folder.path.glob("shift*"))
    assert "weights" not in front_of(job.folder.path)
    assert "shift" not in (job.folder.path / "search.jsonl").read_text()
    with job.context() as context:
        assert context.searched_supernet() is context.supernet


def test_files_of_a_search_that_shifted_are_put_aside_by_one_that_does_not(open_run) -> None:
    open_run(*settings()).run(until="search")
    job = open_run(*settings(None))
    job.run(until="search")
    assert not list(job.folder.path.glob("shift*"))
    aside = {path.name for path in (job.folder.path / "superseded").rglob("*.safetensors")}
    assert aside == {"shifting.safetensors", "shifted.safetensors"}


@pytest.mark.long
def test_every_board_gets_weights_of_its_own(open_run) -> None:
    other = "device.1.limits={latency='95%'}"
    job = open_run(*settings(), other, devices=("local", "board"))
    job.run(until="export")
    folder = job.folder.path
    found = {}
    for name in ("boards/local", "boards/board", "."):
        shifted = sha256_file(folder / name / "shifted.safetensors")
        assert front_of(folder / name)["weights"]["sha256"] == shifted
        manifest = json.loads((folder / name / "manifest.json").read_text())
        assert manifest["weights_sha256"] == shifted
        found[name] = shifted
    assert found["boards/local"] != found["boards/board"]  # they keep different limits


@pytest.mark.parametrize(
    "search",
    [
        pytest.param({"method": "'nsga2'"}, marks=pytest.mark.long),
        pytest.param({"method": "'random'"}, marks=pytest.mark.long),
        pytest.param({"measure": "'refine'"}, marks=pytest.mark.long),
        pytest.param({"measure": "'all'"}, marks=pytest.mark.long),
    ],
)
def test_shifting_fits_any_way_to_search(open_run, search) -> None:
    job = open_run(*settings(**search), "search.evaluations=18")
    job.run(until="search")
    front = front_of(job.folder.path)
    assert front["points"][front["winner"]]["score"]["shift"] >= 1


@pytest.mark.long
def test_a_profile_tells_the_seconds_of_shifting(open_run) -> None:
    job = open_run(*settings())
    job.run(until="search", profile=True)
    timing = json.loads((job.folder.path / "timing.json").read_text())["search"]
    (part,) = [part for part in timing["parts"] if part["part"] == "shifting"]
    assert part["seconds"] > 0
    assert part["images_per_s"] > 0


def test_immediate_shifting_by_several_ranks_is_sequential_and_says_so(open_run, said) -> None:
    from pipeline.run.shifting import say_sequential

    job = open_run(*settings(SHIFTING + ", mode = 'immediate'"))
    with job.context() as context:
        say_sequential(context)
        assert "sequential" not in said.getvalue()
        context.ranks = SimpleNamespace(world=4)
        say_sequential(context)
    assert "mode = 'immediate' is sequential: rank 0 scores and shifts alone" in said.getvalue()


@pytest.mark.long
def test_a_search_that_diverges_names_a_smaller_learning_rate_and_loses_nothing(
    open_run, monkeypatch
) -> None:
    job = open_run(*settings(SHIFTING + ", lr = 1e30"))
    with pytest.raises(DivergedError) as caught:
        job.run(until="search")
    assert "search.shifting.lr=1e+29" in str(caught.value.hint)
    scores = (job.folder.path / "search.jsonl").read_text().count('"kind":"score"')
    assert scores >= 7
    assert (job.folder.path / "supernet.safetensors").exists()
    open_run(*settings()).run(until="search")
