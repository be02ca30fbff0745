"""The latency model as JSON: it comes back as it was, and damage is refused."""

import json

import numpy as np
import pytest

from latency_tables.errors import CorruptTableError, ForeignTableError
from latency_tables.predictor import LatencyModel
from tests.latency_tables.predictor.truths import (
    additive,
    draw,
    fit,
    interacting,
    noisy,
    one_column,
)

STAGES = {"late": ["block6", "block7"]}


@pytest.fixture(scope="module")
def fresh(table):
    return draw(table, 100, seed=5)


def kept(model, table):
    return LatencyModel.from_dict(json.loads(json.dumps(model.to_dict())), table)


def prior(table):
    effects = np.random.default_rng(0).normal(0, 0.3, (8, 3))
    return effects, one_column(table, 1.7 * effects)


@pytest.fixture(scope="module")
def models(table):
    """Models whose blends hold the table, a process, trees, and another device."""
    few, some, many = draw(table, 10), draw(table, 60), draw(table, 120)
    effects, other = prior(table)
    return {
        "table": fit(table, some, additive(table, some), stages=STAGES),
        "mixed": fit(table, some[:30], noisy(additive(table, some[:30]), 0.03), stages=STAGES),
        "process": fit(table, some, interacting(some)),
        "boosted": fit(
            table, many, np.exp(additive(table, many)) + 30 * (many[:, 0] == many[:, 1])
        ),
        "priors": fit(
            table,
            few,
            noisy(6 + effects[np.arange(8), few].sum(axis=1), 0.02),
            priors={"gpu": other},
        ),
    }


NAMES = ("table", "mixed", "process", "boosted", "priors")


def test_the_models_differ_in_what_they_hold(models):
    forms = {name: set(models[name].diagnostics.forms) for name in models}
    assert forms["table"] == {"table"}
    assert len(forms["mixed"]) > 1
    assert "process" in forms["process"]
    assert models["priors"].diagnostics.priors == ("gpu",)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_survives_json(table, models, fresh, name):
    model = models[name]
    copy = kept(model, table)
    np.testing.assert_array_equal(copy.predict_ms(fresh), model.predict_ms(fresh))
    np.testing.assert_array_equal(copy.predict_all(fresh).high_ms, model.predict_all(fresh).high_ms)
    assert (copy.hyper, copy.model_hash) == (model.hyper, model.model_hash)
    assert copy.diagnostics == model.diagnostics


def test_another_cost_table_is_refused(table, models, make_cost_table):
    model, other = models["table"], make_cost_table(seed=9)
    with pytest.raises(ForeignTableError, match="cost table"):
        LatencyModel.from_dict(model.to_dict(), other)
    with pytest.raises(ForeignTableError, match="cost table"):
        model.with_latency_column(other)


FIELDS = (
    "schema",
    "cost_table_hash",
    "stages",
    "priors",
    "forms",
    "table",
    "kernels",
    "genes",
    "latency_ms",
    "groups",
)


def test_every_field_is_tried_for_damage(models):
    assert set(models["table"].to_dict()) == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_damage_of_a_field_is_refused(table, models, field):
    data = models["table"].to_dict()
    missing = {name: value for name, value in data.items() if name != field}
    for damaged in (missing, *({**data, field: bad} for bad in (None, 3, [1.0], [{}], {"a": 1}))):
        with pytest.raises(CorruptTableError):
            LatencyModel.from_dict(damaged, table)
    with pytest.raises(CorruptTableError, match="extra"):
        LatencyModel.from_dict({**data, "extra": 1}, table)


def damaged(data, change):
    data = json.loads(json.dumps(data))
    change(data)
    return data


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["latency_ms"].__setitem__(0, -1.0),
        lambda d: d["latency_ms"].__setitem__(0, float("nan")),
        lambda d: d["latency_ms"].__setitem__(0, "fast"),
        lambda d: d["latency_ms"].pop(),
        lambda d: d["genes"][0].__setitem__(0, 3),
        lambda d: d["genes"][0].__setitem__(0, -1),
        lambda d: d["genes"][0].pop(),
        lambda d: d["groups"].pop(),
        lambda d: d["stages"].__setitem__("late", ["tail"]),
        lambda d: d["forms"][0].__setitem__("share", 0.0),
        lambda d: d["forms"][0].__setitem__("share", float("inf")),
        lambda d: d["forms"][0].__setitem__("form", "oracle"),
        lambda d: d["forms"].clear(),
        lambda d: d["forms"][0]["scales"].append([1.0]),
        lambda d: d["table"][0].__setitem__(0, -1.0),
        lambda d: d["table"][0].__setitem__(0, float("inf")),
        lambda d: d["table"][0].__setitem__(0, "wide"),
        lambda d: d["kernels"].clear(),
        lambda d: d["kernels"][0].__setitem__("length", 0.0),
        lambda d: d["kernels"][0].__setitem__("scale", -1.0),
        lambda d: d["kernels"][0].__setitem__("kind", "colours"),
        lambda d: d["kernels"][0]["scales"].pop(),
        lambda d: d["kernels"][0]["scales"].clear(),
        lambda d: d["forms"][0].__setitem__("share", 0.01),
        lambda d: d["forms"].append(d["forms"][0]),
        lambda d: d["genes"][0].__setitem__(0, 1.5),
        lambda d: d["groups"].__setitem__(0, 0.5),
        lambda d: d.__setitem__("groups", [0] * len(d["groups"])),
        lambda d: d.__setitem__("latency_ms", [str(ms) for ms in d["latency_ms"]]),
        lambda d: d["table"][0].extend([1.0] * 5),
        lambda d: d["table"].clear(),
    ],
)
def test_damage_within_a_field_is_refused(table, models, change):
    data = models["process"].to_dict()
    data["stages"] = STAGES
    with pytest.raises(CorruptTableError):
        LatencyModel.from_dict(damaged(data, change), table)


@pytest.mark.parametrize(
    "change",
    [
        lambda prior: prior.pop("factors"),
        lambda prior: prior["decisions"].pop(),
        lambda prior: prior["columns"].append({"name": "macs", "unit": "MAC"}),
        lambda prior: prior["factors"][0]["values"].pop(),
    ],
)
def test_damage_of_a_prior_is_refused(table, models, change):
    data = models["priors"].to_dict()
    with pytest.raises(CorruptTableError):
        LatencyModel.from_dict(damaged(data, lambda d: change(d["priors"]["gpu"])), table)
