"""The wire format."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.board.frames import MAX_FRAME_BYTES, FrameError, decode, encode

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_what_is_encoded_is_decoded_and_fits_on_one_line(value: object) -> None:
    line = encode({"v": 1, "data": value})
    assert line.count(b"\n") == 1
    assert decode(line)["data"] == value


@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode(data + b"\x00\n")


@pytest.mark.parametrize(
    "line",
    [
        b'{"v":1}',
        b"[1]\n",
        b'{"v":2,"id":1}\n',
        b'"' + b"x" * MAX_FRAME_BYTES + b'"\n',
        b"[" * 100_000 + b"\n",
        b'{"v":1,"a":' + b"[" * 40 + b"]" * 40 + b"}\n",
        b'{"v":1,"a":' + b'{"a":' * 40 + b"1" + b"}" * 41 + b"\n",
        b'{"v":1,"a":NaN}\n',
        b'{"v":1,"a":-Infinity}\n',
        b'{"v":1,"a":[1e400]}\n',
        b'{"v":1,"a":' + b"9" * 100_000 + b"}\n",
    ],
    ids=[
        "cut",
        "list",
        "version",
        "oversized",
        "unclosed",
        "deep list",
        "deep object",
        "nan",
        "infinite",
        "overflow",
        "long number",
    ],
)
def test_a_line_that_is_no_frame_is_refused(line: bytes) -> None:
    with pytest.raises(FrameError):
        decode(line)


def test_what_a_frame_needs_in_depth_and_numbers_is_read() -> None:
    value = json.loads("[" * 20 + "1.5" + "]" * 20)
    assert decode(encode({"v": 1, "a": value, "b": -0.5e-300}))["a"] == value


def test_a_frame_over_one_mebibyte_is_not_sent() -> None:
    with pytest.raises(FrameError, match="allowed are 1048576"):
        encode({"v": 1, "data": "x" * MAX_FRAME_BYTES})


def test_nan_is_not_sent() -> None:
    with pytest.raises(FrameError):
        encode({"v": 1, "data": float("nan")})
