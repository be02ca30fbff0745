"""``hilnas``: the group of commands, and how errors leave the process.

Exit codes: 0 done · 1 a bug of ours · 2 wrong usage or settings · 3 data · 4 training · 5 device ·
6 latency table or limit · 7 export or check · 8 run folder or disk · 9 a checked number breaks its
limit · 10 it cannot be told whether it does · 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from latency_tables.errors import HilnasError
from pipeline import __version__
from pipeline.cli import (
    check,
    devices,
    doctor,
    generate,
    measure,
    rank,
    ranks,
    results,
    retrain,
    run,
    space,
    tables,
    transfer,
)

EXIT_INTERRUPTED = 130
EXIT_DISK = 8
DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hilnas")
def cli() -> None:
    """Find the most accurate network that keeps a latency limit measured on your board.

    \b
    hilnas run digits          the whole job on a small data set and this machine
    hilnas init digits         write a commented run file to start from
    hilnas run my-run.toml     the same with your data, space, device and limits

    MACs count multiply-accumulates of convolutions, linear layers and attention products;
    batch norm is folded away and not counted.
    """


for command in (
    run.run,
    run.init,
    run.train,
    run.search,
    transfer.transfer,
    generate.generate,
    retrain.retrain,
    results.export,
    check.check,
    results.report,
    rank.rank,
    space.space,
    measure.measure,
    devices.devices,
    tables.tables,
    doctor.doctor,
):
    cli.add_command(command)


def main() -> None:
    """Entry point: run a command, print errors on stderr, exit with a documented code."""
    arguments, launch = sys.argv[1:], ranks.launched(os.environ)
    if launch is None:
        sys.exit(run_cli(arguments))
    sys.exit(ranks.run_rank(launch, lambda: run_cli(arguments, launch)))


def run_cli(arguments: list[str], launch: ranks.Launch | None = None) -> int:
    """Run one command line, as one of several processes if launched so; gives its exit code."""
    try:
        if launch is not None:
            ranks.require_training(arguments)
        result = cli.main(args=arguments, prog_name="hilnas", standalone_mode=False, obj=launch)
        return result if isinstance(result, int) else 0
    except HilnasError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"  try: {error.hint}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "\nstopped; everything measured and trained is kept, the same command goes on", err=True
        )
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of our output went away, as in `hilnas tables show | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        click.echo(f"error: {error.strerror}: {error.filename or 'while writing'}", err=True)
        click.echo(
            "  try: make room or mend the permissions, then the same command; nothing "
            "that was finished is lost",
            err=True,
        )
        return EXIT_DISK
