"""One root seed, many named generators.

Everything random in a run draws from a generator that is named after its purpose. A child seed
depends on the root and the names only, never on how many numbers somebody else drew before, so a
stage can be repeated, skipped or resumed in the middle without touching the others.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def child_seed(root: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a root seed and a path of names.

    The text "1" and the number 1 are different names, and ("a", "b") differs from ("ab",).

    >>> child_seed(0, "data", 3) == child_seed(0, "data", 3)
    True
    >>> child_seed(0, "data", 3) == child_seed(0, "data", "3")
    False
    """
    # numpy integers become plain ones: json would refuse them, and np.int64(3) must equal 3
    path = [int(root), *(name if isinstance(name, str) else int(name) for name in names)]
    digest = hashlib.sha256(json.dumps(path, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(root: int, *names: str | int) -> np.random.Generator:
    """Make a numpy generator (PCG64) for one named purpose.

    >>> numpy_generator(7, "search").integers(1000) == numpy_generator(7, "search").integers(1000)
    np.True_
    """
    return np.random.Generator(np.random.PCG64(child_seed(root, *names)))


def torch_generator(
    root: int, *names: str | int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """Make a torch generator for one named purpose on ``device``.

    >>> torch_generator(7, "train").initial_seed() == child_seed(7, "train")
    True
    """
    import torch  # late: this module is also used where torch is blocked

    generator = torch.Generator(device=device)
    generator.manual_seed(child_seed(root, *names))
    return generator
