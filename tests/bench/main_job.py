"""How long ``hilnas run digits`` takes, and how much memory, in a home of its own.

Run it with ``python -m tests.bench.main_job [--json]``; exits with 1 where a budget is broken.
There is no rival: no other open project does this job from one command.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BUDGET_S, BUDGET_BYTES, BUDGET_HELP_S = 180.0, 2 * 2**30, 0.3


def run(*arguments: str, home: Path) -> float:
    """Wall seconds of one command; fails where it fails."""
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "from pipeline.cli.main import main; main()", *arguments],
        cwd=home,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def measure() -> dict[str, Any]:
    """Times, the largest process, and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        helps = sorted(run("--help", home=home) for _ in range(5))
        seconds = run("run", "digits", home=home)
        again = run("run", "digits", home=home)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        manifest = json.loads((home / "runs/digits/manifest.json").read_text())
        stages = json.loads((home / "runs/digits/stages.json").read_text())["stages"]
    return {
        "run_digits_s": seconds,
        "nothing_left_to_do_s": again,
        "help_s_median": helps[2],
        "peak_bytes_largest_process": peak,
        "stages_s": {name: stamp["seconds"] for name, stamp in stages.items()},
        "test_accuracy": manifest["accuracy"]["test"]["value"],
        "within_budget": seconds <= BUDGET_S and peak <= BUDGET_BYTES and helps[2] <= BUDGET_HELP_S,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    found = measure()
    if parser.parse_args().json:
        print(json.dumps(found, indent=2))
    else:
        print(f"hilnas run digits        {found['run_digits_s']:7.1f} s  (budget {BUDGET_S:.0f})")
        for stage, seconds in found["stages_s"].items():
            print(f"  {stage:<22} {seconds:7.1f} s")
        print(f"the same again           {found['nothing_left_to_do_s']:7.1f} s")
        print(f"hilnas --help, median    {found['help_s_median']:7.2f} s  (budget {BUDGET_HELP_S})")
        peak = found["peak_bytes_largest_process"] / 2**20
        print(f"largest process          {peak:7.0f} MiB (budget {BUDGET_BYTES / 2**20:.0f})")
        print(f"accuracy on test images  {found['test_accuracy']:7.2%}")
    sys.exit(0 if found["within_budget"] else 1)


if __name__ == "__main__":
    main()
