"""K-shot NAS: K supernets, mixed for every architecture by a code that is learnt as well.

Su et al., "K-shot NAS: Learnable Weight-Sharing for NAS with K-shot Supernets", 2021, equations 8,
9 and 17, algorithm 2 (appendix F), appendix G.

    Θ, σ        weights of K supernets (pipeline.kshot.dictionary), of the simplex-net
    λ = π(a)    code of a path: θ̃ = Σ_k λ_k θ_k
    m, b        groups of an odd step; images of a batch
    r_c, α      width regulariser (pipeline.kshot.width_regulariser) and its weight
    t           step, of T;  w share of the warm-up

    t < wT:     a ~ U(A)             Θ ← SGD(Θ, ∇ CE(N(a, Θ · 1/K)(x), y))
    t even:     a ~ U(A)             Θ ← SGD(Θ, ∇ CE(N(a, Θ π(a))(x), y))          σ fixed
    t odd:      a_1 ... a_m ~ U(A)   σ ← Adam(σ, ∇ [1/m Σ_i CE(N(a_i, Θ π(a_i))(x_i), y_i) + α r_c])
                                     x_i: every m-th image from the i-th on        Θ fixed
    "joint":    both in one step of m paths, Θ first, from gradients at the same point

An odd step runs group after group. One ordinary backward pass of group i gives g_i at θ̃_i, and
∂L/∂λ_ik = ⟨g_i, θ_k⟩; only then follows a pass through the simplex-net. So the memory is that of
one path, and of b/m images.

Gradients of Θ are multiplied by K, because the copies start √K times as large as in a plain
supernet (see pipeline.kshot.dictionary): weights that a norm follows then learn exactly as copies
of plain size do at the same learning rate, and at λ = 1/K the mixture moves at that rate, as
one-shot weights do. With gradients = "plain" it moves at Σ λ_k² of it. A bound of the run file on
the norm of gradients sees those of all copies: √K times those of one supernet.

Our reading: Adam with 1e-3 and no decay for σ, at a constant rate. Where there is nothing to learn
(K = 1, codes "fixed" or "random") every step trains Θ, and K = 1 is SPOS bit for bit. Spaces with
sizes (widths) get r_c; others have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.kshot.dictionary import MAX_COPIES, Coded
from pipeline.kshot.fresh import kshot_supernet
from pipeline.kshot.simplex_net import HIDDEN, CodeKind, is_size
from pipeline.kshot.width_regulariser import Denominator, WidthPaths, width_regulariser
from pipeline.randomness import numpy_generator
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.options import parse_options
from pipeline.training.config import OptimizerConfig, ScheduleConfig
from pipeline.training.distributed import BatchPart
from pipeline.training.step import Batch, OptimizerPlan, Step, Update

WARMUP_SHARE = 5 / 120
N_WATCHED = 64
"""Architectures whose codes are told in the log."""
MIN_IMAGES = 2
"""Of a group: a batch norm needs two."""


class KShotOptions(BaseModel):
    """The table ``[train.options]``; the defaults are the paper's where it gives any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(default=8, ge=1, le=MAX_COPIES)
    """K: supernets in the dictionary."""
    codes: CodeKind = "learned"
    """"fixed": 1/K for every path; "random": a simplex-net that is drawn once and never trained."""
    training: Literal["alternating", "joint"] = "alternating"
    gradients: Literal["scaled", "plain"] = "scaled"
    """What Θ descends on: "scaled" K λ_k g, "plain" λ_k g."""
    groups: int = Field(default=16, ge=1)
    """m: paths of an odd or joint step; the batch is divided by it."""
    warmup_share: float = Field(default=WARMUP_SHARE, ge=0, lt=1)
    """w: share of the steps before codes count."""
    hidden: int = Field(default=HIDDEN, ge=1)
    """Units of the simplex-net's hidden layers."""
    lr: float = Field(default=1e-3, gt=0)
    """Rate of the simplex-net's Adam."""
    regulariser: Denominator | Literal["off"] = "corrected"
    """Denominator of r_c; "literal" is the printed one."""
    alpha: float = Field(default=1.0, ge=0)
    """α: weight of r_c."""
    temperature: float = Field(default=0.3, gt=0)
    """τ of r_c."""
    threshold_share: float = Field(default=0.25, gt=0)
    """d₀: below this share of the mean distance of two random widths, two are similar."""


class KShot:
    """Warm-up at 1/K, then steps for the supernets and for the codes by turns.

    ``supernet`` is what is trained and saved: the dictionary, simplex-net included.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> sorted(KShot(space, space.supernet(), KShotOptions(k=2)).optimizers())
    ['codes', 'weights']
    """

    def __init__(
        self,
        space: Space,
        supernet: Supernet,
        options: KShotOptions | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.space, self.options = space, options or KShotOptions()
        given = self.options
        self.supernet = kshot_supernet(
            space, supernet, given.k, codes=given.codes, hidden=given.hidden, seed=seed
        )
        rng = numpy_generator(seed, "kshot", "log")
        self._watched = [space.sample(rng) for _ in range(N_WATCHED)]
        self.paths: WidthPaths | None = None
        regular = given.regulariser != "off" and given.alpha > 0
        if regular and any(is_size(d) for d in space.decisions):
            self.paths = WidthPaths(space, share=given.threshold_share)

    @property
    def learns(self) -> bool:
        """Whether there are codes to learn."""
        return self.supernet.simplex_net is not None and self.options.codes == "learned"

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """The run file's for Θ, Adam for σ."""
        plans = {"weights": OptimizerPlan(parameters=self.supernet.weights())}
        if self.learns:
            adam = OptimizerConfig(kind="adamw", lr=self.options.lr, weight_decay=0.0)
            plans["codes"] = OptimizerPlan(
                parameters=self._sigma(), optimizer=adam, schedule=ScheduleConfig(kind="constant")
            )
        return plans

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield the one update of a step; two in joint training."""
        first_coded = math.ceil(self.options.warmup_share * step.n_steps)
        if step.index < first_coded:
            yield self._of_weights(step, self._uniform())
        elif self.learns and self.options.training == "joint":
            yield from self._joint(step)
        elif self.learns and step.index % 2:
            yield self._of_codes(step)
        else:
            yield self._of_weights(step)

    # -- steps -------------------------------------------------------------------------------------

    def _of_weights(self, step: Step, code: Tensor | None = None) -> Update:
        """Even: one path, the whole batch; under its own code where none is given."""
        arch = self.space.sample(step.rng)
        code = self.supernet.code(arch) if code is None else code
        loss = partial(self._with(step, code).loss, arch, step.batch())
        return Update(losses=[loss], scale=self._scale)

    def _of_codes(self, step: Step) -> Update:
        """Odd: m paths, each on its images, one after the other; then the simplex-net."""
        archs, parts = self._groups(step)
        codes, reached = self._codes(archs)

        def loss(i: int) -> Tensor:
            return self._with(step, reached[i], fixed=True).loss(archs[i], parts[i])

        regular = self._regulariser(archs, codes)
        return Update(
            optimizer="codes",
            losses=[partial(loss, i) for i in range(len(archs))],
            beside=[lambda: _chained(codes, reached) + regular],
        )

    def _joint(self, step: Step) -> Iterator[Update]:
        """Odd and even in one, for the ablation of appendix G."""
        archs, parts = self._groups(step)
        codes, reached = self._codes(archs)

        def loss(i: int) -> Tensor:
            return self._with(step, reached[i]).loss(archs[i], parts[i])

        losses = [partial(loss, i) for i in range(len(archs))]
        yield Update(losses=losses, scale=self._scale / len(archs))
        # of the weights of before that update
        total = _chained(codes, reached) + self._regulariser(archs, codes)
        sigma = self._sigma()
        found = torch.autograd.grad(total, list(sigma.values()))
        yield Update(optimizer="codes", gradients=dict(zip(sigma, found, strict=True)))

    def _codes(self, archs: Sequence[Arch]) -> tuple[Tensor, Tensor]:
        """Codes (m, K) with their graph, and a copy that collects ∂L_i/∂λ_i."""
        codes = self.supernet.codes(archs)
        return codes, codes.detach().requires_grad_()

    def _groups(self, step: Step) -> tuple[list[Arch], list[Batch]]:
        """m paths, and the images of each."""
        m = self.options.groups
        if self.paths is not None:
            archs = self.paths.sample(step.rng, m)
        else:
            archs = [self.space.sample(step.rng) for _ in range(m)]
        batch = step.batch()
        n_images = len(batch.images)
        if n_images % m or n_images < MIN_IMAGES * m:
            raise UsageError(
                f"a batch of {n_images} images cannot be divided into {m} groups of equal size and "
                f"at least {MIN_IMAGES} images",
                hint="another train.options.groups, or another train.batch_size",
            )
        # every m-th: several ranks, which have images from end to end, then make the same groups
        return archs, [
            BatchPart(images=batch.images[i::m], labels=batch.labels[i::m]) for i in range(m)
        ]

    def _regulariser(self, archs: Sequence[Arch], codes: Tensor) -> Tensor:
        """α r_c; zero where the space has no sizes."""
        if self.paths is None:
            return codes.new_zeros(())
        given = self.options.regulariser
        return self.options.alpha * width_regulariser(
            codes,
            self.paths.distances(archs).to(codes.device),
            threshold=self.paths.threshold,
            temperature=self.options.temperature,
            denominator="literal" if given == "literal" else "corrected",
        )

    @property
    def _scale(self) -> float:
        """What gradients of Θ are multiplied by."""
        return float(self.options.k) if self.options.gradients == "scaled" else 1.0

    def _with(self, step: Step, code: Tensor, *, fixed: bool = False) -> Step:
        """The step with the dictionary under one code."""
        return replace(step, supernet=Coded(self.supernet, code, fixed=fixed))

    def _uniform(self) -> Tensor:
        like = next(self.supernet.first.parameters())
        return like.new_full((self.options.k,), 1 / self.options.k)

    def _sigma(self) -> dict[str, torch.nn.Parameter]:
        net = self.supernet.simplex_net
        return {} if net is None else dict(net.named_parameters(prefix="simplex_net"))

    def log_numbers(self) -> dict[str, Any]:
        """What codes are like now, over the same random architectures all the time.

        ``code_mean`` (K values), ``code_std``: of an entry over architectures, the mean of K;
        ``code_max``: of the largest entry, the mean over architectures. Nothing for K = 1.
        """
        if self.supernet.simplex_net is None:
            return {}
        with torch.no_grad():
            codes = self.supernet.codes(self._watched)  # (n, K)
        return {
            "code_mean": [round(value, 6) for value in codes.mean(0).tolist()],
            "code_std": round(float(codes.std(0, correction=0).mean()), 6),
            "code_max": round(float(codes.max(1).values.mean()), 6),
        }

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step that the supernet does not hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def _chained(codes: Tensor, reached: Tensor) -> Tensor:
    """A scalar whose gradient in the codes is that of the mean loss, ∂L_i/∂λ_i / m."""
    if reached.grad is None:
        raise RuntimeError("no gradient has reached the codes")
    return (codes * reached.grad).sum() / len(codes)


def kshot(*, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]) -> KShot:
    """Make the strategy. Raises UsageError for options it does not have."""
    given = parse_options(KShotOptions, options, strategy="kshot")
    return KShot(space, supernet, given, seed=seed)
