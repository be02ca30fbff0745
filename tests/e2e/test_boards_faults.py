"""Boards that vanish, freeze or are cut off while a search measures on them."""

import contextlib
import json
import os
import random
import signal
import threading

import pytest

from pipeline.search.journal import read_journal
from tests.e2e.board_home import ONE_GENERATION, BoardHome, entry, is_idle, wait_for
from tests.fakes.ssh_servers import Dropbear, OpenSsh
from tests.fakes.tcp_proxy import TcpProxy

N_CUTS = 5


@pytest.fixture
def server(tmp_path):
    with OpenSsh(tmp_path / "server") as server:
        yield server


@pytest.fixture
def home(trained_on_board, server, tmp_path):
    """The trained run with a board of its own; the one of its table is out of reach."""
    home = trained_on_board.copy_to(tmp_path / "home")
    home.write_devices(board=entry(server, deadline_s=2.0))
    home.trust(server)
    return home


def measuring(server):
    """Whether a process that times networks runs on the board."""
    return len(server.session_pids()) >= 4  # session, shell or agent, its child


def generation_done(home):
    """Whether the boards finished a generation."""
    return len(home.journalled()) > 0


@contextlib.contextmanager
def random_cuts(proxy, seed):
    """Cut a link that was used since the last cut at random times, ``N_CUTS`` times in all."""
    rng, over, done = random.Random(seed), threading.Event(), []

    def cut():
        seen = 0
        while len(done) < N_CUTS and not over.wait(rng.uniform(0.1, 3.0)):
            if proxy.passed["down"] > seen:
                rng.choice((proxy.cut, proxy.reset))()
                seen = proxy.passed["down"]
                done.append(seen)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))]
)
def test_a_link_cut_at_random_changes_nothing_of_what_is_measured(
    finished_on_board, home, server, seed
):
    with TcpProxy(server.port) as proxy:
        home.write_devices(board=entry(server, port=proxy.port))
        home.trust(server, proxy.port)
        with random_cuts(proxy, seed) as cuts:
            home.small_run(*ONE_GENERATION, command="search")
    assert cuts
    assert sorted(home.journalled()) == sorted(finished_on_board.journalled())
    assert is_idle(server)


@pytest.mark.long
def test_sessions_that_are_killed_on_the_board_are_begun_anew(home, server):
    process = home.start(*home.words(command="search"))
    wait_for(process, lambda: home.file("boards.jsonl").exists() and measuring(server))
    server.kill_session()
    wait_for(process, lambda: generation_done(home) and measuring(server))
    server.kill_session()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    home.assert_whole(16)
    assert is_idle(server)


@pytest.mark.long
def test_a_board_that_stays_away_ends_the_run_and_the_same_command_goes_on_when_it_is_back(
    home, server
):
    process = home.start(*home.words(command="search"))
    wait_for(process, lambda: generation_done(home) and measuring(server))
    server.kill_all()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 5, out + err
    assert "board: rests after 2 faults" in err
    assert "Connection refused" in err
    assert "what was measured is kept" in err
    before = home.journalled()
    server.start()
    home.small_run(command="search")
    assert home.journalled()[: len(before)] == before
    home.assert_whole(16)


@pytest.mark.long
def test_a_board_that_freezes_for_a_moment_is_noticed_and_taken_up_again(home, server):
    process = home.start(*home.words(command="search"))
    wait_for(process, lambda: home.file("boards.jsonl").exists() and measuring(server))
    server.freeze()
    thaw = threading.Timer(4.0, server.thaw)  # twice the deadline
    thaw.start()
    out, err = process.communicate(timeout=240)
    thaw.join()
    assert process.returncode == 0, out + err
    home.assert_whole(16)
    assert is_idle(server)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_host_killed_at_any_moment_among_50_candidates_loses_and_doubles_nothing(
    home, server, seed
):
    settings = ("search.population=10", "search.generations=4")
    rng = random.Random(seed)
    kept = []
    for moment in sorted(rng.sample(range(45), 3)):
        process = home.start(*home.words(*settings, command="search"))
        wait_for(process, lambda moment=moment: len(home.journalled()) >= moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert is_idle(server), "the board goes on computing for a host that is gone"
        now = home.journalled()
        assert now[: len(kept)] == kept
        kept = now
    home.small_run(*settings, command="search")
    assert home.journalled()[: len(kept)] == kept
    home.assert_whole(50)


@pytest.mark.long
def test_two_boards_of_one_run_get_a_network_each_and_one_that_keeps_both_limits(tmp_path):
    with OpenSsh(tmp_path / "a") as one, Dropbear(tmp_path / "b") as two:
        home = BoardHome(path=tmp_path / "home", devices=("one", "two"), limit="latency='80%'")
        home.path.mkdir()
        home.write_devices(one=entry(one, cores=[0]), two=entry(two, cores=[1]))
        home.trust(one)
        home.trust(two)
        home.small_run()
        home.assert_whole(16)
        assert {to for _, to, _ in home.journalled()} == {"one", "two"}
        manifest = json.loads(home.file("manifest.json").read_text())
        assert [d["name"] for d in manifest["devices"]] == ["one", "two"]
        limits = [limit for limit in manifest["limits"] if limit["name"] == "latency_ms"]
        assert {limit["device"] for limit in limits} == {"one", "two"}
        assert all(limit["kept"] for limit in manifest["limits"])
        told = json.loads(home.hilnas("run", "runs/digits", "--json"))
        for name in ("one", "two"):
            own = json.loads(home.file(f"boards/{name}/manifest.json").read_text())
            assert told["boards"][name]["manifest"] == own
            assert [d["name"] for d in own["devices"]] == [name]
            assert own["devices"][0]["latency"]["source"] == "measured"
            assert {x["device"] for x in own["limits"]} == {name}
            assert all(limit["kept"] for limit in own["limits"])
            asked = read_journal(home.file(f"boards/{name}/search.jsonl")).measurements
            assert {device for _, device, _ in asked} == {name}
        checked = home.hilnas(
            "check", "runs/digits/boards/two", "--device", "two", "--measuring", "quick",
            "--images", "20", "--json", "--check", "latency_ms<=1000",
        )  # fmt: skip
        assert json.loads(checked)["accuracy"]["n_images"] == 20
        assert is_idle(one)
        assert is_idle(two)
