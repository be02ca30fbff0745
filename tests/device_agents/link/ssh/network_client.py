"""What the tests of a bad network do at the host's end, in its own network namespace.

Reads one JSON object from the first argument, prints one with what happened.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from device_agents.devices import SshAddress
from device_agents.link.session import Session
from device_agents.link.ssh.transport import SshTransport
from latency_tables.errors import LinkLostError


def main() -> None:
    """Open a session, send files; with "hole" let the network vanish and wait for the error."""
    task = json.loads(sys.argv[1])
    address = SshAddress(
        host=task["host"],
        port=task["port"],
        user=task["user"],
        key=Path(task["key"]),
        config=Path("/dev/null"),
        known_hosts=(Path(task["known_hosts"]),),
    )
    transport = SshTransport(address, workdir=task["workdir"], deadline_s=task["deadline_s"])
    said: dict[str, float | str] = {}
    started = time.monotonic()
    session = Session(transport)
    session.open()
    said["open_s"] = time.monotonic() - started
    started = time.monotonic()
    transport.put_all([os.urandom(20_000) for _ in range(50)])
    said["put_all_s"] = time.monotonic() - started
    started = time.monotonic()
    transport.put(os.urandom(2_000_000))
    said["mb_per_s"] = 2 / (time.monotonic() - started)
    if task["hole"]:
        Path(task["hole"]).touch()
        started = time.monotonic()
        try:
            transport.execute(["true"], timeout_s=60)
        except LinkLostError as error:
            said["lost"] = error.code
        said["noticed_s"] = time.monotonic() - started
    session.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
