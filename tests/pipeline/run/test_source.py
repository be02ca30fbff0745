"""Where settings come from."""

import pytest

from latency_tables.errors import ConfigError, UsageError
from pipeline.run.source import LOCK, read_source, write_lock


def test_a_run_file_names_the_run_and_the_folder_of_its_data(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nname = "npz"\npath = "mine.npz"\n')
    source = read_source(str(path))
    assert (source.name, source.base) == ("mine", tmp_path)


def test_a_run_folder_gives_back_the_settings_of_its_lock(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('seed = 7\n[data]\nname = "npz"\npath = "mine.npz"\n')
    source = read_source(str(path))
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    write_lock(folder, source)
    again = read_source(str(folder))
    assert again.config == source.config
    assert again.base.resolve() == tmp_path
    assert again.folder == folder


def test_overrides_apply_to_a_run_folder_too(tmp_path):
    write_lock(tmp_path, read_source("digits"))
    assert read_source(str(tmp_path), ["train.epochs=3"]).config.train.epochs == 3


def test_the_lock_holds_no_absolute_path(tmp_path):
    write_lock(tmp_path, read_source("digits"))
    assert str(tmp_path) not in (tmp_path / LOCK).read_text()


def test_a_damaged_lock_is_a_config_error(tmp_path):
    (tmp_path / LOCK).write_text("[origin")
    with pytest.raises(ConfigError, match="damaged"):
        read_source(str(tmp_path))


def test_an_unreadable_run_file_is_a_config_error(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_source(str(tmp_path / "mine.toml"))


def test_a_name_that_is_nothing_lists_the_starters():
    with pytest.raises(UsageError, match="starters: cifar10-fewshot"):
        read_source("nothing-like-it")
