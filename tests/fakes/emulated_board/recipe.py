"""What goes into the disk of an emulated board, and the files that make one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

GUEST = Path(__file__).parent / "guest"

RELEASES = {
    "bullseye": "Python 3.9, glibc 2.31",
    "bookworm": "Python 3.11, glibc 2.36",
    "trixie": "Python 3.13, glibc 2.41",
}
SERVERS = {
    "openssh": ("openssh-server", "openssh-sftp-server"),
    "dropbear": ("dropbear-bin",),  # no SFTP server, as on many small boards
}
PACKAGES = (
    # what a board has: a shell, Python, a C++ library; no pip, no numpy, no runtime
    "base-files",
    "dash",
    "bash",
    "coreutils",
    "util-linux",
    "tar",
    "gzip",
    "grep",
    "sed",
    "mawk",
    "findutils",
    "procps",
    "busybox-static",
    "python3-minimal",
    "python3",
    "libstdc++6",
    "linux-image-cloud-arm64",
)
MODULES = (
    # in the order in which they load; which of them are built in differs between kernels
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio-rng",
    "libcrc32c",
    "crc16",
    "mbcache",
    "jbd2",
    "crc32c_generic",
    "ext4",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A board to build. ``sysfs``: with cpufreq and thermal zones faked by writable plain files.

    >>> Recipe(release="trixie", server="dropbear").name
    'trixie-dropbear'
    """

    release: str = "bookworm"
    server: str = "openssh"
    sysfs: bool = False
    disk_mib: int = 1200

    def __post_init__(self) -> None:
        for value, known in ((self.release, RELEASES), (self.server, SERVERS)):
            if value not in known:
                raise ValueError(f"{value!r} is none of {', '.join(known)}")

    @property
    def name(self) -> str:
        """Short name for folders and messages."""
        return "-".join([self.release, self.server, *(["sysfs"] if self.sysfs else [])])

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian packages of the disk."""
        return (*PACKAGES, *SERVERS[self.server])

    def key(self) -> str:
        """Hash of all that decides what comes out, but for Debian's own updates."""
        here = Path(__file__)
        sources = [here, here.with_name("build.py"), *sorted(GUEST.iterdir())]
        parts = [json.dumps(asdict(self), sort_keys=True).encode()]
        parts += [source.read_bytes() for source in sources]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def sysfs_files(cores: int = 1) -> dict[str, str]:
    """Files of a faked cpufreq and thermal tree, relative to /sys.

    One policy that may be set to 408, 1200 or 2400 MHz, one zone at 41 °C with one cooling device.
    The emulated clock does not follow what is written here.
    """
    cpu, everyone = "devices/system/cpu", f"0-{cores - 1}" if cores > 1 else "0"
    policy = {
        "scaling_governor": "schedutil",
        "scaling_available_governors": "schedutil performance powersave userspace",
        "scaling_available_frequencies": "408000 1200000 2400000",
        "scaling_cur_freq": "1200000",
        "scaling_min_freq": "408000",
        "scaling_max_freq": "2400000",
        "cpuinfo_min_freq": "408000",
        "cpuinfo_max_freq": "2400000",
        "cpuinfo_cur_freq": "1200000",
        "scaling_driver": "cpufreq-dt",
        "affected_cpus": " ".join(map(str, range(cores))),
        "related_cpus": " ".join(map(str, range(cores))),
    }
    zone = {"type": "soc-thermal", "temp": "41000", "trip_point_0_temp": "85000"}
    cooler = {"type": "cpufreq-cpu0", "cur_state": "0", "max_state": "4"}
    files = {f"{cpu}/{name}": everyone for name in ("possible", "present", "online")}
    files |= {f"{cpu}/cpufreq/policy0/{name}": value for name, value in policy.items()}
    for core in range(cores):
        files |= {f"{cpu}/cpu{core}/cpufreq/{name}": value for name, value in policy.items()}
        files[f"{cpu}/cpu{core}/topology/physical_package_id"] = "0"
        files[f"{cpu}/cpu{core}/topology/core_id"] = str(core)
    files |= {f"class/thermal/thermal_zone0/{name}": value for name, value in zone.items()}
    files |= {f"class/thermal/cooling_device0/{name}": value for name, value in cooler.items()}
    return {name: f"{value}\n" for name, value in files.items()}
