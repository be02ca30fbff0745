"""Real TCP under delay and loss, and a network that vanishes; needs root and namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.require import refuse, require_program
from tests.fakes.ssh_servers import OpenSsh

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
HOST, BOARD = "127.77.0.1", "127.77.0.2"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Two namespaces with a relay between; gives the outcome of network_client there."""
    ip, ethtool = require_program("ip"), require_program("ethtool")
    sysctl = require_program("sysctl")
    if os.getuid() != 0:
        refuse("network namespaces need root here")
    tag = f"hn{os.getpid() % 10000}"
    host, middle, board = f"{tag}a", f"{tag}m", f"{tag}b"
    processes: list[subprocess.Popen[str]] = []

    def sh(*words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            refuse(f"network namespaces are not permitted: {' '.join(words)}: {done.stderr}")

    def start(delay_ms: float, loss_percent: float, *, hole: bool = False) -> dict[str, Any]:
        for name in (host, middle, board):
            sh(ip, "netns", "add", name)
            sh(ip, "-n", name, "link", "set", "lo", "up")
        for end, name in (("eA", host), ("eB", board)):
            near = f"m{end}"
            sh(ip, "link", "add", end, "netns", name, "type", "veth", "peer", near, "netns", middle)
            for device, space in ((end, name), (near, middle)):
                inside = [ip, "netns", "exec", space]
                sh(*inside, sysctl, "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1")
                # frames that the kernel left unfinished would be dropped at the other side
                offload = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"]
                sh(*inside, ethtool, "-K", device, *offload)
                sh(ip, "-n", space, "link", "set", device, "up")
        for name, device, address in ((host, "eA", HOST), (board, "eB", BOARD)):
            # addresses of the loopback range, so that nothing can leave this machine
            sh(ip, "-n", name, "addr", "del", "127.0.0.1/8", "dev", "lo")
            sh(ip, "netns", "exec", name, sysctl, "-qw", "net.ipv4.conf.all.route_localnet=1")
            sh(ip, "-n", name, "addr", "add", f"{address}/24", "dev", device)
        control = tmp_path / "hole"
        relay = [sys.executable, str(HERE / "relay.py"), "meA", "meB"]
        relay += [str(delay_ms), str(loss_percent), str(control)]
        inside = [ip, "netns", "exec", middle]
        process = subprocess.Popen([*inside, *relay], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        server = OpenSsh(tmp_path / "server", start=False)
        server.listen = BOARD
        server.within = (ip, "netns", "exec", board)
        server.known_hosts.write_text(server.known_line.replace("127.0.0.1", BOARD))
        with server:
            server.start()
            task = {
                "host": BOARD,
                "port": server.port,
                "user": server.user,
                "key": str(server.client_key),
                "known_hosts": str(server.known_hosts),
                "workdir": server.workdir,
                "deadline_s": 5.0,
                "hole": str(control) if hole else "",
            }
            client = [sys.executable, str(HERE / "network_client.py"), json.dumps(task)]
            done = subprocess.run(
                [ip, "netns", "exec", host, *client],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert done.returncode == 0, done.stderr[-3000:] + server.log[-2000:]
        print(done.stdout)
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    yield start
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    for name in (host, middle, board):
        subprocess.run([ip, "netns", "del", name], capture_output=True, check=False)


@pytest.mark.parametrize(("delay_ms", "loss_percent"), [(0, 0), (10, 0), (10, 1), (25, 2)])
def test_files_arrive_over_a_link_with_delay_and_loss(lab, delay_ms, loss_percent):
    said = lab(delay_ms, loss_percent)
    assert said["put_all_s"] < 10
    assert said["mb_per_s"] > 0.1


def test_a_network_that_vanishes_is_noticed_within_the_deadline(lab):
    said = lab(2, 0, hole=True)
    assert said["lost"] == "LINK_LOST"
    assert said["noticed_s"] < 5.0 + 2.0
