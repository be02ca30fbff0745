"""What a supervisor makes of children that crash, hang, grow, flood or leave others behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agents.board.supervise import (
    MEMORY_SHARE,
    Ending,
    Stopped,
    Supervisor,
    default_memory_limit,
)
from device_agents.board.system import Tree
from tests.device_agents.agents import alive, wait_until

SAY = """
import os, signal, subprocess, sys, time
def say(event, **data):
    import json
    os.write(1, (json.dumps({"v": 1, "event": event, "data": data}) + "\\n").encode())
"""

Run = Callable[..., Ending]


@pytest.fixture
def supervise(tmp_path: Path) -> Callable[..., Supervisor]:
    """A supervisor whose children run the given code."""

    def make(code: str, root: str = "/") -> Supervisor:
        script = tmp_path / "child.py"
        script.write_text(SAY + code)
        return Supervisor(str(script), str(tmp_path), Tree(root))

    return make


def run(supervisor: Supervisor, task: dict[str, Any] | None = None, **settings: Any) -> Ending:
    asked = {"start_timeout_s": 20.0, "step_timeout_s": 20.0, **settings}
    return supervisor.run(task or {}, lambda event, data: None, **asked)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "RUN_CRASHED", "died of SIGSEGV"),
        ("os.abort()", "RUN_CRASHED", "died of SIGABRT"),
        ("os.kill(os.getpid(), 40)", "RUN_CRASHED", "died of signal 40"),
        ("sys.exit(7)", "RUN_CRASHED", "status 7"),
        ("os.write(1, b'Welcome!\\n')", "RUN_CRASHED", "no frame"),
        ("os.write(1, b'x' * (3 << 20))", "RUN_CRASHED", "no frame"),
    ],
    ids=["segv", "abort", "real time", "exit", "garbage", "endless line"],
)
def test_each_end_has_its_code_and_its_words(
    supervise: Callable[..., Supervisor], code: str, kind: str, words: str
) -> None:
    ending = run(supervise(code))
    assert (ending.clean, ending.code) == (False, kind)
    assert words in ending.message


def test_the_last_words_of_a_crash_are_kept(supervise: Callable[..., Supervisor]) -> None:
    ending = run(supervise("os.write(2, b'librknnrt.so: no such file'); os.abort()"))
    assert ending.message == "died of SIGABRT; it said: librknnrt.so: no such file"


def test_a_flood_on_stderr_blocks_nothing_and_only_its_end_is_kept(
    supervise: Callable[..., Supervisor],
) -> None:
    ending = run(supervise("os.write(2, b'x' * (8 << 20)); os.write(2, b'the end'); sys.exit(3)"))
    assert ending.message.endswith("xthe end")
    assert len(ending.message) < 1000


def test_a_child_that_ignores_being_asked_to_end_is_killed_at_its_deadline(
    supervise: Callable[..., Supervisor],
) -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('begin', name='n'); "
    start = time.monotonic()
    ending = run(supervise(stubborn + "time.sleep(300)"), step_timeout_s=0.3)
    assert (ending.code, ending.running_name) == ("RUN_TIMEOUT", "n")
    assert time.monotonic() - start < 10


def test_a_child_that_never_reads_its_task_is_killed_at_its_deadline(
    supervise: Callable[..., Supervisor],
) -> None:
    large = {"filler": "x" * 500_000}
    ending = run(supervise("time.sleep(300)"), large, start_timeout_s=0.5)
    assert ending.code == "RUN_TIMEOUT"


def test_a_large_task_arrives_whole(supervise: Callable[..., Supervisor]) -> None:
    code = "line = sys.stdin.buffer.readline(); say('done') if len(line) > 500000 else sys.exit(9)"
    assert run(supervise(code), {"filler": "x" * 500_000}).clean


def test_without_a_limit_most_of_the_available_memory_is_allowed(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise("say('done')")
    assert run(supervisor).clean
    fields = Path("/proc/meminfo").read_text().split()
    available = int(fields[fields.index("MemAvailable:") + 1]) * 1024
    assert supervisor.memory_limit_bytes == pytest.approx(MEMORY_SHARE * available, rel=0.5)
    assert default_memory_limit() < available


def test_a_child_over_its_limit_is_told_the_limit(supervise: Callable[..., Supervisor]) -> None:
    greedy = supervise("held = b'x' * (200 << 20); time.sleep(300)")
    ending = run(greedy, memory_limit_bytes=100 << 20)
    assert (ending.code, greedy.memory_limit_bytes) == ("OOM", 100 << 20)
    assert "100 MiB" in ending.message


@pytest.mark.parametrize(
    ("kills", "words"),
    [("6", "by the kernel"), ("5", "counts no lack of memory"), (None, "SIGKILL: memory")],
)
def test_a_killed_child_is_out_of_memory_and_the_kernels_count_says_how_sure_that_is(
    supervise: Callable[..., Supervisor], tmp_path: Path, kills: str | None, words: str
) -> None:
    vmstat = tmp_path / "tree/proc/vmstat"
    vmstat.parent.mkdir(parents=True)
    after = "" if kills is None else f"open({str(vmstat)!r}, 'w').write('oom_kill {kills}\\n');"
    if kills is not None:
        vmstat.write_text("nr_free_pages 7\noom_kill 5\n")
    code = after + "os.kill(os.getpid(), signal.SIGKILL)"
    ending = run(supervise(code, root=str(tmp_path / "tree")))
    assert ending.code == "OOM"
    assert words in ending.message


def test_what_a_child_started_ends_with_it_and_does_not_hold_up_its_end(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    code = f"""
helper = subprocess.Popen(["sleep", "300"])
open({str(pid_file)!r}, "w").write(str(helper.pid))
say("done")
"""
    start = time.monotonic()
    assert run(supervise(code)).clean
    assert time.monotonic() - start < 10
    assert wait_until(lambda: not alive(int(pid_file.read_text())))


DRIVER = """
import sys
from device_agents.board.descendants import adopt_orphans
from device_agents.board.supervise import Supervisor
from device_agents.board.system import Tree
assert adopt_orphans()
supervisor = Supervisor(sys.argv[1], ".", Tree("/"), owns_orphans=True)
ending = supervisor.run({}, lambda event, data: None, start_timeout_s=20, step_timeout_s=20)
sys.exit(0 if ending.clean else 1)
"""


def test_an_agent_also_ends_what_moved_to_a_session_of_its_own(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = tmp_path / "child.py"
    script.write_text(
        SAY
        + f"""
helper = subprocess.Popen(["sh", "-c", "setsid sleep 300 & echo $!"], stdout=subprocess.PIPE,
                          start_new_session=True)
open({str(pid_file)!r}, "w").write(helper.stdout.readline().decode())
say("done")
"""
    )
    command = [sys.executable, "-c", DRIVER, str(script)]
    subprocess.run(command, check=True, timeout=60, cwd=Path(__file__).parents[3])
    assert wait_until(lambda: not alive(int(pid_file.read_text())))


def test_a_stop_from_outside_is_no_fault_of_the_child(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise("say('begin', name='n'); time.sleep(300)")

    def on_event(event: str, data: dict[str, Any]) -> None:
        raise AssertionError("begin is not passed on")

    def stop() -> None:
        assert wait_until(lambda: supervisor._process is not None)
        supervisor.stop("LEASE_LOST", "broken")

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped, match="broken"):
        supervisor.run({}, on_event, start_timeout_s=20, step_timeout_s=20)
    thread.join()
    with pytest.raises(Stopped):
        run(supervisor)
    supervisor.resume()
    supervisor.archive = os.devnull  # an empty program ends at once
    assert run(supervisor).code == "RUN_CRASHED"
