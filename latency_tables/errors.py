"""Every error that hilnas raises on purpose.

::

    HilnasError                      exit 1
    ├── UsageError                   exit 2   command or run file ask for what does not exist
    │   └── ConfigError                       a key or a value of a run file
    ├── DataError                    exit 3   a data set is unreadable or lacks something
    │   └── SplitError                        named splits overlap, are empty or unbalanced
    ├── SpaceError                   exit 2   a search space or an architecture of it
    │   ├── InvalidArchError                  a choice that the space does not have
    │   └── TableTooWideError                 couplings too large for an exact answer
    ├── GraphError                   exit 7   a network cannot be expressed as a Graph
    │   └── UnsupportedOperatorError          names the operator
    ├── TrainingError                exit 4
    │   ├── DivergedError                     loss not finite or blew up; good state is kept
    │   └── CheckpointError                   a checkpoint is missing, damaged or of another run
    ├── TableError                   exit 6   a latency table
    │   ├── CorruptTableError                 names the file, the line and the field
    │   ├── ForeignTableError                 of another device, space or schema
    │   ├── MissingLatencyError               no measurement, no model: never answered by a guess
    │   └── GateError                         the table is refused; names the gate
    ├── LimitError                   exit 6   a limit cannot be met
    │   ├── LimitBelowFastestError
    │   ├── BudgetMissedError        exit 9   a measured network breaks its limit
    │   └── InconclusiveError        exit 10  its interval lies on both sides of the limit
    ├── DeviceError                  exit 5   carries ``code``, ``retryable`` and ``blames``
    │   ├── UnreachableError                  the device does not answer
    │   │   ├── HostKeyError                  its host key is unknown or changed
    │   │   └── AuthError                     it refuses every key that was offered
    │   ├── LeasedError                       somebody else measures on it
    │   ├── LinkLostError                     the agent vanished in the middle
    │   │   └── UploadError                   a file arrived damaged
    │   ├── DeviceDiskFullError               no room on the device
    │   ├── BootstrapError                    a runtime cannot be brought to the device
    │   ├── ProtocolError                     the agent said something that is not the protocol
    │   ├── MissingRuntimeError               the device lacks the runtime
    │   └── MeasurementError                  one network failed: crash, time-out, memory, …
    ├── ExportError                  exit 7
    │   └── ParityError                       the exported file and torch disagree
    └── RunError                     exit 8   a run folder
        ├── RunLockedError                    another process works in it
        └── RunChangedError                   its files belong to other settings
"""

from __future__ import annotations

from typing import Literal


class HilnasError(Exception):
    """Base of every error raised on purpose.

    ``hint`` is the next thing to try, usually a command; it is printed on a line of its own.

    >>> str(HilnasError("no table for rk3588-a", hint="hilnas tables build FILE"))
    'no table for rk3588-a; try: hilnas tables build FILE'
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; try: {self.hint}" if self.hint else self.message


class UsageError(HilnasError):
    """The command or the run file asks for something that does not exist."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or a value of a run file is wrong."""


class DataError(HilnasError):
    """A data set cannot be read, or does not hold what it must."""

    exit_code = 3


class SplitError(DataError):
    """Named splits overlap, are empty or are not balanced."""


class SpaceError(HilnasError):
    """A search space, or an architecture of it, is not usable."""

    exit_code = 2


class InvalidArchError(SpaceError):
    """An architecture holds a choice that the space does not have."""


class TableTooWideError(SpaceError):
    """Decisions are coupled so widely that an exact answer needs too large a table."""

    def __init__(self, entries: int, allowed: int, labels: list[str]) -> None:
        super().__init__(
            f"an exact answer couples {len(labels)} decisions ({', '.join(labels)}) in a table of "
            f"{entries} entries; allowed: {allowed}",
            hint="a sampler made with approximate=True",
        )
        self.entries = entries


class GraphError(HilnasError):
    """A network cannot be expressed as a Graph."""

    exit_code = 7


class UnsupportedOperatorError(GraphError):
    """The recorder met an operator that Graph does not know."""

    def __init__(self, operator: str, *, where: str = "") -> None:
        at = f" in {where}" if where else ""
        super().__init__(f"operator {operator}{at} is not one that Graph records")
        self.operator = operator


class TrainingError(HilnasError):
    """Training cannot go on."""

    exit_code = 4


class DivergedError(TrainingError):
    """The loss is not finite or blew up; the last good checkpoint is kept."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged or belongs to another run."""


class TableError(HilnasError):
    """A latency table cannot be used."""

    exit_code = 6


class CorruptTableError(TableError):
    """A table file is damaged; the message names the file, the line and the field."""


class ForeignTableError(TableError):
    """A table belongs to another device, space or schema."""


class MissingLatencyError(TableError):
    """Nothing was measured and no model is there: a latency is never guessed."""


class GateError(TableError):
    """A table failed a gate and is refused."""

    def __init__(self, gate: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"gate {gate!r} refuses the table: {message}", hint=hint)
        self.gate = gate


class LimitError(HilnasError):
    """A limit cannot be met."""

    exit_code = 6


class LimitBelowFastestError(LimitError):
    """The limit is lower than the cheapest subnet of the space."""


Blames = Literal["board", "candidate", "host"]


class BudgetMissedError(LimitError):
    """A measured network breaks its limit: even the lower end of its interval does."""

    exit_code = 9


class InconclusiveError(LimitError):
    """A measured network's interval lies on both sides of the limit."""

    exit_code = 10


class DeviceError(HilnasError):
    """Something went wrong on or on the way to a device.

    ``code`` is the stable name written to records, ``retryable`` says whether trying again can
    help, and ``blames`` says who is at fault: a board's fault never punishes a candidate.
    """

    exit_code = 5
    code = "DEVICE"
    retryable = False
    blames: Blames = "board"


class UnreachableError(DeviceError):
    """The device does not answer."""

    code, retryable = "UNREACHABLE", True


class HostKeyError(UnreachableError):
    """The device's host key is unknown or differs from the trusted one: never accepted silently."""

    code, retryable = "HOST_KEY", False


class AuthError(UnreachableError):
    """The device refuses every key that was offered."""

    code, retryable = "AUTH", False


class LeasedError(DeviceError):
    """Somebody else holds the device."""

    code, retryable = "LEASED", True


class LinkLostError(DeviceError):
    """The agent vanished in the middle of a conversation."""

    code, retryable = "LINK_LOST", True


class UploadError(LinkLostError):
    """A file arrived damaged, or did not arrive."""

    code = "UPLOAD_CORRUPT"


class DeviceDiskFullError(DeviceError):
    """The device has no room for a file."""

    code = "DISK_FULL"


class BootstrapError(DeviceError):
    """Python or a runtime cannot be brought to the device."""

    code = "BOOTSTRAP"


class ProtocolError(DeviceError):
    """The agent said something that is not the protocol."""

    code = "PROTOCOL"


class MissingRuntimeError(DeviceError):
    """The device lacks the runtime that a measurement needs."""

    code = "BOOTSTRAP"


class MeasurementError(DeviceError):
    """One network could not be measured; ``code`` says why (RUN_CRASHED, RUN_TIMEOUT, OOM, …)."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        blames: Blames = "candidate",
        retryable: bool = False,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.blames = blames
        self.retryable = retryable


class ExportError(HilnasError):
    """A subnet cannot be exported."""

    exit_code = 7


class ParityError(ExportError):
    """The exported file and torch disagree on real images."""


class RunError(HilnasError):
    """A run folder cannot be used."""

    exit_code = 8


class RunLockedError(RunError):
    """Another process works in the run folder."""


class RunChangedError(RunError):
    """Files of the run folder belong to other settings."""
