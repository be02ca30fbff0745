"""Names under which latencies are stored: equal circumstances give an equal key.

A latency belongs to a network *and* to everything that changes how fast it runs: runtime with its
version, provider and graph optimisation, thread count, cores, device. All of it enters the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latency_tables.files import canonical_json, sha256_json

RUNTIME_FIELDS = ("name", "version", "provider", "graph_optimization")
"""What of a runtime's description enters the key; further fields are provenance."""


def net_id(space_id: str, graph_key: str) -> str:
    """Identify a network of a space; isomorphic networks share one id.

    >>> net_id("space", "graph") == net_id("space", "graph") != net_id("other", "graph")
    True
    """
    return sha256_json(["net", space_id, graph_key])


def runtime_id(runtime: Mapping[str, Any]) -> dict[str, str]:
    """The part of a runtime's description that changes latencies.

    >>> runtime_id({"name": "onnxruntime", "version": "1.22.0", "build": "wheel"})["version"]
    '1.22.0'
    """
    return {field: str(runtime.get(field, "")) for field in RUNTIME_FIELDS}


def setting_text(*, runtime: Mapping[str, Any], threads: int, cores: Sequence[int]) -> str:
    """How networks run, as canonical JSON: latencies of one table share it."""
    return canonical_json(
        {"runtime": runtime_id(runtime), "threads": threads, "cores": sorted(cores)}
    )


def measurement_key(
    *,
    net_id: str,
    runtime: Mapping[str, Any],
    threads: int,
    cores: Sequence[int],
    device_fp: str,
) -> str:
    """Key of a latency: SHA-256 of the canonical JSON of all that must match.

    The order of ``cores`` does not matter; an empty one means "not pinned".

    >>> runtime = {"name": "onnxruntime", "version": "1.22.0", "provider": "CPU"}
    >>> one = measurement_key(net_id="n", runtime=runtime, threads=2, cores=(4, 5), device_fp="d")
    >>> two = measurement_key(net_id="n", runtime=runtime, threads=2, cores=(5, 4), device_fp="d")
    >>> one == two, len(one)
    (True, 64)
    """
    return sha256_json(
        {
            "net_id": net_id,
            "runtime": runtime_id(runtime),
            "threads": threads,
            "cores": sorted(cores),
            "device_fp": device_fp,
        }
    )
