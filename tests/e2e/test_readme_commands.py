"""The commands of the README, in its order, after its first one."""

import numpy as np
import pytest

from tests.docs.test_readme import commands


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_command_works(finished, command):
    labels = np.arange(240) % 3
    if command[1] == "init":
        (finished.path / command[-1]).unlink(missing_ok=True)
        np.savez(
            finished.path / "mine.npz",
            images=np.zeros((240, 8, 8), np.uint8) + 80 * labels[:, None, None].astype(np.uint8),
            labels=labels,
        )
    finished.hilnas(*command[1:])
