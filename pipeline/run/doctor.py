"""Checks of this machine, each with evidence and, where it fails, a remedy."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from device_agents.inventory import Inventory
from latency_tables.errors import HilnasError
from pipeline.run.packages import package_root

MIN_FREE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    evidence: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def examine(*, table_path: Path, inventory: Inventory) -> list[Check]:
    """Run every check; a check that raises is a failed one."""
    probes: list[tuple[str, Callable[[], str], str]] = [
        ("python", _python, ""),
        ("packages", lambda: f"in {package_root()}", "run from another folder"),
        ("torch", _torch, "pip install -c constraints.txt ."),
        ("onnxruntime", _onnxruntime, "pip install -c constraints.txt ."),
        ("disk", _disk, "free some space, or work in another folder"),
        ("table", lambda: _table(table_path), "hilnas tables show --table ANOTHER.sqlite"),
        ("local agent", lambda: _agent(inventory), "hilnas devices probe local"),
    ]
    return [_check(name, probe, remedy) for name, probe, remedy in probes]


def render(checks: list[Check], console: Console) -> None:
    """Print the findings as a table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        mark = "[green]✓[/green]" if check.ok else "[red]✗[/red]"
        text = escape(check.evidence)
        if not check.ok:
            text += f"\n[yellow]try:[/yellow] {escape(check.remedy)}"
        table.add_row(mark, f"[bold]{check.name}[/bold]", text)
    console.print(table)


def _check(name: str, probe: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name=name, ok=True, evidence=probe())
    except (HilnasError, ImportError, OSError, RuntimeError) as error:
        return Check(name=name, ok=False, evidence=str(error), remedy=remedy)


def _python() -> str:
    return f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} CPUs"


def _torch() -> str:
    import torch

    capabilities = torch.backends.cpu.get_cpu_capability()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{torch.__version__}, {capabilities}, {torch.get_num_threads()} threads, {gpu}"


def _onnxruntime() -> str:
    from pipeline.onnx_runtime import import_onnxruntime

    runtime = import_onnxruntime()
    providers = ", ".join(runtime.get_available_providers())
    return f"{runtime.__version__} ({providers}), telemetry off"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < MIN_FREE_BYTES:
        raise OSError(f"{free / 2**20:.0f} MiB free in this folder, 1024 MiB wanted")
    return f"{free / 2**30:.1f} GiB free in this folder"


def _table(path: Path) -> str:
    from latency_tables.store import TableStore

    if not path.exists():
        return f"{path} is not there yet; the first measurement makes it"
    with TableStore(path) as store:
        return f"{path}: {store.count()} records"


def _agent(inventory: Inventory) -> str:
    from pipeline.run.devices import hello

    return hello(inventory.find("local"))
