"""Two processes on this machine (gloo, loopback) against one, and against sums made by hand.

All cases of ``rank_worker.py`` run in one pair of processes, because starting one takes seconds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latency_tables.errors import TrainingError, UsageError
from pipeline.cli import ranks as cli_ranks
from pipeline.cli.main import run_cli
from pipeline.cli.ranks import Launch, launched, run_rank
from pipeline.randomness import numpy_generator
from pipeline.training.config import RanksConfig, TrainConfig
from pipeline.training.precision import Precision
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.step import Step
from tests.pipeline.training.rank_worker import (
    CASES,
    MORE_STEPS,
    SPLITS,
    STEPS,
    OwnPath,
    WideStream,
    small_strategy,
    wide_train,
)
from tests.pipeline.training.toys import toy_config, toy_space, toy_supernet, toy_train

WORKER = Path(__file__).with_name("rank_worker.py")
ROOT = Path(__file__).parents[3]
SAME = [name.removeprefix("same-") for name in CASES if name.startswith("same-")]
OWN = [name.removeprefix("own-") for name in CASES if name.startswith("own-")]
BY_HAND = [name for name in OWN if not name.startswith("shiftnas")]
"""Strategies that move nothing but the supernet."""


def environment() -> dict[str, str]:
    """That of this process, without what a launcher may have left; only the loopback device."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "MASTER_"))}
    return {**kept, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what all cases left."""
    folder = tmp_path_factory.mktemp("ranks")
    commands = [[sys.executable, str(WORKER), str(folder), str(rank), *CASES] for rank in (0, 1)]
    processes = [
        subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    errors = [process.communicate(timeout=480)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0, -signal.SIGKILL], "\n".join(errors)  # the last case kills rank 1
    return folder


def facts(cases: Path, name: str, rank: int) -> dict[str, Any]:
    noted: dict[str, Any] = json.loads((cases / f"{name}-{rank}.json").read_text())
    return noted


def weights(cases: Path, name: str, rank: int, when: str = "end") -> dict[str, torch.Tensor]:
    return load_file(cases / f"{name}-{rank}.{when}.safetensors")


def require_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-13, msg=name)


# -- the same path on all ranks ------------------------------------------------------------


@pytest.mark.parametrize("strategy", SAME)
def test_two_ranks_on_the_same_paths_end_with_the_weights_of_one_process(
    cases: Path, tmp_path: Path, strategy: str
) -> None:
    result, _, made = wide_train(tmp_path, ALONE, strategy)
    expected = load_file(result.weights_path)  # running statistics, too
    found = load_file(cases / f"same-{strategy}" / "supernet.safetensors")
    require_close(found, expected)
    first = toy_supernet(toy_space()).double()
    fresh = getattr(small_strategy(strategy, toy_space(), first), "supernet", first)
    start = fresh.state_dict()
    assert any(not torch.equal(start[k], v) for k, v in expected.items())
    if strategy == "greedynas":
        own, found = made.state_dict()["pool"], facts(cases, "same-greedynas", 0)["state"]["pool"]
        assert [entry["genes"] for entry in found] == [entry["genes"] for entry in own]
    if strategy.startswith("shiftnas"):
        found = facts(cases, f"same-{strategy}", 0)["state"]["B"]
        # pathwise, it is the difference of two gradients that go through an LSTM in fp32
        rel = 1e-3 if strategy.endswith("pathwise") else 1e-5
        assert found == pytest.approx(made.state_dict()["B"].tolist(), rel=rel)
        assert max(found) > 0


@pytest.mark.parametrize("name", [*(f"same-{n}" for n in SAME), *(f"own-{n}" for n in OWN)])
def test_all_ranks_hold_the_same_bits_and_state(cases: Path, name: str) -> None:
    first, second = weights(cases, name, 0), weights(cases, name, 1)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert facts(cases, name, 0)["state"] == facts(cases, name, 1)["state"]


# -- a path per rank -----------------------------------------------------------------------


def steps_of_rank(rank: int, strategy: str, supernet: Any) -> Iterator[Any]:
    """The updates of a rank that draws for itself; its batches are its halves."""
    space = toy_space()
    made = small_strategy(strategy, space, supernet)
    streams = {split: WideStream(seed=i) for i, split in enumerate(SPLITS)}
    counters = dict.fromkeys(streams, 0)

    def next_batch(split: str) -> Any:
        batch = streams[split].batch(counters[split])
        counters[split] += 1
        half = slice(8 * rank, 8 * rank + 8) if split == "train" else slice(None)
        return SimpleNamespace(images=batch.images[half], labels=batch.labels[half])

    for index in range(STEPS):
        step = Step(
            index=index,
            n_steps=STEPS,
            supernet=supernet,
            rng=numpy_generator(0, "training", "step", index, rank),
            device=torch.device("cpu"),
            next_batch=next_batch,
            precision=Precision(channels_last=True),
            label_smoothing=0.1,
            own_paths=True,
        )
        yield from made.updates(step)


def gradients_of(update: Any, supernet: Any) -> dict[str, torch.Tensor]:
    """Sum over the losses of an update, or the ready gradients."""
    if update.gradients is not None:
        ready = update.gradients() if callable(update.gradients) else update.gradients
        return {k: v.clone() for k, v in ready.items()}
    supernet.zero_grad(set_to_none=True)
    for make_loss in update.losses:
        make_loss().backward()
    return {k: p.grad.clone() for k, p in supernet.named_parameters() if p.grad is not None}


def by_hand(strategy: str) -> dict[str, torch.Tensor]:
    """Both paths in one process: half the sum of their gradients, plain SGD written out."""
    networks = [
        toy_supernet(toy_space()).double().to(memory_format=torch.channels_last).train()
        for _ in range(2)
    ]
    momenta: dict[str, torch.Tensor] = {}
    ranks = [steps_of_rank(rank, strategy, network) for rank, network in enumerate(networks)]
    for updates in zip(*ranks, strict=True):
        found = [gradients_of(u, n) for u, n in zip(updates, networks, strict=True)]
        inner = updates[0].optimizer == "weights"
        for name in found[0].keys() | found[1].keys():
            both = [f[name] for f in found if name in f]
            gradient = sum(both[1:], start=both[0]) / 2
            weight = networks[0].get_parameter(name).detach()
            if inner:
                gradient = gradient + 1e-2 * weight
                gradient = gradient + 0.9 * momenta[name] if name in momenta else gradient
                momenta[name] = gradient
            new = weight - (0.05 if inner else 0.5) * gradient
            with torch.no_grad():
                for network in networks:
                    network.get_parameter(name).copy_(new)
    return {k: p.detach() for k, p in networks[0].named_parameters()}


@pytest.mark.parametrize("strategy", BY_HAND)
def test_ranks_with_paths_of_their_own_take_half_the_sum_of_their_gradients(
    cases: Path, strategy: str
) -> None:
    require_close(weights(cases, f"own-{strategy}", 0), by_hand(strategy))


def test_ranks_with_paths_of_their_own_draw_different_ones(cases: Path) -> None:
    own, same = (facts(cases, f"{n}-greedynas", 0)["state"]["pool"] for n in ("own", "same"))
    assert len({tuple(entry["genes"]) for entry in same}) <= 4 * STEPS
    # the pool is that of both ranks, each of which draws 4 paths in a step
    assert len({tuple(entry["genes"]) for entry in own}) > 4 * STEPS


def test_what_moved_on_any_rank_moves_alike_and_the_rest_not_at_all(cases: Path) -> None:
    start, end = weights(cases, "own_path", 0, "first"), weights(cases, "own_path", 0)
    moved = {k for k in end if not torch.equal(start[k], end[k])}
    space = toy_space()
    supernet = toy_supernet(space)
    used = {id(p) for rank in (0, 1) for p in supernet.subnet_parameters(OwnPath(space).path(rank))}
    assert moved == {k for k, p in supernet.named_parameters() if id(p) in used}
    assert len(moved) < len(end)  # the third choices, though their momentum was alive
    other = weights(cases, "own_path", 1)
    assert all(torch.equal(end[k], other[k]) for k in end)


def test_an_update_of_many_losses_is_reduced_once(cases: Path) -> None:
    reduced = facts(cases, "counted", 0)["reduced"]
    weights_and_losses = [size for kind, size in reduced if kind == "torch.float64"]
    supernet = toy_supernet(toy_space())
    # strict fairness: in one update, three losses give every weight a gradient
    n_weights = sum(p.numel() for p in supernet.parameters())
    assert weights_and_losses == [n_weights + 3] * STEPS
    messages = [size for kind, size in reduced if kind != "torch.float64"]
    assert sum(messages) * 8 < 1000  # bytes


# -- rank 0 and the others -----------------------------------------------------------------


def test_only_rank_0_chooses_the_precision(cases: Path) -> None:
    both = [facts(cases, "chosen", rank)["precision"] for rank in (0, 1)]
    assert both == ["fp32 channels_last"] * 2


def test_a_batch_that_cannot_be_shared_equally_is_refused(cases: Path) -> None:
    noted = facts(cases, "undivided", 0)
    assert noted["error"] == "UsageError"
    assert noted["message"] == "a batch of 15 images cannot be shared equally by 2 processes"
    assert noted["hint"] == "--set train.batch_size=14"


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step(cases: Path) -> None:
    noted = [facts(cases, "stopped", rank) for rank in (0, 1)]
    assert [n["error"] for n in noted] == ["KeyboardInterrupt"] * 2
    # asked in step 2, which travels with the message of step 3
    assert noted[0]["last"] == noted[1]["last"] == 3


def test_a_stopped_run_of_two_goes_on_to_the_same_bits(cases: Path) -> None:
    assert facts(cases, "stopped_again", 0)["last"] == MORE_STEPS - 1
    first, second = (cases / n / "supernet.safetensors" for n in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()


def test_a_run_of_two_can_go_on_with_one_and_says_so(
    cases: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result, _, _ = wide_train(
            cases / "for_one", ALONE, "spos", steps=MORE_STEPS, log_every=4,
            ranks=RanksConfig(paths="per_rank"),
        )  # fmt: skip
    assert result.steps == MORE_STEPS
    assert "started with 2 processes and goes on with 1" in caplog.text


# -- failures ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(cases: Path) -> None:
    noted = [facts(cases, "not_a_number", rank) for rank in (0, 1)]
    assert [n["error"] for n in noted] == ["DivergedError"] * 2
    assert all("the loss is nan at step 2" in n["message"] for n in noted)


@pytest.mark.parametrize("name", ["raising", "raising_between_batch_norms"])
def test_an_error_on_one_rank_ends_the_other_with_its_message(cases: Path, name: str) -> None:
    assert facts(cases, name, 1)["error"] == "DataError"
    noted = facts(cases, name, 0)
    assert noted["error"] == "TrainingError"
    assert noted["message"] == "rank 1: no images left; try: more images"


def test_a_strategy_that_goes_two_ways_is_told_so_instead_of_waiting_for_ever(
    cases: Path,
) -> None:
    assert "another one to something else" in facts(cases, "two_ways", 0)["message"]


def test_a_killed_rank_ends_the_other_with_a_message(cases: Path) -> None:
    noted = facts(cases, "killed", 0)
    assert noted["error"] == "TrainingError"
    assert "rank 0 has lost the other ranks (a connection was closed" in noted["message"]


# -- settings and the command line ---------------------------------------------------------


def test_paths_per_rank_exclude_batch_norm_over_all() -> None:
    with pytest.raises(ValueError, match="needs paths"):
        RanksConfig(paths="per_rank", batch_norm="global")
    assert TrainConfig().ranks.global_batch_norm
    assert not RanksConfig(paths="per_rank").global_batch_norm


def test_settings_for_several_processes_do_not_change_what_one_does(tmp_path: Path) -> None:
    plain = toy_train(tmp_path / "plain")
    config = toy_config(ranks=RanksConfig(paths="per_rank"))
    other = toy_train(tmp_path / "other", config=config)
    assert plain.weights_path.read_bytes() == other.weights_path.read_bytes()


def test_a_process_is_alone_unless_torchrun_says_otherwise() -> None:
    assert launched({}) is None
    assert launched({"WORLD_SIZE": "1", "RANK": "0"}) is None
    environ = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    assert launched(environ) == Launch(rank=3, world=4, local_rank=1)
    again = launched({**environ, "TORCHELASTIC_RESTART_COUNT": "2"})
    assert again == Launch(rank=3, world=4, local_rank=1, attempt=2)


class Told(Ranks):
    """Rank 1, with a rank 0 that has spoken or has not."""

    rank, world = 1, 2

    def __init__(self, spoken: bool) -> None:
        self.spoken = spoken

    def speaks(self) -> bool:
        return not self.spoken


@pytest.mark.parametrize("spoken", [True, False])
def test_another_rank_says_only_what_rank_0_cannot(
    capsys: pytest.CaptureFixture[str], spoken: bool
) -> None:
    def command() -> int:
        print("a result")
        print("error: no images", file=sys.stderr)
        return 3

    launch = Launch(rank=1, world=2, local_rank=1, ranks=Told(spoken))
    assert run_rank(launch, command) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("no images" in printed.err) is not spoken


def test_a_command_that_does_not_train_is_refused_under_torchrun(
    capsys: pytest.CaptureFixture[str],
) -> None:
    launch = Launch(rank=0, world=2, local_rank=0)
    assert run_cli(["doctor"], launch) == UsageError.exit_code
    assert "'hilnas doctor' runs in one process" in capsys.readouterr().err
    assert set(cli_ranks.COMMANDS) >= {"run", "train", "search"}


def test_the_one_process_has_nobody_to_fail_for() -> None:
    def failing() -> None:
        with ALONE.together():
            raise TrainingError("no")

    with pytest.raises(TrainingError, match="no"):
        failing()
    assert ALONE.speaks()


# -- torchrun itself -----------------------------------------------------------------------


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``torchrun --standalone --nproc-per-node 2 ARGUMENTS``, data and caches below ``folder``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    own = {"XDG_DATA_HOME": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [*command, *arguments],
        env={**environment(), **own},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.long
def test_a_killed_rank_is_restarted_and_the_run_ends_with_the_same_bits(
    cases: Path, tmp_path: Path
) -> None:
    ended = torchrun("--max-restarts=1", str(WORKER), str(tmp_path), "elastic", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "SIGKILL" in ended.stderr or "exitcode: -9" in ended.stderr
    expected = (cases / "whole" / "supernet.safetensors").read_bytes()
    assert (tmp_path / "supernet.safetensors").read_bytes() == expected


QUICK = (
    "train.epochs=0.1",
    "latency.samples=16",
    "train.ranks.batch_norm=rank",
)


@pytest.mark.long
def test_the_train_command_works_under_torchrun_and_speaks_once(tmp_path: Path) -> None:
    settings = [argument for s in QUICK for argument in ("--set", s)]
    run = tmp_path / "run"
    ended = torchrun(
        "-m", "pipeline", "train", "digits", "--out", str(run), *settings, folder=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert (run / "supernet.safetensors").exists()
    assert ended.stderr.count("training the supernet") == 1
    again = torchrun("-m", "pipeline", "train", str(run), folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("up to date") == 4


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.toml"], "nowhere.toml"),
        (["train", "digits", "--set", "train.batch_size=33"], "a batch of 33 images cannot be"),
    ],
)
def test_an_error_under_torchrun_is_said_once(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    settings = ["--set", "latency.samples=16"] if "digits" in arguments else []
    ended = torchrun(
        "-m", "pipeline", *arguments, *settings, "--out", str(tmp_path / "run"), folder=tmp_path
    )
    assert ended.returncode != 0
    said: Callable[[str], int] = ended.stderr.count
    assert said("error: ") == 1, ended.stderr
    assert message in ended.stderr
