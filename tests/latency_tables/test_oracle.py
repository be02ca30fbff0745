"""The oracle: table, live measurement, model, in that order; and who pays for a fault."""

import json
from dataclasses import replace

import numpy as np
import pytest

from latency_tables.errors import (
    CorruptTableError,
    DeviceError,
    LinkLostError,
    MissingLatencyError,
    MissingRuntimeError,
    ProtocolError,
    UsageError,
)
from latency_tables.keys import net_id
from latency_tables.oracle import Deployment, MeasureJob, Oracle
from latency_tables.predictor import LatencyModel
from latency_tables.records import Failure, Verdict
from latency_tables.store import TableStore


@pytest.fixture
def table(make_cost_table):
    return make_cost_table(n_blocks=4)


@pytest.fixture
def archs(table):
    return [table.arch([n // 27 % 3, n // 9 % 3, n // 3 % 3, n % 3]) for n in range(60)]


@pytest.fixture
def model(table, archs):
    return LatencyModel.fit(table, archs, [table.cost(arch, "macs") for arch in archs])


@pytest.fixture
def store(tmp_path):
    with TableStore(tmp_path / "tables.sqlite") as store:
        yield store


def identify(arch):
    return net_id("space", arch.to_json())


def job(arch):
    return MeasureJob(net_id=identify(arch), arch=arch, onnx=b"", space_id="space")


class Board:
    """A measurer: latency = MACs; ``faults`` maps a position in the order of asking to a change."""

    def __init__(self, table, make_measurement):
        self.table, self.make, self.calls, self.faults = table, make_measurement, [], {}

    def record(self, arch, session=0):
        record = self.make(0, self.table.cost(arch, "macs"), run=f"session-{session}", arch=arch)
        return replace(record, net_id=identify(arch))

    def measure(self, jobs):
        records = []
        for job in jobs:
            fault = self.faults.get(sum(map(len, self.calls)) + len(records), {})
            if isinstance(fault, DeviceError):
                raise fault
            records.append(replace(self.record(job.arch, len(self.calls)), **fault))
        self.calls.append([job.arch for job in jobs])
        return records


@pytest.fixture
def board(table, make_measurement):
    return Board(table, make_measurement)


@pytest.fixture
def make_oracle(store, board, archs):
    def make(**options):
        if options.get("measurer"):
            options["make_job"] = job
        return Oracle(store, Deployment.of(board.record(archs[0])), identify=identify, **options)

    return make


def ask(oracle, archs):
    return oracle.collect(oracle.submit(archs))


def crash(blames="candidate"):
    failure = Failure(code="RUN_CRASHED", message="signal 11", blames=blames)
    return {"error": failure, "statistics": None}


def test_table_measurement_and_model_answer_in_the_order_asked(
    make_oracle, board, store, model, table, archs
):
    store.add(board.record(archs[2]))
    oracle = make_oracle(measurer=board, model=model, budget=2)
    answers = ask(oracle, archs[:5])
    sources = [answer.source for answer in answers]
    assert sources == ["measured", "measured", "table", "predicted", "predicted"]
    expected = [table.cost(arch, "macs") for arch in archs[:5]]
    assert [a.latency_ms for a in answers] == pytest.approx(expected, rel=0.01)
    assert board.calls == [archs[:2]]


def test_a_measured_network_is_in_the_table_afterwards(make_oracle, board, store, archs):
    (answer,) = ask(make_oracle(measurer=board, budget=1), archs[:1])
    (later,) = ask(make_oracle(), archs[:1])
    assert (answer.source, later.source) == ("measured", "table")
    assert (answer.key, answer.latency_ms) == (later.key, later.latency_ms)


def test_measurements_are_stored_before_they_are_told(make_oracle, board, store, archs):
    told = []
    oracle = make_oracle(
        measurer=board, budget=3, on_measured=lambda m: told.append(store.pooled(m.key))
    )
    ask(oracle, archs[:3])
    assert [type(answer).__name__ for answer in told] == ["Estimate"] * 3


def test_a_network_is_measured_once_however_often_it_is_asked_for(make_oracle, board, archs):
    oracle = make_oracle(measurer=board, budget=9)
    first = ask(oracle, [archs[0], archs[1], archs[0]])
    assert first[0] == first[2]
    assert ask(oracle, archs[:2]) == first[:2]
    assert (oracle.spent, board.calls) == (2, [archs[:2]])


def test_isomorphic_networks_share_one_measurement(store, board, archs):
    oracle = Oracle(
        store,
        Deployment.of(board.record(archs[0])),
        identify=lambda arch: identify(archs[0]),
        make_job=lambda arch: job(archs[0]),
        measurer=board,
        budget=9,
    )
    one, two = ask(oracle, archs[:2])
    assert (one, oracle.spent) == (two, 1)


def test_the_budget_counts_measurements_over_all_questions(make_oracle, board, model, archs):
    oracle = make_oracle(measurer=board, model=model, budget=3)
    sources = [a.source for a in ask(oracle, archs[:2]) + ask(oracle, archs[2:5])]
    assert sources == ["measured"] * 3 + ["predicted"] * 2
    assert oracle.spent == 3


def test_without_measurement_and_model_the_command_that_measures_is_named(make_oracle, archs):
    with pytest.raises(MissingLatencyError, match="hilnas tables build FILE") as caught:
        ask(make_oracle(), archs[:3])
    assert archs[0].to_json() in str(caught.value)
    assert "2 others" in str(caught.value)


def test_a_table_of_another_deployment_does_not_answer(store, board, archs):
    store.add(board.record(archs[0]))
    mine = Deployment.of(board.record(archs[0]))
    others = [replace(mine, threads=1), replace(mine, runtime={**mine.runtime, "version": "1.4"})]
    for deployment in others:
        with pytest.raises(MissingLatencyError):
            ask(Oracle(store, deployment, identify=identify), archs[:1])


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (crash("board"), "RUN_CRASHED"),
        (
            {"verdicts": (Verdict(code="THROTTLED", severity="fail", evidence="state 2"),)},
            "THROTTLED",
        ),
    ],
)
def test_a_fault_of_the_board_is_answered_by_the_model_and_noted(
    make_oracle, board, model, store, table, archs, fault, code
):
    board.faults[1] = fault
    oracle = make_oracle(measurer=board, model=model, budget=9)
    answers = ask(oracle, archs[:3])
    assert [a.source for a in answers] == ["measured", "predicted", "measured"]
    assert answers[1].latency_ms == pytest.approx(table.cost(archs[1], "macs"), rel=0.01)
    assert [(n.code, n.blames, n.arch) for n in oracle.notes] == [(code, "board", archs[1])]
    assert (store.count(), len(list(store.rejected()))) == (2, 1)


def test_a_fault_without_a_model_is_told_and_not_guessed(make_oracle, board, archs):
    board.faults[0] = crash("board")
    with pytest.raises(MissingLatencyError, match="RUN_CRASHED: signal 11"):
        ask(make_oracle(measurer=board, budget=9), archs[:1])


def test_a_network_that_failed_twice_is_left_alone(make_oracle, board, model, archs):
    board.faults = {0: crash(), 1: crash()}
    oracle = make_oracle(measurer=board, model=model, budget=9)
    for _ in range(4):
        assert ask(oracle, archs[:1])[0].source == "predicted"
    assert (len(board.calls), oracle.spent) == (2, 2)


def test_a_lost_board_is_answered_by_the_model_and_costs_no_budget(
    make_oracle, board, model, archs
):
    board.faults[0] = LinkLostError("the agent is gone")
    oracle = make_oracle(measurer=board, model=model, budget=2)
    assert {a.source for a in ask(oracle, archs[:2])} == {"predicted"}
    assert (oracle.spent, {n.code for n in oracle.notes}) == (0, {"LINK_LOST"})
    board.faults = {}
    assert {a.source for a in ask(oracle, archs[:2])} == {"measured"}


def test_a_lost_board_without_a_model_is_an_error(make_oracle, board, archs):
    board.faults[0] = LinkLostError("the agent is gone")
    with pytest.raises(LinkLostError):
        ask(make_oracle(measurer=board, budget=2), archs[:2])


@pytest.mark.parametrize("wrong", [lambda records: records[::-1], lambda records: records[:1]])
def test_answers_for_other_networks_are_refused_and_not_stored(
    make_oracle, board, store, model, archs, wrong
):
    measure = board.measure
    board.measure = lambda jobs: wrong(measure(jobs))
    with pytest.raises(ProtocolError):
        ask(make_oracle(measurer=board, model=model, budget=2), archs[:2])
    assert store.count() == 0


def test_a_measurement_in_another_deployment_is_refused(make_oracle, board, model, archs):
    board.faults[0] = {"threads": 1}
    with pytest.raises(ProtocolError, match="another deployment"):
        ask(make_oracle(measurer=board, model=model, budget=2), archs[:1])


def test_a_fault_that_does_not_pass_is_not_hidden_by_the_model(make_oracle, board, model, archs):
    board.faults[0] = MissingRuntimeError("no onnxruntime on the board")
    with pytest.raises(MissingRuntimeError):
        ask(make_oracle(measurer=board, model=model, budget=2), archs[:1])


def test_measuring_again_ignores_table_and_budget(make_oracle, board, store, archs):
    oracle = make_oracle(measurer=board, budget=1)
    ask(oracle, archs[:1])
    board.faults[2] = crash()
    again = oracle.measure(archs[:2])
    assert [m.ok for m in again] == [True, False]
    assert (oracle.spent, len(store.records(again[0].key))) == (1, 2)


def test_measuring_without_a_device_is_refused(make_oracle, archs):
    with pytest.raises(MissingLatencyError, match="tables build"):
        make_oracle().measure(archs[:1])


def test_a_ticket_is_answered_once_and_by_its_own_oracle(make_oracle, model, archs):
    oracle, other = make_oracle(model=model), make_oracle(model=model)
    ticket = oracle.submit(archs[:1])
    with pytest.raises(UsageError):
        other.collect(ticket)
    oracle.collect(ticket)
    with pytest.raises(UsageError):
        oracle.collect(ticket)


def test_tickets_may_be_collected_in_any_order(make_oracle, model, archs):
    oracle = make_oracle(model=model)
    first, second = oracle.submit(archs[:2]), oracle.submit(archs[2:4])
    later, sooner = oracle.collect(second), oracle.collect(first)
    assert sooner + later == model.predict(archs[:4])


def test_a_measurer_without_jobs_is_refused(store, board, archs):
    with pytest.raises(UsageError, match="make_job"):
        Oracle(store, Deployment.of(board.record(archs[0])), identify=identify, measurer=board)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(make_oracle, board, store, model, archs):
    whole = make_oracle(measurer=board, model=model, budget=4)
    journal = []
    whole._on_measured = journal.append
    board.faults[3] = crash("board")
    before = ask(whole, archs[:2])
    saved, n_saved = json.loads(json.dumps(whole.state_dict())), len(journal)
    after = ask(whole, archs[1:5])
    n_calls = len(board.calls)

    # killed after the second question was measured, before its answers were kept
    resumed = make_oracle(measurer=board, model=model, budget=4, replay=journal[n_saved:])
    resumed.load_state_dict(saved)
    assert ask(resumed, archs[:2]) == before
    assert ask(resumed, archs[1:5]) == after
    assert (resumed.spent, resumed.notes) == (whole.spent, whole.notes)
    assert len(board.calls) == n_calls


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 2},
        {"spent": -1},
        {"answers": [1]},
        {"answers": {"n": {"latency_ms": 1.0}}},
        {"attempts": {"n": "many"}},
        {"notes": [{"arch": None}]},
        {"colour": "red"},
    ],
)
def test_a_damaged_state_is_refused(make_oracle, damage):
    oracle = make_oracle()
    with pytest.raises(CorruptTableError):
        oracle.load_state_dict(oracle.state_dict() | damage)


def test_a_model_may_be_replaced_while_the_oracle_works(make_oracle, table, model, archs):
    oracle = make_oracle(model=model)
    before = ask(oracle, archs[:1])[0]
    doubled = [2 * table.cost(arch, "macs") for arch in archs]
    oracle.model = LatencyModel.fit(table, archs, doubled)
    assert ask(oracle, archs[:1])[0].latency_ms == pytest.approx(2 * before.latency_ms, rel=1e-3)


def test_predictions_of_one_question_take_one_call(make_oracle, model, archs):
    calls = []
    predict = model.predict

    class Counting:
        def predict(self, asked):
            calls.append(len(asked))
            return predict(asked)

    ask(make_oracle(model=Counting()), [*archs, *archs])
    assert calls == [len(archs)]
    assert np.all([a.source == "predicted" for a in ask(make_oracle(model=model), archs)])
