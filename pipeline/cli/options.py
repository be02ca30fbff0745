"""Options that several commands share, and the only place that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from device_agents.devices import DeviceSpec
    from device_agents.inventory import Inventory

F = TypeVar("F", bound=Callable[..., Any])


def table_path(given: Path | None) -> Path:
    """The live latency table: ``--table``, else the user's own below XDG_DATA_HOME."""
    from latency_tables.store import default_table_path

    return default_table_path(os.environ) if given is None else given


def work_dir() -> Path:
    """Where the local agent keeps its files, below XDG_CACHE_HOME."""
    return cache_dir() / "agent"


def cache_dir() -> Path:
    """What can be made again: the local agent's files, downloaded wheels; below XDG_CACHE_HOME."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache_home) / "hilnas"


def inventory_files() -> tuple[Path, Path]:
    """The project's ``devices.toml``, which comes first, and the user's below XDG_CONFIG_HOME."""
    config_home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path("devices.toml"), Path(config_home) / "hilnas" / "devices.toml"


def inventory() -> Inventory:
    """Every device that can be named. Raises ConfigError."""
    from device_agents.inventory import read_inventory

    return read_inventory(*inventory_files(), work_dir=work_dir())


def chosen_device(name: str) -> DeviceSpec:
    """The device called ``name``. Raises UsageError, ConfigError."""
    return inventory().find(name)


def with_table(command: F) -> F:
    """``--table PATH``."""
    return click.option(
        "--table",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Latency table to use instead of the user's own.",
    )(command)


def with_profile(command: F) -> F:
    """``--profile``."""
    return click.option(
        "--profile",
        is_flag=True,
        help="Say where the time of training and search went; also in timing.json.",
    )(command)


def with_json(command: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(command)


def with_device(command: F) -> F:
    """``--device NAME``."""
    return click.option("--device", default="local", show_default=True, help="Device to use.")(
        command
    )
