"""What is wrong with settings that a person wrote: every problem in words, with the nearest key.

Run files and inventories are checked by pydantic models; this turns its errors into sentences.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All problems of ``error``, which checking ``model`` raised.

    >>> class Section(BaseModel, extra="forbid"):
    ...     threads: int = 1
    >>> try:
    ...     Section.model_validate({"thread": 2})
    ... except ValidationError as error:
    ...     explain(error, Section)
    "unknown key 'thread'; did you mean 'threads'?"
    """
    return "; ".join(_explain(problem, model) for problem in error.errors())


def _explain(problem: Any, model: type[BaseModel]) -> str:
    where, message = problem["loc"], str(problem["msg"]).removeprefix("Value error, ")
    dotted = ".".join(str(part) for part in where)
    if problem["type"] == "extra_forbidden":
        known_keys = _known_keys(where[:-1], model)
        near = difflib.get_close_matches(str(where[-1]), known_keys, n=1, cutoff=0.5)
        known = f"known here: {', '.join(sorted(known_keys))}"
        return f"unknown key {dotted!r}; " + (f"did you mean {near[0]!r}?" if near else known)
    if problem["type"] == "missing":
        return f"key {dotted!r} is missing"
    given = problem.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{dotted}: {message}{shown}" if dotted else message


def _known_keys(where: Sequence[str | int], model: Any) -> list[str]:
    """Names that the section at ``where`` accepts."""
    for part in where:
        if isinstance(part, str):
            field = getattr(model, "model_fields", {}).get(part)
            model = _model_in(field.annotation) if field is not None else None
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside an annotation such as ``tuple[DeviceConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
