"""Settings of the export, without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from latency_tables.errors import ConfigError

MIN_OPSET, MAX_OPSET = 13, 22
"""Operator sets that can be written: version conversion reaches down to 13 (onnxruntime 1.6)."""

MIN_IR, MAX_IR = 7, 10
"""ONNX file formats (IR versions) that can be written."""


class ExportConfig(BaseModel):
    """How the chosen subnet becomes a file.

    >>> ExportConfig().opset
    'auto'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    opset: Literal["auto"] | int = "auto"
    """ONNX operator set; ``auto`` takes the newest useful one that every device's runtime reads."""
    ir_version: Literal["auto"] | int = "auto"
    """ONNX file format; ``auto`` follows the devices' runtimes, too."""
    int8: bool = False
    """Also write an int8 model. Not available yet; ``true`` is refused."""
    parity_images: int = Field(64, ge=1, le=10_000)
    """Real images on which torch and onnxruntime must agree before the file gets its name."""
    tolerance: float = Field(1e-4, gt=0.0, le=0.1)
    """Largest allowed difference of a logit, as a share of the largest logit (at least of 1)."""
    golden_images: int = Field(8, ge=1, le=64)
    """Samples stored with the model so that it can be checked anywhere without the data set."""

    @field_validator("opset")
    @classmethod
    def _known_opset(cls, value: Literal["auto"] | int) -> Literal["auto"] | int:
        if value != "auto" and not MIN_OPSET <= value <= MAX_OPSET:
            raise ValueError(f'opset = {value}: "auto" or {MIN_OPSET} to {MAX_OPSET} is allowed')
        return value

    @field_validator("ir_version")
    @classmethod
    def _known_ir(cls, value: Literal["auto"] | int) -> Literal["auto"] | int:
        if value != "auto" and not MIN_IR <= value <= MAX_IR:
            raise ValueError(f'ir_version = {value}: "auto" or {MIN_IR} to {MAX_IR} is allowed')
        return value

    @field_validator("int8")
    @classmethod
    def _no_int8_yet(cls, value: bool) -> bool:
        if value:
            # not a ValueError: pydantic lets it pass, so the user reads this text and the hint
            raise ConfigError(
                "int8 = true: int8 export is not available yet, only float32 is",
                hint="int8 = false in [export]; a board's own tools can quantise subnet.onnx",
            )
        return value
