"""Whether the three packages that run are the ones that were installed together."""

from __future__ import annotations

from pathlib import Path

from latency_tables.errors import UsageError


def package_root() -> Path:
    """The folder that holds pipeline, device_agents and latency_tables.

    Raises:
        UsageError: another package of one of these names comes first on the path.
    """
    import device_agents
    import latency_tables
    import pipeline

    places = {
        package.__name__: Path(str(package.__file__)).resolve().parent.parent
        for package in (pipeline, device_agents, latency_tables)
    }
    if len(set(places.values())) != 1:
        found = ", ".join(f"{name} in {place}" for name, place in places.items())
        raise UsageError(
            f"another package shadows one of ours: {found}",
            hint="run from another folder, or unset PYTHONPATH",
        )
    return places["pipeline"]
