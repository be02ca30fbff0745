"""What ``hilnas devices`` does with one board, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from device_agents.devices import DeviceSpec
from device_agents.inventory import Inventory, add_device, change_device, check_entry
from device_agents.link.session import Session
from device_agents.link.transports import make_transport
from device_agents.measuring.measurer import DeviceMeasurer
from latency_tables.errors import DeviceError, HostKeyError, UsageError
from pipeline.run.probe_report import render_probe
from pipeline.run.progress import Reporter

if TYPE_CHECKING:
    from device_agents.doctor import Check

_MARKS = {
    "ok": "[green]✓[/green]",
    "warn": "[yellow]![/yellow]",
    "fail": "[red]✗[/red]",
    "unknown": "[dim]?[/dim]",
}


def describe_inventory(inventory: Inventory) -> list[dict[str, Any]]:
    """One row per device: name, transport, address, tags, and the file it comes from."""
    return [
        {
            "name": name,
            "transport": device.transport,
            "address": _address(device),
            "tags": list(device.tags),
            "runtime": device.runtime,
            "file": str(inventory.files[name]) if name in inventory.files else None,
        }
        for name, device in sorted(inventory.devices.items())
    ]


def _address(device: DeviceSpec) -> str:
    if device.ssh is None:
        return "this machine"
    user = f"{device.ssh.user}@" if device.ssh.user else ""
    port = f":{device.ssh.port}" if device.ssh.port else ""
    return f"ssh {user}{device.ssh.host}{port}"


def add_board(
    file: Path,
    inventory: Inventory,
    name: str,
    *,
    fingerprint: str | None,
    install_key: Path | None,
    ask: Callable[[str], str],
    console: Console,
    **settings: Any,
) -> None:
    """Trust and log in as asked, probe the board and write its entry to ``file``.

    A board that is reached but cannot run the agent yet gets its entry, too, with the command that
    helps.

    Raises:
        UsageError: the name is taken, or settings are wrong.
        HostKeyError: the host key is not trusted; shows what it is.
        DeviceError: the board cannot be reached.
    """
    if name in inventory.devices:
        raise UsageError(f"device {name!r} exists already", hint="hilnas devices list")
    entry = {"name": name, **{k: _plain(v) for k, v in settings.items() if v not in (None, ())}}
    device = check_entry(file, entry).spec(file)
    assert device.ssh is not None  # every entry has an address
    if fingerprint is not None:
        console.print(escape(trust_board(device, fingerprint)))
    if install_key is not None:
        from device_agents.link.ssh.keys import install_key as install

        added = install(device.ssh, install_key, ask, name=name, deadline_s=device.deadline_s)
        console.print("key installed" if added else "the key was installed already")
    try:
        found = _probe(device, ask)
    except HostKeyError as error:
        if error.hint is not None:  # the board has no entry yet that 'devices trust' could name
            error.hint = error.hint.replace(f"devices trust {name}", f"devices add {name} …")
        raise
    add_device(file, entry)
    console.print(f"wrote {name} to {file}")
    if found is None:
        console.print(f"  try: hilnas devices doctor {name}")
        return
    render_probe(name, found, console)
    has = [r.get("name") for r in found.get("runtimes") or [] if not r.get("broken")]
    if device.runtime not in has:
        console.print(f"  try: hilnas devices bootstrap {name}")


def _plain(value: Any) -> Any:
    """What TOML can hold."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _probe(device: DeviceSpec, ask: Callable[[str], str]) -> dict[str, Any] | None:
    """What the agent says of the board; None where the board answers but cannot run it."""
    transport = make_transport(device, ask)
    transport.open()  # raises where the board is not reached at all
    try:
        return DeviceMeasurer(device, transport=transport).probe()
    except DeviceError as error:
        Reporter().warn(f"the agent does not run on {device.name} yet: {error.message}")
        return None
    finally:
        transport.close()


def probe_device(device: DeviceSpec) -> dict[str, Any]:
    """What a device says about itself. Raises DeviceError."""
    return DeviceMeasurer(device).probe()


def examine_device(device: DeviceSpec) -> list[Check]:
    """Every check of a device; where the agent does not start, what can be told without it.

    Raises:
        DeviceError: the board is not reached at all.
    """
    from device_agents.doctor import diagnose

    transport = make_transport(device)
    try:
        return diagnose(Session(transport, deadline_s=device.deadline_s), device)
    finally:
        transport.close()


def trust_board(device: DeviceSpec, fingerprint: str) -> str:
    """Trust a host key; says which. Raises HostKeyError, UnreachableError, UsageError."""
    if device.ssh is None:
        raise UsageError(f"{device.name} is not reached over ssh")
    from device_agents.link.ssh.known_hosts import trust

    key = trust(device.ssh, fingerprint, deadline_s=device.deadline_s)
    return f"{device.name}: {key.kind} {key.fingerprint} is trusted"


def bootstrap_board(
    inventory: Inventory,
    name: str,
    *,
    runtime: str,
    wheelhouse: Path | None,
    python_tar: Path | None,
    cache: Path,
) -> dict[str, Any]:
    """Bring a runtime to a board, and its new Python into its entry. Raises DeviceError."""
    from device_agents.bootstrap import bootstrap

    device = inventory.find(name)
    transport = make_transport(device)
    transport.open()
    try:
        with Reporter().busy(f"setting up {name}"):
            done = bootstrap(
                transport,
                device,
                runtime=runtime,
                wheelhouse=wheelhouse,
                python_tar=python_tar,
                cache=cache,
                on_note=Reporter().say,
            )
    finally:
        transport.close()
    if done.python_changed and name in inventory.files:
        change_device(inventory.files[name], name, python=done.python)
    return {
        "device": name,
        "runtime": runtime,
        "python": done.python,
        "packages": dict(done.packages),
        "lock": done.lock_hash,
        "fresh": done.fresh,
    }


def restore_board(device: DeviceSpec) -> str:
    """Put clocks back; says which. Raises DeviceError."""
    from device_agents.clocks import restore_clocks

    with Session(make_transport(device), deadline_s=device.deadline_s) as session:
        return str(restore_clocks(session, device))


def clean_board(device: DeviceSpec, what: Sequence[str]) -> int:
    """Remove files of ours; bytes freed. Raises DeviceError."""
    with Session(make_transport(device), deadline_s=device.deadline_s) as session:
        said = session.request("clean", {"what": list(what)}, timeout_s=120.0)
    freed = said.get("freed_bytes")  # by kind
    return sum(n for n in freed.values() if type(n) is int) if isinstance(freed, dict) else 0


def render_checks(checks: Sequence[Check], console: Console) -> None:
    """Print findings as a table, with a remedy where something is wrong."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        text = escape(check.evidence)
        if check.state != "ok" and check.remedy:
            text += f"\n[yellow]try:[/yellow] {escape(check.remedy)}"
        table.add_row(_MARKS[check.state], f"[bold]{escape(check.name)}[/bold]", text)
    console.print(table)
