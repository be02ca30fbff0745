"""Named child generators."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.randomness import child_seed, numpy_generator, torch_generator

NAMES = st.lists(st.one_of(st.text(max_size=5), st.integers(-5, 5)), max_size=4)


@given(st.integers(0, 2**63 - 1), NAMES)
def test_a_child_seed_fits_into_63_bits(root: int, names: list[str | int]) -> None:
    assert 0 <= child_seed(root, *names) < 2**63


@given(NAMES, NAMES)
def test_different_paths_give_different_seeds(a: list[str | int], b: list[str | int]) -> None:
    same = [(type(x), x) for x in a] == [(type(x), x) for x in b]
    assert (child_seed(0, *a) == child_seed(0, *b)) == same


def test_a_child_seed_never_changes_between_releases() -> None:
    # a checkpoint of an older release must resume with the same numbers
    assert child_seed(0, "train", 1) == 8_405_675_000_567_002_310


def test_numpy_integers_are_the_same_names_as_plain_ones() -> None:
    assert child_seed(0, int(np.int64(3))) == child_seed(np.int64(0), np.int64(3))


@pytest.mark.parametrize("make", [numpy_generator, torch_generator])
def test_generators_of_one_name_repeat_and_of_two_names_differ(make: object) -> None:
    def draw(*names: str) -> list[float]:
        generator = make(5, *names)  # type: ignore[operator]
        if isinstance(generator, np.random.Generator):
            return list(generator.random(4))
        return torch.rand(4, generator=generator).tolist()

    assert draw("a") == draw("a")
    assert draw("a") != draw("b")


def test_torch_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, pipeline.randomness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
