"""What gradients to the choices cost: ``policy_forward`` beside ``forward`` of the same subnets.

Run it with ``python -m tests.bench.policies [SPACE:PRESET …] [--size 32] [--images 64]
[--repeats 7] [--dense] [--json]``. Printed per space: milliseconds of a forward pass, and of a
forward and a backward pass, as CPU times of one thread: per subnet the median over the repetitions,
of which the first is left out, then the mean over eight random subnets. The two take turns.
The policy itself is made outside of what is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latency_tables.arch import Arch
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.policy import Policy

BUDGET = 1.1
"""Forward and backward, sliced, by those of a plain pass."""
SPACES = ("autoformer:micro", "bignas:tiny", "attentivenas:tiny", "shufflenetv2:tiny")
N_SUBNETS = 8


def policy_of(space: Space, arch: Arch) -> Policy:
    """With vectors that want a gradient."""
    policy = Policy.of(arch, space.decisions)
    for vector in policy.one_hot.values():
        vector.requires_grad_()
    return policy


def timed_ms(supernet: Supernet, x: Tensor, of: Arch | Policy, *, dense: bool) -> list[float]:
    """Forward; forward and backward."""
    supernet.zero_grad()
    start = time.process_time()
    if isinstance(of, Policy):
        logits = supernet.policy_forward(x, of, dense=dense)
    else:
        logits = supernet(x, of)
    between = time.process_time()
    logits.square().sum().backward()
    return [1e3 * (between - start), 1e3 * (time.process_time() - start)]


def measure(
    name: str, preset: str, size: int, n_images: int, repeats: int, *, dense: bool
) -> dict[str, Any]:
    """Times of one space."""
    torch.manual_seed(0)
    space = load_space(name, preset=preset, input_shape=(3, size, size), n_classes=10)
    supernet, x = space.supernet().train(), torch.randn(n_images, 3, size, size)
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(N_SUBNETS)]
    times = np.array(
        [
            [
                [timed_ms(supernet, x, of, dense=dense) for of in (arch, policy_of(space, arch))]
                for arch in archs
            ]
            for _ in range(repeats)
        ]
    )  # (repeats, subnets, plain | policy, forward | both)
    plain, policy = np.median(times[1:], axis=0).mean(axis=0)
    return {
        "space": f"{name}:{preset}",
        "plain_ms": plain.tolist(),
        "policy_ms": policy.tolist(),
        "ratios": (policy / plain).tolist(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the numbers; exit 1 where the budget does not hold for sliced passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spaces", nargs="*", default=SPACES, metavar="SPACE:PRESET")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for space in options.spaces:
        name, _, preset = space.partition(":")
        result = measure(
            name, preset, options.size, options.images, options.repeats, dense=options.dense
        )
        results.append(result)
        if not options.json:
            for what, plain, policy, ratio in zip(
                ("forward", "both"), result["plain_ms"], result["policy_ms"], result["ratios"],
                strict=True,
            ):  # fmt: skip
                print(f"{space:20s} {what:8s} {plain:8.1f} → {policy:8.1f} ms  x {ratio:.3f}")
    if options.json:
        print(json.dumps(results))
    return 0 if options.dense or all(r["ratios"][1] <= BUDGET for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
