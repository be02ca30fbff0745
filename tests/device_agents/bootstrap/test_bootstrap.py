from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from device_agents.bootstrap import Installed
from device_agents.bootstrap.install import _request, wanted
from device_agents.bootstrap.lock import LockFile
from device_agents.bootstrap.programs.unpack import place
from device_agents.bootstrap.target import board_program
from device_agents.link.local import LocalTransport
from device_agents.link.transport import Completed
from latency_tables.errors import (
    BootstrapError,
    DeviceDiskFullError,
    LeasedError,
    LinkLostError,
    UploadError,
)
from tests.device_agents.bootstrap.boards import NUMPY, ONNXRUNTIME, Told, make_runtime, make_wheel

Install = Callable[..., Installed]


def current(board: LocalTransport) -> str:
    path = Path(board.workdir) / "site" / "current"
    return path.read_text().strip() if path.exists() else ""


def sites(board: LocalTransport) -> set[str]:
    return {path.name for path in (Path(board.workdir) / "site").glob("*") if path.is_dir()}


def test_packages_arrive_are_tested_and_switched_to(
    board: LocalTransport, wheelhouse: Path, install: Install
) -> None:
    notes: list[str] = []
    done = install(wheelhouse, on_note=notes.append)
    assert done.fresh
    assert done.imported == {"numpy": "2.0", "onnxruntime": "1.0"}
    assert done.packages == {"onnxruntime": "1.0", "numpy": "2.0"}
    assert current(board) == done.lock_hash
    assert done.site == f"{board.workdir}/site/{done.lock_hash}"
    assert (Path(done.site) / "onnxruntime" / "__init__.py").is_file()
    assert done.notes == tuple(notes)
    assert any("sending 2 wheels" in note for note in notes)


def test_the_second_time_there_is_nothing_to_do(
    board: LocalTransport, wheelhouse: Path, install: Install
) -> None:
    first = install(wheelhouse)
    second = install(wheelhouse)
    assert (second.fresh, second.lock_hash) == (False, first.lock_hash)
    assert second.notes[-1] == "onnxruntime is already there"


def test_wheels_do_not_stay_on_the_board(
    board: LocalTransport, wheelhouse: Path, install: Install
) -> None:
    install(wheelhouse)
    sizes = {path.stat().st_size for path in (Path(board.workdir) / "blobs").iterdir()}
    assert sizes == {len(board_program("unpack.py"))}


def test_what_the_test_imported_was_compiled_for_later_starts(
    wheelhouse: Path, install: Install
) -> None:
    assert list(Path(install(wheelhouse).site).glob("onnxruntime/__pycache__/*.pyc"))


def test_a_failing_runtime_leaves_the_old_one_in_use_and_tells_why(
    board: LocalTransport, wheelhouse: Path, install: Install, tmp_path: Path
) -> None:
    old = install(wheelhouse)
    code = "raise ImportError('/usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.99 not found')"
    bad = make_runtime(tmp_path / "bad", version="2.0", code=code)
    with pytest.raises(BootstrapError, match=r"GLIBCXX_3\.4\.99 not found") as caught:
        install(bad)
    assert "libstdc++6" in str(caught.value)
    assert f"the packages in use stay ({old.lock_hash})" in str(caught.value)
    assert current(board) == old.lock_hash
    assert sites(board) == {old.lock_hash}
    assert not install(wheelhouse).fresh


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "ends with status -6"),
        ("import os; os.kill(os.getpid(), 11)", "ends with status -11"),
        ("import os; os._exit(0)", "says nothing that can be read"),
        (ONNXRUNTIME.replace("[[1.0]]", "[[0]]"), "not finite"),
    ],
)
def test_a_runtime_that_crashes_is_an_answer(
    board: LocalTransport, install: Install, tmp_path: Path, code: str, said: str
) -> None:
    with pytest.raises(BootstrapError, match=said):
        install(make_runtime(tmp_path / "bad", code=code))
    assert current(board) == ""


def test_a_package_from_elsewhere_does_not_pass_for_the_installed_one(
    install: Install, tmp_path: Path
) -> None:
    folder = make_runtime(tmp_path / "w")
    make_wheel(folder, "numpy", "2.0", {"other.py": b""})
    with pytest.raises(BootstrapError, match="numpy"):
        install(folder)


def test_the_one_before_stays_and_older_ones_go(
    board: LocalTransport, install: Install, tmp_path: Path
) -> None:
    done = [install(make_runtime(tmp_path / v, version=v)) for v in ("1.0", "2.0", "3.0")]
    assert sites(board) == {done[1].lock_hash, done[2].lock_hash}
    assert current(board) == done[2].lock_hash


def test_a_second_runtime_comes_beside_the_first_and_its_numpy_is_not_sent_again(
    board: LocalTransport, wheelhouse: Path, install: Install, tmp_path: Path
) -> None:
    first = install(wheelhouse)
    make_wheel(wheelhouse, "ncnn", "1.0", {"ncnn/__init__.py": b"__version__ = '1.0'"})
    both = install(wheelhouse, runtime="ncnn")
    assert any("sending 1 wheels" in note for note in both.notes)
    assert both.packages == {"onnxruntime": "1.0", "ncnn": "1.0", "numpy": "2.0"}
    assert both.imported == {"onnxruntime": "1.0", "ncnn": "1.0", "numpy": "2.0"}
    shared = "onnxruntime/__init__.py"
    assert os.path.samefile(Path(first.site) / shared, Path(both.site) / shared)
    assert not install(wheelhouse).fresh
    assert not install(wheelhouse, runtime="ncnn").fresh


def test_a_damaged_site_is_repaired(
    board: LocalTransport, wheelhouse: Path, install: Install
) -> None:
    done = install(wheelhouse)
    (Path(done.site) / "onnxruntime" / "__init__.py").write_text("")
    again = install(wheelhouse)
    assert (again.fresh, again.lock_hash) == (True, done.lock_hash)
    assert not install(wheelhouse).fresh


def test_a_wheel_that_changed_under_its_name_is_refused(
    board: LocalTransport, wheelhouse: Path, install: Install
) -> None:
    install(wheelhouse)
    make_runtime(wheelhouse, code=ONNXRUNTIME + "\n# changed\n")
    with pytest.raises(BootstrapError, match="it is locked to"):
        install(wheelhouse)


def test_an_interrupted_bootstrap_leaves_nothing_in_use_and_goes_on(
    tmp_path: Path, wheelhouse: Path, install: Install
) -> None:
    calls: list[str] = []

    def cut(command: Sequence[str], done: Completed) -> Completed:
        calls.append(command[0])
        if len(calls) == cuts:
            raise LinkLostError("the link was cut")
        return done

    board = Told(tmp_path / "cut", edit=cut, python=sys.executable)
    board.open()
    cuts = 10**6
    install(wheelhouse, board)
    n_calls = len(calls)
    assert n_calls == 5  # shell, facts, state, check, install
    for cuts in range(1, n_calls + 1):
        calls.clear()
        again = Told(tmp_path / f"cut{cuts}", edit=cut, python=sys.executable)
        again.open()
        with pytest.raises(LinkLostError):
            install(wheelhouse, again)
        assert current(again) in {"", *sites(again)}
    # at the last call the board did its work and only the answer was lost
    for folder in ("cut2", f"cut{n_calls}"):
        cuts = 10**6
        board = Told(tmp_path / folder, edit=cut, python=sys.executable)
        board.open()
        install(wheelhouse, board)
        assert current(board) in sites(board)


def test_an_unpacking_that_was_killed_is_cleared_away(
    board: LocalTransport, wheelhouse: Path, install: Install
) -> None:
    site = Path(board.workdir) / "site"
    (site / ".tmp-0123456789abcdef" / "onnxruntime").mkdir(parents=True)
    (site / ".tmp-0123456789abcdef" / "onnxruntime" / "half.so").write_bytes(b"x")
    (site / ".tmp-current").write_text("half")
    done = install(wheelhouse)
    assert sorted(path.name for path in site.iterdir()) == sorted(["current", done.lock_hash])


def test_a_board_with_too_little_disk_is_told_before_anything_is_sent(
    tmp_path: Path, wheelhouse: Path, install: Install
) -> None:
    def little(command: Sequence[str], done: Completed) -> Completed:
        lines = [line for line in done.stdout.split(b"\n") if not line.startswith(b"df=")]
        stdout = b"\n".join([b"df=/dev/root 30000 29000 1000 97% /", *lines])
        return Completed(status=0, stdout=stdout, stderr="") if command[0] == "sh" else done

    board = Told(tmp_path / "small", edit=little, python=sys.executable)
    board.open()
    with pytest.raises(DeviceDiskFullError, match=r"1 MB free.*needed are 34 MB"):
        install(wheelhouse, board)
    assert not [sent for sent in board.sent if isinstance(sent, Path)]


def test_a_disk_that_fills_up_while_unpacking_leaves_the_old_packages(
    tmp_path: Path, wheelhouse: Path, install: Install
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        board = LocalTransport(folder / "agent")
        board.open()
        old = install(wheelhouse, board)
        (folder / "filler").write_bytes(bytes(8 << 20))
        with pytest.raises(DeviceDiskFullError):
            install(make_runtime(tmp_path / "new", version="2.0"), board)
        assert current(board) == old.lock_hash
        assert sites(board) == {old.lock_hash}
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_packages_do_not_change_while_somebody_measures(
    board: LocalTransport, wheelhouse: Path, install: Install
) -> None:
    lease = Path(board.workdir) / "lease"
    with lease.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(LeasedError, match="somebody measures"):
            install(wheelhouse)
    assert install(wheelhouse).fresh


def test_a_lease_that_is_a_link_is_not_followed(
    board: LocalTransport, wheelhouse: Path, install: Install, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (Path(board.workdir) / "lease").symlink_to(victim)
    with pytest.raises(Exception, match="symbolic link"):
        install(wheelhouse)
    assert victim.read_text() == "precious"


def ask(board: LocalTransport, wheel: Path, **changes: Any) -> dict[str, Any]:
    """Have one wheel installed without the host's own checks."""
    lock = LockFile(key="k", wheels=(inspect_unsafe(wheel),))
    site = _Nothing()
    request = _request("install", wanted(site, "onnxruntime", "cp311", lock))  # type: ignore[arg-type]
    request.update(fresh=False, disk_bytes=1, n_files=1, workdir=board.workdir, **changes)
    board.put(wheel)
    program = board.put(board_program("unpack.py"))
    done = board.execute(
        [sys.executable, "-I", f"{board.workdir}/blobs/{program}"],
        stdin=json.dumps(request).encode(),
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class _Nothing:
    wheels, abi = (), ""

    def beside(self, abi: str, runtime: str) -> tuple[str, ...]:
        return ()


def inspect_unsafe(path: Path) -> Any:
    from device_agents.bootstrap.lock import Locked
    from latency_tables.files import sha256_file

    return Locked(name="x", version="1", filename=path.name, sha256=sha256_file(path), size=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {"../escape.py": b""}}, "leaves the folder"),
        ({"files": {"/tmp/escape.py": b""}}, "no relative path"),
        ({"files": {"l": b"/etc"}, "modes": {"l": 0o120777}}, "no plain file"),
        ({"files": {"a.py": b"1"}, "record": {"a.py": b"2"}}, "not what its RECORD says"),
        ({"files": {"x-1.data/purelib/../../../e.py": b""}}, "leaves the folder"),
    ],
)
def test_the_board_refuses_a_hostile_wheel_by_itself(
    board: LocalTransport, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    answer = ask(board, make_wheel(tmp_path, "x", "1", **changes))
    assert answer["error"]["code"] == "BOOTSTRAP"
    assert said in answer["error"]["message"]
    assert sites(board) == set()


def test_two_wheels_may_not_write_one_file(
    board: LocalTransport, install: Install, tmp_path: Path
) -> None:
    folder = make_runtime(tmp_path / "w")
    make_wheel(folder, "numpy", "2.0", {"onnxruntime/__init__.py": b"evil"})
    with pytest.raises(Exception, match="File exists"):
        install(folder)
    assert current(board) == ""


def test_a_wheel_that_arrived_damaged_is_sent_again(
    tmp_path: Path, wheelhouse: Path, install: Install
) -> None:
    damage = [True]

    class Damaging(Told):
        def put_all(self, sources: Sequence[bytes | Path]) -> list[str]:
            names = super().put_all(sources)
            if damage.pop() if damage else False:
                (Path(self.workdir) / "blobs" / names[0]).write_bytes(b"half")
            return names

    board = Damaging(tmp_path / "b", edit=lambda command, done: done, python=sys.executable)
    board.open()
    with pytest.raises(UploadError, match="arrived damaged"):
        install(wheelhouse, board)
    assert install(wheelhouse, board).fresh


def test_files_of_a_wheel_s_data_folder_go_where_they_belong() -> None:
    assert place("a/b.py", 0o100644) == "a/b.py"
    assert place("a-1.data/purelib/a/c.py", 0) == "a/c.py"
    assert place("a-1.data/platlib/a/d.so", 0) == "a/d.so"
    assert place("a-1.data/scripts/tool", 0o100755) is None
    assert place("a-1.data/headers/a.h", 0) is None


def test_a_download_is_locked_at_first_sight(
    unlocked: None,
    install: Install,
    cache: Path,
    wheelhouse: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    index = tmp_path / "index"
    probe = install(wheelhouse).notes
    pinned = next(note for note in probe if note.startswith("Python")).rpartition(": ")[2]
    versions = dict(part.split() for part in pinned.split(", "))
    codes = {"onnxruntime": ONNXRUNTIME, "numpy": NUMPY}
    for name, version in versions.items():
        code = codes[name].format(version=version).encode()
        make_wheel(index, name, version, {f"{name}/__init__.py": code})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    done = install(None)
    assert done.packages == versions
    assert any("the hashes of this download are kept" in note for note in done.notes)
    locks = [path for path in (cache / "locks").iterdir() if "wheelhouse" not in path.name]
    assert len(locks) == 1
    assert not install(None).fresh
