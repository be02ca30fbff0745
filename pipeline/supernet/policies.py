"""How batch norms are treated while subnets are scored; free of torch, for settings."""

from __future__ import annotations

from typing import Literal, get_args

BNPolicy = Literal["recalibrate", "batch", "tracked"]
BN_POLICIES: tuple[BNPolicy, ...] = get_args(BNPolicy)
