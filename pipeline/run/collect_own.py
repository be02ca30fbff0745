"""What the report says of the networks of single devices, from their folders."""

from __future__ import annotations

import json
from typing import Any

from latency_tables.arch import Arch
from pipeline.export.manifest import MANIFEST_NAME, Manifest, load_manifest
from pipeline.report.model import LimitRow, OwnNetwork
from pipeline.run.folder import RunFolder
from pipeline.search.targets import board_folder


def own_networks(folder: RunFolder, latency: Any, common: Any) -> tuple[OwnNetwork, ...]:
    """One entry per device that was searched for by itself, in the order of the run file.

    Args:
        folder: of the run.
        latency: decoded ``latency.json``, or None.
        common: decoded ``front.json`` of the network for all, or None.
    """
    winner = None if common is None or common["winner"] is None else common["winner"]
    shared = None if winner is None else Arch.from_dict(common["points"][winner]["arch"])
    devices = () if latency is None else latency["devices"]
    found = (_own_network(folder, device, shared) for device in devices)
    return tuple(one for one in found if one is not None)


def rows_of_limits(manifest: Manifest) -> tuple[LimitRow, ...]:
    """Limits and what an exported network needs of each."""
    return tuple(
        LimitRow(name=x.name, unit=x.unit, limit=x.limit, value=x.value, device=x.device)
        for x in manifest.limits
    )


def _own_network(folder: RunFolder, device: str, shared: Arch | None) -> OwnNetwork | None:
    at = board_folder(device)
    front_file = folder.file(f"{at}/front.json")
    if not front_file.exists():
        return None
    front = json.loads(front_file.read_text())
    if front["winner"] is None:
        return OwnNetwork(device=device, folder=at, reason=str(front.get("reason", "")))
    manifest_file = folder.file(f"{at}/{MANIFEST_NAME}")
    if not manifest_file.exists():
        return OwnNetwork(device=device, folder=at, reason="it is not exported yet")
    manifest = load_manifest(manifest_file)
    searched, test = manifest.accuracy.search_validation, manifest.accuracy.test
    measured = [d.latency for d in manifest.devices if d.name == device and d.latency is not None]
    return OwnNetwork(
        device=device,
        folder=at,
        limits=rows_of_limits(manifest),
        arch=manifest.architecture(),
        search_accuracy=searched.value if searched else None,
        test_accuracy=test.value if test else None,
        n_test_images=test.n_images if test else 0,
        latency=measured[0].estimate() if measured else None,
        macs=manifest.costs["macs"],
        size_bytes=manifest.model.size_bytes,
        shared=manifest.architecture() == shared,
    )
