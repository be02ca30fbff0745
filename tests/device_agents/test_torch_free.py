"""Boards are measured without torch: its import is blocked, and everything still works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "pipeline"):
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
import pkgutil, importlib, device_agents, device_agents.board
for package in (device_agents, device_agents.board):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from device_agents.devices import DeviceSpec
from device_agents.files.measure_file import measure_file
from device_agents.measuring.profiles import counted
from device_agents.measuring.reference import reference_model
folder = Path(sys.argv[1])
(folder / "net.onnx").write_bytes(reference_model("tiny"))
device = DeviceSpec(name="local", workdir=folder / "agent")
found = measure_file(folder / "net.onnx", device, profile=counted(2, 1))
print(found.measurement.statistics.n_samples)
"""


def test_a_file_is_measured_with_the_import_of_torch_blocked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.returncode) == ("2", 0), done.stderr
