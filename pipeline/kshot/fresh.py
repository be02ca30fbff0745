"""How a dictionary starts: K copies that differ, mixed into a supernet as a plain one starts.

Equal copies would get equal gradients for ever, so each has a seed of its own. With W a fresh (or
warm-started) plain supernet and R_k fresh ones:

    θ_k = W + √K (R_k − mean of all R)

At λ = 1/K the mixture is exactly W, so it has the variance that the space's initialisation means it
to have; for Gaussian weights the θ_k are independent, with K times that variance. What no seed
changes, as the ones and zeros of batch norms, is the same in all copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latency_tables.errors import UsageError
from pipeline.kshot.dictionary import KShotSupernet
from pipeline.kshot.simplex_net import HIDDEN, CodeKind, SimplexNet
from pipeline.randomness import child_seed
from pipeline.spaces.base import Space, Supernet


def kshot_supernet(
    space: Space,
    first: Supernet,
    k: int,
    *,
    codes: CodeKind = "learned",
    hidden: int = HIDDEN,
    seed: int = 0,
) -> KShotSupernet:
    """A dictionary ready for training whose mixture at 1/K is ``first``.

    torch's random state stays as it is.

    Raises:
        UsageError: ``k`` is not 1 ... 64, or the space's initial weights do not depend on a seed.
    """
    supernet = KShotSupernet(space, first, k, codes=codes, hidden=hidden)
    spread_copies(supernet, seed)
    return supernet


def spread_copies(supernet: KShotSupernet, seed: int) -> None:
    """Make the copies and the simplex-net differ by chance; see the module for the formula."""
    net, k = supernet.simplex_net, supernet.k
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if net is not None:
            torch.manual_seed(child_seed(seed, "kshot", "simplex_net"))
            random = supernet.kind == "random"
            fresh = SimplexNet(supernet.space.decisions, k, hidden=supernet.hidden, random=random)
            net.load_state_dict(fresh.state_dict())
        if k == 1:
            return
        base = _drawn(supernet.space, child_seed(seed, "kshot", "copy", 0))
        differences = []  # R_k − R_1, which is exactly zero where no seed changes anything
        for i in range(1, k):
            drawn = _drawn(supernet.space, child_seed(seed, "kshot", "copy", i))
            differences.append({name: drawn[name] - tensor for name, tensor in base.items()})
        if not any(bool(d.any()) for d in differences[0].values()):
            raise UsageError(
                f"{supernet.space.name} starts from the same weights whatever the seed, so {k} "
                "copies of them would stay equal for ever",
                hint="--set train.options.k=1, or a model that draws its first weights",
            )
        for name in base:
            mean = torch.stack([d[name] for d in differences]).sum(0) / k
            for i, copy in enumerate(supernet.copies):
                own = differences[i - 1][name] if i else torch.zeros_like(mean)
                parameter = copy.get_parameter(name)
                parameter.add_(((own - mean) * k**0.5).to(parameter.device, parameter.dtype))


def _drawn(space: Space, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: p.detach() for name, p in space.supernet().named_parameters()}
