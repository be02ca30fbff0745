"""The operation ``snapshot``: the state of this moment, for the gates before a round."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Optional

from device_agents.board.system import Tree, snapshot

Json = Dict[str, Any]


def operations(agent: Any) -> Dict[str, Callable[[Json], Json]]:
    """What this module adds to the agent."""

    def look(request: Json) -> Json:
        return dict(snapshot(agent.tree), npu_load_percent=npu_load_percent(agent.tree))

    return {"snapshot": look}


def npu_load_percent(tree: Tree) -> Optional[List[int]]:
    """Load of each NPU core in per cent; None where the kernel does not tell (root only)."""
    text = tree.text("/sys/kernel/debug/rknpu/load")
    return [int(load) for load in re.findall(r"(\d+)\s*%", text)] if text else None
