"""What people and programs say about a table, beside its records.

A remark belongs to one device and one space, and to one setting or (setting "") to all of them:

* ``accepted``: a gate that refused the table and that somebody overrode; the value is the evidence;
* ``labels``: how the latencies came about, as the header of a file claims (the name is the claim,
  see :data:`MEASURED`);
* ``model``: how well the last latency model predicted, as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from latency_tables.fields import Fields

Kind = Literal["accepted", "labels", "model"]
KINDS: tuple[Kind, ...] = ("accepted", "labels", "model")

MEASURED = "measured end to end"
"""The claim that every latency was timed on a whole network: exact sums are then refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One remark; ``setting`` is a :func:`latency_tables.keys.setting_text` or empty."""

    device_fp: str
    space_id: str
    setting: str
    kind: Kind
    name: str
    value: str
    utc: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Remark:
        """Read what :meth:`to_dict` wrote. Raises CorruptTableError naming the field."""
        fields = Fields(data, "remark")
        remark = cls(
            **{name: fields.text(name) for name in ("device_fp", "space_id", "setting")},
            kind=cast(Kind, fields.one_of("kind", KINDS)),
            **{name: fields.text(name) for name in ("name", "value", "utc")},
        )
        fields.end()
        return remark


def about(remarks: Iterable[Remark], device_fp: str, space_id: str, setting: str) -> list[Remark]:
    """Those of ``remarks`` that are about one table."""
    return [
        r
        for r in remarks
        if (r.device_fp, r.space_id) == (device_fp, space_id) and r.setting in ("", setting)
    ]


def claims_measured(remarks: Iterable[Remark]) -> bool:
    """Whether a header claimed that the latencies were measured end to end."""
    return any(r.kind == "labels" and r.name == MEASURED for r in remarks)


def accepted(remarks: Iterable[Remark]) -> tuple[str, ...]:
    """Names of the gates whose refusal somebody overrode."""
    return tuple(sorted({r.name for r in remarks if r.kind == "accepted"}))


def labels(remarks: Iterable[Remark]) -> tuple[str, ...]:
    """What headers claim about how the latencies came about."""
    return tuple(sorted({r.name for r in remarks if r.kind == "labels"}))
