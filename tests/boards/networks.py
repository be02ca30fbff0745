"""Subnets of a real space that even an emulated board runs in a millisecond or two."""

from __future__ import annotations

import numpy as np
import pytest

from latency_tables.oracle import MeasureJob
from pipeline.run.devices import measure_job
from pipeline.spaces import nasbench_macro
from pipeline.spaces.nasbench_macro import NASBenchMacro, Preset, arch_of_genome

SMALLEST = Preset(stem_channels=4, channels=(4, 8, 8), features=16)
GENOMES = ("00000000", "00000001", "10000000", "10010010", "11110000", "11111111")


def space() -> NASBenchMacro:
    """NAS-Bench-Macro on 16×16 pictures with a few channels: 6,561 subnets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nasbench_macro.PRESETS, "smallest", SMALLEST)
        return nasbench_macro.nasbench_macro(
            preset="smallest", input_shape=(3, 16, 16), n_classes=10
        )


def fixed_jobs() -> list[MeasureJob]:
    """Six subnets, the cheapest first."""
    made = space()
    return [measure_job(made, arch_of_genome(made, genome)) for genome in GENOMES]


def sampled_jobs(count: int) -> list[MeasureJob]:
    """Different subnets without the costliest operator, drawn with a fixed seed."""
    made, rng = space(), np.random.Generator(np.random.PCG64(7))
    jobs: dict[str, MeasureJob] = {}
    while len(jobs) < count:
        genome = "".join(str(gene) for gene in rng.integers(0, 2, 8))
        job = measure_job(made, arch_of_genome(made, genome))
        jobs[job.net_id] = job
    return list(jobs.values())
