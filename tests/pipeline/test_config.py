"""The run file: defaults, overrides, and errors that name the way out."""

import pytest

from latency_tables.errors import ConfigError
from pipeline.config import parse_run_config

MINIMAL = '[data]\nname = "digits"\n'


def test_a_data_set_is_all_that_a_run_file_must_name():
    config = parse_run_config(MINIMAL)
    assert [d.name for d in config.device] == ["local"]
    assert config.search.population == 50


def test_an_unknown_section_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown key 'serch'; did you mean 'search'"):
        parse_run_config(MINIMAL + "[serch]\n")


def test_an_unknown_key_names_the_nearest_of_its_own_section():
    with pytest.raises(ConfigError, match=r"'train.optimizer.momemtum'.*'momentum'"):
        parse_run_config(MINIMAL + "[train.optimizer]\nmomemtum = 0.9\n")


def test_an_unknown_key_inside_a_device_list_is_found():
    with pytest.raises(ConfigError, match="did you mean 'latency_ms'"):
        parse_run_config(MINIMAL + "[[device]]\nname = 'local'\nlimits = { latencyms = 5 }\n")


def test_an_unknown_key_that_is_near_to_nothing_lists_what_is_known():
    with pytest.raises(ConfigError, match=r"known here: .*samples"):
        parse_run_config(MINIMAL + "[latency]\nxyzzy = 1\n")


def test_every_problem_is_in_one_message():
    with pytest.raises(ConfigError) as error:
        parse_run_config(MINIMAL + "[search]\npopulation = 0\n[latency]\nsamples = 1\n")
    assert "search.population" in str(error.value)
    assert "latency.samples" in str(error.value)


def test_a_wrong_value_is_shown():
    with pytest.raises(ConfigError, match=r"search\.population.*not -3"):
        parse_run_config(MINIMAL + "[search]\npopulation = -3\n")


def test_text_that_is_not_toml_is_refused():
    with pytest.raises(ConfigError, match="not TOML"):
        parse_run_config("[data\n")


def test_two_devices_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="different devices"):
        parse_run_config(MINIMAL + '[[device]]\nname="a"\n[[device]]\nname="a"\n')


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.batch_size=64", lambda c: c.train.batch_size == 64),
        ("data.name=digits", lambda c: c.data.name == "digits"),
        ("device.limits.macs=1e6", lambda c: c.device[0].limits.macs == 1e6),
        ("device.0.limits.latency=30%", lambda c: c.device[0].limits.latency == "30%"),
        ("device.measuring=strict", lambda c: c.device[0].measuring == "strict"),
        ("device.limits={fps=30}", lambda c: c.device[0].limits.fps == 30),
        ("seed=7", lambda c: c.seed == 7),
    ],
)
def test_one_setting_is_changed_on_the_command_line(override, read):
    assert read(parse_run_config(MINIMAL, [override]))


def test_an_objective_on_a_device_that_the_run_has_not_is_refused():
    with pytest.raises(ConfigError, match=r"latency:nuc.* of no .*there are latency:local"):
        parse_run_config(
            '[data]\nname = "digits"\n[search]\nmethod = "nsga2"\n'
            'objectives = ["error", "latency:nuc"]'
        )


def test_an_override_must_say_which_of_several_devices_it_means():
    two = MINIMAL + '[[device]]\nname = "a"\n[[device]]\nname = "b"\n'
    assert parse_run_config(two, ["device.1.threads=2"]).device[1].threads == 2
    with pytest.raises(ConfigError, match="needs the number"):
        parse_run_config(two, ["device.threads=2"])


def test_an_override_without_a_value_says_how_to_write_it():
    with pytest.raises(ConfigError, match="key=value"):
        parse_run_config(MINIMAL, ["train.epochs"])


def test_an_override_of_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        parse_run_config(MINIMAL, ["train.epoch=3"])
