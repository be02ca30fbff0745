"""A real space under every kind of limit at once, from the run file to the exported network."""

from __future__ import annotations

import json

import pytest

from pipeline.search.limits import COST_METRICS
from tests.pipeline.run.small import SMALL


@pytest.fixture
def bounds(digits_space):
    """For each cost a limit a little above what a middling network needs."""
    table = digits_space.cost_table()
    arch = {d.label: d.choices[1] for d in digits_space.decisions}
    return {metric: round(1.1 * table.cost(arch, metric)) for metric in COST_METRICS}


def limited(latency, bounds):
    """The run's device with these limits."""
    listed = ", ".join([f"latency='{latency}'", *(f"{m}={b}" for m, b in bounds.items())])
    return f"device=[{{name='local', limits={{{listed}}}}}]"


def test_a_network_under_all_limits_at_once_keeps_each_of_them(open_run, bounds):
    job = open_run(*SMALL, limited("70%", bounds))
    job.run(until="export")
    manifest = json.loads(job.folder.file("manifest.json").read_text())
    kept = {limit["name"]: limit for limit in manifest["limits"]}
    assert set(kept) == {"latency_ms", *COST_METRICS}
    assert all(limit["kept"] for limit in kept.values())
    for metric, bound in bounds.items():
        assert kept[metric]["limit"] == bound
        assert 0 < kept[metric]["value"] <= bound
