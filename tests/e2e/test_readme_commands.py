"""The commands of the README, in its order, after its first one.

Those with a prompt need a board: a real SSH server on 127.0.0.1 stands in for it.
"""

import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from device_agents.inventory import change_device
from pipeline.search.journal import read_journal
from tests.docs.test_readme import board_commands, commands
from tests.e2e.conftest import SMALL, Home
from tests.fakes.ssh_servers import OpenSsh


@dataclass(frozen=True, slots=True, kw_only=True)
class UserOfBoards(Home):
    """Works in the same folder, with ssh settings and keys of his own."""

    @property
    def environment(self):
        inherited = Home(path=self.path).environment
        inherited.pop("SSH_AUTH_SOCK", None)
        return {
            **inherited,
            "HOME": str(self.path / "home"),
            "XDG_CONFIG_HOME": str(self.path / "config"),
        }


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
    if command[1] == "rank":
        (finished.path / command[-1]).write_text(known_networks(finished.path / "runs/digits"))
    # a transfer is a second main job, and retraining takes as long as training; to their ends, as
    # long tests, they run in tests/e2e/test_transfer.py and test_retrain.py
    shorter = {
        "transfer": ["--plan"],
        "retrain": ["--set", "epochs=2"],
        "run": [] if "--plan" in command else in_a_hurry(),
    }
    finished.hilnas(*command[1:], *shorter.get(command[1], []))


def in_a_hurry():
    """Options of a run of which only the trained supernet and its generator matter.

    Latencies of its tiny networks may differ no more than other tests on this machine disturb them.
    """
    settings = (*SMALL, "train.epochs=2", 'latency.accept=["signal"]')
    return [word for setting in settings for word in ("--set", setting)]


def known_networks(run):
    """A table of the networks that a run has scored, as if each had been trained alone, too."""
    journal = read_journal(run / "search.jsonl")
    with io.StringIO(newline="") as text:
        table = csv.writer(text)
        table.writerow(["arch", "accuracy"])
        for candidate, score in zip(journal.generations[0], journal.scores[0], strict=True):
            table.writerow([json.dumps(dict(candidate.arch)), score.accuracy])
        return text.getvalue()


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """What the README's alias leads to."""
    with OpenSsh(tmp_path_factory.mktemp("board")) as server:
        yield server


@pytest.fixture(scope="module")
def user(finished, board):
    """The user of the first command, whose ssh configuration knows the board."""
    config = finished.path / "home" / ".ssh" / "config"
    config.parent.mkdir(mode=0o700, parents=True)
    config.write_text(
        f"Host lab-rk3588\n  HostName 127.0.0.1\n  Port {board.port}\n  User {board.user}\n"
        f"  IdentityFile {board.client_key}\n"
    )
    config.chmod(0o600)
    return UserOfBoards(path=finished.path)


def test_the_commands_for_a_board_work_in_their_order(user, board):
    shown = board_commands()
    assert [words[1:3] for words in shown[:2]] == [["devices", "add"], ["devices", "bootstrap"]]
    listed = ["ssh-keygen", "-lf", f"{board.host_key}.pub"]
    said = subprocess.run(listed, capture_output=True, text=True, check=True)
    for words in shown:
        if words[2] == "bootstrap":
            # it downloads: tests/boards runs it for real. Here the Python of the tests takes the
            # place of what it brings
            change_device(user.path / "devices.toml", "rk3588-a", python=sys.executable)
            continue
        replaced = [said.stdout.split()[1] if "SHA256" in word else word for word in words[1:]]
        user.hilnas(*replaced)
