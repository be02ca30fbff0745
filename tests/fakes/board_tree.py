"""A file tree like ``/proc`` and ``/sys`` of a board with an RK3588, and ways to change it.

Cores, policies, nodes and their names are those of a vendor kernel on that chip; temperatures,
counters and the lists of clocks are invented. Clocks that a driver reports follow the node that
sets them by a symbolic link (``scaling_cur_freq`` → ``scaling_max_freq``), so an agent in another
process can set a clock and read it back. :class:`RuledTree` is for tests in one process: it obeys
the kernel's rules about order, governors and values, and records every write.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from device_agents.board.tree import Tree

CPU = "sys/devices/system/cpu"
THERMAL = "sys/class/thermal"
DEVFREQ = "sys/class/devfreq"
A55_KHZ = (408000, 816000, 1200000, 1608000, 1800000)
A76_KHZ = (408000, 1200000, 1800000, 2208000, 2256000)
NPU, GPU, DMC = "fdab0000.npu", "fb000000.gpu", "dmc"
DEVFREQ_HZ = {
    NPU: (300_000_000, 600_000_000, 1_000_000_000),
    GPU: (300_000_000, 700_000_000, 1_000_000_000),
    DMC: (534_000_000, 1_320_000_000, 2_112_000_000),
}
CPU_GOVERNORS = "ondemand userspace performance schedutil"
DEVFREQ_GOVERNORS = "userspace performance simple_ondemand"
ZONES = ("soc-thermal", "bigcore0-thermal", "bigcore1-thermal", "littlecore-thermal", "npu-thermal")
COOLING = ("cpufreq-cpu0", "cpufreq-cpu4", "cpufreq-cpu6", "devfreq-fdab0000.npu")
PASSIVE_TRIP_MC = 75_000


class BoardTree:
    """The tree, cool and idle, with governors that scale clocks."""

    def __init__(
        self, root: Path, *, top_khz: tuple[int, int] = (2352000, 2400000), dmc: bool = True
    ) -> None:
        self.root = root
        self._boots = 0
        self._cpus()
        self._policy("policy0", range(4), (*A55_KHZ,))
        self._policy("policy4", (4, 5), (*A76_KHZ, top_khz[0]))
        self._policy("policy6", (6, 7), (*A76_KHZ, top_khz[1]))
        for name, clocks in DEVFREQ_HZ.items():
            if name != DMC or dmc:
                self._devfreq(name, clocks)
        self._thermal()
        self._system()
        self.reboot()

    # ---- building -----------------------------------------------------------------------------

    def write(self, name: str, text: str | int) -> Path:
        """Put a file in the place of whatever is there."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.write_text(f"{text}\n")
        return path

    def read(self, name: str) -> str:
        return (self.root / name).read_text().strip()

    @property
    def tree(self) -> Tree:
        return Tree(str(self.root))

    def _cpus(self) -> None:
        blocks = []
        for core in range(8):
            part = "0xd05" if core < 4 else "0xd0b"
            blocks.append(
                f"processor\t: {core}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
                "CPU revision\t: 0\n"
            )
            self.write(f"{CPU}/cpu{core}/cpu_capacity", 530 if core < 4 else 1024)
            for index, (state, exit_us) in enumerate((("WFI", 1), ("cpu-sleep", 250))):
                folder = f"{CPU}/cpu{core}/cpuidle/state{index}"
                self.write(f"{folder}/name", state)
                self.write(f"{folder}/latency", exit_us)
                self.write(f"{folder}/disable", 0)
        self.write("proc/cpuinfo", "\n".join(blocks))

    def _policy(self, name: str, cores: Sequence[int], clocks: tuple[int, ...]) -> None:
        folder = f"{CPU}/cpufreq/{name}"
        listed = " ".join(map(str, cores))
        top = max(clocks)
        nodes: dict[str, str | int] = {
            "affected_cpus": listed,
            "related_cpus": listed,
            "scaling_available_frequencies": " ".join(map(str, clocks)),
            "scaling_available_governors": CPU_GOVERNORS,
            "scaling_governor": "schedutil",
            "scaling_min_freq": min(clocks),
            "scaling_max_freq": top,
            "scaling_setspeed": "<unsupported>",
            "cpuinfo_min_freq": min(clocks),
            "cpuinfo_max_freq": top,
            "stats/total_trans": 1000,
            "stats/time_in_state": "\n".join(f"{clock} 100" for clock in clocks),
        }
        for node, value in nodes.items():
            self.write(f"{folder}/{node}", value)
        (self.root / folder / "scaling_cur_freq").symlink_to("scaling_max_freq")

    def _devfreq(self, name: str, clocks: tuple[int, ...]) -> None:
        folder = f"{DEVFREQ}/{name}"
        nodes: dict[str, str | int] = {
            "name": name,
            "available_frequencies": " ".join(map(str, clocks)),
            "available_governors": DEVFREQ_GOVERNORS,
            "governor": "simple_ondemand",
            "min_freq": min(clocks),
            "max_freq": max(clocks),
            "userspace/set_freq": min(clocks),
            "trans_stat": "     From  :   To\nTotal transition : 12",
        }
        for node, value in nodes.items():
            self.write(f"{folder}/{node}", value)
        (self.root / folder / "cur_freq").symlink_to("userspace/set_freq")

    def _thermal(self) -> None:
        for index, zone in enumerate(ZONES):
            folder = f"{THERMAL}/thermal_zone{index}"
            self.write(f"{folder}/type", zone)
            self.write(f"{folder}/temp", 45_000)
            for trip, (kind, heat) in enumerate(
                (("passive", PASSIVE_TRIP_MC), ("passive", 85_000), ("critical", 115_000))
            ):
                self.write(f"{folder}/trip_point_{trip}_type", kind)
                self.write(f"{folder}/trip_point_{trip}_temp", heat)
        for index, device in enumerate(COOLING):
            folder = f"{THERMAL}/cooling_device{index}"
            self.write(f"{folder}/type", device)
            self.write(f"{folder}/max_state", 4)
            self._cooling(index, state=0, transitions=0, acted_ms=0)

    def _cooling(self, index: int, *, state: int, transitions: int, acted_ms: int) -> None:
        folder = f"{THERMAL}/cooling_device{index}"
        self.write(f"{folder}/cur_state", state)
        self.write(f"{folder}/stats/total_trans", transitions)
        self.write(f"{folder}/stats/time_in_state_ms", f"state0\t100000\nstate1\t{acted_ms}")

    def _system(self) -> None:
        self.write("proc/device-tree/model", "Fake RK3588 board")
        compatible = self.root / "proc/device-tree/compatible"
        compatible.write_bytes(b"hilnas,fake-board\0rockchip,rk3588\0")
        (self.root / "proc/device-tree/serial-number").write_bytes(b"0123456789abcdef\0")
        self.write(
            "proc/meminfo", "MemTotal: 8125440 kB\nMemFree: 6000000 kB\nMemAvailable: 7000000 kB"
        )
        self.write("proc/vmstat", "oom_kill 0")
        self.write("etc/os-release", 'NAME="Fake"\nPRETTY_NAME="Fake Linux 1"')
        self.write(
            "sys/devices/system/clocksource/clocksource0/current_clocksource", "arch_sys_counter"
        )
        self.write("sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.8")
        self.write("sys/kernel/debug/rknpu/load", "NPU load:  Core0:  0%, Core1:  0%, Core2:  0%,")
        self.load(0.05)
        self.press(0.0)
        cores = "\n".join(f"cpu{core} 100 0 50 10000 0 0 0 0 0 0" for core in range(8))
        self.write("proc/stat", cores)

    # ---- what happens to a board --------------------------------------------------------------

    def reboot(self) -> None:
        """Another boot; clocks and governors are back to what the kernel starts with."""
        if self._boots:
            for name, clocks in self._policies():
                folder = f"{CPU}/cpufreq/{name}"
                self.write(f"{folder}/scaling_governor", "schedutil")
                self.write(f"{folder}/scaling_min_freq", min(clocks))
                self.write(f"{folder}/scaling_max_freq", max(clocks))
        self._boots += 1
        self.write("proc/sys/kernel/random/boot_id", f"00000000-0000-4000-8000-{self._boots:012d}")

    def _policies(self) -> list[tuple[str, list[int]]]:
        found = []
        for folder in sorted((self.root / CPU / "cpufreq").iterdir()):
            listed = (folder / "scaling_available_frequencies").read_text()
            found.append((folder.name, [int(clock) for clock in listed.split()]))
        return found

    def heat(self, temperature_mc: int, zone: int = 0) -> None:
        """Set the temperature of a zone."""
        self.write(f"{THERMAL}/thermal_zone{zone}/temp", temperature_mc)

    def throttle(self) -> None:
        """The big cores got too hot: cooling acts and their clock limit falls."""
        self.heat(PASSIVE_TRIP_MC + 3_000)
        self._cooling(1, state=2, transitions=2, acted_ms=700)
        self.write(f"{CPU}/cpufreq/policy4/scaling_max_freq", 1800000)

    def stick_cooling(self) -> None:
        """A cooling device stays on although the board is cool."""
        self.heat(40_000)
        self._cooling(1, state=1, transitions=3, acted_ms=90_000)

    def change_clock(self, policy: str = "policy4", cur_khz: int = 1200000) -> None:
        """The kernel changed a clock, once."""
        folder = f"{CPU}/cpufreq/{policy}"
        self.write(f"{folder}/scaling_cur_freq", cur_khz)
        self.write(f"{folder}/stats/total_trans", int(self.read(f"{folder}/stats/total_trans")) + 1)

    def load(self, average: float) -> None:
        """Set the load average of the last minute."""
        self.write("proc/loadavg", f"{average:.2f} 0.10 0.10 1/200 1234")

    def press(self, some_avg10: float) -> None:
        """Set the pressure on processor, disk and memory, in per cent."""
        line = f"some avg10={some_avg10:.2f} avg60=0.00 avg300=0.00 total=1"
        for name in ("cpu", "io", "memory"):
            self.write(f"proc/pressure/{name}", line)

    def refuse_governor(self, policy: str = "policy4", *, silently: bool = False) -> None:
        """Make a governor unchangeable, also for root and from another process.

        Loud: the write fails, by a link to a node of the running kernel that nobody may write.
        ``silently``: the write succeeds and another value is read back, as from a driver that
        ignores it.
        """
        path = self.root / CPU / "cpufreq" / policy / "scaling_governor"
        path.unlink()
        path.symlink_to("/dev/null" if silently else "/proc/sys/kernel/ostype")

    def add_sensor(self, power_uw: int = 5_000_000, name: str = "ina226") -> str:
        """A power sensor; gives the node that tests change."""
        node = "sys/class/hwmon/hwmon0/power1_input"
        self.write("sys/class/hwmon/hwmon0/name", name)
        self.write(node, power_uw)
        return node


class RuledTree(Tree):
    """A tree in this process that refuses what a kernel refuses and records what it accepts.

    ``refused`` nodes fail with EACCES and ``ignored`` nodes keep their value, both given as parts
    of their names. ``crash_after`` ends the "process" (KeyboardInterrupt) before write number n+1.
    """

    def __init__(
        self,
        root: str,
        *,
        refused: Sequence[str] = (),
        ignored: Sequence[str] = (),
        crash_after: int | None = None,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(root)
        self.refused, self.ignored, self.crash_after = refused, ignored, crash_after
        self.before_write = before_write
        self.writes: list[tuple[str, str]] = []

    def write(self, name: str, value: str) -> None:
        self.before_write()
        if self.crash_after is not None and len(self.writes) >= self.crash_after:
            raise KeyboardInterrupt
        if any(part in name for part in self.refused):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        folder, _, node = name.rpartition("/")
        if not self._allows(folder, node, value):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        self.writes.append((name, value))
        if not any(part in name for part in self.ignored):
            super().write(name, value)

    def _allows(self, folder: str, node: str, value: str) -> bool:
        prefix = "scaling_" if node.startswith("scaling_") else ""
        if node.endswith("governor"):
            return value in self.words(f"{folder}/{prefix}available_governors")
        if node.endswith("min_freq"):
            return int(value) <= (self.number(f"{folder}/{prefix}max_freq") or 0)
        if node.endswith("max_freq"):
            return int(value) >= (self.number(f"{folder}/{prefix}min_freq") or 0)
        if node in ("scaling_setspeed", "set_freq"):
            owner = folder[: -len("/userspace")] if node == "set_freq" else folder
            return self.text(f"{owner}/{prefix}governor") == "userspace"
        return bool(re.fullmatch("[01]", value)) if node == "disable" else True
