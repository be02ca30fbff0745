from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latency_tables.errors import UsageError
from pipeline.spaces.base import Supernet
from pipeline.training import precision
from pipeline.training.config import TrainConfig
from pipeline.training.precision import Precision, candidates, choose, fastest
from tests.pipeline.training.toys import ToyStream, toy_config, toy_space, toy_supernet, toy_train

CPU = torch.device("cpu")
PLAIN, LAST = Precision(), Precision(channels_last=True)
BF16_PLAIN, BF16 = Precision(dtype="bf16"), Precision(dtype="bf16", channels_last=True)


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "supports_bf16", lambda device: True)


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "supports_bf16", lambda device: False)


@pytest.mark.usefixtures("without_bf16")
def test_bf16_is_not_even_tried_where_the_device_lacks_it() -> None:
    assert candidates(TrainConfig(), CPU) == (PLAIN, LAST)


@pytest.mark.usefixtures("without_bf16")
def test_asking_for_bf16_where_the_device_lacks_it_is_refused() -> None:
    with pytest.raises(UsageError, match="does not compute in bf16"):
        candidates(TrainConfig(precision="bf16"), CPU)


@pytest.mark.usefixtures("with_bf16")
def test_settings_narrow_what_is_tried() -> None:
    assert candidates(TrainConfig(), CPU) == (PLAIN, LAST, BF16_PLAIN, BF16)
    assert candidates(TrainConfig(precision="fp32"), CPU) == (PLAIN, LAST)
    assert candidates(TrainConfig(channels_last="on"), CPU) == (LAST, BF16)
    assert candidates(TrainConfig(precision="bf16", channels_last="off"), CPU) == (BF16_PLAIN,)


def test_bf16_wins_only_where_it_was_measured_to_be_faster() -> None:
    assert fastest({PLAIN: 3.0, LAST: 2.0, BF16: 1.0}) == BF16
    assert fastest({PLAIN: 3.0, LAST: 2.0, BF16: 4.0}) == LAST
    assert fastest({PLAIN: 1.0, LAST: 0.99, BF16: 0.98}) == PLAIN  # within noise: the simplest


def test_one_allowed_format_is_not_timed() -> None:
    space = toy_space()
    supernet, batch = toy_supernet(space), ToyStream().batch(0)
    chosen = choose(space, supernet, batch, toy_config(), seed=0, device=CPU)
    assert chosen == (LAST, {})


def test_probing_changes_no_weight_no_statistic_and_no_random_number() -> None:
    space = toy_space("shufflenetv2")  # with dropout
    supernet = toy_supernet(space)
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    state = torch.get_rng_state()
    config = TrainConfig(precision="auto")
    _, seconds = choose(space, supernet, ToyStream().batch(0), config, seed=0, device=CPU)
    assert len(seconds) >= 2
    assert all(value > 0 for value in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())
    assert all(p.grad is None and p.is_contiguous() for p in supernet.parameters())


def test_a_resumed_run_keeps_the_precision_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(channels_last="auto")
    monkeypatch.setattr(precision, "fastest", lambda seconds: LAST)

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, config=config, on_progress=stop)
    monkeypatch.setattr(precision, "fastest", lambda seconds: PLAIN)
    assert toy_train(tmp_path, config=config).precision == LAST


class DtypeSpy(Supernet):
    """Remembers in which type a linear layer computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, arch: object) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(("chosen", "dtype"), [(PLAIN, torch.float32), (BF16, torch.bfloat16)])
def test_autocast_follows_the_choice(chosen: Precision, dtype: torch.dtype) -> None:
    with chosen.autocast(CPU):
        assert DtypeSpy()(torch.zeros(1, 4), None).dtype == dtype


def test_training_in_bf16_keeps_weights_and_loss_in_fp32(tmp_path: Path) -> None:
    if not precision.supports_bf16(CPU):
        pytest.skip("this CPU has no bf16")
    space = toy_space()
    supernet = toy_supernet(space)
    result = toy_train(
        tmp_path, space=space, supernet=supernet, config=toy_config(precision="bf16")
    )
    assert result.precision == BF16
    assert {p.dtype for p in supernet.parameters()} == {torch.float32}
