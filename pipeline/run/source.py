"""Where settings come from: a run file, the name of a starter, or a run folder to go on with."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from latency_tables.errors import ConfigError, UsageError
from latency_tables.files import sha256_file, write_text
from pipeline.config import RunConfig, parse_run_config
from pipeline.run.starters import starter_names, starter_text
from pipeline.spaces import SPACES

LOCK = "run.lock.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSource:
    """Checked settings, and the folder that relative data paths count from.

    ``module`` is the Python file that a run folder's model came from; it is never run unasked.
    """

    name: str
    config: RunConfig
    base: Path
    folder: Path | None = None
    module: Path | None = None


def read_source(source: str, overrides: Sequence[str] = ()) -> RunSource:
    """Find and check the settings that ``source`` names.

    Raises:
        UsageError: neither a file, a starter nor a run folder.
        ConfigError: the settings are wrong.
    """
    path = Path(source)
    if (path / LOCK).is_file():
        return _read_lock(path, overrides)
    if path.is_dir():
        raise UsageError(
            f"{path} holds no {LOCK}, so it is not a run folder", hint="hilnas run FILE|STARTER"
        )
    if path.is_file():
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        return RunSource(name=path.stem, config=parse_run_config(text, overrides), base=path.parent)
    if path.suffix == ".toml":
        raise UsageError(
            f"there is no file {path}", hint=f"hilnas init {starter_names()[0]} --to {path}"
        )
    return RunSource(
        name=source, config=parse_run_config(starter_text(source), overrides), base=Path()
    )


def require_own_model(source: RunSource) -> bool:
    """Whether the space is a model of the user's own, in a file that was named and is there.

    Raises:
        UsageError: there is no such file, or none was named and no shipped space is meant.
    """
    module, name = source.config.space.module, source.config.space.name
    if module is None and source.module is not None and name not in SPACES:
        path = os.path.relpath(source.module)
        raise UsageError(
            f"this run searches {name!r} of {path}, and Python is only run where it is asked for",
            hint=f"the same command with --module {path}",
        )
    if module is None and not difflib.get_close_matches(name, SPACES, n=1):
        raise UsageError(
            f"no search space is called {name!r}; known: {', '.join(sorted(SPACES))}",
            hint="--module FILE.py, if it is a model of your own",
        )
    if module is not None and not Path(module).is_file():
        raise UsageError(f"there is no file {module}", hint="--module FILE.py")
    return module is not None


def write_lock(folder: Path, source: RunSource) -> None:
    """Write the resolved settings, every default included."""
    settings = source.config.model_dump(mode="json", exclude_none=True)
    origin = {"name": source.name, "folder": os.path.relpath(source.base or ".", folder)}
    module = settings["space"].pop("module", None)
    if module is not None:
        origin["module"] = os.path.relpath(module, folder)
        origin["module_sha256"] = sha256_file(Path(module))
    text = (
        "# The resolved settings of this run; 'hilnas run FOLDER' goes on with them.\n"
        + tomlkit.dumps({"origin": origin, **settings})
    )
    write_text(folder / LOCK, text)


def _read_lock(folder: Path, overrides: Sequence[str]) -> RunSource:
    text = (folder / LOCK).read_text()
    try:
        data: dict[str, Any] = tomllib.loads(text)
        origin = data.pop("origin")
        name, base = str(origin["name"]), folder / str(origin["folder"])
        module = folder / str(origin["module"]) if "module" in origin else None
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / LOCK} is damaged ({error})", hint="hilnas run FILE --out that folder"
        ) from None
    config = parse_run_config(tomlkit.dumps(data), overrides)
    return RunSource(name=name, config=config, base=base, folder=folder, module=module)
