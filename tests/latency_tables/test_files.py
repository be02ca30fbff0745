"""Atomic files and content hashes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.files import (
    canonical_json,
    replacing,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail():
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_missing_folders_are_made(tmp_path):
    write_json(tmp_path / "new" / "folder" / "a.json", {"a": 1})
    assert json.loads((tmp_path / "new" / "folder" / "a.json").read_text()) == {"a": 1}


def test_numbers_that_are_not_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_the_order_of_keys_does_not_change_the_hash(data):
    backwards = dict(reversed(data.items()))
    assert sha256_json(data) == sha256_json(backwards)
    assert json.loads(canonical_json(data)) == data


def test_a_file_hashes_like_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == sha256_bytes(b"abc")
    assert sha256_bytes(b"abc").startswith("ba7816bf")  # FIPS 180-2, appendix B.1
