"""What ``--until`` accepts, and what it says of anything else."""

import dataclasses

import pytest

from latency_tables import Diagnostics
from latency_tables.errors import UsageError
from pipeline.run.table_target import ErrorTarget, parse_target


def found(**values):
    names = {f.name for f in dataclasses.fields(Diagnostics)}
    return Diagnostics(**{name: values.get(name) for name in names})


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [
        ("mape<4%", "mape", 0.04),
        ("mape<0.04", "mape", 0.04),
        (" MAPE <= 2.5 % ", "mape", 0.025),
        ("within10>95%", "within10", 0.95),
        ("within_5 >= .8", "within5", 0.8),
    ],
)
def test_a_target_is_read(text, metric, bound):
    target = parse_target(text)
    assert target == ErrorTarget(metric=metric, bound=pytest.approx(bound))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mape", "is not a target"),
        ("rmse<4%", "is not a target"),
        ("mape<4ms", "is not a target"),
        ("mape<-4%", "is not a target"),
        ("mape>4%", "better the smaller"),
        ("within10<95%", "better the larger"),
        ("mape<4", "means 400 %"),
        ("within10>0%", "between 0 and 100"),
        ("within10>100%", "between 0 and 100"),
    ],
)
def test_anything_else_is_refused_with_the_forms_that_exist(text, said):
    with pytest.raises(UsageError, match=said) as error:
        parse_target(text)
    assert "mape<4%" in error.value.hint
    assert "within10>95%" in error.value.hint


def test_a_target_is_reached_beyond_its_bound_only():
    model = found(loo_mape=0.04, within_5=0.7, within_10=0.95)
    assert not parse_target("mape<4%").reached(model)
    assert parse_target("mape<4.1%").reached(model)
    assert parse_target("within5>60%").reached(model)
    assert not parse_target("within10>95%").reached(model)


def test_what_was_reached_is_said_in_the_words_of_the_target():
    model = found(loo_mape=0.0512, within_10=0.883)
    assert parse_target("mape<4%").said(model) == "MAPE 5.12 %"
    assert parse_target("within10>95%").said(model) == "networks within 10 %: 88.3 %"
