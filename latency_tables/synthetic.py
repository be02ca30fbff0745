"""Weights for networks that are timed but never used: made where the network is timed.

A candidate travels without weights; this file makes them from a seed. It needs numpy only, is
self-contained, runs on Python 3.7 and gives the same bytes on every machine: raw bits of PCG64
(whose stream numpy guarantees), integers that float32 holds exactly, one rounding multiplication.

The specification is a plain dict, as it travels::

    {"schema": 1, "seed": 0, "location": "weights.bin",
     "tensors": [[name, n_elements, fan_in, offset_bytes], ...]}

Values are uniform in ±sqrt(6 / fan_in), He's bound: the second moment of activations stays about
the same through layers with ReLU, so nothing overflows and nothing becomes denormal (denormals
would make a CPU slower than the real network is). ``fan_in`` 0 marks scales and variances: uniform
in 0.5 … 1.5. No value is zero or denormal.
"""

import math
from typing import Any, Dict

import numpy as np

SCHEMA = 1
ALIGNMENT = 64
_STEPS = 1 << 23  # values are odd multiples of bound / 2^23: exact in float32, never zero


def check(spec: Dict[str, Any]) -> None:
    """Raise ValueError unless the specification is one."""
    if not isinstance(spec, dict) or spec.get("schema") != SCHEMA:
        raise ValueError("weights must be specified by schema %d" % SCHEMA)
    location = spec.get("location")
    if not isinstance(location, str) or not location or location != location.strip("./\\ "):
        raise ValueError("the location of weights is a plain file name, not %r" % (location,))
    if any(c in location for c in "/\\\0"):
        raise ValueError("the location of weights is a plain file name, not %r" % (location,))
    seed = spec.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError("the seed of weights is an integer of 0 or more, not %r" % (seed,))
    end = 0
    for entry in spec["tensors"]:
        name, n_elements, fan_in, offset = entry
        if not isinstance(name, str):
            raise ValueError("a tensor's name is text, not %r" % (name,))
        for number in (n_elements, fan_in, offset):
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise ValueError("tensor %r: sizes are integers of 0 or more" % name)
        if offset < end or offset % 4:
            raise ValueError("tensor %r: offset %d overlaps or is not aligned" % (name, offset))
        end = offset + 4 * n_elements


def n_bytes(spec: Dict[str, Any]) -> int:
    """Size of the file that a specification describes."""
    ends = [int(offset) + 4 * int(n) for _, n, _, offset in spec["tensors"]]
    return max(ends or [0])


def synthesise(spec: Dict[str, Any]) -> bytes:
    """Make the content of the weight file.

    Raises ValueError where the specification is not valid.

    >>> spec = {"schema": 1, "seed": 0, "location": "weights.bin", "tensors": [["w", 2, 6, 0]]}
    >>> synthesise(spec).hex()
    '0685333fac3f8c3e'
    """
    check(spec)
    data = np.zeros(n_bytes(spec) // 4, dtype="<f4")
    bits = np.random.PCG64(spec["seed"])
    for _, n_elements, fan_in, offset in spec["tensors"]:
        if not n_elements:
            continue
        raw = bits.random_raw((n_elements + 1) // 2).astype("<u8").view("<u4")[:n_elements]
        # 23 bits → odd integers in ±(2^23 − 1): float32 holds each exactly, none is zero
        odd = ((raw >> 9).astype(np.int32) * 2 + (1 - _STEPS)).astype(np.float32)
        bound = math.sqrt(6.0 / fan_in) if fan_in else 0.5
        values = odd * np.float32(bound / _STEPS)
        if not fan_in:
            values += np.float32(1.0)
        data[offset // 4 : offset // 4 + n_elements] = values
    return data.tobytes()


def write(spec: Dict[str, Any], path: str) -> None:
    """Write the weight file to ``path``."""
    with open(path, "wb") as stream:
        stream.write(synthesise(spec))
