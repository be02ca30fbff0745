"""Stage ``profile``: size and exact costs of the space, and limits that no network can keep."""

from __future__ import annotations

from latency_tables.files import write_json
from pipeline.run.context import RunContext
from pipeline.run.profile import profile_space
from pipeline.run.stage import Stage


def run_profile(context: RunContext) -> None:
    """Tabulate the costs of the space and write ``profile.json``.

    Raises:
        LimitBelowFastestError: a limit on MACs, parameters, size or memory is below the cheapest.
    """
    with context.reporter.busy("recording every choice"):
        found = profile_space(context.space, [d.limits for d in context.config.device])
    write_json(context.folder.file("profile.json"), found)
    macs = found["costs"]["macs"]
    context.reporter.say(
        f"  {context.space.name}: {found['size']:.3g} networks, "
        f"{macs['min'] / 1e6:.2f} to {macs['max'] / 1e6:.2f} M MACs"
    )


PROFILE = Stage(
    name="profile",
    title="counting what every choice costs",
    run=run_profile,
    settings=lambda context: {
        "space": context.space.describe(),
        "limits": [d.limits.model_dump(mode="json") for d in context.config.device],
    },
    needs=("data",),
    outputs=("profile.json",),
)
