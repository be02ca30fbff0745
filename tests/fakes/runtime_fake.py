"""Test-only runtime fragment: networks that misbehave on command.

Packed into the agent by the tests as ``device_agents/board/runtime_fake.py``. A model file is
searched for ``fake:{json}``; its keys say what the network does:

=============  ============================================================================
``load``       ``segv``, ``raise``, ``memory`` (MemoryError): while it is loaded
``run``        ``segv``, ``kill`` (SIGKILL), ``hang``, ``exit``, ``raise``, ``nan``: when run
``poison``     true: the network itself is fine, the one loaded after it dies
``allocate``   bytes to hold from loading on
``print``      text written to fd 1, where only the protocol may write
``stray``      core that an extra thread moves to
``burn_us``    duration of one run, 200 by default
=============  ============================================================================
"""

import json
import os
import re
import signal
import sys
import threading
import time

import numpy as np

_poisoned = False


def describe():
    return {"name": "fake", "version": "1", "provider": "none", "providers": []}


class Session:
    def __init__(self, path, *, threads, spinning, optimization):
        global _poisoned
        with open(path, "rb") as stream:
            found = re.search(rb"fake:(\{.*?\})", stream.read())
        self.script = json.loads(found.group(1).decode()) if found else {}
        if _poisoned:
            os.kill(os.getpid(), signal.SIGSEGV)
        _poisoned = bool(self.script.get("poison"))
        load = self.script.get("load")
        if load == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        if load == "raise":
            raise RuntimeError("this file is not loadable")
        if load == "memory":
            raise MemoryError("failed to allocate")
        self.held = b"x" * self.script.get("allocate", 0)
        if "print" in self.script:
            os.write(1, self.script["print"].encode())
        if "stray" in self.script:
            self._stray(self.script["stray"])
        self.inputs = [("input", [1, 2], "float")]
        self.output_names = ["output"]

    def _stray(self, core):
        moved = threading.Event()

        def wander():
            os.sched_setaffinity(0, {core})
            moved.set()
            time.sleep(3600)

        threading.Thread(target=wander, daemon=True).start()
        moved.wait()

    def prepare(self, feeds):
        return lambda: self._run(feeds)

    def _run(self, feeds):
        run = self.script.get("run")
        if run == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif run == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif run == "hang":
            with open("/proc/self/comm", "w") as stream:
                stream.write("hanging")  # the name that ps shows: for tests that wait for it
            time.sleep(3600)
        elif run == "exit":
            os._exit(7)
        elif run == "raise":
            raise RuntimeError("no kernel for this operator")
        end = time.perf_counter_ns() + 1000 * self.script.get("burn_us", 200)
        while time.perf_counter_ns() < end:
            pass
        output = np.nan if run == "nan" else np.float32(1)
        return [np.full((1, 2), output, dtype=np.float32)]


if __name__ == "__main__":
    sys.exit("a fragment is imported by the agent, not run")
