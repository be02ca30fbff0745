"""What the stages of one run share: settings, files, and objects that are made when first used."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from device_agents.inventory import Inventory
from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import DataError
from latency_tables.store import TableStore
from pipeline.config import RunConfig
from pipeline.data.batches import EvalBatches, TrainStream
from pipeline.data.dataset import ImageDataset, dataset_at, load_dataset
from pipeline.data.raw import Indices
from pipeline.data.splits import Splits
from pipeline.run.folder import RunFolder
from pipeline.run.profile import space_for
from pipeline.run.progress import Reporter
from pipeline.supernet.weights import load_supernet
from pipeline.training.precision import Precision
from pipeline.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from pipeline.run.devices import RunDevice
    from pipeline.search.targets import Target
    from pipeline.spaces.base import Space, Supernet

EVAL_BATCH = {"cpu": 128, "cuda": 512}
"""Images per evaluation batch, at most: on a CPU, larger ones leave the cache."""
HELD_OUT_MB = 1024
"""A batch on which subnets are compared in every step stays on the device up to this size."""
MAX_CALIBRATION = 4096
"""Images that batch norm is recalibrated on, at most: algorithms need 2,048 to 8,192."""


class RunContext:
    """Settings, folder and lazily made objects of one run."""

    def __init__(
        self,
        *,
        config: RunConfig,
        folder: RunFolder,
        base: Path,
        table_path: Path,
        inventory: Inventory,
        reporter: Reporter,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self._at_size: dict[tuple[int, int], ImageDataset] = {}
        self.profile = False  # whether stages say where their time went
        self.config, self.folder, self.base = config, folder, base
        self.table_path, self.inventory, self.reporter = table_path, inventory, reporter

    @cached_property
    def torch_device(self) -> torch.device:
        """Where training and scoring run."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.ranks.world > 1:
            return torch.device("cuda", self.ranks.local_rank)
        return torch.device("cuda")

    @cached_property
    def dataset(self) -> ImageDataset:
        """The images, on the training device where they fit."""
        dataset = load_dataset(self.config.data, seed=self.config.seed, base=self.base)
        return dataset.to(self.torch_device)

    @cached_property
    def splits(self) -> Splits:
        """Disjoint sets of images. A third of the held-out pool calibrates, the rest scores."""
        splits = self.dataset.splits(self.config.data, seed=self.config.seed)
        held = splits.remaining
        calibration = min(held // 3, MAX_CALIBRATION)
        if calibration < self.dataset.n_classes:
            raise DataError(
                f"{held} held-out images are too few to calibrate and to score "
                f"{self.dataset.n_classes} classes",
                hint="raise data.heldout, or add images",
            )
        splits.reserve({"calibration": calibration, "search-validation": held - calibration})
        return splits

    @cached_property
    def space(self) -> Space:
        """The search space for these images."""
        space = space_for(self.dataset, self.config.space)
        if self.config.space.module is not None:
            self._note_changed_model(space)
        return space

    def _note_changed_model(self, space: Space) -> None:
        """Say so where the folder was made with another model: its stages start over."""
        path = self.folder.file("profile.json")
        try:
            before = json.loads(path.read_text())["space_id"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # none yet, or damaged: then its stage runs again
        if before != space.space_id:
            self.reporter.say(
                f"  {space.name} is not the model that this folder was made with: its stages start "
                "over, what they made before is kept in superseded/"
            )

    @cached_property
    def cost_table(self) -> CostTable:
        """Exact costs of the space."""
        return self.space.cost_table()

    @cached_property
    def supernet(self) -> Supernet:
        """The trained supernet, laid out like the evaluation batches."""
        supernet = load_supernet(self.space, self.folder.file("supernet.safetensors"))
        Precision(channels_last=True).place(supernet, self.torch_device)
        return supernet

    def searched_supernet(self, target: Target | None = None) -> Supernet:
        """The weights of the network that the search found for a target, by default for all
        devices: the trained supernet, or the one that the search shifted.

        Raises:
            CheckpointError: it cannot be read.
        """
        if self.config.search.shifting is None:
            return self.supernet
        from pipeline.run.shifting import searched_weights

        supernet = load_supernet(self.space, searched_weights(self, target))
        Precision(channels_last=True).place(supernet, self.torch_device)
        return supernet

    @cached_property
    def store(self) -> TableStore:
        """The live latency table."""
        return TableStore(self.table_path)

    @cached_property
    def devices(self) -> tuple[RunDevice, ...]:
        """The devices of the run file, ready to measure."""
        from pipeline.run.devices import open_devices

        return open_devices(self)

    def give_way(self) -> None:
        """Wait while anybody measures on this machine, so that computing does not disturb it."""
        for device in self.devices:
            with device.measurer.exclusive():
                pass

    def train_stream(self) -> TrainStream:
        """Augmented training batches."""
        return TrainStream(
            self.dataset,
            self.splits.train,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            augment=self.config.data.augment,
            device=self.torch_device,
            workers=self.config.data.workers,
            share=(self.ranks.rank, self.ranks.world),
        )

    def held_out_batch(self, n_images: int) -> EvalBatches:
        """One batch of at most ``n_images`` on which a strategy compares subnets while it trains.

        They are calibration images: the search scores on others.
        """
        indices = self.splits.indices("calibration")[:n_images]
        return EvalBatches(
            self.dataset,
            indices,
            batch_size=len(indices),
            device=self.torch_device,
            channels_last=True,
            keep_mb=HELD_OUT_MB,
        )

    def dataset_of(self, arch: Arch) -> ImageDataset:
        """The images at the resolution that the network of ``arch`` takes."""
        size = self.space.input_shape_of(arch)[1:]
        if size not in self._at_size:
            config, seed = self.config.data, self.config.seed
            found = dataset_at(self.dataset, size, config, seed=seed, base=self.base)
            self._at_size[size] = found.to(self.torch_device)
        return self._at_size[size]

    def eval_batches(
        self,
        split: str,
        dataset: ImageDataset | None = None,
        *,
        n_images: int | None = None,
        parts: int = 1,
    ) -> EvalBatches:
        """Fixed batches of a held-out split, or of its first images; ``test`` is for the export
        stage only. ``parts``: see :func:`eval_batches`."""
        indices = self.splits.test() if split == "test" else self.splits.indices(split)
        return eval_batches(
            dataset or self.dataset, indices[:n_images], self.torch_device, parts=parts
        )

    def close(self) -> None:
        """Let go of the table and of the devices."""
        for device in self.__dict__.get("devices", ()):
            device.close()
        if "store" in self.__dict__:
            self.store.close()


def eval_batches(
    dataset: ImageDataset, indices: Indices, device: torch.device, *, parts: int = 1
) -> EvalBatches:
    """Batches of nearly equal size in a fixed order; their number is a multiple of ``parts``.

    Equal sizes matter to calibration, which averages over batches; channels_last is faster for
    convolutions on CPUs and GPUs alike.
    """
    n_batches = -(-len(indices) // (parts * EVAL_BATCH[device.type])) * parts
    return EvalBatches(
        dataset,
        indices,
        batch_size=-(-len(indices) // n_batches),
        device=device,
        channels_last=True,
    )
