"""What a study found, as Markdown: means over seeds ± their standard deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.bench.shiftnas_study.methods import GENERATED, LEVELS, UNIFORM, Method
from tests.bench.shiftnas_study.retrained import levels_looked_at
from tests.bench.shiftnas_study.sufficiency import PAPER_TAUS
from tests.bench.shiftnas_study.world import World, flat

REFERENCES = {"inherited": LEVELS, "sandwich": "sandwich, uniform levels"}
"""Part → the method that differences are taken from; elsewhere the generator's."""

BySeed = dict[int, dict[str, Any]]


def spread(values: Sequence[float], digits: int = 1, *, sign: bool = False) -> str:
    """Mean ± standard deviation over seeds.

    >>> spread([1.0, 2.0, 3.0]), spread([1.25])
    ('2.0 ± 1.0', '1.2')
    """
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):{'+' if sign else ''}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty where there is no row."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""])


def found(world: World, name: str, file: str) -> BySeed:
    """A file of all seeds that have it."""
    paths = {seed: world.folder(name, seed) / file for seed in world.seeds()}
    return {s: json.loads(p.read_text()) for s, p in paths.items() if p.is_file()}


def _levels(world: World) -> list[str]:
    return [f"{target / 1e3:,.0f} k" for target in world.levels.targets]


def _means(scores: Mapping[str, Any]) -> list[float]:
    """Mean accuracy of every level, in per cent."""
    return [100 * statistics.fmean(level) for level in scores["accuracy"]]


def inherited(world: World, part: str, methods: Sequence[Method]) -> str:
    """Accuracy by level, the mean, and how it differs from the reference's, seed by seed."""
    reference = REFERENCES.get(part, GENERATED)
    folders = {m.name: m.folder for m in methods}
    base = found(world, folders.get(reference, ""), "scores.json")
    rows = []
    for method in methods:
        scores = found(world, method.folder, "scores.json")
        if not scores:
            continue
        means = {seed: _means(s) for seed, s in scores.items()}
        paired = [
            statistics.fmean(means[seed]) - statistics.fmean(_means(base[seed]))
            for seed in means.keys() & base.keys()
        ]
        up = sum(d > 0 for d in paired)
        difference = f"{spread(paired, 2, sign=True)} ({up} of {len(paired)} up)"
        rows.append(
            [
                method.name,
                str(len(scores)),
                *(spread(list(level)) for level in zip(*means.values(), strict=True)),
                spread([statistics.fmean(m) for m in means.values()], 2),
                "" if method.name == reference else difference,
                _cost(world, method),
            ]
        )
    if all(row[0] == reference for row in rows):
        return ""  # of this part nothing is there yet
    head = ["method", "seeds", *_levels(world), "all levels", f"all, minus {reference}", "seconds"]
    return table(head, rows)


def _cost(world: World, method: Method) -> str:
    whole = found(world, method.folder, "trained.json").values()
    return spread([t["seconds"] for t in whole if not t["resumed"]], 0)


def chosen(world: World, methods: Sequence[Method]) -> str:
    """The most probable architecture of every level: accuracy, and how far its MACs are off."""
    rows = []
    for method in methods:
        scores = found(world, method.folder, "scores.json")
        picks = [s["chosen"] for s in scores.values() if "chosen" in s]
        if picks:
            cells = [
                f"{spread([100 * p['accuracy'] for p in level])} "
                f"({max((100 * p['off'] for p in level), key=abs):+.1f} %)"
                for level in zip(*picks, strict=True)
            ]
            rows.append([method.name, str(len(picks)), *cells])
    return table(["generator of", "seeds", *_levels(world)], rows)


def distributions(world: World, methods: Iterable[Method]) -> str:
    """B at the end of every shifted training."""
    rows = []
    for method in methods:
        trained = found(world, method.folder, "trained.json")
        shifted = [t for t in trained.values() if t.get("level_updates")]
        if shifted:
            shares = [t["level_probabilities"] for t in shifted]
            rows.append(
                [
                    method.name,
                    str(len(shifted)),
                    ", ".join(spread(list(p), 3) for p in zip(*shares, strict=True)),
                    spread([t["level_entropy"] for t in shifted], 2),
                    f"{shifted[0]['level_updates']} ({shifted[0]['level_updates_skipped']})",
                ]
            )
    head = ["method", "seeds", "p of the levels, from the smallest", "entropy, nats",
            "updates (left out)"]  # fmt: skip
    return table(head, rows)


def taus(world: World, uniform: Method) -> str:
    """Kendall's tau of score and fall of the loss, by stage."""
    rows = []
    for number, (_, end) in enumerate(world.stages()):
        stage = found(world, uniform.folder, f"sufficiency-{end}.json")
        if stage:
            values = [s["tau"] for s in stage.values()]
            rows.append(
                [
                    f"{end} of {world.scale.steps}",
                    spread(values, 2),
                    ", ".join(f"{v:.2f}" for v in values),
                    f"{PAPER_TAUS[number]}" if len(world.stages()) == len(PAPER_TAUS) else "-",
                    spread([s["seconds"] for s in stage.values()], 0),
                ]
            )
    head = ["after steps", "tau", "by seed", "paper (30, 60, 90, 120 of 500 epochs)", "seconds"]
    return table(head, rows)


def gaps(world: World, methods: Sequence[Method]) -> str:
    """Accuracy of some subnets trained alone, and with inherited weights."""
    rows = []
    for level in levels_looked_at(world):
        alone = found(world, f"alone-level-{level + 1}", "retrained.json")
        if not alone:
            continue
        cells = []
        for method in methods:
            scores = found(world, method.folder, "scores.json")
            both = scores.keys() & alone.keys()
            inherited_of = {s: 100 * scores[s]["accuracy"][level][0] for s in both}
            gap = [inherited_of[s] - 100 * alone[s]["accuracy"] for s in both]
            cells.append(f"{spread(list(inherited_of.values()))} ({spread(gap, 1, sign=True)})")
        rows.append(
            [
                _levels(world)[level],
                spread([100 * a["accuracy"] for a in alone.values()]),
                *cells,
                spread([a["seconds"] for a in alone.values()], 0),
            ]
        )
    names = [f"{m.name}: inherited (minus alone)" for m in methods]
    return table(["level", "trained alone", *names, "seconds alone"], rows)


def times(world: World, method: Method) -> str:
    """Sampling times of the first seed that has them; times do not depend on the seed."""
    for timing in found(world, method.folder, "sampling.json").values():
        rows = [
            [
                f"{r['target'] / 1e3:,.0f} k",
                f"{100 * r['share']:.2f} %",
                f"{r['generator_ms']:.2f}",
                f"{r['generator_many_ms']:.4f}",
                f"{100 * r['hits']:.0f} %",
                f"{100 * r['argmax_off']:+.1f} %",
                *(_ms(r.get(key)) for key in ("exact_ms", "exact_many_ms", "rejection_ms")),
                _ms(r.get("fvcore_ms_extrapolated")),
            ]
            for r in timing["rows"]
        ]
        head = [
            "level, MACs", f"share within ±{100 * world.scale.half_width:g} %",
            "generator's argmax", "256 of its draws", "draws within",
            "argmax off by", "exact, one", "exact, 256 at once", "rejection, table",
            "rejection, fvcore (extrapolated)",
        ]  # fmt: skip
        return f"Milliseconds per architecture, CPU time, {timing['machine']}:\n\n" + table(
            head, rows
        )
    return ""


def _ms(value: float | None) -> str:
    return "none there" if value is None else f"{value:.4g}"


def report(world: World, parts: Mapping[str, Sequence[Method]]) -> str:
    """Everything that is there, with what it was measured on."""
    scale, machines = world.scale, set()
    for path in world.out.glob("*/*.json"):
        machines.add(json.loads(path.read_text()).get("machine", ""))
    every = {m.name: m for methods in parts.values() for m in methods}
    sections = [
        (
            f"## {world.space.name} {world.space.preset}",
            f"{scale.images.name}, {world.dataset.input_shape[1]} px, {len(world.train_images)} "
            f"training images, {scale.steps} steps of {scale.batch} (image passes are equal for "
            f"all methods), {world.space.cost_table().n_archs:,.0f} genomes; accuracies in per "
            f"cent on {scale.score_images} held-out images, {len(flat(world.archs))} subnets, "
            f"{scale.archs} per level, inherited weights"
            f"{', recalibrated batch norms' if world.policy == 'recalibrate' else ''}; mean ± "
            f"standard deviation over seeds; seconds of training are CPU time, on a GPU wall time. "
            f"Measured on: {'; '.join(sorted(machines - {''}))}.",
        ),
        ("### Inherited accuracy by level", inherited(world, "inherited", parts["inherited"])),
        ("### What the generators choose: accuracy of the most probable architecture "
         "(largest miss of the level's MACs)", chosen(world, list(every.values()))),
        ("### B at the end", distributions(world, every.values())),
        ("### Sampling time", times(world, every[GENERATED])),
        ("### Score against the fall of the loss by fine-tuning, Kendall's tau",
         taus(world, every[UNIFORM])),
        ("### Inherited and retrained", gaps(world, parts["inherited"])),
        ("### Step between levels", inherited(world, "level-step", parts["level-step"])),
        ("### Steps between updates of B (its rate is 5 / updates: all can move it as far)",
         inherited(world, "frequency", parts["frequency"])),
        ("### Sandwich rule", inherited(world, "sandwich", parts["sandwich"])),
    ]  # fmt: skip
    return "\n\n".join(f"{title}\n\n{text.rstrip()}" for title, text in sections if text)
