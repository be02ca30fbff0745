"""Starters: run files that come with hilnas."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from latency_tables.errors import UsageError
from latency_tables.files import write_text

_FOLDER = resources.files("pipeline") / "starters"


def starter_names() -> list[str]:
    """Names of the starters, in order."""
    names = (entry.name for entry in _FOLDER.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def starter_text(name: str) -> str:
    """The commented TOML of a starter. Raises UsageError naming those that exist.

    >>> starter_text("digits").splitlines()[0].startswith("#")
    True
    """
    names = starter_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise UsageError(
            f"{name!r} is neither a file nor a starter; starters: {', '.join(names)}",
            hint=f"hilnas run {near[0]}" if near else "hilnas init list",
        )
    return (_FOLDER / f"{name}.toml").read_text()


def starter_summaries() -> list[tuple[str, str]]:
    """Each starter's name and the first line of its comment."""
    return [
        (name, starter_text(name).splitlines()[0].lstrip("# ").rstrip()) for name in starter_names()
    ]


def write_starter(name: str, path: Path, *, force: bool = False) -> Path:
    """Write a starter to ``path``. Raises UsageError where a file is there already."""
    text = starter_text(name)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", hint="another name with --to, or --force")
    write_text(path, text)
    return path
