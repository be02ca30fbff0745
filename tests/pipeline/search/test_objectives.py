import math

import numpy as np
import pytest
from pydantic import ValidationError

from latency_tables.errors import MissingLatencyError, UsageError
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Candidate, Evaluation, Score
from pipeline.search.objectives import Objectives
from pipeline.search.run_search import make_searcher


def test_latency_without_a_name_means_every_device():
    found = Objectives.of(["error", "latency", "macs"], devices=["rpi4", "nuc"])
    assert found.labels == ("error", "latency:rpi4", "latency:nuc", "macs")


def test_an_objective_that_is_named_twice_counts_once():
    found = Objectives.of(["latency:nuc", "latency", "error"], devices=["rpi4", "nuc"])
    assert found.labels == ("latency:nuc", "latency:rpi4", "error")


@pytest.mark.parametrize(
    ("devices", "labels"),
    [
        ([], ("error", "macs")),
        (["rpi4"], ("error", "latency:rpi4")),
        (["rpi4", "nuc"], ("error", "latency:rpi4", "latency:nuc")),
    ],
)
def test_error_and_latency_or_macs_are_the_default(devices, labels):
    assert Objectives.of(None, devices=devices).labels == labels


def test_an_unknown_objective_is_refused_with_those_that_are_allowed():
    allowed = "allowed: error, latency, latency:rpi4, macs, params"
    with pytest.raises(UsageError, match=f"objective 'energy' is unknown; {allowed}"):
        Objectives.of(["error", "energy"], devices=["rpi4"])


@pytest.mark.parametrize("name", ["latency:nuc", "latency"])
def test_latency_of_a_device_that_nothing_answers_for_is_refused(name):
    devices = ["rpi4"] if name == "latency:nuc" else []
    with pytest.raises(MissingLatencyError, match="never guessed"):
        Objectives.of(["error", name], devices=devices)


def test_a_cost_that_the_table_of_the_space_lacks_is_refused(world):
    config = SearchConfig(method="nsga2", objectives=("error", "size_bytes"))
    with pytest.raises(UsageError, match="'size_bytes' is unknown"):
        make_searcher(config, world.evaluator(latency={}), seed=0)


def test_a_search_without_a_device_refuses_latency_as_its_objective(world):
    config = SearchConfig(method="nsga2", objectives=("error", "latency"))
    with pytest.raises(MissingLatencyError, match="latency is known on: no device"):
        make_searcher(config, world.evaluator(latency={}), seed=0)


def test_rows_hold_what_is_to_be_minimised(make_estimate):
    timed = Candidate(
        arch={}, costs={"macs": 3e6, "params": 10.0}, latency={"rpi4": make_estimate(2.0)}
    )
    untimed = Candidate(arch={}, costs={"macs": 9e6, "params": 99.0}, violation=0.5)
    told = [
        Evaluation(candidate=candidate, score=Score(accuracy=accuracy))
        for candidate, accuracy in ((timed, 0.75), (untimed, 0.5))
    ]
    rows = Objectives.of(["error", "latency", "macs"], devices=["rpi4"]).rows(told)
    assert rows.tolist() == [[-0.75, 2.0, 3e6], [-0.5, math.inf, 9e6]]
    assert Objectives.of(["params"], devices=[]).rows([]).shape == (0, 1)
    assert rows.dtype == np.float64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "nsga2", "objectives": ("error", "energy")}, "not 'energy'"),
        ({"method": "nsga2", "objectives": ("latency:",)}, "not 'latency:'"),
        ({"method": "nsga2", "objectives": ()}, "objectives must be some of error, latency, macs"),
        ({"objectives": ("error", "macs")}, 'use method = "nsga2"'),
        ({"method": "random", "assisted": True}, "no children to choose among"),
        ({"method": "nsga2", "mutation_probabilities": {"depth": 0.4}}, 'method = "evolution"'),
        ({"mutation_probabilities": {"depth": 1.4}}, "less than or equal to 1"),
    ],
)
def test_settings_that_the_method_cannot_use_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SearchConfig(**settings)


def test_nsga2_does_not_hold_the_settings_of_evolution_against_its_population():
    assert SearchConfig(method="nsga2", population=8).n_candidates == 8 * 21


def test_settings_of_other_methods_are_no_part_of_a_search():
    plain = SearchConfig().lineage()
    assert not {"objectives", "assisted", "mutation_probabilities"} & set(plain)
    nsga2 = SearchConfig(method="nsga2", objectives=("error", "macs"), assisted=True)
    assert {"parents", "crossover", "mutation"}.isdisjoint(nsga2.lineage())
    assert nsga2.lineage()["objectives"] == ["error", "macs"]
    assert nsga2.lineage()["assisted"] is True
