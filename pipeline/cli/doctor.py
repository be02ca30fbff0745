"""``hilnas doctor``: what works on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import inventory, table_path, with_json, with_table


@click.command()
@with_table
@with_json
@click.pass_context
def doctor(context: click.Context, table: Path | None, as_json: bool) -> None:
    """Check this machine: packages, precision, runtime, table, device agent."""
    import json

    from rich.console import Console

    from pipeline.run.doctor import examine, render

    checks = examine(table_path=table_path(table), inventory=inventory())
    if as_json:
        click.echo(json.dumps([check.to_dict() for check in checks], indent=2))
    else:
        render(checks, Console())
    context.exit(0 if all(check.ok for check in checks) else 1)
