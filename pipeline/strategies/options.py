"""Reading the table ``[train.options]`` of a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from latency_tables.errors import UsageError

Options = TypeVar("Options", bound=BaseModel)


def parse_options(model: type[Options], options: Mapping[str, Any], *, strategy: str) -> Options:
    """Check the options of a strategy. Raises UsageError, naming those that it has.

    >>> class Depth(BaseModel, extra="forbid"):
    ...     depth: int = 3
    >>> parse_options(Depth, {"depth": 4}, strategy="mine")
    Depth(depth=4)
    >>> parse_options(Depth, {"deep": 4}, strategy="mine")
    Traceback (most recent call last):
    latency_tables.errors.UsageError: train.options.deep: Extra inputs are not permitted; \
strategy 'mine' has the options depth
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["train.options", *map(str, first["loc"])])
        known = ", ".join(model.model_fields)
        has = f"has the options {known}" if known else "has no options"
        raise UsageError(f"{where}: {first['msg']}; strategy {strategy!r} {has}") from error
