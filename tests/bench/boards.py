"""What a board behind SSH costs beside its measurements: an OpenSSH server on 127.0.0.1.

Run it with ``python -m tests.bench.boards [--nets 50] [--profiles quick,screening] [--repeats 3]
[--json]``. Host and "board" are one machine here, so the host's work is part of what is paid for.

Printed for each profile, as medians over the repetitions, each in a new work folder: the wall time
of ``DeviceMeasurer.measure`` on an open session over the warm-up and timed runs of all networks,
the reference included (budget 1.15); bytes on the wire per candidate, counted below the encryption;
the time of the upload. Then what the link itself does: a command beside one of the ``ssh``
program, a session's opening and end, uploads with and without pipelining.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device_agents.devices import DeviceSpec
from device_agents.link.session import Session
from device_agents.link.ssh.config import resolve
from device_agents.link.ssh.connection import connect
from device_agents.link.ssh.link import Link
from device_agents.link.ssh.transport import SshTransport
from tests.bench.measuring_overhead import BUDGET, make_jobs, measure
from tests.fakes.ssh_servers import OpenSsh

WIRE_BUDGET_BYTES = 100_000
UPLOAD_BYTES = 16 << 20
UNPIPELINED_BYTES = 2 << 20
COMMANDS = 20


def main() -> int:
    """Print what was found; status 1 where the last profile is over a budget."""
    options = parse()
    try:
        return bench(options)
    except pytest.skip.Exception as missing:  # servers are those of the tests
        print(f"cannot run here: {missing}", file=sys.stderr)
        return 2


def bench(options: argparse.Namespace) -> int:
    """Link first, then the profiles in the order given."""
    with tempfile.TemporaryDirectory() as folder, OpenSsh(Path(folder, "server")) as server:
        found: dict[str, Any] = {"machine": machine(), "link": link(server)}
        if not options.json:
            print(found["machine"])
            print_link(found["link"])
        jobs = make_jobs(options.nets)
        for profile in options.profiles.split(","):
            runs = [visit(server, jobs, profile) for _ in range(options.repeats)]
            found[profile] = summary(runs)
            if not options.json:
                print_profile(profile, options, found[profile])
    if options.json:
        print(json.dumps(found))
    last = found[profile]
    return int(last["ratio"] > BUDGET or last["wire_bytes_per_net"] > WIRE_BUDGET_BYTES)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=50)
    parser.add_argument("--profiles", default="quick,screening")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


# ---- measuring candidates ----------------------------------------------------------------------


def visit(server: OpenSsh, jobs: Sequence[Any], profile: str) -> dict[str, Any]:
    """Measure all candidates once, on a board that has none of their files."""
    with tempfile.TemporaryDirectory(dir=server.folder) as folder:
        device = DeviceSpec(
            name="loopback",
            transport="ssh",
            ssh=server.address,
            workdir=Path(folder, "agent"),
            python=sys.executable,
        )
        with counted() as wire:
            found = measure(device, list(jobs), profile)
    if found["failed"]:
        raise SystemExit(f"{len(found['failed'])} networks failed: {found['failed'][0]}")
    return {**found, "up_bytes": wire["up"], "down_bytes": wire["down"]}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count what passes the sockets of SSH connections, login and agent included."""
    bytes_by_way = {"up": 0, "down": 0}
    send, receive = Link.send, Link.recv

    def counting_send(self: Link, data: bytes) -> int:
        count = send(self, data)
        bytes_by_way["up"] += count
        return count

    def counting_receive(self: Link, size: int) -> bytes:
        data = receive(self, size)
        bytes_by_way["down"] += len(data)
        return data

    Link.send, Link.recv = counting_send, counting_receive  # type: ignore[method-assign]
    try:
        yield bytes_by_way
    finally:
        Link.send, Link.recv = send, receive  # type: ignore[method-assign]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions, and every ratio."""
    middle = statistics.median
    n_nets = runs[0]["nets"]
    return {
        "ratio": middle(run["ratio"] for run in runs),
        "ratios": [round(run["ratio"], 3) for run in runs],
        "wall_s": middle(run["wall_s"] for run in runs),
        "busy_s": middle(run["busy_s"] for run in runs),
        "wire_bytes_per_net": middle(r["up_bytes"] + r["down_bytes"] for r in runs) / n_nets,
        "up_bytes_per_net": middle(run["up_bytes"] for run in runs) / n_nets,
        "model_bytes_per_net": runs[0]["model_bytes"] / n_nets,
        "process_start_s": middle(run["process_start_s"] for run in runs),
        "load_ms": middle(run["load_ms"] for run in runs),
        "put_all_s": middle(run["spent_s"]["put"] for run in runs),
        "host_s": middle(run["spent_s"]["host"] for run in runs),
    }


def print_profile(profile: str, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Four lines."""
    print(f"{profile}: {options.nets} networks, medians of {options.repeats} repetitions")
    print(
        f"  wall {found['wall_s']:.2f} s / warm-up and timed runs {found['busy_s']:.2f} s = "
        f"{found['ratio']:.3f} (budget {BUDGET}; each: {found['ratios']})"
    )
    print(
        f"  a process that imports the runtime {found['process_start_s']:.2f} s per round, "
        f"loading a network {found['load_ms']:.1f} ms per visit"
    )
    print(
        f"  on the wire per network {found['wire_bytes_per_net'] / 1e3:.1f} kB, of which up "
        f"{found['up_bytes_per_net'] / 1e3:.1f} (model {found['model_bytes_per_net'] / 1e3:.1f}); "
        f"upload {found['put_all_s']:.3f} s, host between rounds {found['host_s']:.2f} s",
        flush=True,
    )


# ---- the link ----------------------------------------------------------------------------------


def link(server: OpenSsh) -> dict[str, float]:
    """Milliseconds of commands and sessions, MB/s of uploads."""
    transport = SshTransport(server.address, workdir=server.workdir, python=sys.executable)
    transport.open()
    try:
        ours = median_ms(lambda: transport.execute(["true"]))
        transport.put(os.urandom(2 << 20))  # the way of uploads is open then
        pipelined = upload_rate(lambda data: transport.put(data), UPLOAD_BYTES)
    finally:
        transport.close()
    opening, ending = sessions(server)
    return {
        "command_ms": ours,
        "ssh_program_ms": median_ms(lambda: ssh_program(server)),
        "session_open_ms": opening,
        "session_close_ms": ending,
        "put_MB_per_s": pipelined,
        **sftp_rates(server),
    }


def median_ms(action: Callable[[], object], repeats: int = COMMANDS) -> float:
    """Median duration of an action in ms."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def ssh_program(server: OpenSsh) -> None:
    """The rival: one command through the ssh program, which connects anew each time."""
    known = f"UserKnownHostsFile={server.known_hosts}"
    way = ["-p", str(server.port), "-i", str(server.client_key), "-o", known, "-F", "none"]
    subprocess.run(["ssh", *way, f"{server.user}@127.0.0.1", "true"], check=True)


def sessions(server: OpenSsh) -> tuple[float, float]:
    """Median ms of opening a session (connect, log in, agent, lease) and of ending it."""
    transport = SshTransport(server.address, workdir=server.workdir, python=sys.executable)
    session = Session(transport)
    opened, closed = [], []
    for _ in range(5):
        opened.append(median_ms(session.open, 1))
        closed.append(median_ms(session.close, 1))
    return statistics.median(opened), statistics.median(closed)


def upload_rate(send: Callable[[bytes], object], size: int) -> float:
    """Median MB/s over three uploads."""
    took_ms = [median_ms(lambda: send(os.urandom(size)), 1) for _ in range(3)]
    return size / 1e3 / statistics.median(took_ms)


def sftp_rates(server: OpenSsh) -> dict[str, float]:
    """MB/s of SFTP writes, pipelined or each awaited, in pieces of 32 KiB."""
    connection = connect(resolve(server.address), deadline_s=10.0)
    try:
        sftp = connection.transport.open_sftp_client()
        if sftp is None:
            raise SystemExit("the server gives no SFTP channel")

        def send(data: bytes, *, pipelined: bool) -> None:
            with sftp.open(f"{server.workdir}/bench", "wb") as stream:
                stream.set_pipelined(pipelined)
                for start in range(0, len(data), 1 << 15):
                    stream.write(data[start : start + (1 << 15)])

        return {
            "sftp_pipelined_MB_per_s": upload_rate(lambda d: send(d, pipelined=True), UPLOAD_BYTES),
            "sftp_awaited_MB_per_s": upload_rate(
                lambda d: send(d, pipelined=False), UNPIPELINED_BYTES
            ),
        }
    finally:
        connection.close()


def print_link(found: dict[str, float]) -> None:
    """Three lines."""
    print(
        f"one command {found['command_ms']:.1f} ms on an open connection, "
        f"{found['ssh_program_ms']:.1f} ms by the ssh program; session opens in "
        f"{found['session_open_ms']:.0f} ms, ends in {found['session_close_ms']:.0f} ms"
    )
    print(
        f"upload, hashed and flushed on the board: {found['put_MB_per_s']:.0f} MB/s; SFTP writes "
        f"alone: {found['sftp_pipelined_MB_per_s']:.0f} MB/s pipelined, "
        f"{found['sftp_awaited_MB_per_s']:.0f} MB/s each awaited",
        flush=True,
    )


def machine() -> str:
    """What this ran on."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{cores}-core {platform.machine()}, Linux {platform.release()}, load {load:.1f}"


if __name__ == "__main__":
    sys.exit(main())
