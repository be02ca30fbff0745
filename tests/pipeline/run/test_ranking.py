"""Ranking networks with the supernet of a run, the stability of its search, and followed ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from latency_tables.arch import Arch
from latency_tables.errors import DataError, RunError, UsageError
from latency_tables.files import sha256_file
from latency_tables.ranking import kendall_tau, strict_tau
from pipeline.ranking.stability import half_of
from pipeline.report.rank_charts import against_chart
from pipeline.run.collect import collect
from pipeline.run.following import follow_run
from pipeline.run.ranking import RankRequest, rank
from pipeline.run.scoring import make_scorer
from pipeline.search.journal import read_journal
from pipeline.supernet.answers import answers_of
from pipeline.supernet.scoring import Scorer
from tests.pipeline.run import small

SMALL = (
    *small.SMALL,
    "search.population=6",
    "search.generations=2",
    "search.images=60",
    "search.bn_images=60",
    "search.shifting.batches=2",
    "search.shifting.images_per_batch=8",
    "search.shifting.lr=0.01",
)
N_TABLE, N_RANDOM = 40, 5


@pytest.fixture
def run(open_run, made_once):
    """A run up to its front that shifted its supernet, made once and copied; opens it."""
    made_once(*SMALL, until="search")
    return lambda: open_run(*SMALL)


@pytest.fixture
def table(tmp_path, digits_space):
    """A table of 40 architectures whose truth rises with their MACs."""
    rng = np.random.default_rng(0)
    archs = [digits_space.sample(rng) for _ in range(N_TABLE)]
    lines = ["arch,accuracy"]
    for arch in archs:
        genome = "".join(map(str, arch.genes(digits_space.decisions)))
        lines.append(f"{genome},{90 + digits_space.cost_table().cost(arch, 'macs') / 1e6}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def n_scored(monkeypatch):
    """The architectures that were really scored."""
    asked = []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, arch: asked.append(arch) or score(self, arch))
    return asked


# -- rank ----------------------------------------------------------------------------------------


def test_a_run_without_a_supernet_trains_one_and_needs_no_table_of_latencies(
    open_run, table, tmp_path, script
):
    found = rank(open_run(*SMALL), RankRequest(truth=table, n=8, n_images=40))
    assert found["report"]["n"] == 8
    assert (tmp_path / "run" / "supernet.safetensors").exists()
    assert not (tmp_path / "run" / "table.jsonl").exists()
    assert json.loads((tmp_path / "run" / "rank.json").read_text()) == json.loads(json.dumps(found))


def test_the_report_is_of_the_scores_that_the_scorer_gives(run, table):
    found = rank(run(), RankRequest(truth=table, n=12, n_images=64))
    scores = [n["score"] for n in found["networks"]]
    truths = [n["truth"] for n in found["networks"]]
    with run().context() as context:
        scorer = make_scorer(context, context.supernet)
        scorer.validation = context.eval_batches("search-validation", n_images=64)
        again = [scorer.score(Arch.from_dict(n["arch"])).accuracy for n in found["networks"]]
    assert scores == again
    assert found["scoring"]["n_images"] == 64
    assert found["report"]["tau_b"]["value"] == pytest.approx(kendall_tau(scores, truths))
    assert found["report"]["strict_tau"] == pytest.approx(strict_tau(scores, truths))
    assert found["report"]["baselines"]["MACs"]["tau_b"] == 1  # the table was made so


def test_a_run_that_ranks_by_the_loss_is_judged_by_it(run, open_run, table):
    by_accuracy = rank(run(), RankRequest(truth=table, n=12, n_images=64))
    by_loss = rank(open_run(*SMALL, 'search.rank_by="loss"'), RankRequest(truth=table, n=12))
    assert [n["score"] for n in by_loss["networks"]] == [-n["loss"] for n in by_loss["networks"]]
    truths = [n["truth"] for n in by_loss["networks"]]
    tau = kendall_tau([-n["loss"] for n in by_loss["networks"]], truths)
    assert by_loss["report"]["tau_b"]["value"] == pytest.approx(tau)
    assert by_loss["report"]["baselines"].keys() == {"MACs", "params", "accuracy"}
    assert by_accuracy["report"]["baselines"].keys() == {"MACs", "params", "loss"}
    against = collect(run().folder, run_name="r", created_utc="", strategy="").order.against
    assert against.rank_by == "loss"
    assert "minus the loss" in against_chart(against)


def test_the_report_shows_a_comparison_until_the_weights_change(run, table, tmp_path):
    rank(run(), RankRequest(truth=table, n=5, n_images=40))
    shown = collect(run().folder, run_name="r", created_utc="", strategy="").order.against
    assert (len(shown.points), shown.n_images, shown.source) == (5, 40, "table.csv")
    path = tmp_path / "run" / "rank.json"
    told = json.loads(path.read_text())
    told["weights"]["sha256"] = "0" * 64
    path.write_text(json.dumps(told))
    assert collect(run().folder, run_name="r", created_utc="", strategy="").order.against is None


def test_what_was_scored_is_not_scored_again_and_a_larger_sample_holds_the_smaller(
    run, table, n_scored
):
    first = rank(run(), RankRequest(truth=table, n=6, n_images=40))
    assert len(n_scored) == first["scoring"]["n_scored_now"] == 6
    again = rank(run(), RankRequest(truth=table, n=6, n_images=40))
    assert len(n_scored) == 6
    assert again["networks"] == first["networks"]
    larger = rank(run(), RankRequest(truth=table, n=9, n_images=40))
    assert len(n_scored) == 9
    assert larger["networks"][:6] == first["networks"]


def test_other_images_or_weights_are_other_scores(run, table, n_scored):
    rank(run(), RankRequest(truth=table, n=5, n_images=40))
    rank(run(), RankRequest(truth=table, n=5, n_images=80))
    shifted = rank(run(), RankRequest(truth=table, n=5, n_images=80, shifted=True))
    assert len(n_scored) == 15
    assert shifted["weights"]["file"] == "shifted.safetensors"
    assert shifted["weights"]["sha256"] == sha256_file(Path("run/shifted.safetensors"))


def test_a_stopped_comparison_goes_on_where_it_was(run, table, n_scored, monkeypatch):
    score = Scorer.score

    def stop(self, arch):
        if len(n_scored) == 3:
            raise KeyboardInterrupt
        return score(self, arch)

    monkeypatch.setattr(Scorer, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        rank(run(), RankRequest(truth=table, n=6, n_images=40))
    monkeypatch.setattr(Scorer, "score", score)
    assert rank(run(), RankRequest(truth=table, n=6, n_images=40))["scoring"]["n_scored_now"] == 3


def test_listed_architectures_are_ranked_instead_of_drawn_ones(run, table, tmp_path):
    listed = tmp_path / "listed.csv"
    listed.write_text("\n".join(line.split(",")[0] for line in table.read_text().split()[:6]))
    found = rank(run(), RankRequest(truth=table, archs=listed, n_images=40))
    assert found["report"]["n"] == 5


def test_the_winner_of_the_run_is_judged_where_its_truth_is_known(run, table, tmp_path):
    assert rank(run(), RankRequest(truth=table, n=5, n_images=40))["winner"] is None
    front = json.loads((tmp_path / "run" / "front.json").read_text())
    winner = Arch.from_dict(front["points"][front["winner"]]["arch"])
    with run().context() as context:
        genome = "".join(map(str, winner.genes(context.space.decisions)))
    table.write_text(table.read_text() + f"{genome},95.5\n")
    found = rank(run(), RankRequest(truth=table, n=5, n_images=40))["winner"]
    truths = [float(line.split(",")[1]) for line in table.read_text().split()[1:]]
    assert (found["truth"], found["of"]) == (95.5, len(truths))
    assert found["better"] == sum(t > 95.5 for t in truths)


def test_bad_tables_are_refused_before_anything_is_trained(open_run, table, tmp_path):
    table.write_text(table.read_text() + "99999999,95\n")
    with pytest.raises(DataError, match=r"line 42: gene 9 of"):
        rank(open_run(*SMALL), RankRequest(truth=table))
    assert not (tmp_path / "run" / "supernet.safetensors").exists()


def test_scores_that_are_all_the_same_are_refused(run, table, monkeypatch):
    with run().context() as context:
        scorer = make_scorer(context, context.supernet)
        score = scorer.score(context.space.sample(np.random.default_rng(0)))
    monkeypatch.setattr(Scorer, "score", lambda self, arch: score)
    with pytest.raises(DataError, match="the score of all 3 networks is"):
        rank(run(), RankRequest(truth=table, n=3))


def test_shifted_weights_that_are_not_there_are_refused(open_run, run, table, tmp_path):
    (tmp_path / "run" / "shifted.safetensors").unlink()
    with pytest.raises(UsageError, match="no search of this run has shifted"):
        rank(run(), RankRequest(truth=table, n=5, shifted=True))


# -- stability -----------------------------------------------------------------------------------


def test_every_search_ends_with_the_stability_of_its_order(run, tmp_path):
    told = json.loads((tmp_path / "run" / "stability.json").read_text())
    networks = told["networks"]
    front = json.loads((tmp_path / "run" / "front.json").read_text())
    winner = front["points"][front["winner"]]
    assert networks[told["winner"]]["arch"] == winner["arch"]
    halves = np.array([n["halves"] for n in networks])
    assert told["tau"]["value"] == pytest.approx(kendall_tau(*halves.T))
    final = read_journal(tmp_path / "run" / "search.jsonl").reassessments
    (final,) = final.values()
    for network in networks:  # the accuracies are those that the winner was chosen by
        assert network["accuracy"] == final[Arch.from_dict(network["arch"])].accuracy
    report = collect(run().folder, run_name="r", created_utc="", strategy="")
    (stability,) = report.order.stability
    assert stability.words.startswith("rank stability: tau")
    assert len(stability.ties) == len(told["ties"])


def test_the_halves_are_cut_out_of_the_images_that_scored(run, tmp_path):
    told = json.loads((tmp_path / "run" / "stability.json").read_text())
    with run().context() as context:
        scorer = make_scorer(context, context.searched_supernet())
        labels = np.concatenate([batch.labels.numpy() for batch in scorer.validation])
        first = half_of(labels)
        for network in told["networks"][:3]:
            arch = Arch.from_dict(network["arch"])
            right = answers_of(scorer, arch).right
            assert right.mean() == pytest.approx(scorer.score(arch).accuracy, abs=1e-12)
            assert network["halves"] == [right[first].mean(), right[~first].mean()]


# -- follow --------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Fewer random networks than the paper's, to save time."""
    monkeypatch.setattr("pipeline.run.following.N_RANDOM", N_RANDOM)


def test_followed_networks_are_scored_with_the_weights_of_every_generation(run, few, tmp_path):
    journal = (tmp_path / "run" / "search.jsonl").read_bytes()
    found = follow_run(run(), RankRequest(truth=None))
    assert found["same_weights"]
    generations = [row["generations"] for row in found["rows"]]
    assert generations == [0, 2, 3]  # the first population is only scored
    assert len(found["random"]) == N_RANDOM
    with run().context() as context:
        for row, supernet in (
            (found["rows"][0], context.supernet), (found["rows"][-1], context.searched_supernet())
        ):  # fmt: skip
            scorer = make_scorer(context, supernet)
            good = [scorer.score(Arch.from_dict(g["arch"])).accuracy for g in found["good"]]
            assert list(row["good"]) == good
    assert (tmp_path / "run" / "search.jsonl").read_bytes() == journal
    assert found["rows"][0]["good"] != found["rows"][-1]["good"]
    assert all(row["local_tau"] is None for row in found["rows"])
    report = collect(run().folder, run_name="r", created_utc="", strategy="")
    assert [row.generations for row in report.order.followed] == [0, 2, 3]


def test_with_a_truth_the_followed_ones_are_those_whose_truth_is_known(run, few, table, tmp_path):
    with run().context() as context:
        decisions = context.space.decisions
    archs = [c.arch for g in read_journal(tmp_path / "run" / "search.jsonl").generations for c in g]
    known = dict.fromkeys("".join(map(str, a.genes(decisions))) for a in archs)
    rows = [f"{genome},{95 + i / 10}" for i, genome in enumerate(known)]
    table.write_text(table.read_text() + "\n".join(rows) + "\n")
    found = follow_run(run(), RankRequest(truth=table))
    truths = [network["truth"] for network in (*found["good"], *found["random"])]
    assert None not in truths
    good = [network["truth"] for network in found["good"]]
    row = found["rows"][-1]
    assert row["local_tau"] == pytest.approx(kendall_tau(row["good"], good))
    assert 0 <= found["truly_better"] <= 1


def test_a_run_that_does_not_shift_has_nothing_to_follow(open_run):
    plain = [setting for setting in SMALL if "shifting" not in setting]
    with pytest.raises(UsageError, match="does not shift"):
        follow_run(open_run(*plain), RankRequest(truth=None))


def test_a_search_that_has_not_ended_cannot_be_followed(open_run):
    with pytest.raises(RunError, match="has not ended"):
        follow_run(open_run(*SMALL), RankRequest(truth=None))
