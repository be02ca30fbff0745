"""Things that run files call by name: spaces, strategies. Imported on use, refused early."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from latency_tables.errors import UsageError


def require_known(name: str, known: Mapping[str, str], *, what: str, key: str) -> None:
    """Raise UsageError, listing what exists, unless ``name`` is known.

    >>> require_known("spas", {"spos": "module:name"}, what="path", key="x")
    Traceback (most recent call last):
    latency_tables.errors.UsageError: no path is called 'spas'; known: spos; try: x = "spos"
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"no {what} is called {name!r}; known: {', '.join(sorted(known))}",
            hint=f'{key} = "{near[0]}"' if near else None,
        )


def load_factory(reference: str) -> Any:
    """Import what ``module:name`` refers to.

    >>> load_factory("math:floor")(1.5)
    1
    """
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
