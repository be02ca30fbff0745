"""A measurement in the terminal: facts first, then numbers, then what to think of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from device_agents.files.advice import Advice
from device_agents.files.budget import Judgement
from device_agents.files.measure_file import FileMeasurement
from device_agents.files.passes import Operator, Operators
from device_agents.link.client import clean_text
from device_agents.measuring.sustained import Sustained
from latency_tables.records import NS_PER_MS, Statistics
from pipeline.run.measuring import MeasureReport

TOP_OPERATORS = 15
PERIODS = 12
"""Rows of a sustained run; the JSON has all of them."""

_COLOURS = {
    **{"fail": "red", "warn": "yellow", "note": "cyan"},
    **{"pass": "green", "inconclusive": "yellow"},
}


def render(report: MeasureReport, console: Console) -> None:
    """Print a report; texts of files and boards are hostile and escaped."""
    render_numbers(report.best, console)
    _sweep(report, console)
    _sustained(report.sustained, console)
    _limits(report.judgements, console)
    _advice(report.best.advice, console)


def render_numbers(found: FileMeasurement, console: Console) -> None:
    """Print the facts and numbers of one measurement, without what to think of them."""
    _model(found, console)
    _device(found, console)
    if found.measurement.statistics is None:
        console.print("nothing was timed")
        return
    _latency(found, found.measurement.statistics, console)
    _phases(found, console)
    _outputs(found, console)
    _operators(found.operators, console)


def _section(console: Console, title: str) -> None:
    console.print(f"\n[bold]{title}[/bold]")


def _grid(rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    listed = [list(row) for row in rows]
    for index in range(max(map(len, listed), default=0)):
        table.add_column(justify="right" if index in right else "left", overflow="fold")
    for row in listed:
        table.add_row(*row)
    return table


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (0,)
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _model(found: FileMeasurement, console: Console) -> None:
    model = found.model
    opsets = ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in model.opsets.items())
    extra = f" + {_mb(model.external_bytes)} beside it" if model.external_bytes else ""
    rows = [
        (
            "file",
            f"{_safe(model.name)}, {_mb(model.size_bytes)}{extra}, {model.n_nodes} operators",
        ),
        ("sha256", model.sha256),
        ("format", _safe(f"IR {model.ir_version}, opset {opsets}, by {model.producer or '?'}")),
    ]
    for one in model.inputs:
        shape = found.shapes.get(one.name, one.shape)
        rows.append(("input", _safe(f"{one.name}  {one.type} {'x'.join(map(str, shape))}")))
    for one in model.outputs:
        shown = "x".join(str(size) or "?" for size in one.shape)
        rows.append(("output", _safe(f"{one.name}  {one.type} {shown}")))
    _section(console, "Model")
    console.print(_grid(rows))


def _device(found: FileMeasurement, console: Console) -> None:
    record, identity = found.measurement, found.device.identity
    runtime = record.runtime
    cores = ", ".join(map(str, record.cores)) or "any"
    rows = [
        ("device", _safe(f"{record.device_name}, {identity.get('soc') or '?'}")),
        ("runtime", _safe(f"{runtime['name']} {runtime['version']}")),
        (
            "provider",
            _safe(
                f"{runtime.get('provider') or '?'}, graph optimization "
                f"{runtime.get('graph_optimization', '?')}"
            ),
        ),
        ("threads", f"{record.threads} on core(s) {cores}"),
    ]
    _section(console, "Device")
    console.print(_grid(rows))


def _latency(found: FileMeasurement, numbers: Statistics, console: Console) -> None:
    record = found.measurement
    low, high = numbers.ci_low_ns, numbers.ci_high_ns
    half = (high - low) / 2 / numbers.median_ns
    rows = [
        ("load", _ms(numbers.load_ns), "median over processes"),
        ("first run", _ms(numbers.first_ns), "not part of the latency"),
        ("warm-up", f"{numbers.warmup_runs} runs", "not part of the latency"),
        (
            "median",
            f"[bold]{_ms(numbers.median_ns)}[/bold]",
            f"95 % interval {_range(low, high)}, ±{half:.1%}",
        ),
        ("min", _ms(numbers.min_ns), ""),
        ("mean", _ms(numbers.mean_ns), f"standard deviation {_ms(numbers.std_ns)}"),
    ]
    floors = (
        ("p90", numbers.p90_ns, 64),
        ("p95", numbers.p95_ns, 130),
        ("p99", numbers.p99_ns, 662),
    )
    grouped = (record.provenance.get("rounds") or {}).get("calls_per_sample", 1) > 1
    for name, value, floor in floors:
        why = "timed in groups" if grouped else f"fewer than {floor} independent runs"
        why = "" if value is not None else why
        rows.append((name, "-" if value is None else _ms(value), why))
    rate, slow, fast = (1e9 / value for value in (numbers.median_ns, high, low))
    rows += [
        ("throughput", f"{rate:.4g} /s", f"{slow:.4g} … {fast:.4g}, one run after the other"),
        ("timed runs", str(numbers.n_samples), f"in {numbers.n_rounds} processes"),
    ]
    if numbers.ratio_to_reference is not None:
        rows.append(("ratio", f"{numbers.ratio_to_reference:.4g}", "to the reference network"))
    memory = "-" if record.peak_memory_bytes is None else _mb(record.peak_memory_bytes)
    rows.append(("peak memory", memory, "growth of the process by loading and one run"))
    _section(console, "Latency")
    console.print(_grid([(a, b, f"[dim]{c}[/dim]") for a, b, c in rows], right=(1,)))


def _phases(found: FileMeasurement, console: Console) -> None:
    phases = found.inspection.phases
    if not phases:
        return
    total = sum(phase.median_ns for phase in phases) or 1
    _section(console, "Phases [dim](a pass of its own)[/dim]")
    rows = [
        (
            _safe(p.name),
            *(f"{value / NS_PER_MS:.4f}" for value in (p.median_ns, p.min_ns, p.max_ns)),
            f"{p.median_ns / total:.1%}",
        )
        for p in phases
    ]
    console.print(_table(("phase", "median ms", "min ms", "max ms", "share"), rows))


def _outputs(found: FileMeasurement, console: Console) -> None:
    check = found.outputs
    _section(console, "Outputs [dim](against this machine's onnxruntime)[/dim]")
    if check.right is None:
        console.print(f"[yellow]not checked[/yellow]: {_safe(check.note)}")
        return
    console.print("[green]right[/green]" if check.right else "[red]WRONG[/red]")
    rows = [
        (
            _safe(one.name),
            "right" if one.right else "[red]wrong[/red]",
            *("-" if v is None else f"{v:.3g}" for v in (one.max_abs_error, one.max_rel_error)),
            "-" if one.cosine is None else f"{one.cosine:.6f}",
            _safe(one.problem),
        )
        for one in check.outputs
    ]
    header = ("output", "", "max abs error", "max rel error", "cosine", "")
    if rows:
        console.print(_table(header, rows, left=(0, 1, 5)))
    if check.note:
        console.print(_safe(check.note))


def _operators(operators: Operators | str | None, console: Console) -> None:
    if operators is None:
        return
    _section(console, "Operators [dim](a pass of its own; profiling slows every operator)[/dim]")
    if isinstance(operators, str):
        console.print(_safe(operators))
        return
    top = operators.rows[:TOP_OPERATORS]
    header = ("operator", "type", "provider", "calls", "total µs", "median µs", "share")
    console.print(_table(header, map(_operator, top), left=(0, 1, 2)))
    rest = operators.n_operators - len(top)
    if rest > 0:
        other_us = operators.total_us - sum(row.total_us for row in top)
        share = other_us / (operators.total_us or 1)
        console.print(f"[dim]and {rest} more, {other_us:.1f} µs, {share:.1%}[/dim]")
    console.print()
    rows = [_operator(row)[1:] for row in operators.by_type]
    console.print(_table(header[1:], rows, left=(0, 1)))


def _operator(row: Operator) -> tuple[str, ...]:
    return (
        _safe(row.name),
        _safe(row.op),
        _safe(row.provider.removesuffix("ExecutionProvider")),
        str(row.calls),
        f"{row.total_us:.1f}",
        f"{row.median_us:.1f}",
        f"{row.share:.1%}",
    )


def _sweep(report: MeasureReport, console: Console) -> None:
    if not report.sweep:
        return
    _section(console, "Threads [dim](rounds interleaved, before the rest)[/dim]")
    rows = []
    for row in report.sweep:
        numbers, failure = row.statistics, row.result.failure
        codes = ", ".join(verdict.code for verdict in row.result.verdicts)
        median, interval = "-", "-"
        if numbers is not None:
            median = f"{numbers.median_ms:.4f}"
            interval = _range(numbers.ci_low_ns, numbers.ci_high_ns)
        mark = "fastest" if row.best else "as fast, perhaps" if row.tied else ""
        codes = codes if failure is None else f"{failure['code']}: {failure['message'][:100]}"
        rows.append((row.label, median, interval, mark, _safe(codes)))
    header = ("threads", "median ms", "95 % interval", "", "verdicts")
    console.print(_table(header, rows, left=(0, 3, 4)))


def _sustained(sustained: Sustained | None, console: Console) -> None:
    if sustained is None:
        return
    last = sustained.periods[-1]
    since = sustained.throttled_after_s
    when = "not seen" if since is None else f"after {since:.0f} s: {sustained.throttled_by}"
    rows = [
        ("duration", f"{last.end_s:.0f} s, {sum(p.n_runs for p in sustained.periods)} runs"),
        ("at first", _ms(sustained.first_minute_ns)),
        ("at last", f"{_ms(sustained.last_minute_ns)}, × {sustained.slowdown:.3f}"),
        ("throttling", _safe(when)),
        ("energy", _safe(sustained.energy_text)),
    ]
    _section(console, "Sustained")
    console.print(_grid(rows))
    step = max(1, len(sustained.periods) // PERIODS)
    table = []
    for period in sustained.periods[::step]:
        clocks = (f"{name} {khz / 1000:.0f}" for name, khz in period.clock_khz.items())
        heat = (f"{name} {mc / 1000:.1f}" for name, mc in period.temperature_mc.items())
        table.append(
            (
                f"{period.start_s:.0f} … {period.end_s:.0f}",
                f"{period.median_ns / NS_PER_MS:.4f}",
                _safe(", ".join(clocks)) or "-",
                _safe(", ".join(heat)) or "-",
            )
        )
    console.print(_table(("s", "median ms", "clocks MHz", "°C"), table, left=(0, 2, 3)))


def _limits(judgements: Sequence[Judgement], console: Console) -> None:
    if not judgements:
        return
    _section(console, "Limits")
    for one in judgements:
        colour = _COLOURS[one.outcome]
        console.print(
            f"[{colour}]{one.outcome}[/{colour}]  {_safe(str(one.limit))}  "
            f"[dim]{_safe(one.reason)}[/dim]"
        )


def _advice(remarks: Sequence[Advice], console: Console) -> None:
    _section(console, "What to think of it")
    if not remarks:
        console.print("[green]nothing looked wrong[/green]")
    for one in sorted(remarks, key=lambda remark: list(_COLOURS).index(remark.severity)):
        colour = _COLOURS[one.severity]
        console.print(
            f"[{colour}]{one.severity} {_safe(one.code)}[/{colour}]: {_safe(one.evidence)}"
        )
        console.print(f"  [dim]{_safe(one.meaning)}[/dim]\n  → {_safe(one.remedy)}")


def _safe(text: str) -> str:
    """Text of a file or a board, without control codes and markup."""
    return escape(clean_text(text))


def _ms(value_ns: float) -> str:
    return f"{value_ns / NS_PER_MS:.4f} ms"


def _range(low_ns: float, high_ns: float) -> str:
    return f"{low_ns / NS_PER_MS:.4f} … {high_ns / NS_PER_MS:.4f}"


def _mb(size: int) -> str:
    """Megabytes of 10^6 bytes, as limits have them."""
    return f"{size / 1e6:.2f} MB"
