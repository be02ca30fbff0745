"""The wire: one JSON object per line, at most 1 MiB, in both directions.

=========  ==================================================================================
request    ``{"v": 1, "id": 7, "op": "measure", ...}``
event      ``{"v": 1, "id": 7, "event": "net", "data": {...}}``, any number before the answer
answer     ``{"v": 1, "id": 7, "ok": true, "result": {...}}``
failure    ``{"v": 1, "id": 7, "ok": false, "error": {"code", "message", "blames"}}``
=========  ==================================================================================

Both sides distrust a line until it was read here: its length, its depth, its numbers.
"""

from __future__ import annotations

import json
import math
from typing import Any

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 1 << 20
MAX_DEPTH = 32
"""Deepest nesting of objects and lists; what walks over a frame may recurse."""


class FrameError(ValueError):
    """A line that is not a frame of this protocol."""


def encode(frame: dict[str, Any]) -> bytes:
    """One line of ASCII JSON with its newline. Raises FrameError over 1 MiB or on NaN.

    >>> encode({"v": 1, "op": "ping"})
    b'{"v":1,"op":"ping"}\\n'
    """
    try:
        line = json.dumps(frame, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise FrameError("frame is not JSON: {}".format(error)) from None
    if len(line) > MAX_FRAME_BYTES:
        raise FrameError("frame of {} bytes, allowed are {}".format(len(line), MAX_FRAME_BYTES))
    return line


def decode(line: bytes) -> dict[str, Any]:
    """Read one line. Raises FrameError when it is no frame of this protocol.

    That is: too long or cut, not a JSON object, nested too deeply, with a number that is not
    finite, or of another version.
    """
    if len(line) > MAX_FRAME_BYTES:
        raise FrameError("line of more than {} bytes".format(MAX_FRAME_BYTES))
    if not line.endswith(b"\n"):
        raise FrameError("line ends in the middle: {!r}".format(line[:80]))
    try:
        frame = json.loads(line.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise FrameError("line is not JSON: {!r}".format(line[:80])) from None
    if not isinstance(frame, dict):
        raise FrameError("line is not a JSON object: {!r}".format(line[:80]))
    _check_depth(frame)
    if frame.get("v") != PROTOCOL_VERSION:
        raise FrameError(
            "protocol version {!r}, this side speaks {}".format(frame.get("v"), PROTOCOL_VERSION)
        )
    return frame


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("{} is not a finite number".format(text))
    return value


def _check_depth(frame: dict[str, Any]) -> None:
    level: list[Any] = [frame]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise FrameError("line is nested deeper than {} levels".format(MAX_DEPTH))


def failure(request_id: Any, code: str, message: str, blames: str = "board") -> dict[str, Any]:
    """The frame that answers a request that failed."""
    error = {"code": code, "message": message, "blames": blames}
    return {"v": PROTOCOL_VERSION, "id": request_id, "ok": False, "error": error}
