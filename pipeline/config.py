"""The run file: every setting of a run, checked before anything starts.

A run file is TOML; each section's model lives beside the code that uses it and is put together
here. Unknown keys are refused with the nearest known name. This module does not import torch.

>>> config = parse_run_config('[data]\\nname = "digits"\\n[space]\\nname = "shufflenetv2"')
>>> config.space.preset, config.device[0].name
('tiny', 'local')
>>> parse_run_config('[data]\\nname = "digits"\\n[serch]\\npopulation = 20')
Traceback (most recent call last):
    ...
latency_tables.errors.ConfigError: unknown key 'serch'; did you mean 'search'?
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from device_agents.measuring.profiles import ProfileName
from device_agents.settings import explain
from latency_tables.errors import ConfigError
from pipeline.data.config import DataConfig
from pipeline.export.config import ExportConfig
from pipeline.search.config import LimitsConfig, SearchConfig
from pipeline.supernet.transfer_config import TransferConfig
from pipeline.training.config import TrainConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpaceConfig(_Section):
    """``[space]``: which search space, at which size.

    ``module`` is the Python file that has the model ``name``. Only ``--module`` sets it, so that
    settings alone never run code. ``resample_to`` is the height and width to which a layer that
    learns brings the images; without it, networks take them as they are.
    """

    name: str = "shufflenetv2"
    preset: str = "tiny"
    module: str | None = None
    resample_to: int | None = Field(default=None, ge=4, le=2048)


class DeviceConfig(_Section):
    """``[[device]]``: a device that the subnet is for, and the limits it sets.

    ``name`` is "local" or one of ``devices.toml``; ``threads`` left out: what stands there.
    """

    name: str = "local"
    limits: LimitsConfig = LimitsConfig()
    measuring: ProfileName = "quick"
    threads: int | None = Field(default=None, ge=1, le=1024)


class LatencyConfig(_Section):
    """``[latency]``: how the latency table is built.

    ``samples`` networks are measured, spread over the MACs of the space. Of the search's front,
    the ``remeasure`` best networks that the table predicts to keep the limits are measured again.
    ``accept`` names gates whose refusal of the table is overridden, on record.
    """

    samples: int = Field(default=40, ge=10, le=1_000_000)
    remeasure: int = Field(default=8, ge=1, le=10_000)
    accept: tuple[str, ...] = ()


class RunConfig(_Section):
    """A whole run file."""

    seed: int = Field(default=0, ge=0)
    data: DataConfig
    space: SpaceConfig = SpaceConfig()
    train: TrainConfig = TrainConfig()
    transfer: TransferConfig | None = None
    device: tuple[DeviceConfig, ...] = (DeviceConfig(),)
    latency: LatencyConfig = LatencyConfig()
    search: SearchConfig = SearchConfig()
    export: ExportConfig = Field(default_factory=lambda: ExportConfig.model_validate({}))

    @field_validator("device")
    @classmethod
    def _distinct_devices(cls, devices: tuple[DeviceConfig, ...]) -> tuple[DeviceConfig, ...]:
        names = [d.name for d in devices]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"[[device]] must name one or more different devices, not {names}")
        return devices

    @model_validator(mode="after")
    def _objectives_of_its_devices(self) -> Self:
        there = [f"latency:{d.name}" for d in self.device]
        for name in self.search.objectives or ():
            if name.startswith("latency:") and name not in there:
                raise ValueError(
                    f"search.objectives: {name!r} is of no [[device]] of this run; there are "
                    f"{', '.join(there)}"
                )
        return self


def parse_run_config(text: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file's text; ``overrides`` are ``key=value``, as in ``train.epochs=5``.

    Raises:
        ConfigError: not TOML, an unknown key (names the nearest), or a value out of range.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the run file is not TOML: {error}") from None
    if isinstance(space := data.get("space"), dict) and "module" in space:
        raise ConfigError("a run file cannot name Python code to run", hint="--module FILE.py")
    apply_overrides(data, overrides)
    return run_config_of(data)


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set ``key=value`` texts in decoded settings, in place. Raises ConfigError.

    >>> settings = {"optimizer": {"lr": 0.1}}
    >>> apply_overrides(settings, ["optimizer.lr=0.5"])
    >>> settings
    {'optimizer': {'lr': 0.5}}
    """
    for override in overrides:
        _apply(data, override)


def run_config_of(data: Mapping[str, Any]) -> RunConfig:
    """Check decoded settings. Raises ConfigError, with every problem in one message."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig)) from None


def _apply(data: dict[str, Any], override: str) -> None:
    """Set ``a.b.0.c=value``; the value is TOML, or text where it is not."""
    path, equals, value = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set takes key=value, not {override!r}", hint="--set train.epochs=5")
    node: Any = data
    *parents, last = path.strip().split(".")
    for key in parents:
        node = _child(node, key, path)
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if isinstance(node, list) and len(node) == 1:
        node = node[0]
    if not isinstance(node, dict):
        raise ConfigError(f"--set {path}: {last!r} needs the number of the entry before it")
    node[last] = parsed


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    if isinstance(node, list) and len(node) == 1:
        return _child(node[0], key, path)
    if isinstance(node, dict):
        if key == "device" and key not in node:
            node[key] = [{}]
        return node.setdefault(key, {})
    raise ConfigError(f"--set {path}: there is nothing called {key!r} to set a value in")
