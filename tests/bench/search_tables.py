"""Searchers on spaces whose every subnet was trained: fronts, regret, evaluations, seconds.

Run it with ``python -m tests.bench.search_tables --data DIR [--seeds N] [--part NAME ...]``; DIR is
described in :mod:`tests.bench.table_worlds`. Parts:

* ``fronts``: hypervolume regret after 100, 300 and 1,000 evaluations (1 - share of the true front's
  hypervolume), beside pymoo's NSGA-II at equal evaluations, in the same run;
* ``regret``: accuracy below the best subnet under a limit, after as many evaluations;
* ``assisted``: how many evaluations reach the hypervolume that plain NSGA-II has at N;
* ``seconds``: 1,000 evaluations through the whole search loop, with a journal on disk; wall time,
  and processor time beside it, since other work on the machine adds to the former.

A search's archive after n evaluations is that of a search of n: nothing depends on its planned
length. All that a method evaluated counts, of pymoo's, too. Every searcher has its defaults; the
predictor-assisted NSGA-II is also run with generations of 25, so that it learns more often, for 500
evaluations.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.search.config import SearchConfig
from pipeline.search.journal import Journal
from pipeline.search.run_search import make_searcher, search
from tests.bench.pymoo_nsga2 import RIVALS
from tests.bench.table_worlds import World, worlds

Array = NDArray[np.float64]
Run = Callable[[World, int], list[int]]
"""World and seed → places of the subnets evaluated, in that order."""

N = 1_000
SHOWN = (100, 300, 1_000)
PLAIN_AT = (300, 500, 1_000)
STEP = 5

CONFIGS: dict[str, SearchConfig] = {
    "random": SearchConfig(method="random", evaluations=N),
    "evolution (SPOS)": SearchConfig(generations=19),
    "evolution, chances 0.2 (AutoFormer)": SearchConfig(generations=19, mutation_probability=0.2),
    "NSGA-II": SearchConfig(method="nsga2", generations=19),
    "evolution, assisted": SearchConfig(generations=19, assisted=True),
    "NSGA-II, assisted": SearchConfig(method="nsga2", generations=19, assisted=True),
    "NSGA-II, assisted, 25 a generation": SearchConfig(
        method="nsga2", population=25, generations=19, assisted=True
    ),
}
PLAIN, ASSISTED = "NSGA-II", ("NSGA-II, assisted", "NSGA-II, assisted, 25 a generation")


Seconds = tuple[float, float]
"""Wall time, processor time."""


def run(
    world: World, config: SearchConfig, seed: int, *, limited: bool
) -> tuple[list[int], Seconds]:
    """One search through the whole loop: places of its archive, and seconds."""
    evaluator = world.evaluator(limited=limited)
    searcher = make_searcher(config, evaluator, seed=seed)
    began = time.perf_counter(), time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal.open(Path(folder) / "search.jsonl", {}) as journal,
    ):
        found = search(searcher, evaluator, journal)
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    return [world.place[e.arch] for e in found.archive], seconds


def front_runs(
    world: World,
    configs: Mapping[str, SearchConfig],
    seeds: int,
    assisted_seeds: int,
) -> tuple[dict[str, list[list[int]]], dict[str, list[Seconds]]]:
    """Places by method and seed, without a limit, and the seconds of ours."""
    places: dict[str, list[list[int]]] = {}
    seconds: dict[str, list[Seconds]] = {}
    for name, config in configs.items():
        n = assisted_seeds if config.assisted else seeds
        found = [run(world, config, seed, limited=False) for seed in range(n)]
        places[name] = [at for at, _ in found]
        seconds[name] = [s for _, s in found]
    return places, seconds


def volume_regret(world: World, at: Sequence[int], n: int) -> float:
    """Per cent of the true front's hypervolume that the first n evaluations lack."""
    return 100.0 * (1.0 - world.hypervolume(world.rows(at[:n])))


def accuracy_regret(world: World, at: Sequence[int], n: int) -> float:
    """Points of accuracy below the best subnet under the limit, after n evaluations."""
    return world.best_within() - float(world.accuracy[list(at[:n])].max())


def table_of(
    world: World,
    places: Mapping[str, Sequence[Sequence[int]]],
    regret: Callable[[World, Sequence[int], int], float],
) -> dict[str, dict[str, float]]:
    """Median and quartiles of a regret over seeds, by method and number of evaluations."""
    rows = {}
    for name, runs in places.items():
        row = {}
        for n in (n for n in SHOWN if n <= len(runs[0])):
            low, middle, high = np.percentile([regret(world, at, n) for at in runs], [25, 50, 75])
            row |= {f"{n}": middle, f"{n} low": low, f"{n} high": high}
        rows[name] = {k: float(v) for k, v in row.items()}
    return rows


def beside_rivals(
    world: World, places: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, dict[str, float]]:
    """Seeds in which plain NSGA-II is ahead of each rival; mean difference, and its error."""
    found = {}
    for name in RIVALS:
        for n in SHOWN:
            gain = np.array(
                [
                    volume_regret(world, theirs, n) - volume_regret(world, ours, n)
                    for ours, theirs in zip(places[PLAIN], places[name], strict=True)
                ]
            )
            found[f"{name} at {n}"] = {
                "ahead": float((gain > 0).sum()),
                "equal": float((gain == 0).sum()),
                "mean": float(gain.mean()),
                "standard error": float(gain.std(ddof=1) / len(gain) ** 0.5),
            }
    return found


def evaluations_needed(
    world: World, places: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, dict[str, float | None]]:
    """After how many evaluations the median assisted search is as good as the plain one at N."""
    found: dict[str, dict[str, float | None]] = {}
    counts = range(STEP, N + 1, STEP)
    curves = {
        name: {
            n: float(np.median([volume_regret(world, at, n) for at in places[name]]))
            for n in counts
        }
        for name in (PLAIN, *ASSISTED)
        if name in places
    }
    for name in (name for name in ASSISTED if PLAIN in curves and name in curves):
        found[name] = {
            f"{n}": next((float(k) for k in counts if curves[name][k] <= curves[PLAIN][n]), None)
            for n in PLAIN_AT
        }
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for, by world."""
    rows: dict[str, Any] = {}
    configs = {
        name: config
        for name, config in CONFIGS.items()
        if fnmatch(name, options.method) and (options.assisted_seeds or not config.assisted)
    }
    for world in worlds(options.data):
        if not fnmatch(world.name, options.world):
            continue
        rows[world.name] = found = {}
        if {"fronts", "assisted", "seconds"} & set(options.part):
            places, seconds = front_runs(world, configs, options.seeds, options.assisted_seeds)
            if "fronts" in options.part:
                for name, rival in RIVALS.items():
                    places[name] = [rival(world, seed, N) for seed in range(options.seeds)]
                found["fronts"] = table_of(world, places, volume_regret)
                found["rivals"] = beside_rivals(world, places) if PLAIN in places else {}
            if "assisted" in options.part:
                found["assisted"] = evaluations_needed(world, places)
            found["seconds"] = {
                name: {
                    "least wall": min(wall for wall, _ in s),
                    "wall": float(np.median([wall for wall, _ in s])),
                    "processor": float(np.median([processor for _, processor in s])),
                }
                for name, s in seconds.items()
            }
        if "regret" in options.part:
            limited = {
                name: [
                    run(world, c, seed, limited=True)[0]
                    for seed in range(options.assisted_seeds if c.assisted else options.seeds)
                ]
                for name, c in configs.items()
            }
            found["regret"] = table_of(world, limited, accuracy_regret)
            found["limit"] = {"cost": world.bound, "best": world.best_within()}
        if not options.json:
            _print(world, found, options.part)
    return {"seeds": options.seeds, "rows": rows}


def _print(world: World, found: Mapping[str, Any], parts: Sequence[str]) -> None:
    print(f"\n{world.name}", flush=True)
    for part, title in (
        ("fronts", "hypervolume regret, % (median, quartiles)"),
        ("regret", f"accuracy regret, points, limit {world.bound:.4g} {world.cost_name}"),
    ):
        if part not in parts:
            continue
        print(f"| {title} | " + " | ".join(map(str, SHOWN)) + " |")
        print("|---|" + "---|" * len(SHOWN))
        for name, row in found[part].items():
            cells = [
                f"{row[f'{n}']:.2f} ({row[f'{n} low']:.2f}–{row[f'{n} high']:.2f})"
                if f"{n}" in row
                else ""
                for n in SHOWN
            ]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if "fronts" in parts:
        for name, row in found["rivals"].items():
            print(
                f"NSGA-II beside {name}: ahead {row['ahead']:.0f}, equal {row['equal']:.0f}; "
                f"mean gain {row['mean']:.3f} ± {row['standard error']:.3f}"
            )
    if "assisted" in parts:
        for name, needed in found["assisted"].items():
            said = ", ".join(
                f"{n}: " + (f"{k:.0f} ({k / float(n):.2f})" if k else "not within 1,000")
                for n, k in needed.items()
            )
            print(f"evaluations of '{name}' for the hypervolume of NSGA-II at … {said}")
    if "seconds" in parts:
        for name, row in found["seconds"].items():
            print(
                f"seconds, {name}: {row['wall']:.2f} wall (least {row['least wall']:.2f}), "
                f"{row['processor']:.2f} processor"
            )


def main() -> None:
    """Parse, measure, print."""
    parts = ("fronts", "regret", "assisted", "seconds")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of public data")
    parser.add_argument("--method", default="*", help='pattern, such as "NSGA-II*"')
    parser.add_argument("--world", default="*", help='pattern, such as "*Macro*"')
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--assisted-seeds", type=int, help="of the dear methods; 0 leaves them out")
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.assisted_seeds is None:
        options.assisted_seeds = options.seeds
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
