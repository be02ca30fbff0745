from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agents.bootstrap.choose import Plan, choose
from device_agents.bootstrap.lock import (
    Locked,
    LockFile,
    find_lock,
    known_hashes,
    lock_path,
    read_lock,
    refuse_changed,
    shipped_locks,
    write_lock,
)
from device_agents.bootstrap.target import Target
from device_agents.bootstrap.wheels import download, from_wheelhouse, inspect
from latency_tables.errors import BootstrapError
from tests.device_agents.bootstrap.boards import make_runtime, make_wheel

BOARD = Target(python=(3, 11), abi="cp311", libc=("glibc", (2, 36)), machine="aarch64")
ORT = "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl"


@pytest.fixture
def plan() -> Plan:
    return choose(BOARD, "onnxruntime")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the whole world: wheels of the plan's versions."""
    folder = tmp_path / "index"
    make_wheel(folder, "onnxruntime", "1.32.0", {"ort.py": b"1"}, tag=ORT[19:-4])
    make_wheel(folder, "onnxruntime", "1.32.0", {"ort.py": b"2"}, tag="cp311-cp311-win_amd64")
    make_wheel(folder, "numpy", "2.4.6", {"np.py": b"1"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def ignore(note: str) -> None:
    """Take no note."""


def test_a_sound_wheel_is_described(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "Some_Pkg", "1.0", {"a.py": b"x" * 5000, "b.py": b""})
    wheel = inspect(path)
    assert (wheel.locked.name, wheel.locked.version) == ("some-pkg", "1.0")
    assert wheel.locked.size == path.stat().st_size
    assert wheel.n_files == 5
    assert wheel.disk_bytes == 8192 + 3 * 4096


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {"../escape.py": b""}}, "leaves the folder"),
        ({"files": {"a/../../escape.py": b""}}, "leaves the folder"),
        ({"files": {"/etc/passwd": b""}}, "no relative path"),
        ({"files": {"a\\b.py": b""}}, "no relative path"),
        ({"files": {"l": b"/etc/passwd"}, "modes": {"l": 0o120777}}, "no plain file"),
        ({"files": {"a.py": b"1"}, "record": {"a.py": b"2"}}, "not what its RECORD says"),
        ({"files": {"a.py": b"1"}, "record": {"gone.py": b""}}, "is missing"),
    ],
)
def test_a_hostile_or_damaged_wheel_is_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = make_wheel(tmp_path, "bad", "1.0", **changes)  # type: ignore[arg-type]
    with pytest.raises(BootstrapError, match=said):
        inspect(path)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
def test_a_truncated_wheel_is_refused(tmp_path: Path, kept: float) -> None:
    path = make_wheel(tmp_path, "half", "1.0", {"a.py": os.urandom(4000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(kept if kept > 1 else kept * len(data))])
    with pytest.raises(BootstrapError, match="is damaged"):
        inspect(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "flip", "1.0", {"a.py": os.urandom(4000)})
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(BootstrapError, match="is damaged"):
        inspect(path)


def test_pip_fetches_the_board_s_wheels_and_not_the_host_s(
    plan: Plan, index: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    found = download(plan, None, tmp_path / "got", notes.append)
    assert [wheel.locked.filename for wheel in found] == [ORT, "numpy-2.4.6-py3-none-any.whl"]
    assert notes[0] == "downloading onnxruntime 1.32.0 for cp311 on aarch64"
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == sorted(
        wheel.locked.filename for wheel in found
    )


def test_what_the_environment_tells_pip_about_the_host_does_not_concern_the_board(
    plan: Plan, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==1.0\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    monkeypatch.setenv("PIP_PLATFORM", "win_amd64")
    found = download(plan, None, tmp_path / "got", ignore)
    assert [wheel.locked.filename for wheel in found] == [ORT, "numpy-2.4.6-py3-none-any.whl"]


def test_what_is_there_is_not_fetched_again(plan: Plan, index: Path, tmp_path: Path) -> None:
    first = download(plan, None, tmp_path / "got", ignore)
    for path in index.iterdir():
        path.unlink()
    notes: list[str] = []
    assert download(plan, None, tmp_path / "got", notes.append) == first
    assert notes == []


def test_a_damaged_download_is_fetched_again(plan: Plan, index: Path, tmp_path: Path) -> None:
    first = download(plan, None, tmp_path / "got", ignore)
    first[1].path.write_bytes(first[1].path.read_bytes()[:-30])
    assert download(plan, None, tmp_path / "got", ignore) == first


def test_pip_refuses_another_content_than_the_locked_one(
    plan: Plan, index: Path, tmp_path: Path
) -> None:
    sha256 = "0" * 64
    wheel = Locked(name="numpy", version="2.4.6", filename="n.whl", sha256=sha256, size=1)
    ort = inspect(index / ORT).locked
    lock = LockFile(key=plan.key, wheels=(ort, wheel))
    with pytest.raises(
        BootstrapError, match=r"numpy 2\.4\.6.*(MISMATCH|do not match|HASH)"
    ) as caught:
        download(plan, lock, tmp_path / "got", ignore)
    assert "--wheelhouse" in str(caught.value)


def test_what_pip_cannot_find_is_told_with_the_command_to_run_elsewhere(
    plan: Plan, index: Path, tmp_path: Path
) -> None:
    (index / "numpy-2.4.6-py3-none-any.whl").unlink()
    with pytest.raises(BootstrapError, match=r"cannot fetch numpy 2\.4\.6") as caught:
        download(plan, None, tmp_path / "got", ignore)
    assert "--platform manylinux_2_28_aarch64" in str(caught.value)


def test_a_host_without_pip_is_told_what_to_do(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BootstrapError, match="has no pip") as caught:
        download(plan, None, tmp_path, ignore)
    assert f"{sys.executable} -m ensurepip, or --wheelhouse DIR" in str(caught.value)


def test_a_wheelhouse_gives_the_plan_s_versions_and_ignores_foreign_wheels(
    plan: Plan, index: Path
) -> None:
    make_wheel(index, "onnxruntime", "1.99.0", {"ort.py": b"3"}, tag="cp311-cp311-win_amd64")
    make_wheel(index, "numpy", "2.9.0", {"np.py": b"3"})
    found = from_wheelhouse(index, plan, ignore)
    assert [wheel.locked.version for wheel in found] == ["1.32.0", "2.4.6"]


def test_another_version_in_the_wheelhouse_is_taken_and_said(plan: Plan, tmp_path: Path) -> None:
    notes: list[str] = []
    found = from_wheelhouse(make_runtime(tmp_path / "w"), plan, notes.append)
    assert [wheel.locked.version for wheel in found] == ["1.0", "2.0"]
    assert notes[0] == "the wheelhouse has onnxruntime 1.0, not 1.32.0: taking that"


def test_a_wheelhouse_that_lacks_wheels_names_them(plan: Plan, tmp_path: Path) -> None:
    make_wheel(tmp_path, "numpy", "2.4.6", {"np.py": b"1"})
    make_wheel(tmp_path, "onnxruntime", "1.32.0", {"o.py": b""}, tag="cp310-cp310-linux_aarch64")
    with pytest.raises(BootstrapError, match=r"of onnxruntime 1\.32\.0") as caught:
        from_wheelhouse(tmp_path, plan, ignore)
    assert "--dest wheelhouse" in str(caught.value)
    assert "onnxruntime==1.32.0" in str(caught.value)
    with pytest.raises(BootstrapError, match="not a folder"):
        from_wheelhouse(tmp_path / "none", plan, ignore)


def test_locks_survive_a_round_trip(plan: Plan, tmp_path: Path) -> None:
    lock = shipped_locks()[0]
    write_lock(tmp_path / "a.json", lock)
    assert read_lock(tmp_path / "a.json") == lock


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 2}',
        '{"schema": 1, "key": "k", "wheels": [{"name": "n"}]}',
        '{"schema": 1, "key": "k", "wheels": [{"name": "n", "version": "1", "filename": '
        '"../n.whl", "sha256": "' + "0" * 64 + '", "size": 1}]}',
        '{"schema": 1, "key": "k", "wheels": [{"name": "n", "version": "1", "filename": '
        '"n.whl", "sha256": "0", "size": 1}]}',
    ],
)
def test_a_damaged_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lock.json"
    path.write_text(text)
    with pytest.raises(BootstrapError, match=r"lock\.json is damaged"):
        read_lock(path)


def test_shipped_locks_hold_names_and_hashes_and_no_addresses() -> None:
    locks = shipped_locks()
    assert len({lock.key for lock in locks}) == len(locks) >= 40
    folder = Path(sys.modules[find_lock.__module__].__file__ or "").parent / "locks"
    for path in folder.glob("*.json"):
        assert "://" not in path.read_text(), path


def test_a_file_name_has_one_content_in_all_shipped_locks() -> None:
    seen: dict[str, str] = {}
    for lock in shipped_locks():
        for wheel in lock.wheels:
            assert seen.setdefault(wheel.filename, wheel.sha256) == wheel.sha256


def test_the_shipped_lock_goes_before_that_of_the_cache(plan: Plan, tmp_path: Path) -> None:
    shipped = find_lock(tmp_path, plan)
    assert shipped is not None
    forged = [Locked(**{**_fields(wheel), "sha256": "0" * 64}) for wheel in shipped.wheels]
    write_lock(lock_path(tmp_path, plan.key), LockFile(key=plan.key, wheels=tuple(forged)))
    assert find_lock(tmp_path, plan) == shipped
    assert known_hashes(tmp_path)[ORT] == shipped.wheels[0].sha256


def test_a_numpy_that_another_runtime_holds_back_is_locked_too() -> None:
    plan = choose(BOARD, "onnxruntime", beside=["rknn"])
    assert [pin.version for pin in plan.packages] == ["1.32.0", "1.26.4"]
    lock = find_lock(Path("/nonexistent"), plan)
    assert lock is not None
    assert [wheel.name for wheel in lock.wheels] == ["onnxruntime", "numpy"]
    assert lock.wheels[1].filename.startswith("numpy-1.26.4-cp311-cp311-manylinux_2_17_aarch64")


def test_a_locked_name_with_another_content_is_refused(
    tmp_path: Path, make_content: Callable[[bytes], Locked]
) -> None:
    refuse_changed([make_content(b"1")], {"a-1-py3-none-any.whl": make_content(b"1").sha256})
    with pytest.raises(BootstrapError, match="it is locked to"):
        refuse_changed([make_content(b"2")], {"a-1-py3-none-any.whl": make_content(b"1").sha256})


@pytest.fixture
def make_content(tmp_path: Path) -> Callable[[bytes], Locked]:
    return lambda data: inspect(make_wheel(tmp_path, "a", "1", {"a.py": data})).locked


def _fields(wheel: Locked) -> dict[str, object]:
    return {name: getattr(wheel, name) for name in Locked.__slots__}
