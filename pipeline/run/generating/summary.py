"""What ``generated.json`` says of a network, and what is printed while it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from latency_tables.files import sha256_file

if TYPE_CHECKING:
    from pipeline.run.generating.subnets import Subnet, Subnets

SCHEMA = "hilnas.generated/1"


def tell(subnets: Subnets, made: Subnet) -> None:
    """One line per step, for who watches."""
    proposed, chosen = made.proposed, made.chosen
    moved = f"{chosen.hamming} of {len(chosen.arch)} decisions"
    reporter = subnets.context.reporter
    reporter.say(
        f"  generator {subnets.proposals.describe(proposed)}; repair changed {moved} "
        f"({1e3 * (proposed.proposal_s + proposed.repair_s):.0f} ms"
        f"{', by draws' if chosen.how == 'draws' else ''})"
    )
    if made.predicted is not None and subnets.latency is not None:
        e, where = made.predicted, subnets.latency.name
        reporter.say(
            f"  {e.latency_ms:.4g} ms {e.source} on {where} ({e.low_ms:.4g} to {e.high_ms:.4g} at "
            f"{e.level:.0%})" + ("" if made.measured else ", not measured")
        )
    if made.measured is not None and subnets.latency is not None:
        e = made.measured
        reporter.say(
            f"  {e.latency_ms:.4g} ms measured on {subnets.latency.name} ({e.low_ms:.4g} to "
            f"{e.high_ms:.4g} at {e.level:.0%})"
        )


def summary_of(
    subnets: Subnets, made: Subnet, accuracy: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    """The content of ``generated.json``, JSON-ready; ``accuracy`` is the manifest's."""
    context, loaded = subnets.context, subnets.loaded
    ask, proposed, chosen = made.ask, made.proposed, made.chosen
    table = subnets.table
    device = None if subnets.latency is None else subnets.latency.name
    predicted = [] if made.predicted is None else [made.predicted]
    kept: dict[str, bool] = {
        limit.metric: table.cost(chosen.arch, limit.metric) <= limit.bound
        for limit in ask.limits
        if limit.metric != "latency_ms"
    }
    bound, latency = ask.latency_bound, made.measured or made.predicted
    if bound is not None and latency is not None:
        kept["latency_ms"] = latency.keeps(bound)
    return {
        "schema": SCHEMA,
        "run": context.folder.path.name,
        "space": {"id": context.space.space_id, "name": context.space.name,
                  "preset": context.space.preset},
        "generator": {
            "sha256": sha256_file(context.folder.file("generator.safetensors")),
            "cost": loaded.column, "unit": loaded.unit, "device": loaded.device,
            "levels": list(loaded.targets),
        },
        "limits": [limit.to_dict() for limit in ask.limits],
        "kept": kept,
        "latency_is": None if latency is None else latency.source,
        "device": device,
        "target": proposed.target,
        "proposal": {
            "arch": dict(proposed.proposal),
            "cost": table.cost(proposed.proposal, ask.leading.metric),
        },
        "window": {"cost": proposed.window.column, "low": proposed.window.low,
                   "high": proposed.window.high},
        "arch": dict(chosen.arch),
        "cost": chosen.cost,
        "hamming": chosen.hamming,
        "n_decisions": len(chosen.arch),
        "log_probability": chosen.log_probability,
        "repaired_by": chosen.how,
        "candidates": len(proposed.found),
        "costs": context.cost_table.costs(chosen.arch),
        "predicted": {str(device): e.to_dict() for e in predicted},
        "measured": {} if made.measured is None else {str(device): made.measured.to_dict()},
        "tries": [
            {"arch": dict(t.arch),
             "predicted": None if t.predicted is None else t.predicted.to_dict(),
             "measured": None if t.measured is None else t.measured.to_dict()}
            for t in made.tries
        ],
        "accuracy": accuracy,
        "seconds": seconds,
    }  # fmt: skip


def render(found: dict[str, Any], console: Console) -> None:
    """Print a network or a family, where it lies, and how to check it."""
    from pipeline.report.family import family_of, member_of, print_family, print_member

    folder, device = found["folder"], found["device"]
    on = f" --device {device}" if device else ""
    if "networks" in found:
        print_family(family_of(found), console)
        console.print(f"report: {escape(folder)}/report.html", soft_wrap=True)
        folder = f"{folder}/{found['networks'][0]['folder']}"
    else:
        print_member(member_of(found), console)
        console.print(f"network: {escape(folder)}/subnet.onnx", soft_wrap=True)
    console.print(f"check it with:  hilnas check {escape(folder + on)}", soft_wrap=True)
