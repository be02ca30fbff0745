"""Clocks of a board for the time of a measurement: set, read back, restore; or say why not.

The board keeps a journal (:mod:`device_agents.board.clocks`), so that whoever connects next puts
back what a lost session left. Without the power to set clocks they are only observed, and every
clock that was wished for becomes a finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from device_agents.devices import DeviceSpec
from device_agents.identity import clean_json
from device_agents.link.client import clean_text
from device_agents.link.session import Session
from device_agents.measuring.verdicts.finding import Finding
from latency_tables.errors import DeviceError, UsageError

HELPER = "/usr/local/sbin/hilnas-clocks"
CLOCKS_S = 90.0
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockReport:
    """What was asked for, what was read back, and the reason for each clock that was refused."""

    asked: Mapping[str, Any] = field(default_factory=dict)
    got: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def findings(self) -> list[Finding]:
        """One finding for each clock that is not as asked for.

        >>> ClockReport(refused={"npu": "Permission denied"}).findings()[0].code
        'UNCONTROLLED_NPU'
        """
        return [
            Finding(code=_code(name), evidence=f"{name} is not as asked for: {reason}")
            for name, reason in self.refused.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """For the provenance of a record."""
        return {"asked": dict(self.asked), "got": dict(self.got), "refused": dict(self.refused)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """Nodes that have their old values again, those that do not, and why nothing was to do."""

    nodes: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    dropped: str = ""

    def __str__(self) -> str:
        """One sentence for the user.

        >>> print(Restored(nodes=("a",), failed={"b": "Permission denied"}))
        1 clock setting was put back; not put back: b: Permission denied
        """
        if self.dropped:
            return self.dropped
        if not self.nodes and not self.failed:
            return "no session left clocks changed"
        one = len(self.nodes) == 1
        done = f"{len(self.nodes)} clock {'setting was' if one else 'settings were'} put back"
        failed = "; ".join(f"{node}: {why}" for node, why in self.failed.items())
        return f"{done}; not put back: {failed}" if failed else done


class ClockControl:
    """Sets a device's clocks on entry and puts the old ones back on exit.

    What an earlier session left is put back first. ``report`` says what happened; ``notes`` are
    sentences for the user. ``governor`` and ``idle`` (False: deeper idle states off) go beyond the
    clocks that the device wishes for. A link that is lost before the exit leaves the clocks to the
    journal: that is noted and not raised, since the measurement itself is sound.
    """

    def __init__(
        self,
        session: Session,
        device: DeviceSpec,
        *,
        governor: str | None = None,
        idle: bool | None = None,
    ) -> None:
        self.session, self.device, self.governor, self.idle = session, device, governor, idle
        self.report = ClockReport()
        self.notes: list[str] = []
        self._boot_id = ""

    @property
    def wishes(self) -> dict[str, Any]:
        """Everything that is asked for; empty where clocks stay as they are."""
        asked: dict[str, Any] = dict(self.device.clocks)
        if self.governor is not None:
            asked["governor"] = self.governor
        if self.idle is not None:
            asked["idle"] = self.idle
        return asked

    def __enter__(self) -> ClockControl:
        """Restore, then set. Raises DeviceError."""
        if self.device.power == "observe":
            self.report = ClockReport(asked=self.wishes, refused=self._only_observed())
            return self
        left = restore_clocks(self.session, self.device)
        if left.nodes or left.failed or left.dropped:
            self.notes.append(f"of a lost session: {left}")
        if self.wishes:
            self.apply()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.power == "observe" or not self.wishes:
            return
        try:
            left = restore_clocks(self.session, self.device)
        except DeviceError as error:
            self.notes.append(f"the clocks were not put back: {error.message}")
        else:
            if not left.failed:
                return
            self.notes.append(str(left))
        self.notes.append(f"to put them back: hilnas devices restore {self.device.name}")

    def apply(self) -> None:
        """Set the clocks and read them back, also again after a reboot. Raises DeviceError."""
        said = self.session.request(
            "clocks_set",
            {
                "clocks": dict(self.device.clocks),
                "governor": self.governor,
                "idle": self.idle,
                "power": self.device.power,
            },
            timeout_s=CLOCKS_S,
        )
        self._boot_id = self.session.boot_id
        self.report = ClockReport(
            asked=self.wishes,
            got=_object(said, "got"),
            refused=_reasons(said, "refused"),
        )

    def apply_again(self) -> None:
        """Set the clocks anew where the board rebooted since. Raises DeviceError."""
        if self.device.power != "observe" and self.wishes and self._boot_id != self.session.boot_id:
            self.apply()

    def _only_observed(self) -> dict[str, str]:
        reason = "power is 'observe', so clocks are looked at and not set"
        return {name: reason for name in self.wishes}


def restore_clocks(session: Session, device: DeviceSpec) -> Restored:
    """Put back what the journal on the board holds. Raises DeviceError."""
    power = None if device.power == "observe" else device.power
    said = session.request("clocks_restore", {"power": power}, timeout_s=CLOCKS_S)
    nodes = said.get("restored")
    return Restored(
        nodes=tuple(clean_text(n, 200) for n in (nodes if isinstance(nodes, list) else ())[:1024]),
        failed=_reasons(said, "failed"),
        dropped=clean_text(said.get("dropped", ""), 300),
    )


def helper_script() -> bytes:
    """The script that root may install on a board as :data:`HELPER`, mode 0755.

    >>> helper_script().startswith(b"#!/bin/sh")
    True
    """
    return files("device_agents").joinpath("board_helper", "hilnas-clocks").read_bytes()


def sudoers_line(user: str) -> str:
    """The line of ``/etc/sudoers.d/hilnas`` that lets ``user`` set clocks and nothing else.

    Raises UsageError for what is no name of a user.

    >>> sudoers_line("ubuntu")
    'ubuntu ALL=(root) NOPASSWD: /usr/local/sbin/hilnas-clocks'
    """
    if not _USER.fullmatch(user):
        raise UsageError(f"{user[:60]!r} is not the name of a user on a board")
    return f"{user} ALL=(root) NOPASSWD: {HELPER}"


def _code(name: str) -> str:
    if "npu" in name:
        return "UNCONTROLLED_NPU"
    return "UNCONTROLLED_DMC" if re.search("dmc|ddr", name) else "UNCONTROLLED_GOV"


def _object(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = clean_json(said.get(name))
    return value if isinstance(value, dict) else {}


def _reasons(said: Mapping[str, Any], name: str) -> dict[str, str]:
    return {key: clean_text(value, 300) for key, value in _object(said, name).items()}
