"""The hardware that is emulated: one Cortex-A76 whose clock counts instructions."""

from __future__ import annotations

import subprocess
from functools import cache

KERNEL_WORDS = "console=ttyAMA0 quiet panic=-1 mitigations=off random.trust_cpu=on"


def machine(shift: int, memory_mib: int, words: str = "") -> tuple[str, ...]:
    """The emulated hardware; a snapshot fits only what it was taken on. ``words``: for its kernel.

    >>> "shift=3,align=off,sleep=on" in machine(3, 1024)
    True
    """
    return (
        "qemu-system-aarch64",
        *("-M", "virt,gic-version=3", "-cpu", "cortex-a76", "-smp", "1", "-m", str(memory_mib)),
        *("-accel", "tcg,thread=single", "-icount", f"shift={shift},align=off,sleep=on"),
        *("-append", f"{KERNEL_WORDS} {words}".strip()),
        *("-device", "virtio-blk-pci,drive=d0", "-device", "virtio-net-pci,netdev=n0,romfile="),
        *("-device", "virtio-rng-pci", "-display", "none", "-monitor", "none"),
    )


@cache
def emulator() -> str:
    """What the emulator says it is."""
    done = subprocess.run(
        ["qemu-system-aarch64", "--version"], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()[0]
