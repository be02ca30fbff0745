"""A network's outputs for many inputs, computed on a device: for parity and accuracy there."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agents.link.client import clean_text
from device_agents.link.session import Session
from device_agents.measuring.batches import START_S, Net
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.runtimes.artefacts import Artefact, artefact_request
from latency_tables.errors import MeasurementError, ProtocolError

MAX_CHUNK_BYTES = 32 << 20
"""Inputs that are sent at once."""

SECONDS_PER_ROW = 5.0
"""Patience with one input; a child that says nothing for that long hangs."""

Floats = NDArray[np.float32]


def infer(used: DeviceMeasurer, artefact: Artefact, images: Floats) -> Floats:
    """First output of a network for every row of ``images`` (N, ...), one row at a time.

    ``artefact`` is what the device's runtime loads, ``used`` is connected; see
    :func:`device_agents.runtimes.artefacts.prepare`.

    Returns:
        (N, ...) float32, in order.

    Raises:
        MeasurementError: the network failed on the device; says why.
        DeviceError: the device failed.
    """
    rows = max(1, MAX_CHUNK_BYTES // max(1, images[:1].nbytes))
    parts = [
        _infer(used, artefact, images[start : start + rows])
        for start in range(0, len(images), rows)
    ]
    return np.concatenate(parts)


def _infer(used: DeviceMeasurer, artefact: Artefact, images: Floats) -> Floats:
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    inputs, *blobs = used.upload([buffer.getvalue(), *artefact.parts()])
    net = Net(name="0", **artefact_request(artefact, iter(blobs)))
    request = {**used.batch([net]).settings(), "nets": [net.to_request()], "inputs": inputs}
    patience_s = 2 * START_S + SECONDS_PER_ROW * len(images)
    said = used.connection.again(
        lambda: used.session.request("infer", request, timeout_s=patience_s)
    )
    if "error" in said:
        error = said["error"] if isinstance(said["error"], dict) else {}
        raise MeasurementError(
            clean_text(error.get("code", "RUN_CRASHED"), 40),
            f"the network failed on {used.device.name}: {clean_text(error.get('message', '?'))}",
            blames="candidate",
        )
    return _fetch(used.session, said, len(images))


def _fetch(session: Session, said: dict[str, Any], rows: int) -> Floats:
    data = session.transport.get(str(said.get("outputs")), max_bytes=MAX_CHUNK_BYTES)
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ProtocolError(f"the device's outputs cannot be read: {error}") from None
    if found.dtype != np.float32 or found.ndim < 1 or len(found) != rows:
        raise ProtocolError(
            f"{rows} float32 outputs were asked for, got {found.dtype}{found.shape}"
        )
    return np.asarray(found, dtype=np.float32)
