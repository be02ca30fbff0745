"""Number format and memory layout of training: measured, not assumed.

channels_last and bf16 autocast are usually the fastest on current CPUs and GPUs, but not for
every network and picture size. ``choose`` times a few forward and backward passes of the actual
supernet and batch for every combination that the device supports and the settings allow. It works
on a copy and restores the random state, so probing changes no weight, no running statistic and no
random number. The choice is stored with the checkpoint: a resumed run keeps it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.randomness import child_seed, numpy_generator
from pipeline.spaces.base import Space, Supernet
from pipeline.training.config import PrecisionName, TrainConfig

if TYPE_CHECKING:
    from pipeline.training.step import Batch

ROUNDS = 3
PATHS = 2
HOPELESS = 1.5
WORTHWHILE = 0.95
"""A format must take at most this share of the time of a simpler one to be preferred to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Number format of the forward pass and memory layout of images and weights.

    >>> str(Precision(dtype="bf16", channels_last=True))
    'bf16 channels_last'
    """

    dtype: PrecisionName = "fp32"
    channels_last: bool = False

    def __str__(self) -> str:
        return f"{self.dtype} {'channels_last' if self.channels_last else 'contiguous'}"

    @property
    def memory_format(self) -> torch.memory_format:
        """What tensors of four dimensions are converted to."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Run what is inside in this number format; fp32 also switches an outer autocast off."""
        enabled = self.dtype == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            yield

    def place(self, network: nn.Module, device: torch.device) -> None:
        """Move a network's tensors to the device and into the memory layout, in place."""
        # nn.Module.to takes the format together with the device; tensors that are not 4-D stay
        network.to(device=device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def supports_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 by itself; emulation counts as no."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of newer torch
        asked = [bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name)]
        return any(asked) or _arm_bf16()
    return False


def _arm_bf16() -> bool:
    """Whether Linux lists bf16 among the features of an Arm CPU; torch has no question for it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return any(
                "bf16" in line.split() for line in stream if line.lower().startswith("features")
            )
    except OSError:
        return False


def candidates(config: TrainConfig, device: torch.device) -> tuple[Precision, ...]:
    """What the settings allow and the device supports, simplest first.

    Raises:
        UsageError: bf16 is asked for and the device does not have it.
    """
    bf16 = supports_bf16(device)
    if config.precision == "bf16" and not bf16:
        raise UsageError(
            f"precision = 'bf16' is asked for, but this {device.type} does not compute in bf16; "
            "'auto' and 'fp32' are allowed",
            hint="hilnas run ... --set train.precision=auto",
        )
    dtypes: tuple[PrecisionName, ...]
    if config.precision == "auto":
        dtypes = ("fp32", "bf16") if bf16 else ("fp32",)
    else:
        dtypes = (config.precision,)
    layouts = {"auto": (False, True), "on": (True,), "off": (False,)}[config.channels_last]
    return tuple(Precision(dtype=d, channels_last=c) for d in dtypes for c in layouts)


def choose(
    space: Space,
    supernet: Supernet,
    batch: Batch,
    config: TrainConfig,
    *,
    seed: int,
    device: torch.device,
) -> tuple[Precision, dict[str, float]]:
    """Take the fastest allowed format; also return seconds per pass of all that were timed.

    Nothing is timed where the settings leave one format only.
    """
    allowed = candidates(config, device)
    if len(allowed) == 1:
        return allowed[0], {}
    seconds = _time_formats(allowed, space, supernet, batch, seed=seed, device=device)
    return fastest(seconds), {str(precision): value for precision, value in seconds.items()}


def fastest(seconds: Mapping[Precision, float]) -> Precision:
    """The fastest, where a later (less simple) one must be faster by more than noise.

    >>> plain, last = Precision(), Precision(channels_last=True)
    >>> fastest({plain: 1.0, last: 0.97}) == plain, fastest({plain: 1.0, last: 0.5}) == last
    (True, True)
    """
    best = next(iter(seconds))
    for precision, value in seconds.items():
        if value < WORTHWHILE * seconds[best]:
            best = precision
    return best


def _time_formats(
    formats: tuple[Precision, ...],
    space: Space,
    supernet: Supernet,
    batch: Batch,
    *,
    seed: int,
    device: torch.device,
) -> dict[Precision, float]:
    """Best of a few interleaved rounds, seconds per forward and backward pass of one path.

    A format that is far behind after its first counted pass is not timed again.
    """
    rng = numpy_generator(seed, "training", "probe")
    archs = [space.sample(rng) for _ in range(PATHS)]
    seconds = dict.fromkeys(formats, math.inf)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(child_seed(seed, "training", "probe"))
        trial = copy.deepcopy(supernet).train()
        for attempt in range(ROUNDS + 1):  # the first round warms up and is not counted
            for precision in formats:
                if attempt > 1 and seconds[precision] > HOPELESS * min(seconds.values()):
                    continue
                precision.place(trial, device)
                images = batch.images.contiguous(memory_format=precision.memory_format)
                spent = _time_passes(trial, archs, images, batch.labels, precision, device)
                if attempt:
                    seconds[precision] = min(seconds[precision], spent)
    return seconds


def _time_passes(
    trial: Supernet,
    archs: Sequence[Arch],
    images: Tensor,
    labels: Tensor,
    precision: Precision,
    device: torch.device,
) -> float:
    """Mean seconds per forward and backward pass."""
    _synchronise(device)
    started = time.perf_counter()
    for arch in archs:
        with precision.autocast(device):
            logits = trial(images, arch)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        trial.zero_grad(set_to_none=True)
    _synchronise(device)
    return (time.perf_counter() - started) / len(archs)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
