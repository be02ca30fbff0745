"""The transport that a device asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from device_agents.devices import DeviceSpec, default_workdir
from device_agents.link.local import LocalTransport
from device_agents.link.transport import Transport
from latency_tables.errors import UsageError


def make_transport(device: DeviceSpec, prompt: Callable[[str], str] | None = None) -> Transport:
    """A transport that is not open yet; ``prompt`` asks for passphrases of key files.

    Raises UsageError naming the transports that exist.

    >>> make_transport(DeviceSpec(name="local")).exclusive
    True
    """
    if device.transport == "local":
        return LocalTransport(Path(device.workdir or default_workdir()))
    if device.transport != "ssh" or device.ssh is None:
        raise UsageError(
            f"device {device.name!r}: transport {device.transport!r}; there are: local, ssh"
        )
    from device_agents.link.ssh.transport import SshTransport  # paramiko takes a moment to import

    return SshTransport(
        device.ssh,
        workdir=None if device.workdir is None else str(device.workdir),
        python=device.python,
        deadline_s=device.deadline_s,
        prompt=prompt,
        name=device.name,
    )
