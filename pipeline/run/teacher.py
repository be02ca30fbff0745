"""The teacher that a run file names, ready for the images of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latency_tables.errors import HilnasError, UsageError
from latency_tables.files import sha256_file
from pipeline.data.preprocessing import Preprocessing
from pipeline.training.config import TeacherConfig
from pipeline.training.step import Batch
from pipeline.training.teacher import Answer, Teacher, check_answers, check_input, probe_images

if TYPE_CHECKING:
    from pipeline.run.context import RunContext

MODEL, MANIFEST, SUPERNET = "subnet.onnx", "manifest.json", "supernet.safetensors"


def teacher_file(config: TeacherConfig, base: Path) -> Path:
    """The file behind ``config.model``; a relative path counts from the run file's folder.

    Raises:
        UsageError: there is none, or it is of a kind that is not read.
    """
    path = base / config.model
    if path.is_dir():
        path = path / MODEL
    if not path.is_file():
        raise UsageError(
            f"there is no teacher {path}",
            hint='train.teacher.model = "a file .onnx or .pt2, or a folder with subnet.onnx"',
        )
    if path.suffix not in (".onnx", ".pt2") and path.name != SUPERNET:
        raise UsageError(
            f"the teacher {path.name} is neither .onnx, .pt2 nor the {SUPERNET} of a run folder; "
            "weights alone do not say what network they belong to",
            hint="export the network: torch.onnx.export(network.eval(), ...)",
        )
    return path


def teacher_sha256(config: TeacherConfig | None, base: Path) -> str | None:
    """Hash of the teacher's file, None without one: another teacher, other weights."""
    return None if config is None else sha256_file(teacher_file(config, base))


def open_teacher(context: RunContext, config: TeacherConfig | None) -> Teacher | None:
    """Load, check and adapt the teacher; None where the run has none.

    A network of hilnas brings its own normalisation (manifest.json, or its data.json), to which
    images are converted; others are given images as this run normalises them.

    Raises:
        UsageError: it does not load, takes other images, tells other classes apart, or answers
            the same image differently.
    """
    if config is None:
        return None
    from pipeline.training.teacher_files import exported_answer, onnx_answer

    path = teacher_file(config, context.base)
    shape, device = context.dataset.input_shape, context.torch_device
    own = context.dataset.preprocessing
    if path.name == SUPERNET:
        convert = _converter(_described(path.with_name("data.json")), own, device)
        answer = _largest_answer(path, context, convert)
    else:
        read = onnx_answer if path.suffix == ".onnx" else exported_answer
        plain = read(path, shape, device)
        manifest = path.with_name(MANIFEST)
        of_hilnas = path.name == MODEL and manifest.is_file()
        convert = _converter(_described(manifest) if of_hilnas else own, own, device)

        def answer(images: Tensor) -> Tensor:
            return plain(convert(images))

    images, name = probe_images(shape, device), path.name
    with torch.no_grad():
        check_answers(answer, images, n_classes=context.dataset.n_classes, name=name)
    return Teacher(answer, config, sha256=sha256_file(path))


def announce(context: RunContext, teacher: Teacher | None) -> None:
    """Say who teaches."""
    if teacher is not None:
        name = Path(teacher.config.model).name
        context.reporter.say(f"  teacher: {name}, weight {teacher.config.weight:g}")


def _described(path: Path) -> Preprocessing:
    try:
        return Preprocessing.from_dict(json.loads(path.read_text())["preprocessing"])
    except (OSError, ValueError, LookupError, TypeError, HilnasError) as error:
        raise UsageError(f"{path} does not say how images are normalised: {error}") from None


class _Converter:
    """From images as ``source`` normalises them to images as ``target`` does."""

    def __init__(self, target: Preprocessing, source: Preprocessing, device: torch.device) -> None:
        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device).reshape(1, -1, 1, 1)

        ratio = target.scale / source.scale
        scale = column(source.std) * ratio / column(target.std)
        shift = (column(source.mean) * ratio - column(target.mean)) / column(target.std)
        self.same = bool((scale == 1).all() and (shift == 0).all())
        self.scale, self.shift = scale.float(), shift.float()

    def __call__(self, images: Tensor) -> Tensor:
        return images if self.same else images * self.scale + self.shift


def _converter(target: Preprocessing, source: Preprocessing, device: torch.device) -> _Converter:
    if target.channels != source.channels:
        raise UsageError(
            f"the teacher takes {target.channels} colour channels; this run's images have "
            f"{source.channels}"
        )
    return _Converter(target, source, device)


@dataclass(frozen=True, slots=True)
class _Converted:
    images: Tensor
    labels: Tensor


def _largest_answer(path: Path, context: RunContext, convert: _Converter) -> Answer:
    """The network of the most MACs of another run's supernet, its batch norms calibrated here."""
    from pipeline.run.source import read_source
    from pipeline.spaces import load_space
    from pipeline.supernet.scoring import materialise, recalibrate
    from pipeline.supernet.weights import load_supernet

    described: Mapping[str, Any] = json.loads(path.with_name("data.json").read_text())
    shape = tuple(int(n) for n in described["input_shape"])
    check_input((None, *shape), context.dataset.input_shape, name=path.name)
    settings = read_source(str(path.parent)).config.space
    space = load_space(
        settings.name,
        preset=settings.preset,
        input_shape=context.dataset.input_shape,
        n_classes=len(described["classes"]),
    )
    supernet = load_supernet(space, path).to(context.torch_device)
    network = materialise(space, space.cost_table().maximum("macs")[1], supernet)
    recalibrate(network, _converted(context.eval_batches("calibration"), convert))
    network.eval()

    def answer(images: Tensor) -> Tensor:
        logits: Tensor = network(convert(images))
        return logits.float()

    return answer


def _converted(batches: Iterable[Batch], convert: _Converter) -> Iterator[Batch]:
    for batch in batches:
        yield _Converted(convert(batch.images), batch.labels)
