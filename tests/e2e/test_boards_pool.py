"""Two real boards in one pool: what one leaves undone, the other does."""

import contextlib
from collections import Counter
from dataclasses import replace

import pytest

from device_agents.devices import DeviceSpec
from device_agents.inventory import read_inventory
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.pool import Member, Pool
from device_agents.measuring.profiles import counted
from device_agents.measuring.reference import reference_model
from latency_tables.oracle import MeasureJob
from tests.e2e.board_home import BoardHome, entry, is_idle
from tests.fakes.ssh_servers import Dropbear, OpenSsh

PROFILE = replace(counted(3, 1), batch_size=3)


@pytest.fixture
def servers(tmp_path):
    with OpenSsh(tmp_path / "a") as openssh, Dropbear(tmp_path / "b") as dropbear:
        yield {"openssh": openssh, "dropbear": dropbear}


@pytest.fixture
def pool(servers, tmp_path, monkeypatch):
    """Makes a pool of both boards; each is called when it finished a batch."""
    home = BoardHome(path=tmp_path / "home")
    home.write_devices(**{n: entry(s, tags=["lab"], deadline_s=2.0) for n, s in servers.items()})
    for server in servers.values():
        home.trust(server)
    monkeypatch.setenv("HOME", str(home.path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    found = read_inventory(home.path / "devices.toml", work_dir=tmp_path / "local")

    @contextlib.contextmanager
    def make(on_finished, notes):
        devices: tuple[DeviceSpec, ...] = found.tagged("lab")
        members = {d.name: Member(DeviceMeasurer(d, profile=PROFILE), tags=d.tags) for d in devices}
        with Pool(
            members,
            journal=tmp_path / "pool.jsonl",
            on_note=notes.append,
            on_result=on_finished,
        ) as pool:
            yield pool

    return make


def jobs(n):
    return [MeasureJob(net_id=f"{i:064x}", arch=None, onnx=reference_model("tiny"))
            for i in range(n)]  # fmt: skip


def test_both_boards_of_a_tag_do_their_share(pool, servers):
    with pool(lambda records: None, notes := []) as both:
        records = both.collect(both.submit(jobs(8), to="lab"))
    assert [r.net_id for r in records] == [j.net_id for j in jobs(8)]
    assert set(Counter(r.device_name for r in records)) == set(servers)
    assert notes == []
    assert all(is_idle(server) for server in servers.values())


@pytest.mark.parametrize("fault", ["kill_all", pytest.param("freeze", marks=pytest.mark.long)])
def test_the_work_of_a_board_that_dies_is_done_by_the_other(pool, servers, fault):
    died = []

    def strike(records):
        """After its first batch, while it takes the next one."""
        if not died and records[0].device_name == "dropbear":
            died.append(True)
            getattr(servers["dropbear"], fault)()

    with pool(strike, notes := []) as both:
        records = both.collect(both.submit(jobs(15), to="lab"))
    assert died, notes
    assert [r.net_id for r in records] == [j.net_id for j in jobs(15)]
    assert all(r.ok for r in records)
    by = Counter(r.device_name for r in records)
    assert by["dropbear"] == 3
    assert by["openssh"] == 12
    assert all(note.startswith("dropbear") for note in notes)
    assert any("tries again" in note for note in notes)
    assert is_idle(servers["openssh"])
