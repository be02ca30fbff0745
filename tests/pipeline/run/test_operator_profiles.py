"""A few networks are profiled, kept beside the table, and give the cost table one more column."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from device_agents.devices import load_device
from device_agents.files.passes import Operator, Operators
from latency_tables import CostTable, TableStore
from latency_tables.arch import Arch
from latency_tables.errors import LinkLostError
from latency_tables.operator_groups import ProfileLine
from latency_tables.operator_times import PROFILED_COLUMN
from pipeline.config import DeviceConfig
from pipeline.run import operator_profiles
from pipeline.run.devices import RunDevice, space_info
from pipeline.run.operator_profiles import (
    OperatorProfile,
    ProfileFolder,
    choose_networks,
    lines_of,
    operator_prior,
    with_profiled_column,
)
from pipeline.spaces import load_space

SPACE = load_space("nasbench_macro", preset="tiny", input_shape=(1, 16, 16), n_classes=10)
LINE = ProfileLine(name="stem/conv1", op="Conv", ns=5e3)


def archs(n: int) -> list[Arch]:
    rng = np.random.default_rng(0)
    return [SPACE.sample(rng) for _ in range(n)]


def uniform(choice: str) -> Arch:
    return Arch({d.label: choice for d in SPACE.decisions})


# -- choosing ------------------------------------------------------------------------------------


def test_networks_to_profile_are_the_extremes_and_those_that_hold_something_new() -> None:
    table, cheapest, dearest = SPACE.cost_table(), uniform("identity"), uniform("mb6_k5")
    middle = uniform("mb3_k3")
    almost = Arch({**dearest, "layer3": "mb3_k3"})
    given = [almost, cheapest, middle, dearest]
    assert choose_networks(table, given, 3) == [dearest, cheapest, middle]


def test_networks_with_a_profile_are_taken_before_others() -> None:
    table, given = SPACE.cost_table(), archs(8)
    chosen = choose_networks(table, given, 4, known=given[2:4])
    assert chosen[:2] == given[2:4]
    assert len(set(chosen)) == 4
    assert choose_networks(table, given, 1, known=given[:3]) == given[:3]


# -- profiles ------------------------------------------------------------------------------------


def row(calls: int, total_us: float, median_us: float) -> Operator:
    return Operator(
        name="conv", op="Conv", provider="CPU", calls=calls, total_us=total_us,
        median_us=median_us, share=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("total_us", "expected_ns"), [(74.0, 7400.0), (7000.0, 8000.0), (1.0, 6000.0)]
)
def test_an_operators_time_is_its_mean_unless_interruptions_moved_it(
    total_us: float, expected_ns: float
) -> None:
    rows = (row(10, total_us, 7.0),)
    found = Operators(total_us=total_us, n_operators=1, rest_us=0.0, rows=rows, by_type=())
    assert [line.ns for line in lines_of(found)] == [expected_ns]


def test_operators_that_are_not_listed_count_as_one_line_without_a_name() -> None:
    found = Operators(
        total_us=90.0, n_operators=9, rest_us=20.0, rows=(row(10, 70, 7),), by_type=()
    )
    assert lines_of(found)[-1] == ProfileLine(name="", op="others", ns=2000.0)


def test_a_profile_that_cannot_be_read_counts_as_absent(tmp_path) -> None:
    folder = ProfileFolder.beside(tmp_path / "tables.sqlite")
    folder.keep("key", OperatorProfile(net_id="net", lines=(LINE,), utc="now"))
    assert folder.find("key") == OperatorProfile(net_id="net", lines=(LINE,), utc="now")
    (file,) = folder.path.iterdir()
    for damage in (file.read_bytes()[:-9], b'{"schema":9}', b'{"schema":1,"lines":[{}]}'):
        file.write_bytes(damage)
        assert folder.find("key") is None


# -- the column ----------------------------------------------------------------------------------


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.say = self.warn = self.lines.append


@pytest.fixture
def context(tmp_path):
    path = tmp_path / "tables.sqlite"
    with TableStore(path) as store:
        store.add_space(space_info(SPACE))
        yield SimpleNamespace(
            space=SPACE, cost_table=SPACE.cost_table(), store=store, table_path=path,
            reporter=Said(),
        )  # fmt: skip


@pytest.fixture
def scripted(context, monkeypatch):
    """A device whose table knows every network; ``answers`` are what profiling them gives."""
    known = SimpleNamespace(latency_ms=1.0)
    context.store = SimpleNamespace(pooled_all=lambda keys: dict.fromkeys(keys, known))
    device = SimpleNamespace(
        name="board",
        deployment=SimpleNamespace(key=lambda net: net),
        measurer=SimpleNamespace(connected=nullcontext),
        answers=[],
    )

    def profile(measurer, job):
        answer = device.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(operator_profiles, "profile_job", profile)
    return device


def test_a_runtime_without_times_of_operators_is_said_in_one_line(context, scripted) -> None:
    scripted.answers = ["runtime 'ncnn' gives no times of operators"]
    table = with_profiled_column(context, scripted, archs(4))
    assert table is context.cost_table
    assert context.reporter.lines == [
        "  board: no times of operators: runtime 'ncnn' gives no times of operators"
    ]


def test_there_is_no_prior_where_there_are_no_times(context, scripted) -> None:
    scripted.answers = ["runtime 'ncnn' gives no times of operators"]
    assert operator_prior(context, scripted, archs(4)) is None


def test_a_device_that_fails_costs_no_table_and_what_it_gave_is_kept(context, scripted) -> None:
    profile = OperatorProfile(net_id="net", lines=(LINE,), utc="")
    scripted.answers = [profile, LinkLostError("the board is gone"), profile, profile, profile]
    assert with_profiled_column(context, scripted, archs(4)) is context.cost_table
    assert "the board is gone" in context.reporter.lines[0]
    table = with_profiled_column(context, scripted, archs(4))
    assert PROFILED_COLUMN in table.column_names()
    assert scripted.answers == []


def test_profiles_that_name_nothing_cost_no_table(context, scripted) -> None:
    line = ProfileLine(name="subgraph0", op="Everything", ns=1e6)
    scripted.answers = [OperatorProfile(net_id="net", lines=(line,), utc="")] * 4
    assert with_profiled_column(context, scripted, archs(4)) is context.cost_table
    assert "names an operator" in context.reporter.lines[0]


def test_too_few_measured_networks_are_not_profiled(context, scripted) -> None:
    context.store = SimpleNamespace(pooled_all=lambda keys: {})
    assert with_profiled_column(context, scripted, archs(4)) is context.cost_table
    assert "0 measured networks" in context.reporter.lines[0]


def test_profiles_of_this_machine_become_a_column_that_a_run_can_load_again(
    context, tmp_path, monkeypatch
) -> None:
    spec = replace(load_device("local"), workdir=tmp_path / "work")
    device = RunDevice(
        DeviceConfig(name="local", measuring="quick"), spec, space=SPACE, store=context.store,
        seed=0,
    )  # fmt: skip
    given = [uniform("identity"), uniform("mb3_k3"), uniform("mb6_k5")]
    try:
        device.measure(given)
        table = with_profiled_column(context, device, given)
        monkeypatch.setattr(operator_profiles, "profile_job", lambda *_: pytest.fail("again"))
        again = with_profiled_column(context, device, given)
        prior = operator_prior(context, device, given)
    finally:
        device.close()
    assert prior is not None
    assert again.table_hash == table.table_hash
    assert "operators of 3 networks profiled" in context.reporter.lines[0]
    profiled = table.column(PROFILED_COLUMN, table.genes(given))
    assert (profiled > 0).all()
    # fused operators, as they ran: far from the truth would be a sum of profiling's own time
    latency = [device.store.pooled(device.deployment.key(m)).latency_ms for m in nets(given)]
    assert 0.2 < float(np.median(profiled / latency)) < 3.0
    assert profiled[2] > profiled[0]
    kept = CostTable.from_dict(json.loads(json.dumps(prior.to_dict())))
    assert kept.table_hash == prior.table_hash
    assert kept.column(PROFILED_COLUMN, table.genes(given)).tolist() == profiled.tolist()


def nets(given: list[Arch]) -> list[str]:
    from pipeline.spaces.base import net_id

    return [net_id(SPACE, arch) for arch in given]
