"""Supernet Shifting around the search loop, with weights that are counters."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from latency_tables.arch import Arch
from latency_tables.errors import ConfigError
from pipeline.config import parse_run_config
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Score
from pipeline.search.generation import OneByOne
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit
from pipeline.search.run_search import SearchResult, make_searcher, search, search_identity
from pipeline.search.shifting import Overhead, Shifting
from pipeline.search.shifting_config import ShiftingConfig

LIMITS = (Limit(metric="latency_ms", bound=3.0, device="board"),)


def settings(*, generations: int = 3, **shifting: Any) -> SearchConfig:
    return SearchConfig(
        population=6, parents=4, crossover=2, mutation=2, generations=generations,
        shifting=ShiftingConfig(**({"batches": 2, "keep": 5} | shifting)),
    )  # fmt: skip


class Killed(Exception):
    """Stands for the death of the process."""


@dataclass
class Weights:
    """A shifter whose weights say how often, and on which batches, every choice was trained."""

    config: ShiftingConfig
    dies_at: int = -1
    events: list[str] = field(default_factory=list)
    moved: Counter[str] = field(default_factory=Counter)
    learnt: Counter[str] = field(default_factory=Counter)
    steps: int = 0

    def note(self, event: str) -> None:
        if len(self.events) == self.dies_at:
            raise Killed(event)
        self.events.append(event)

    def learn(self, arch: Arch, first: int) -> None:
        self.note(f"learn {first}")
        for label, choice in arch.items():
            self.learnt[f"{label}={choice}"] += 1 + first
        if self.config.mode == "immediate":
            self._move(self.config.batches)

    def step(self) -> None:
        self.note("step")
        if self.config.mode == "accumulate":
            self._move(1)

    def _move(self, steps: int) -> None:
        self.moved.update(self.learnt)
        self.learnt.clear()
        self.steps += steps

    def forget(self) -> None:
        self.learnt.clear()

    def save(self, path: Path, state: Any) -> None:
        self.note("save")
        path.write_text(json.dumps({"steps": self.steps, "moved": self.moved, "state": state}))
        self.note("saved")

    def saved(self, path: Path) -> dict[str, Any] | None:
        try:
            return json.loads(path.read_text())["state"]
        except (ValueError, KeyError):
            return None

    def load(self, path: Path) -> None:
        data = json.loads(path.read_text())
        self.steps, self.moved = data["steps"], Counter(data["moved"])


@dataclass
class Shifted:
    """Runs a shifting search in a folder; accuracies follow from the weights of the moment."""

    world: Any
    folder: Path
    notes: list[str] = field(default_factory=list)
    weights: Weights = field(init=False)

    @property
    def journal(self) -> Path:
        return self.folder / "search.jsonl"

    @property
    def state(self) -> Path:
        return self.folder / "shifting.safetensors"

    def accuracy(self, arch: Arch) -> float:
        gained = sum(self.weights.moved[f"{label}={choice}"] for label, choice in arch.items())
        return self.world.accuracy(arch) + gained % 97 / 500

    def run(self, config: SearchConfig, *, dies_at: int = -1, seed: int = 0) -> SearchResult:
        self.folder.mkdir(exist_ok=True)
        assert config.shifting is not None
        self.weights = Weights(config.shifting, dies_at=dies_at)

        def score(arch: Arch) -> Score:
            self.weights.note(f"score {arch!r}")
            self.world.scored[arch] += 1
            return Score(accuracy=self.accuracy(arch), loss=1.0, n_images=100)

        evaluator = self.world.evaluator(*LIMITS, score=score)
        searcher = make_searcher(config, evaluator, seed=seed, repeat=True)
        identity = search_identity(config, evaluator, seed=seed, space_id="world")
        with Journal.open(self.journal, identity) as journal:
            shifting = Shifting(
                OneByOne(evaluator), evaluator, self.weights, journal, config.shifting,
                path=self.state, identity={"seed": seed}, on_note=self.notes.append,
            )  # fmt: skip
            result = search(
                searcher, evaluator, journal, scoring=shifting, reassess=shifting.reassess
            )
        self.searcher = searcher
        return result


@pytest.fixture
def shifted(make_world, tmp_path):
    return lambda name="run": Shifted(make_world(), tmp_path / name)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["record"] for line in path.read_text().splitlines()]


def n_asked(path: Path, after: int = 0) -> int:
    """Scores behind so many lines that no line before has of the same weights."""
    candidates: list[Any] = []
    known: set[str] = set()
    asked = 0
    for number, record in enumerate(records(path)):
        if record["kind"] == "generation":
            candidates = [c["arch"] for c in record["candidates"]]
        elif "score" in record:
            arch = record["arch"] if "arch" in record else candidates[record["index"]]
            key = json.dumps([arch, record["score"]["shift"]], sort_keys=True)
            asked += key not in known and number >= after
            known.add(key)
    return asked


# -- Algorithm 1 ---------------------------------------------------------------------------------


def test_every_candidate_is_scored_before_it_is_learnt(shifted):
    run = shifted()
    seen = []
    original = Weights.learn

    def learn(self, arch, first):
        last = records(run.journal)[-1]
        seen.append(last["kind"] == "score" and last["generation"] > 0)
        original(self, arch, first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Weights, "learn", learn)
        run.run(settings())
    assert seen == [True] * 18
    kinds = [event.split()[0] for event in run.weights.events]
    learnt = [i for i, kind in enumerate(kinds) if kind == "learn"]
    assert all(kinds[i - 1] == "score" for i in learnt if i != learnt[0])


def test_there_is_one_step_per_generation_and_none_for_the_first_population(shifted):
    run = shifted()
    run.run(settings())
    kinds = [event.split()[0] for event in run.weights.events]
    assert kinds[:6] == ["score"] * 6
    assert [k for k in kinds if k not in ("score", "saved")] == [*["learn"] * 6, "step", "save"] * 3
    assert run.weights.steps == 3


def test_the_first_population_is_learnt_where_that_is_asked_for(shifted):
    run = shifted()
    run.run(settings(initial=True))
    assert run.weights.steps == 4
    assert sum(event.startswith("learn") for event in run.weights.events) == 24


def test_no_training_batch_is_used_twice(shifted):
    run = shifted()
    run.run(settings())
    firsts = [int(e.split()[1]) for e in run.weights.events if e.startswith("learn")]
    assert firsts == [2 * i for i in range(18)]


def test_scores_of_a_generation_are_of_the_weights_at_its_beginning(shifted):
    run = shifted()
    run.run(settings())
    scores = [(r["generation"], r["score"]["shift"]) for r in records(run.journal) if "index" in r]
    assert scores == [(g, max(0, g - 1)) for g in range(4) for _ in range(6)]


def test_a_candidate_that_comes_again_is_scored_anew_and_its_newest_score_counts(shifted):
    run = shifted()
    config = settings(generations=12)
    run.run(config)
    archive = run.searcher.archive
    newest = {e.arch: e for e in archive}
    assert len(newest) < len(archive)  # some came again
    repeated = [e for e in archive if newest[e.arch] is not e]
    assert any(e.accuracy != newest[e.arch].accuracy for e in repeated)
    best = run.searcher.best(1000)
    assert {e.arch: e.score for e in best} == {a: e.score for a, e in newest.items()}


def test_equal_weights_are_not_asked_twice_about_a_candidate(shifted):
    run = shifted()
    run.run(settings(generations=12))
    since_step: list[str] = []
    for event in run.weights.events:
        if event == "step":
            since_step = []
        elif event.startswith("score"):
            assert event not in since_step
            since_step.append(event)
    n_lines = sum("score" in record for record in records(run.journal))
    assert run.world.scored.total() < n_lines  # the second generation knows some of the first


# -- the final choice ----------------------------------------------------------------------------


def test_the_best_are_scored_once_more_with_the_final_weights(shifted):
    run = shifted()
    result = run.run(settings())
    best = run.searcher.best(5)
    assert len(result.archive) == 5
    assert {e.arch for e in result.archive} == {e.arch for e in best}
    assert result.n_evaluated == 24
    for e in result.archive:
        assert e.accuracy == run.accuracy(e.arch)
        assert e.score.shift == run.weights.steps
    assert [e.accuracy for e in result.archive] == sorted(
        (e.accuracy for e in result.archive), reverse=True
    )


def test_a_stale_score_does_not_win(shifted):
    run = shifted()
    result = run.run(settings(generations=8))
    stale = run.searcher.best(1)[0]
    winner = result.archive[0]
    assert stale.accuracy != run.accuracy(stale.arch)  # by weights that are no more
    assert winner.accuracy == max(run.accuracy(e.arch) for e in result.archive)


def test_final_scores_are_journalled_as_lines_of_their_own(shifted):
    run = shifted()
    result = run.run(settings())
    lines = [r for r in records(run.journal) if r["kind"] == "reassessment"]
    found = {Arch.from_dict(r["arch"]): Score(**r["score"]) for r in lines}
    assert found == {e.arch: e.score for e in result.archive}
    assert {r["after"] for r in lines} == {4}


def test_more_are_kept_without_searching_again(shifted):
    run = shifted()
    first = run.run(settings())
    scored = run.world.scored.total()
    more = run.run(settings(keep=8))
    assert {e.arch for e in first.archive} < {e.arch for e in more.archive}
    assert run.world.scored.total() == scored + 3


# -- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["accumulate", "immediate"])
def test_a_search_killed_after_any_line_ends_with_the_same_archive_and_weights(shifted, mode):
    config = settings(generations=2, mode=mode)
    whole = shifted("whole")
    result = whole.run(config)
    data = whole.journal.read_bytes()
    lines = data.splitlines(keepends=True)
    for n in range(len(lines) + 1):
        run = shifted(f"killed-{n}")
        run.folder.mkdir()
        run.journal.write_bytes(b"".join(lines[:n]))
        again = run.run(config)
        assert again.archive == result.archive
        assert run.journal.read_bytes() == data
        assert run.weights.moved == whole.weights.moved
        assert run.weights.steps == whole.weights.steps
        assert run.world.scored.total() == n_asked(whole.journal, after=n)


@pytest.mark.parametrize(("mode", "every"), [("accumulate", 1), ("immediate", 3)])
def test_a_search_killed_at_any_moment_ends_with_the_same_archive_and_weights(shifted, mode, every):
    config = settings(generations=2, mode=mode, initial=True)
    whole = shifted("whole")
    result = whole.run(config)
    for moment in range(0, len(whole.weights.events), every):
        run = shifted(f"killed-{moment}")
        with pytest.raises(Killed):
            run.run(config, dies_at=moment)
        assert run.run(config).archive == result.archive
        assert run.weights.moved == whole.weights.moved
        assert run.journal.read_bytes() == whole.journal.read_bytes()
        assert run.world.scored.total() == whole.world.scored.total()  # nothing was scored twice
        assert run.notes == []


def test_finished_generations_are_not_learnt_again(shifted):
    run = shifted()
    run.run(settings())
    again = run.run(settings())
    assert run.weights.events == []
    assert {e.score.shift for e in again.archive} == {3}


def test_more_generations_go_on_with_a_finished_search(shifted):
    whole, raised = shifted("whole"), shifted("raised")
    result = whole.run(settings(generations=5))
    raised.run(settings(generations=3))
    assert raised.run(settings(generations=5)).archive == result.archive
    assert raised.weights.moved == whole.weights.moved


def foreign(run: Shifted, other: Shifted) -> str:
    other.run(settings(), seed=1)
    run.state.write_bytes(other.state.read_bytes())
    return "it belongs to another search"


def damaged(run: Shifted, other: Shifted) -> str:
    run.state.write_bytes(b"{")
    return "it is damaged"


def ahead(run: Shifted, other: Shifted) -> str:
    lines = run.journal.read_bytes().splitlines(keepends=True)
    run.journal.write_bytes(b"".join(lines[:10]))
    return "the journal has less than its 4 generations"


def diverted(run: Shifted, other: Shifted) -> str:
    data = json.loads(run.state.read_text())
    data["state"]["chain"] = "1" * 64
    run.state.write_text(json.dumps(data))
    return "the journal holds other candidates"


@pytest.mark.parametrize("spoil", [foreign, damaged, ahead, diverted])
def test_a_state_that_does_not_belong_to_the_journal_is_not_used(shifted, spoil):
    run = shifted()
    result = run.run(settings())
    weights = run.weights
    why = spoil(run, shifted("other"))
    kept = len(records(run.journal))
    run.world.scored.clear()
    again = run.run(settings())
    assert why in run.notes[0]
    assert again.archive == result.archive
    assert run.weights.moved == weights.moved
    assert run.world.scored.total() == n_asked(run.journal, after=kept)  # nothing twice


# -- immediate -----------------------------------------------------------------------------------


def test_immediate_steps_follow_every_candidate_and_reach_the_next_one(shifted):
    run = shifted()
    run.run(settings(mode="immediate"))
    kinds = [event.split()[0] for event in run.weights.events if event.split()[0] != "saved"]
    assert kinds[:12] == ["score", "learn"] * 6
    scores = [r["score"]["shift"] for r in records(run.journal) if "index" in r]
    assert scores == [2 * i for i in range(24)]  # two batches each, the first population too


# -- settings and costs --------------------------------------------------------------------------


def test_a_search_without_shifting_writes_what_it_always_wrote():
    assert "shifting" not in SearchConfig().in_use()
    assert "shifting" not in SearchConfig(shifting=False).lineage()
    assert "shift" not in Score(accuracy=0.5).to_dict()


def test_true_is_the_papers_shifting_and_a_table_changes_a_part_of_it():
    read = lambda text: parse_run_config(f'[data]\nname = "digits"\n{text}').search.shifting  # noqa: E731
    assert read("[search]\nshifting = true") == ShiftingConfig()
    assert read("[search]\nshifting = false") is None
    assert read("[search.shifting]\nlr = 1e-3") == ShiftingConfig(lr=1e-3)
    with pytest.raises(ConfigError, match=r"search\.shifting"):
        read('[search.shifting]\nmode = "never"')
    with pytest.raises(ConfigError, match=r"true, false or a table .* not 'on'"):
        read('[search]\nshifting = "on"')


def test_the_number_of_the_kept_is_no_reason_to_search_again():
    one, other = settings(keep=5), settings(keep=9)
    assert one.lineage() == other.lineage()
    assert one.in_use() != other.in_use()
    assert one.lineage() != settings(lr=1e-3).lineage()


def test_parents_that_are_not_kept_are_refused():
    with pytest.raises(ValueError, match=r"parents = 10 is more than shifting\.keep = 5"):
        SearchConfig(shifting=ShiftingConfig(keep=5))


def test_the_arithmetic_is_that_of_passes_through_networks():
    cost = Overhead(
        scoring_s=10, shifting_s=5, n_scored=100, n_learnt=100, n_shift=640, n_bn=4096, n_val=8000
    )
    assert cost.arithmetic == pytest.approx(1 + 3 * 640 / (1.25 * 4096 + 8000))
    assert cost.bound == pytest.approx(1.1 * cost.arithmetic)
    assert cost.measured == 1.5
    assert "1.50 × scoring alone; by arithmetic 1.15 ×" in str(cost)
