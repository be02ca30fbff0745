"""Make the shipped locks anew: ``python -m device_agents.bootstrap.refresh CACHE [RUNTIME ...]``.

For maintainers, after a change of :mod:`device_agents.bootstrap.releases`. Every wheel is fetched,
read to its end and hashed; a file that was locked before must not have changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from device_agents.bootstrap.choose import Plan, choose
from device_agents.bootstrap.lock import LockFile, known_hashes, refuse_changed, write_lock
from device_agents.bootstrap.releases import RELEASES, RUNTIMES
from device_agents.bootstrap.target import Target
from device_agents.bootstrap.wheels import download
from latency_tables.errors import BootstrapError

LOCKS = Path(__file__).parent / "locks"


def plans(runtime: str) -> Iterator[Plan]:
    """Each plan that :func:`choose` can give for ``runtime``, once."""
    seen = set()
    libcs = sorted({row.libc for rows in RELEASES.values() for row in rows})
    for row in RELEASES[RUNTIMES[runtime][0]]:
        for abi in row.abis:
            for machine in row.machines:
                for libc in libcs:
                    try:
                        plan = choose(_target(abi, machine, libc), runtime)
                    except BootstrapError:
                        continue
                    if plan.key not in seen:
                        seen.add(plan.key)
                        yield plan


def main(argv: Sequence[str]) -> int:
    """Write a lock for each plan of the named runtimes, by default of all."""
    cache, runtimes = Path(argv[0]), argv[1:] or list(RUNTIMES)
    for runtime in runtimes:
        for plan in plans(runtime):
            wheels = download(plan, None, cache / "wheels", print)
            lock = LockFile(key=plan.key, wheels=tuple(wheel.locked for wheel in wheels))
            refuse_changed(lock.wheels, known_hashes(cache))
            write_lock(LOCKS / f"{plan.key}.json", lock)
            print(f"{plan.key}: {lock.hash}")
    return 0


def _target(abi: str, machine: str, libc: tuple[str, tuple[int, ...]]) -> Target:
    digits = abi.strip("cpmt")
    return Target(python=(int(digits[0]), int(digits[1:])), abi=abi, libc=libc, machine=machine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
