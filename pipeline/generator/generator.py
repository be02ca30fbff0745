"""The architecture generator: an LSTM that writes an architecture for a level of cost.

Zhang et al., "ShiftNAS: Improving One-shot NAS via Probability Shift", 2023, section "architecture
generator". An LSTM of hidden size 64 makes one decision of the space per step; a fully connected
head per type of decision gives its logits; Gumbel-softmax makes them a one-hot vector. The most
probable choice of every decision is the architecture of a level, without a search.

| symbol | here | shape |
|---|---|---|
| K | ``n_levels`` | |
| p | ``level``: one-hot, or two neighbours' weights for a target between them | (K,) |
| E | ``levels``: an embedding per level; step 0 reads pᵀE | (K, hidden) |
| D | ``decisions``, in the order of the space | |

Where the paper is silent: step i > 0 reads the embedding of the choice before, one embedding matrix
per head, so that choices depend on each other; one LSTM layer; heads begin at zero, that is with
every choice equally likely.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latency_tables.arch import Arch, Choice, Decision
from latency_tables.errors import SpaceError
from pipeline.generator.heads import check_heads, head_names
from pipeline.spaces.policy import Policy, straight_through

HIDDEN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """N architectures that were drawn at once, with gradients to the generator.

    ``one_hot[label]`` is (N, n_choices), straight-through as in a :class:`Policy`;
    ``logits[label]``, of the same shape, are those of the choices given the ones before; ``genes``
    is int64 (N, n_decisions).
    """

    decisions: tuple[Decision, ...]
    one_hot: Mapping[str, Tensor]
    logits: Mapping[str, Tensor]
    genes: Tensor

    def policy(self, index: int) -> Policy:
        """One of them."""
        return Policy(
            decisions=self.decisions, one_hot={k: v[index] for k, v in self.one_hot.items()}
        )

    @property
    def archs(self) -> list[Arch]:
        """All of them, without gradients."""
        return [Arch.from_genes(self.decisions, row) for row in self.genes.tolist()]

    @property
    def log_probabilities(self) -> Tensor:
        """Of the choice that was made, given those before it: (N, n_decisions)."""
        each = [
            self.logits[d.label].log_softmax(dim=-1).gather(-1, self.genes[:, i, None])
            for i, d in enumerate(self.decisions)
        ]
        return torch.cat(each, dim=1)

    @property
    def entropies(self) -> Tensor:
        """Of every decision, given those before it, in nats: (N, n_decisions)."""
        logs = [self.logits[d.label].log_softmax(dim=-1) for d in self.decisions]
        return torch.stack([-(x.exp() * x).sum(dim=-1) for x in logs], dim=1)


class ArchitectureGenerator(nn.Module):
    """See the module.

    Args:
        decisions: of the space, in its order.
        n_levels: K.
        heads: label → name of its head; by default what :func:`head_names` finds.
        hidden: size of the LSTM and of the embeddings.

    Raises:
        SpaceError: heads do not fit the decisions, or there is no level.

    >>> _ = torch.manual_seed(0)
    >>> decisions = [Decision(label=f"block{i}", choices=("k3", "k5")) for i in range(3)]
    >>> generator = ArchitectureGenerator(decisions, n_levels=2)
    >>> policy = generator.draw(torch.tensor([1.0, 0.0]), temperature=1.0)
    >>> generator.log_probability([policy.arch], torch.tensor([1.0, 0.0])).exp().tolist()
    [0.125]
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        *,
        n_levels: int,
        heads: Mapping[str, str] | None = None,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__()
        self.decisions = tuple(decisions)
        if n_levels < 1 or not self.decisions:
            raise SpaceError(
                f"a generator needs decisions and levels, not {len(self.decisions)} and {n_levels}"
            )
        self.head_names = check_heads(
            self.decisions, head_names(self.decisions) if heads is None else heads
        )
        self.n_levels, self.hidden = n_levels, hidden
        sizes = {self.head_names[d.label]: len(d.choices) for d in self.decisions}
        position = {name: i for i, name in enumerate(sizes)}
        self._head_of = [position[self.head_names[d.label]] for d in self.decisions]
        self._sizes = [len(d.choices) for d in self.decisions]
        self.levels = nn.Parameter(torch.randn(n_levels, hidden))
        self.cell = nn.LSTMCell(hidden, hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, n) for n in sizes.values())
        self.embeddings = nn.ModuleList(nn.Linear(n, hidden, bias=False) for n in sizes.values())
        for head in self.heads:
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight)  # type: ignore[arg-type]

    # -- drawing ---------------------------------------------------------------------------------

    def draw(self, level: Tensor, *, temperature: float) -> Policy:
        """One architecture of a level (K,), by Gumbel-softmax from torch's global generator.

        Every draw follows the generator's probabilities exactly; ``temperature`` shapes the
        gradient only. Differentiable also with respect to ``level``.
        """
        return self.draws(level[None], temperature=temperature).policy(0)

    def draws(
        self, levels: Tensor, *, temperature: float, rng: torch.Generator | None = None
    ) -> Draws:
        """One architecture for each of N levels (N, K), at once; otherwise like :meth:`draw`."""
        return self.roll_out(levels, n_drawn=len(levels), temperature=temperature, rng=rng)

    def greedy(self, levels: Tensor) -> Draws:
        """The most probable choice of every decision for N levels (N, K); the gradient is that of
        the probabilities."""
        return self.roll_out(levels)

    def argmax(self, level: Tensor) -> Arch:
        """The architecture of a level (K,): the most probable choice of every decision."""
        with torch.no_grad():
            return self.greedy(level[None]).archs[0]

    def sample(self, level: Tensor, n: int, *, seed: int) -> list[Arch]:
        """``n`` architectures of a level (K,); equal ones for equal seeds on one device."""
        rng = torch.Generator(device=level.device).manual_seed(seed)
        with torch.no_grad():
            return self.draws(level.expand(n, -1), temperature=1.0, rng=rng).archs

    # -- judging ---------------------------------------------------------------------------------

    def log_probability(
        self,
        archs: Sequence[Mapping[str, Choice]],
        level: Tensor,
        *,
        active: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities (N,) of architectures at one level (K,) or one level each (N, K).

        Args:
            active: bool (N, n_decisions), see :func:`pipeline.generator.activity.active_decisions`;
                others count nothing. Exactly the probability of the network then, where inactive
                decisions come after all active ones.

        Raises:
            InvalidArchError: an architecture is not one of these decisions.
        """
        genes = torch.tensor([Arch(a).genes(self.decisions) for a in archs]).to(level.device)
        each = self.decision_log_probabilities(genes.reshape(len(archs), -1), level)
        return (each if active is None else each * active.to(each.device)).sum(dim=1)

    def decision_log_probabilities(self, genes: Tensor, level: Tensor) -> Tensor:
        """Log-probability of every decision given those before it.

        ``genes`` int64 (N, n_decisions) and ``level`` (K,) or (N, K) → (N, n_decisions).
        """
        levels = level.expand(len(genes), -1)
        return self.roll_out(levels, forced=genes).log_probabilities

    def entropies(
        self, level: Tensor, *, n: int = 64, seed: int = 0, active: Tensor | None = None
    ) -> dict[str, float]:
        """Entropy of every decision at a level (K,) in nats, given those before it.

        The mean over ``n`` draws; their sum estimates the entropy of the whole architecture.
        ``active``, bool (n, n_decisions), leaves decisions out of the draws ``sample(level, n,
        seed=seed)`` in which they mean nothing.
        """
        rng = torch.Generator(device=level.device).manual_seed(seed)
        with torch.no_grad():
            found = self.draws(level.expand(n, -1), temperature=1.0, rng=rng).entropies
        if active is not None:
            found = found * active.to(found.device)
        means = found.mean(dim=0).tolist()
        return {d.label: mean for d, mean in zip(self.decisions, means, strict=True)}

    # -- all of it -------------------------------------------------------------------------------

    def roll_out(
        self,
        levels: Tensor,
        *,
        n_drawn: int = 0,
        temperature: float = 1.0,
        forced: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> Draws:
        """Architectures for N levels (N, K), of three kinds in one pass.

        The first ``n_drawn`` are drawn, the last ones are ``forced``, genes int64 (M, n_decisions),
        and the most probable choices are made for those between.
        """
        n_free = len(levels) - (0 if forced is None else len(forced))
        # -log of a standard exponential variable has the Gumbel distribution
        noise = torch.zeros(n_free, sum(self._sizes), device=levels.device)
        noise[:n_drawn].exponential_(generator=rng).log_().neg_()
        scale = torch.ones(n_free, 1, device=levels.device)
        scale[:n_drawn] = 1.0 / temperature
        starts = [0, *itertools.accumulate(self._sizes)]
        word = levels @ self.levels  # (N, hidden)
        state: tuple[Tensor, Tensor] | None = None
        one_hot, logits, genes = {}, {}, []
        for i, (decision, head) in enumerate(zip(self.decisions, self._head_of, strict=True)):
            state = self.cell(word, state)
            found = self.heads[head](state[0])  # (N, n_choices)
            scores = (found[:n_free] + noise[:, starts[i] : starts[i + 1]]) * scale
            gene = scores.argmax(dim=-1)
            if forced is not None:
                gene = torch.cat([gene, forced[:, i]])
            chosen = torch.zeros_like(found).scatter_(-1, gene[:, None], 1.0)
            if scores.requires_grad and n_free:
                free = straight_through(chosen[:n_free], scores.softmax(dim=-1))
                chosen = torch.cat([free, chosen[n_free:]])
            word = self.embeddings[head](chosen)
            one_hot[decision.label], logits[decision.label] = chosen, found
            genes.append(gene)
        return Draws(
            decisions=self.decisions,
            one_hot=one_hot,
            logits=logits,
            genes=torch.stack(genes, dim=1),
        )
