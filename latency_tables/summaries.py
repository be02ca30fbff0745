"""What lies in a store, one line per device, space and setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latency_tables.errors import CorruptTableError
from latency_tables.fields import Fields, parse_json
from latency_tables.records import DeviceFingerprint
from latency_tables.remarks import Remark, about, accepted, labels

# One pass over an index that holds all of these columns: records are never read.
SUMMARY_SQL = """WITH tables AS (
    SELECT device_fp, space_id, setting, COUNT(DISTINCT key) AS n_networks,
           COUNT(*) AS n_records, COUNT(DISTINCT run_id) AS n_sessions, 0 AS n_rejected,
           MIN(utc) AS first, MAX(utc) AS last
    FROM latencies GROUP BY device_fp, space_id, setting
    UNION ALL
    SELECT device_fp, space_id, setting, 0, 0, 0, COUNT(*), MIN(utc), MAX(utc)
    FROM rejected GROUP BY device_fp, space_id, setting)
SELECT device_fp, tables.space_id, setting, SUM(n_networks) AS n_networks,
       SUM(n_records) AS n_records, SUM(n_sessions) AS n_sessions,
       SUM(n_rejected) AS n_rejected, MIN(first) AS first_utc, MAX(last) AS last_utc,
       COALESCE(devices.name, '') AS device_name, COALESCE(spaces.name, '') AS space_name
FROM tables LEFT JOIN devices USING (device_fp) LEFT JOIN spaces USING (space_id)
GROUP BY device_fp, tables.space_id, setting
ORDER BY device_name, space_name, device_fp, tables.space_id, setting"""

MAX_SHOWN = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device as the store knows it; ``fingerprint`` is the one that was stored first."""

    name: str
    fingerprint: DeviceFingerprint

    @property
    def device_fp(self) -> str:
        """SHA-256 of the device's identity."""
        return self.fingerprint.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSummary:
    """One line of ``hilnas tables show``: networks of one space on one device in one setting.

    ``soc`` and ``kernel`` are what the device says of itself, ``labels`` is how a header claims
    that the latencies came about, ``accepted`` names overridden gates and ``model`` is the error of
    the last latency model, where one is known.
    """

    device_name: str
    device_fp: str
    space_id: str
    space_name: str
    runtime: dict[str, str]
    threads: int
    cores: tuple[int, ...]
    n_networks: int
    n_records: int
    n_rejected: int
    first_utc: str
    last_utc: str
    setting: str = ""
    n_sessions: int = 0
    soc: str = ""
    kernel: str = ""
    labels: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    model: dict[str, Any] | None = None


def summary_of(
    row: dict[str, Any], device: Device | None, remarks: Sequence[Remark]
) -> TableSummary:
    """A summary from a row of :data:`SUMMARY_SQL`. Raises CorruptTableError."""
    fields = Fields(parse_json(row["setting"]), "setting")
    said = about(remarks, row["device_fp"], row["space_id"], row["setting"])
    identity = {} if device is None else device.fingerprint.identity
    return TableSummary(
        runtime={str(k): str(v) for k, v in fields.object("runtime").items()},
        threads=fields.integer("threads", minimum=1),
        cores=fields.integers("cores"),
        soc=_first_text(identity, ("soc", "compatible", "cpu_models", "machine")),
        kernel=_first_text(identity, ("kernel",)),
        labels=labels(said),
        accepted=accepted(said),
        model=_model(said),
        **row,
    )


def _first_text(identity: dict[str, Any], names: Sequence[str]) -> str:
    """The first field that holds a text or a list of texts."""
    for name in names:
        value = identity.get(name)
        items = value if isinstance(value, list) else [value]
        texts = list(dict.fromkeys(str(item) for item in items if item not in (None, "")))
        if texts:
            return ", ".join(texts)[:MAX_SHOWN]
    return ""


def _model(remarks: Sequence[Remark]) -> dict[str, Any] | None:
    for remark in remarks:
        if remark.kind == "model":
            found = parse_json(remark.value)
            if not isinstance(found, dict):
                raise CorruptTableError("remark 'model' is not a JSON object")
            return found
    return None
