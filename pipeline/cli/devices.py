"""``hilnas devices``: what there is to measure on."""

from __future__ import annotations

import json

import click

from pipeline.cli.options import with_json, work_dir


@click.group()
def devices() -> None:
    """The devices that networks are measured on."""


@devices.command(name="list")
@with_json
def list_devices(as_json: bool) -> None:
    """List the devices by name."""
    from device_agents.devices import BUILT_IN

    if as_json:
        listed = [{"name": d.name, "transport": d.transport} for d in BUILT_IN.values()]
        click.echo(json.dumps(listed, indent=2))
        return
    for device in BUILT_IN.values():
        click.echo(f"{device.name:<12} {device.transport}")


@devices.command()
@click.argument("name")
@with_json
def probe(name: str, as_json: bool) -> None:
    """Ask a device what it is: processor, clocks, memory, runtimes."""
    from rich.console import Console

    from device_agents.devices import load_device
    from pipeline.run.measuring import probe_device, render_probe

    found = probe_device(load_device(name), work_dir=work_dir())
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        render_probe(name, found, Console())
