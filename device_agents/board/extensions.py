"""Modules that add operations to the agent, loaded by name so that one may be missing.

An extension has ``operations(agent)``, which gives functions of a request by name. It may use the
agent's ``tree``, ``workdir``, ``supervisor`` and ``event``, and raise
:class:`device_agents.board.rounds.RoundFailed` or OSError.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any, Callable, Dict, Sequence

Json = Dict[str, Any]
Operations = Dict[str, Callable[[Json], Json]]

_PACKAGE = "device_agents.board."


def load(names: Sequence[str], agent: Any) -> Dict[str, Operations]:
    """Operations by module; what is missing is skipped, what is broken complains on stderr."""
    found: Dict[str, Operations] = {}
    for name in names:
        try:
            module = importlib.import_module(_PACKAGE + name)
            operations = getattr(module, "operations", None)
            if operations is not None:
                found[name] = operations(agent)
        except Exception as error:  # one broken extension must not take the agent along
            if getattr(error, "name", None) != _PACKAGE + name:
                traceback.print_exc(file=sys.stderr)
    return found
