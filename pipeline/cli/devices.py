"""``hilnas devices``: the boards there are, and everything to set them up and look after them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.cli.options import (
    cache_dir,
    chosen_device,
    inventory,
    inventory_files,
    with_json,
)

_file = click.Path(path_type=Path, dir_okay=False, exists=True)
_folder = click.Path(path_type=Path, file_okay=False, exists=True)
_name = click.argument("name")


@click.group()
def devices() -> None:
    """The devices that networks are measured on."""


@devices.command(name="list")
@with_json
def list_devices(as_json: bool) -> None:
    """List this machine and the boards of devices.toml, the project's and the user's."""
    from pipeline.run.boards import describe_inventory

    rows = describe_inventory(inventory())
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:<16} {row['address']:<32} {', '.join(row['tags'])}".rstrip())


@devices.command()
@_name
@click.option("--ssh", help="Alias of ~/.ssh/config.")
@click.option("--host", help="Host name or address, where there is no alias.")
@click.option("--port", type=click.IntRange(1, 65535))
@click.option("--user")
@click.option("--key", type=_file, help="Private key file.")
@click.option("--tag", "tags", multiple=True, help="May be repeated.")
@click.option("--pin", type=click.Choice(["big", "mid", "little"]), help="Cluster to measure on.")
@click.option("--threads", type=click.IntRange(1, 1024))
@click.option("--python", help="Interpreter on the board, else python3.")
@click.option("--workdir", help="Absolute path on the board, as on its largest partition.")
@click.option("--power", type=click.Choice(["observe", "direct", "sudo"]), help="Who sets clocks.")
@click.option("--fingerprint", help="Trust this host key: SHA256:…, read on the board itself.")
@click.option("--install-key", type=_file, help="Public key to install; asks for the password.")
@click.option("--for-user", is_flag=True, help="Write the user's inventory, not the project's.")
def add(name: str, for_user: bool, **options: Any) -> None:
    """Connect to a board, look at it and write its entry to devices.toml."""
    from rich.console import Console

    from pipeline.run.boards import add_board

    project, user = inventory_files()
    add_board(
        user if for_user else project,
        inventory(),
        name,
        ask=_ask,
        console=Console(),
        **options,
    )


@devices.command()
@_name
@with_json
def probe(name: str, as_json: bool) -> None:
    """Ask a device what it is: processor, clusters, clocks, memory, runtimes."""
    from rich.console import Console

    from pipeline.run.boards import probe_device
    from pipeline.run.probe_report import render_probe

    found = probe_device(chosen_device(name))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        render_probe(name, found, Console())


@devices.command()
@_name
@with_json
@click.pass_context
def doctor(context: click.Context, name: str, as_json: bool) -> None:
    """Check a device: each finding with its evidence and a remedy."""
    from rich.console import Console

    from pipeline.run.boards import examine_device, render_checks

    checks = examine_device(chosen_device(name))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        render_checks(checks, Console())
    context.exit(5 if any(check.state == "fail" for check in checks) else 0)


@devices.command()
@_name
@click.option("--fingerprint", required=True, help="SHA256:…, read on the board itself.")
def trust(name: str, fingerprint: str) -> None:
    """Trust a board's host key by its fingerprint, instead of an older one."""
    from pipeline.run.boards import trust_board

    click.echo(trust_board(chosen_device(name), fingerprint))


@devices.command()
@_name
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--wheelhouse", type=_folder, help="Wheels to use instead of the network.")
@click.option("--python-tar", type=_file, help="Python for a board that has none that fits.")
@with_json
def bootstrap(name: str, as_json: bool, **options: Any) -> None:
    """Bring a runtime to a board that needs neither internet nor pip."""
    from pipeline.run.boards import bootstrap_board

    done = bootstrap_board(inventory(), name, cache=cache_dir() / "bootstrap", **options)
    if as_json:
        click.echo(json.dumps(done, indent=2))
        return
    packages = ", ".join(f"{package} {version}" for package, version in done["packages"].items())
    click.echo(f"{name} has {packages}")


@devices.command()
@_name
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--reason", default="", help="Told to everybody who finds the device locked.")
def lock(name: str, minutes: float, reason: str) -> None:
    """Keep a device for yourself; no process stays behind."""
    from device_agents.link import leases
    from device_agents.link.transports import make_transport

    device = chosen_device(name)
    holder = leases.lock(make_transport(device), "", minutes, reason, deadline_s=device.deadline_s)
    click.echo(str(holder))


@devices.command()
@_name
@click.option("--token", help="Only the holder with this token.")
@click.option("--force", is_flag=True, help="Although somebody is measuring; that work is lost.")
def unlock(name: str, token: str | None, force: bool) -> None:
    """Free a device whose holder is gone, or, with --force, one that is in use."""
    from device_agents.link import leases
    from device_agents.link.transports import make_transport

    device = chosen_device(name)
    before = leases.unlock(make_transport(device), token, force, deadline_s=device.deadline_s)
    for holder in (before.holder, before.reservation):
        if holder is not None:
            click.echo(f"was {holder}")
    click.echo(f"{name} is free")


@devices.command()
@_name
def restore(name: str) -> None:
    """Set the clocks of a board as they were before a measurement that was cut off."""
    from pipeline.run.boards import restore_board

    click.echo(restore_board(chosen_device(name)))


@devices.command()
@_name
@click.option(
    "--what",
    multiple=True,
    type=click.Choice(["blobs", "site", "scratch", "parts"]),
    help="Only this; may be repeated. site: runtimes that bootstrap has replaced.",
)
def clean(name: str, what: tuple[str, ...]) -> None:
    """Remove from a device what hilnas left there; nothing that is in use."""
    from pipeline.run.boards import clean_board

    freed = clean_board(chosen_device(name), what or ("blobs", "scratch", "parts"))
    click.echo(f"{freed / 2**20:.1f} MiB freed on {name}")


def _ask(text: str) -> str:
    answer: str = click.prompt(text, hide_input=True, err=True, prompt_suffix="")
    return answer
