from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import DataError, InvalidArchError, UsageError
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet import scoring
from pipeline.supernet.policies import BN_POLICIES
from pipeline.supernet.scoring import Scorer, evaluate, materialise, recalibrate
from pipeline.training.precision import Precision
from tests.pipeline.training.toys import ToyBatch, ToyStream, toy_space, toy_supernet

CALIBRATION = [ToyStream(batch_size=32, seed=1).batch(i) for i in range(3)]
VALIDATION = [ToyStream(batch_size=32, seed=2).batch(i) for i in range(2)]


@pytest.fixture(scope="module", params=["nasbench_macro", "shufflenetv2"])
def space(request: pytest.FixtureRequest) -> Space:
    return toy_space(request.param)


@pytest.fixture
def supernet(space: Space) -> Supernet:
    return toy_supernet(space)


def scorer(space: Space, supernet: Supernet, **more: Any) -> Scorer:
    return Scorer(space, supernet, CALIBRATION, VALIDATION, **more)


def archs(space: Space, n: int) -> list[Arch]:
    rng = np.random.default_rng(3)
    return [space.sample(rng) for _ in range(n)]


def poison(supernet: Supernet, mean: float = 1e3, variance: float = 1e-3) -> None:
    """Fill all running statistics with garbage."""
    for name, buffer in supernet.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(mean)
        if name.endswith("running_var"):
            buffer.fill_(variance)


def test_poisoned_running_statistics_do_not_change_a_recalibrated_score(
    space: Space, supernet: Supernet
) -> None:
    arch = archs(space, 1)[0]
    clean = scorer(space, supernet).score(arch)
    tracked = scorer(space, supernet, policy="tracked").score(arch)
    poison(supernet)
    assert scorer(space, supernet).score(arch) == clean
    assert scorer(space, supernet, policy="tracked").score(arch) != tracked


@pytest.mark.parametrize(("mean", "variance"), [(1e3, 1e-3), (math.nan, math.nan)])
@pytest.mark.parametrize("policy", BN_POLICIES)
def test_only_tracked_scores_read_the_statistics_inside_the_supernet(
    space: Space, supernet: Supernet, policy: Any, mean: float, variance: float
) -> None:
    arch = archs(space, 1)[0]
    used = scorer(space, supernet, policy=policy)
    clean = used.score(arch)
    poison(supernet, mean, variance)
    fresh = scorer(space, supernet, policy=policy)
    if policy == "tracked":
        poisoned = fresh.score(arch)
        assert math.isfinite(clean.loss)
        assert poisoned.loss > 2 * clean.loss or math.isnan(poisoned.loss)
    else:
        assert math.isfinite(clean.loss)
        assert fresh.score(arch) == used.score(arch) == clean


def test_two_evaluations_of_one_arch_are_bit_identical_whatever_came_between(
    space: Space, supernet: Supernet
) -> None:
    one, *others = archs(space, 6)
    reused = scorer(space, supernet)
    first = reused.score(one)
    for other in others:
        reused.score(other)
    assert reused.score(one) == first
    assert scorer(space, supernet).score(one) == first


@pytest.mark.parametrize("policy", ["recalibrate", "batch", "tracked"])
def test_scoring_never_writes_to_the_supernet(
    space: Space, supernet: Supernet, policy: Any
) -> None:
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    pointers = {k: p.data_ptr() for k, p in supernet.named_parameters()}
    supernet.train()
    for arch in archs(space, 3):
        scorer(space, supernet, policy=policy).score(arch)
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())
    assert {k: p.data_ptr() for k, p in supernet.named_parameters()} == pointers
    assert all(p.grad is None and p.requires_grad for p in supernet.parameters())
    assert all(module.training for module in supernet.modules())


def test_different_subnets_give_different_logits(space: Space, supernet: Supernet) -> None:
    outputs = []
    for arch in archs(space, 4):
        network = materialise(space, arch, supernet)
        recalibrate(network, CALIBRATION)
        with torch.no_grad():
            outputs.append(network(VALIDATION[0].images))
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(outputs[i], outputs[j])


def test_a_materialised_subnet_shares_weights_and_computes_what_the_path_computes(
    space: Space, supernet: Supernet
) -> None:
    arch = archs(space, 1)[0]
    network = materialise(space, arch, supernet).eval()
    ours = {p.data_ptr() for p in supernet.parameters()}
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert weights
    assert all(w.data_ptr() in ours for w in weights)
    supernet.eval()
    with torch.no_grad():
        expected = supernet(VALIDATION[0].images, arch)
        torch.testing.assert_close(network(VALIDATION[0].images), expected)


def test_new_weights_are_seen_by_a_scorer_that_already_cut_pieces(
    space: Space, supernet: Supernet
) -> None:
    arch = archs(space, 1)[0]
    reused = scorer(space, supernet)
    before = reused.score(arch)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.mul_(1.5 + torch.linspace(0, 1, parameter.numel()).view_as(parameter))
    assert reused.score(arch) != before
    assert reused.score(arch) == scorer(space, supernet).score(arch)


def test_tracked_statistics_are_those_of_the_supernet_at_the_time(
    space: Space, supernet: Supernet
) -> None:
    arch = archs(space, 1)[0]
    reused = scorer(space, supernet, policy="tracked")
    before = reused.score(arch)
    for name, buffer in supernet.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.1)
    assert reused.score(arch) == scorer(space, supernet, policy="tracked").score(arch)
    assert reused.score(arch) != before


def test_an_arch_of_another_space_is_refused(space: Space, supernet: Supernet) -> None:
    reused = scorer(space, supernet)
    reused.score(archs(space, 1)[0])
    with pytest.raises(InvalidArchError):
        reused.score(archs(space, 1)[0].replace(unknown="k3"))


def test_pieces_beyond_the_bound_are_dropped_and_scores_stay(
    space: Space, supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [scorer(space, supernet).score(arch) for arch in archs(space, 4)]
    monkeypatch.setattr(scoring, "KEPT_PIECES", 3)
    small = scorer(space, supernet)
    assert [small.score(arch) for arch in archs(space, 4)] == expected
    assert len(small._cut) == 3


def test_a_score_counts_right_answers_and_mean_cross_entropy(
    space: Space, supernet: Supernet
) -> None:
    arch = archs(space, 1)[0]
    score = scorer(space, supernet).score(arch)
    network = materialise(space, arch, supernet)
    recalibrate(network, CALIBRATION)
    images = torch.cat([batch.images for batch in VALIDATION])
    labels = torch.cat([batch.labels for batch in VALIDATION])
    with torch.no_grad():
        logits = network(images)
    assert score.accuracy == float((logits.argmax(1) == labels).float().mean())
    assert score.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert (score.n_images, score.n_calibration_images) == (64, 96)
    assert score.bn_policy == "recalibrate"


def test_statistics_are_the_cumulative_mean_over_the_batches() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1))
    recalibrate(network, CALIBRATION)
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm2d)
    means = torch.stack([batch.images.mean() for batch in CALIBRATION])
    variances = torch.stack([batch.images.var() for batch in CALIBRATION])
    torch.testing.assert_close(norm.running_mean, means.mean().reshape(1))
    torch.testing.assert_close(norm.running_var, variances.mean().reshape(1))
    assert norm.momentum == 0.1
    assert not norm.training


class AlwaysDropping(nn.Module):
    """Refuses to run in training mode, as dropout must not while statistics are collected."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_autocast_enabled("cpu")
        assert x.dtype == torch.float32
        return x


def test_calibration_keeps_dropout_off_and_runs_in_fp32_inside_autocast() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), AlwaysDropping()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert recalibrate(network, CALIBRATION) == 96


def test_the_batch_policy_normalises_each_batch_by_itself() -> None:
    space = toy_space()
    supernet, arch = toy_supernet(space), archs(space, 1)[0]
    score = Scorer(space, supernet, [], VALIDATION, policy="batch").score(arch)
    network = materialise(space, arch, supernet).train()  # this space has no dropout
    accuracy, loss, _ = evaluate(network, VALIDATION, Precision())
    assert (score.accuracy, score.loss, score.n_calibration_images) == (accuracy, loss, 0)


def test_batches_that_are_kept_by_their_owner_can_still_be_trained_on() -> None:
    space = toy_space()
    made: list[ToyBatch] = []

    class Lazy:
        def __iter__(self):
            made.append(ToyStream(seed=5).batch(0))
            yield made[-1]

    Scorer(space, toy_supernet(space), Lazy(), Lazy()).score(archs(space, 1)[0])
    weight = torch.ones(1, requires_grad=True)
    (made[0].images * weight).sum().backward()
    assert weight.grad is not None


def test_scoring_without_images_is_refused() -> None:
    space = toy_space()
    supernet, arch = toy_supernet(space), archs(space, 1)[0]
    with pytest.raises(DataError, match="no calibration images"):
        Scorer(space, supernet, [], VALIDATION).score(arch)
    with pytest.raises(DataError, match="no validation images"):
        Scorer(space, supernet, CALIBRATION, []).score(arch)


def test_an_unknown_policy_is_refused() -> None:
    space = toy_space()
    with pytest.raises(UsageError, match="'recalibrate', 'batch', 'tracked'"):
        scorer(space, toy_supernet(space), policy="running")
