"""``devices.toml``: the boards that there are. The project's file comes before the user's.

::

    [[device]]
    name = "rk3588-a"
    ssh = "lab-rk3588"                # an alias of ~/.ssh/config; or host, port, user, key
    tags = ["rk3588", "lab"]
    pin = "big"                       # or "little", "mid", or cores = [4, 5]
    threads = 2
    clocks = { policy4 = 2208000 }    # kHz; devfreq devices in Hz
    power = "sudo"                    # observe | direct | sudo
    workdir = "/userdata/hilnas"
    max_temperature_c = 70

Secrets have no place in it: a key called password, passphrase or token is refused. Keys that
``hilnas devices trust`` accepts go to ``devices.known_hosts`` beside the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from tomlkit.exceptions import ParseError
from tomlkit.items import AoT, Table

from device_agents.devices import DeviceSpec, Power, SshAddress
from device_agents.settings import explain
from latency_tables.errors import ConfigError, UsageError
from latency_tables.files import write_text

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
SECRETS = ("password", "passphrase", "token", "secret")


class DeviceEntry(BaseModel):
    """One ``[[device]]`` of an inventory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=rf"^{NAME}$")
    ssh: str | None = Field(default=None, pattern=r"^[^\s-]\S*$")
    host: str | None = Field(default=None, pattern=r"^[^\s-]\S*$")
    port: int | None = Field(default=None, ge=1, le=65535)
    user: str | None = Field(default=None, pattern=r"^[^\s-]\S*$")
    key: Path | None = None
    tags: tuple[str, ...] = ()
    threads: int = Field(default=1, ge=1, le=1024)
    pin: Literal["", "big", "mid", "little"] = ""
    cores: tuple[int, ...] = ()
    runtime: str = Field(default="onnxruntime", pattern=r"^[a-z][a-z0-9_]{0,40}$")
    provider: str = ""
    runtime_options: dict[str, Any] = {}
    optimization: str = "all"
    spinning: bool | None = None
    workdir: Path | None = None
    memory_limit_bytes: int | None = Field(default=None, ge=1 << 20)
    clocks: dict[str, int] = {}
    power: Power = "observe"
    max_temperature_c: float | None = Field(default=None, ge=20, le=120)
    python: str = "python3"
    deadline_s: float = Field(default=10.0, ge=2, le=600)

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if str(key).lower() in SECRETS:
                raise ValueError(
                    f"{key} has no place in an inventory: keys stay in their files and in the "
                    "ssh agent"
                )
        return data

    @field_validator("workdir")
    @classmethod
    def _absolute(cls, workdir: Path | None) -> Path | None:
        if workdir is not None and not workdir.is_absolute():
            raise ValueError(f"{workdir} must be an absolute path on the device")
        return workdir

    @model_validator(mode="after")
    def _one_address(self) -> DeviceEntry:
        if (self.ssh is None) == (self.host is None):
            raise ValueError("either ssh (an alias) or host (with port, user, key) is needed")
        return self

    def spec(self, file: Path) -> DeviceSpec:
        """The device, with the keys trusted for ``file``."""
        address = SshAddress(
            host=self.ssh or self.host or "",
            port=self.port,
            user=self.user,
            key=None if self.key is None else self.key.expanduser(),
            known_hosts=(file.with_suffix(".known_hosts").absolute(),),
        )
        own = {f.name for f in fields(DeviceSpec)} - {"ssh"}
        settings = {name: value for name, value in self if name in own}
        return DeviceSpec(transport="ssh", ssh=address, **settings)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    device: tuple[DeviceEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Devices by name, this machine (``local``) among them, and the file that each came from."""

    devices: Mapping[str, DeviceSpec]
    files: Mapping[str, Path]

    def find(self, name: str) -> DeviceSpec:
        """The device called ``name``. Raises UsageError naming those that exist."""
        if name not in self.devices:
            raise UsageError(
                f"device {name!r} does not exist; there are: {', '.join(sorted(self.devices))}",
                hint=f"hilnas devices add {name} --host HOST",
            )
        return self.devices[name]

    def tagged(self, tag: str) -> tuple[DeviceSpec, ...]:
        """The devices that carry ``tag``, by name; may be none."""
        return tuple(d for _, d in sorted(self.devices.items()) if tag in d.tags)


def local_only(work_dir: Path) -> Inventory:
    """Just this machine, whose agent works below ``work_dir``.

    >>> local_only(Path("/tmp/agent")).find("local").transport
    'local'
    """
    local = DeviceSpec(name="local", workdir=work_dir)
    return Inventory(devices={local.name: local}, files={})


def read_inventory(*files: Path, work_dir: Path) -> Inventory:
    """Read inventories, earlier files first; those that do not exist are empty.

    Raises:
        ConfigError: a file is not TOML, or an entry of it is wrong.
    """
    found = local_only(work_dir)
    devices, origins = dict(found.devices), dict(found.files)
    for file in reversed(files):
        for entry in _read(file):
            devices[entry.name], origins[entry.name] = entry.spec(file), file
    local = devices["local"]
    if local.transport != "local":
        raise ConfigError(f"{origins['local']}: the name 'local' is taken by this machine")
    return replace(found, devices=devices, files=origins)


def add_device(file: Path, entry: Mapping[str, Any]) -> None:
    """Append an entry, keeping what is in the file, comments too.

    Raises:
        ConfigError: the file or the entry is wrong.
        UsageError: the name is taken.
    """
    known = {device.name for device in _read(file)}
    if entry.get("name") in {*known, "local"}:
        raise UsageError(
            f"device {entry['name']!r} is in {file} already", hint=f"edit {file}, or choose a name"
        )
    document = _document(file)
    section = tomlkit.table()
    for key, value in entry.items():
        section.add(key, value)
    listed = document.setdefault("device", tomlkit.aot())
    listed.append(section)
    _write(file, document)


def check_entry(file: Path, entry: Mapping[str, Any]) -> DeviceEntry:
    """An entry for ``file``, checked and not written. Raises ConfigError."""
    return _check(file, tomlkit.dumps({"device": [dict(entry)]}))[0]


def change_device(file: Path, name: str, **changes: Any) -> None:
    """Set keys of an entry, keeping the rest. Raises ConfigError, UsageError where it is absent."""
    document = _document(file)
    listed = document.get("device", [])
    for section in listed if isinstance(listed, AoT) else ():
        if isinstance(section, Table) and section.get("name") == name:
            section.update(changes)
            _write(file, document)
            return
    raise UsageError(f"device {name!r} is not in {file}")


def _document(file: Path) -> tomlkit.TOMLDocument:
    if not file.exists():
        return tomlkit.document()
    try:
        return tomlkit.parse(file.read_text())
    except (ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def _write(file: Path, document: tomlkit.TOMLDocument) -> None:
    text = tomlkit.dumps(document)
    _check(file, text)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _read(file: Path) -> tuple[DeviceEntry, ...]:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    return _check(file, text)


def _check(file: Path, text: str) -> tuple[DeviceEntry, ...]:
    try:
        entries = _File.model_validate(tomllib.loads(text)).device
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, _File)}") from None
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise ConfigError(f"{file}: device names must differ: {', '.join(names)}")
    for entry in entries:
        try:
            entry.spec(file)  # what DeviceSpec refuses is refused here, with the file's name
        except UsageError as error:
            raise ConfigError(f"{file}: {error.message}") from None
    return entries
