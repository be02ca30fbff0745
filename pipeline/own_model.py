"""Mark what may vary in a model of your own, and search it like any other space.

:class:`Choice` stands for one of several modules, :class:`Elastic` for a layer that may be narrower
(``width``), have a smaller ``kernel`` or be shallower (``depth``), :class:`Opaque` for a part that
is not to be looked into; :func:`own_space` makes the space. ``docs/own_model.md`` is the guide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.spaces.own_model.layers import Choice, Elastic, Opaque

if TYPE_CHECKING:
    from pipeline.spaces.own_model.space import OwnSpace, own_space

__all__ = ["Choice", "Elastic", "Opaque", "OwnSpace", "own_space"]


def __getattr__(name: str) -> Any:
    """Import what follows models only when it is asked for."""
    if name in ("OwnSpace", "own_space"):
        from pipeline.spaces.own_model import space

        return getattr(space, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
