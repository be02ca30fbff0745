"""The networks that ``hilnas generate`` made for one limit or a sweep: as HTML and on the terminal.

A latency is never shown without where it comes from: measured on the device, or predicted only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latency_tables.arch import Arch
from latency_tables.estimate import Estimate
from latency_tables.files import write_text
from pipeline.report import figures
from pipeline.report.charts import number_tick, percent_tick
from pipeline.report.html import environment
from pipeline.report.svg import Axis, Plot
from pipeline.search.limits import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One generated network. Accuracies lie between 0 and 1, times are in seconds.

    ``limits`` come with the one that was swept first; ``same_as`` names the folder of an earlier
    member with the same architecture, if there is one.
    """

    folder: str
    limits: tuple[Limit, ...]
    arch: Arch
    accuracy: float
    n_images: int
    test_accuracy: float | None
    n_test_images: int
    predicted: Estimate | None
    measured: Estimate | None
    n_tries: int
    macs: float
    params: float
    hamming: int
    repaired_by: str
    proposing_s: float
    all_s: float
    same_as: str = ""

    @property
    def latency(self) -> Estimate | None:
        """What was measured, else what is predicted."""
        return self.measured or self.predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Generated networks of one run. ``refused`` are limits without a network, and why."""

    run: str
    space: str
    device: str | None
    levels: str
    members: tuple[Member, ...]
    refused: tuple[tuple[str, str], ...] = ()


def member_of(data: Mapping[str, Any], *, same_as: str = "") -> Member:
    """A member from what ``generated.json`` holds."""

    def estimate(name: str) -> Estimate | None:
        found = next(iter(data[name].values()), None)
        return None if found is None else Estimate.from_dict(found)

    accuracy, seconds = data["accuracy"], data["seconds"]
    test = accuracy["test"] or {"value": None, "n_images": 0}
    return Member(
        folder=str(data["folder"]),
        limits=tuple(Limit(**limit) for limit in data["limits"]),
        arch=Arch.from_dict(data["arch"]),
        accuracy=accuracy["search_validation"]["value"],
        n_images=accuracy["search_validation"]["n_images"],
        test_accuracy=test["value"],
        n_test_images=test["n_images"],
        predicted=estimate("predicted"),
        measured=estimate("measured"),
        n_tries=len(data["tries"]),
        macs=data["costs"]["macs"],
        params=data["costs"]["params"],
        hamming=data["hamming"],
        repaired_by=data["repaired_by"],
        proposing_s=seconds["proposal"] + seconds["repair"],
        all_s=seconds["all"],
        same_as=same_as,
    )


def family_of(data: Mapping[str, Any]) -> Family:
    """A family from what ``family.json`` holds."""
    members: list[Member] = []
    first: dict[Arch, str] = {}
    for network in data["networks"]:
        arch = Arch.from_dict(network["arch"])
        members.append(member_of(network, same_as=first.get(arch, "")))
        first.setdefault(arch, str(network["folder"]))
    generator = data["generator"]
    on = f" on {generator['device']}" if generator["device"] else ""
    ends = [figures.quantity(generator["levels"][end]) for end in (0, -1)]
    return Family(
        run=data["run"],
        space=f"{data['space']['name']}, {data['space']['preset']}",
        device=data["device"],
        levels=f"{ends[0]} to {ends[1]} {generator['unit']}{on}",
        members=tuple(members),
        refused=tuple((str(Limit(**r["limit"])), r["why"]) for r in data["refused"]),
    )


# -- HTML ------------------------------------------------------------------------------------------


def write_family_report(path: Path, data: Mapping[str, Any]) -> None:
    """Write the report of ``family.json``, whole or not at all."""
    write_text(path, render_family(family_of(data)))


def render_family(family: Family) -> str:
    """The report as one HTML document that loads nothing.

    >>> page = render_family(Family(run="<b>", space="s", device=None, levels="", members=()))
    >>> "&lt;b&gt;" in page, "<b>" in page
    (True, False)
    """
    members = family.members
    return (
        environment()
        .get_template("family.html.j2")
        .render(
            family=family,
            chart=family_chart(family),
            n_predicted=sum(m.measured is None and m.predicted is not None for m in members),
            proposing_s=_mean([m.proposing_s for m in members]),
            all_s=_mean([m.all_s for m in members]),
        )
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def family_chart(family: Family) -> Markup | None:
    """Accuracy against latency, or against MACs where no latency is known."""
    members = family.members
    if not members:
        return None
    timed = all(m.latency is not None for m in members)
    xs: list[float] = []
    for m in members:
        e = m.latency
        xs += [e.low_ms, e.high_ms] if timed and e is not None else [m.macs / 1e6]
    plot = Plot(
        Axis.around("latency in ms" if timed else "MMACs", xs, number_tick, floor=0.0),
        Axis.around(
            "accuracy on the search split", [m.accuracy for m in members], percent_tick, floor=0.0
        ),
        caption="Accuracy of the family",
        width=1060,
        height=360,
    )
    for m in members:
        e = m.latency
        at = e.latency_ms if timed and e is not None else m.macs / 1e6
        if timed and e is not None:
            plot.bar((e.low_ms, m.accuracy), (e.high_ms, m.accuracy), "interval")
        style = "seen" if timed and m.measured is None else "measured"
        said = f"{figures.percent(m.accuracy)}, {figures.sourced(e)}" if e else ""
        plot.dot((at, m.accuracy), style, f"{m.limits[0]}\n{said}", radius=4)
    return plot.svg()


# -- terminal --------------------------------------------------------------------------------------


def print_family(family: Family, console: Console) -> None:
    """Print a table of the networks, then the limits that none keeps."""
    title = Text(figures.visible(f"latencies in ms on {family.device}")) if family.device else None
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("limit", no_wrap=True)
    for column in ("accuracy", "measured", "predicted", "MACs", "changed", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    measured = any(m.measured is not None for m in family.members)
    for m in family.members:
        table.add_row(
            m.limits[0].show(m.limits[0].bound).removesuffix(" MACs").removesuffix(" parameters"),
            figures.percent(m.accuracy, 2),
            _in_ms(m.measured, interval=True),
            _in_ms(m.predicted, interval=not measured),
            figures.quantity(m.macs),
            f"{m.hamming} of {len(m.arch)}",
            f"{m.all_s:.1f}",
        )
    console.print(table)
    proposing = _mean([m.proposing_s for m in family.members])
    whole = _mean([m.all_s for m in family.members])
    console.print(
        f"{len(family.members)} networks: {proposing:.3f} s each for proposal and repair, "
        f"{whole:.1f} s in all (mean)"
    )
    if any(m.measured is None and m.predicted is not None for m in family.members):
        console.print(Text("latencies without a measured one are predictions only", "yellow"))
    for limit, why in family.refused:
        console.print(Text(figures.visible(f"no network for {limit}: {why}"), "yellow"))


def print_member(member: Member, console: Console) -> None:
    """Print what a network can do and where it lies."""
    table = Table.grid(padding=(0, 3))
    for limit in member.limits:
        table.add_row("limit", Text(figures.visible(limit)), _verdict(member, limit))
    if member.measured is not None:
        table.add_row("measured", figures.latency(member.measured), _about(member.measured))
    if member.predicted is not None:
        only = "" if member.measured else ", not measured"
        table.add_row(
            member.predicted.source, figures.latency(member.predicted),
            f"{_about(member.predicted)}{only}",
        )  # fmt: skip
    table.add_row(
        "accuracy", figures.percent(member.accuracy, 2), f"{member.n_images:,} search images"
    )
    if member.test_accuracy is not None:
        table.add_row(
            "", figures.percent(member.test_accuracy, 2),
            f"{member.n_test_images:,} test images, ONNX file",
        )  # fmt: skip
    table.add_row(
        "network", f"{figures.quantity(member.macs)} MACs",
        f"{figures.quantity(member.params)} parameters",
    )  # fmt: skip
    table.add_row(
        "repair", f"{member.hamming} of {len(member.arch)}", "decisions changed of the proposal"
    )
    table.add_row(
        "time", f"{member.proposing_s:.3f} s", f"proposal and repair; {member.all_s:.1f} s in all"
    )
    console.print(table)


def _verdict(member: Member, limit: Limit) -> Text:
    if limit.metric != "latency_ms":
        value = {"macs": member.macs, "params": member.params}.get(limit.metric)
        return Text("" if value is None else f"{limit.show(value)}, kept", "green")
    e = member.latency
    if e is None:
        return Text("not known", "yellow")
    if member.measured is None:
        return Text("predicted, not measured", "yellow")
    narrow = ", but its interval reaches beyond" if e.straddles(limit.bound) else ""
    return Text(f"kept{narrow}", "yellow" if narrow else "green")


def _about(estimate: Estimate) -> str:
    return f"{figures.interval(estimate)} ms at {estimate.level:.0%}"


def _in_ms(estimate: Estimate | None, *, interval: bool) -> str:
    """A latency without its unit, which the title names; an interval need not be symmetric."""
    if estimate is None:
        return figures.MISSING
    found = figures.significant(estimate.latency_ms)
    if not interval:
        return found
    low, high = (figures.significant(end, 2) for end in (estimate.low_ms, estimate.high_ms))
    return f"{found} ({low}…{high})"
