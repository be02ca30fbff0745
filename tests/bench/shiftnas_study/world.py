"""Images, a space, its levels and subnets; trainings and scores that are kept in a folder."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from latency_tables.arch import Arch
from latency_tables.files import write_json
from pipeline.data.batches import EvalBatches, TrainStream
from pipeline.data.config import AugmentConfig, DataConfig
from pipeline.data.dataset import ImageDataset, load_dataset
from pipeline.data.splits import Splits
from pipeline.generator.file import FILE_NAME, load_generator
from pipeline.randomness import child_seed, numpy_generator
from pipeline.retraining.alone import Alone, SpaceOfOne
from pipeline.run.held_out import HeldOutTurns
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies import load_strategy
from pipeline.strategies.cost_levels import CostLevels, levels_of
from pipeline.strategies.spos import SPOS
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.weights import load_supernet, save_supernet
from pipeline.training.config import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from pipeline.training.engine import CHECKPOINTS, LOG_FILE, WEIGHTS_FILE, Progress, train
from pipeline.training.precision import Precision
from tests.bench.shiftnas_study.methods import UNIFORM, Method

if TYPE_CHECKING:
    from pipeline.run.context import RunContext

SPACES: dict[str, tuple[str, OptimizerConfig]] = {
    "autoformer": ("micro", OptimizerConfig(kind="adamw", lr=2e-3, weight_decay=0.05)),
    "bignas": ("tiny", OptimizerConfig(kind="sgd", lr=0.1)),
    "attentivenas": ("tiny", OptimizerConfig(kind="sgd", lr=0.1)),
}
"""Space → preset, optimizer of its starter."""


def machine_name(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    return f"{name}, {max(1, len(models))} logical cores, one thread, torch {torch.__version__}"


class World:
    """One space with the images, for all seeds. The same subnets are scored for every method.

    ``torch_device``, ``dataset`` and ``splits`` are what a run calls them.
    """

    def __init__(self, name: str, scale: argparse.Namespace, out: Path) -> None:
        self.scale, self.out = scale, out / name
        self.torch_device = torch.device(scale.device)
        config = DataConfig(
            name="fashion-mnist" if scale.images.is_dir() else "npz", path=str(scale.images),
            image_size=scale.pixels, channels=3, heldout=0.15,
        )  # fmt: skip
        self.dataset: ImageDataset = load_dataset(config, seed=0).to(self.torch_device)
        self.splits: Splits = self.dataset.splits(
            config, seed=0,
            plan={"calibration": scale.held_out, "scoring": scale.score_images},
        )  # fmt: skip
        chosen = numpy_generator(0, "images").permutation(self.splits.train)
        self.train_images = np.sort(chosen[: scale.train_images])
        preset, self.optimizer = SPACES[name]
        self.space: Space = load_space(
            name, preset=preset, input_shape=self.dataset.input_shape,
            n_classes=self.dataset.n_classes,
        )  # fmt: skip
        self.levels: CostLevels = levels_of(self.space, "macs", n_levels=scale.levels)
        rng = numpy_generator(0, "subnets", name)
        self.archs: list[list[Arch]] = [
            self.levels.sampler.sample_archs(rng, low, high, scale.archs)
            for low, high in self.levels.ranges
        ]
        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        self.policy: Any = (
            "recalibrate" if any(isinstance(m, norms) for m in self.fresh(0).modules())
            else "tracked"
        )  # fmt: skip

    @property
    def machine(self) -> str:
        """What the numbers are measured on."""
        return machine_name(self.torch_device)

    def kept(self, path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` gave when the file was written, now or in an earlier run, with the seconds
        that it took: of the CPU, where that does the work."""
        if path.is_file():
            return dict(json.loads(path.read_text()))
        path.parent.mkdir(parents=True, exist_ok=True)
        clock = time.process_time if self.torch_device.type == "cpu" else time.monotonic
        began = clock()
        found = make()
        found = {"seconds": clock() - began, "machine": self.machine, **found}
        write_json(path, found)
        return found

    def folder(self, method: Method | str, seed: int) -> Path:
        """Where what belongs to a training lies."""
        name = method if isinstance(method, str) else method.folder
        return self.out / f"{name}-{seed}"

    def seeds(self) -> list[int]:
        """All seeds of which anything is there."""
        return sorted({int(path.name.rpartition("-")[2]) for path in self.out.glob("*-*/")})

    def batches(self, split: str, size: int = 250) -> EvalBatches:
        """Fixed batches of held-out images."""
        return EvalBatches(
            self.dataset, self.splits.indices(split), batch_size=size, device=self.torch_device,
            channels_last=True,
        )  # fmt: skip

    def fresh(self, seed: int) -> Supernet:
        """A supernet whose weights follow from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(seed, "supernet"))
            return self.space.supernet().to(self.torch_device)

    # -- training -------------------------------------------------------------------------------

    def steps_of(self, method: Method) -> int:
        """Steps that spend the image passes of the study."""
        return max(1, round(int(self.scale.steps) / method.passes))

    def config(self, steps: int, **changed: Any) -> TrainConfig:
        """The same settings for every training."""
        return TrainConfig(
            strategy="spos", steps=steps, batch_size=self.scale.batch, optimizer=self.optimizer,
            schedule=ScheduleConfig(kind="cosine"), precision="fp32", channels_last="on",
            threads=1, clip_norm=1.0, checkpoint=CheckpointConfig(seconds=60),
        ).model_copy(update=changed)  # fmt: skip

    def stream(self, seed: int) -> TrainStream:
        """Training images, cropped and mirrored."""
        augment = AugmentConfig(crop_padding=self.scale.pixels // 8, flip=True)
        return TrainStream(
            self.dataset, self.train_images, batch_size=self.scale.batch, seed=seed,
            augment=augment, device=self.torch_device,
        )  # fmt: skip

    def train(self, method: Method, seed: int) -> dict[str, Any]:
        """Train a supernet (from its checkpoint, where there is one); what it cost."""
        folder = self.folder(method, seed)
        return self.kept(folder / "trained.json", lambda: self._train(method, seed, folder))

    def _train(self, method: Method, seed: int, folder: Path) -> dict[str, Any]:
        resumed = (folder / CHECKPOINTS).is_dir()
        supernet = self.fresh(seed)
        strategy = load_strategy(
            method.strategy, space=self.space, supernet=supernet, seed=seed, options=method.options
        )
        config = self.config(
            self.steps_of(method), strategy=method.strategy, options=method.options
        )
        with closing(self.stream(seed)) as stream:
            streams: dict[str, Any] = {"train": stream}
            for split, wanted in getattr(strategy, "splits", {}).items():
                streams[split] = HeldOutTurns(
                    cast("RunContext", self), wanted.n_images, batch_size=self.scale.batch
                )
            result = train(
                self.space, supernet, strategy, streams, config, folder, seed=seed,
                device=self.torch_device,
                on_progress=self._keeper(supernet, folder) if method.name == UNIFORM else None,
            )  # fmt: skip
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        found: dict[str, Any] = {
            "steps": result.steps,
            "image_passes": result.steps * self.scale.batch * method.passes,
            "resumed": resumed,  # then the seconds are those of the last part only
            "loss": result.final_loss,
        }
        last = json.loads((folder / LOG_FILE).read_text().splitlines()[-1])
        return found | {key: last[key] for key in last if key.startswith(("level_", "generator_"))}

    def stages(self) -> list[tuple[int, int]]:
        """Steps of the uniform training whose weights are kept: q before, and at, every stage."""
        ends = [round(share * self.scale.steps) for share in self.scale.stages]
        return [(max(1, end - self.scale.update_every), end) for end in ends]

    def _keeper(self, supernet: Supernet, folder: Path) -> Callable[[Progress], None]:
        wanted = {step for pair in self.stages() for step in pair}

        def keep(progress: Progress) -> None:
            if progress.step in wanted:
                save_supernet(self.space, supernet, folder / f"after-{progress.step}.safetensors")

        return keep

    def alone(
        self, arch: Arch, seed: int, folder: Path, *, steps: int, start: nn.Module | None = None,
        **changed: Any,
    ) -> tuple[SpaceOfOne, Alone]:  # fmt: skip
        """One network trained by itself, from ``start`` or from fresh weights."""
        one = SpaceOfOne(self.space, arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(seed, "alone"))
            network = one.supernet().to(self.torch_device)
        if start is not None:
            network.network.load_state_dict(start.state_dict())
        with closing(self.stream(seed)) as stream:
            train(
                one, network, SPOS(cast("Space", one)), {"train": stream},
                self.config(steps, **changed), folder, seed=seed, device=self.torch_device,
            )  # fmt: skip
        return one, network

    # -- scoring --------------------------------------------------------------------------------

    def load(self, path: Path) -> Supernet:
        """Weights that were kept, laid out like the batches."""
        supernet = load_supernet(self.space, path)
        Precision(channels_last=True).place(supernet, self.torch_device)
        return supernet

    def scorer(self, space: Space, supernet: Supernet, policy: Any = None) -> Scorer:
        """Scores on held-out images, with batch norms calibrated on others."""
        return Scorer(
            space, supernet, self.batches("calibration"), self.batches("scoring", 500),
            policy=policy or self.policy,
        )  # fmt: skip

    def score(self, method: Method, seed: int) -> dict[str, Any]:
        """Inherited accuracies by level, and those of the generator's own choices."""
        folder = self.folder(method, seed)
        return self.kept(folder / "scores.json", lambda: self._score(folder))

    def _score(self, folder: Path) -> dict[str, Any]:
        scorer = self.scorer(self.space, self.load(folder / WEIGHTS_FILE))
        found: dict[str, Any] = {
            "targets": list(self.levels.targets),
            "accuracy": [[scorer.score(a).accuracy for a in archs] for archs in self.archs],
        }
        if (folder / FILE_NAME).is_file():
            found["chosen"] = self._chosen(folder / FILE_NAME, scorer)
        return found

    def _chosen(self, path: Path, scorer: Scorer) -> list[dict[str, float]]:
        """The most probable architecture of every level; how far its cost is off, in shares."""
        generator, table = load_generator(path, self.space), self.space.cost_table()
        rows = []
        for target in self.levels.targets:
            arch = generator.argmax(target, clamp=True)
            off = table.cost(arch, "macs") / target - 1
            rows.append({"off": off, "accuracy": scorer.score(arch).accuracy})
        return rows


def flat(archs: Sequence[Sequence[Arch]]) -> list[Arch]:
    """All of several lists."""
    return [arch for level in archs for arch in level]
