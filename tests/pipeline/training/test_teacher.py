from __future__ import annotations

import io
import logging
import math
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.errors import RunChangedError, UsageError
from pipeline.export.onnx_export import export_subnet
from pipeline.randomness import torch_generator
from pipeline.strategies.sandwich import Sandwich
from pipeline.strategies.spos import SPOS
from pipeline.training.config import TeacherConfig
from pipeline.training.precision import Precision
from pipeline.training.step import Step
from pipeline.training.teacher import Teacher, check_answers, probe_images
from pipeline.training.teacher_files import exported_answer, onnx_answer
from tests.pipeline.training.toys import (
    CLASSES,
    SHAPE,
    ToyStream,
    toy_config,
    toy_space,
    toy_supernet,
    toy_train,
)

CPU = torch.device("cpu")
ALWAYS_FIRST = torch.tensor([[9.0, 0.0, 0.0, 0.0]])


def config(**changes: Any) -> TeacherConfig:
    return TeacherConfig(model="teacher.onnx", **changes)


def network(*, dropout: bool = False, classes: int = CLASSES) -> nn.Sequential:
    """Small, with everything that may misbehave: batch norm, dropout, reshape."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    layers += [nn.Dropout(0.5)] if dropout else []
    made = nn.Sequential(*layers, nn.Linear(6 * 36, classes))
    made[1].running_mean.uniform_(-1, 1)
    return made.eval()


def save_program(module: nn.Module, path: Path, *, free: bool = True) -> Path:
    sizes = ({0: torch.export.Dim("n", min=1, max=64)},) if free else None
    images = torch.zeros(2 if free else 1, *SHAPE)
    torch.export.save(torch.export.export(module, (images,), dynamic_shapes=sizes), path)
    return path


def step(teacher: Teacher | None, **changes: Any) -> Step:
    space = toy_space()
    given: dict[str, Any] = {
        "index": 0, "supernet": toy_supernet(space), "device": CPU, "precision": Precision(),
        "rng": None, "next_batch": lambda split: ToyStream().batch(0),
    }  # fmt: skip
    return Step(**(given | {"teacher": teacher} | changes))


def test_the_loss_is_the_mixture_of_hinton_and_others() -> None:
    # p_T = (3/4, 1/4) at T = 2 needs teacher logits 2 ln(3), 0; the student says 1/2, 1/2
    taught = torch.tensor([[2 * math.log(3), 0.0]])
    teacher = Teacher(lambda x: taught, config(weight=0.25, temperature=2.0), sha256="")
    batch = SimpleNamespace(images=torch.zeros(1, 1, 2, 2), labels=torch.tensor([0]))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = teacher.mixed(torch.tensor(1.0), torch.zeros(1, 2), batch)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(0.75 * 1.0 + 0.25 * 4 * kl)


def test_the_alpha_divergence_is_the_larger_one_of_the_pair() -> None:
    taught = torch.tensor([[3.0, 1.0]]).log()
    teacher = Teacher(lambda x: taught, config(weight=1.0, kind="alpha"), sha256="")
    batch = SimpleNamespace(images=torch.zeros(1, 1, 2, 2), labels=torch.tensor([0]))
    loss = teacher.mixed(torch.tensor(9.0), torch.zeros(1, 2), batch)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(1 / 6, rel=1e-5)  # that of α = −1; α = 1 gives 0.1308


def test_a_teacher_is_asked_once_per_batch_however_many_subnets_see_it() -> None:
    asked: list[int] = []

    def answer(images: Tensor) -> Tensor:
        asked.append(len(images))
        return ALWAYS_FIRST.expand(len(images), -1)

    at = step(Teacher(answer, config(), sha256=""))
    batch = at.batch()
    arch = toy_space().sample(np.random.default_rng(0))
    at.loss(arch, batch)
    at.loss(arch, batch)
    at.loss(arch, ToyStream().batch(1))
    assert asked == [16, 16]


def test_scores_without_gradients_are_cross_entropy() -> None:
    teacher = Teacher(lambda x: ALWAYS_FIRST.expand(len(x), -1), config(), sha256="")
    taught, plain = step(teacher), step(None)
    batch, arch = taught.batch(), toy_space().sample(np.random.default_rng(0))
    with torch.no_grad():
        assert torch.equal(taught.loss(arch, batch), plain.loss(arch, batch))
    assert not torch.equal(taught.loss(arch, batch), plain.loss(arch, batch))


@pytest.mark.parametrize("strategy", [SPOS, Sandwich])
def test_supernets_learn_what_the_teacher_says_instead_of_the_labels(
    tmp_path: Path, strategy: type
) -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    teacher = Teacher(lambda x: ALWAYS_FIRST.expand(len(x), -1), config(weight=1.0), sha256="a")
    settings = toy_config(steps=30, teacher=config(weight=1.0))
    toy_train(tmp_path, space=space, supernet=supernet, strategy=strategy(space),
              config=settings, teacher=teacher)  # fmt: skip
    with torch.no_grad():
        said = supernet(ToyStream().batch(50).images, space.cost_table().maximum("macs")[1])
    assert float((said.argmax(1) == 0).float().mean()) > 0.9


def test_a_run_does_not_go_on_with_another_teacher(tmp_path: Path) -> None:
    def run(sha256: str, steps: int) -> None:
        teacher = Teacher(lambda x: ALWAYS_FIRST.expand(len(x), -1), config(), sha256=sha256)
        toy_train(tmp_path, config=toy_config(steps=steps, teacher=config()), teacher=teacher)

    run("a", 4)
    with pytest.raises(RunChangedError, match="teacher_sha256: a then, b now"):
        run("b", 4)


def test_settings_without_the_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="come together"):
        toy_train(tmp_path, config=toy_config(teacher=config()))


def test_where_the_teachers_file_lies_is_no_part_of_the_settings() -> None:
    here, there = (toy_config(teacher=TeacherConfig(model=m)) for m in ("a/t.onnx", "b/t.onnx"))
    assert here.numerics() == there.numerics() != toy_config().numerics()


# -- files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of ``network()``, its batch fixed at one."""
    path = tmp_path_factory.mktemp("onnx") / "teacher.onnx"
    export_subnet(network(), SHAPE, path)
    return path


@pytest.fixture(scope="module")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``network()`` as torch.export writes it, its batch free."""
    return save_program(network(), tmp_path_factory.mktemp("pt2") / "good.pt2")


def test_an_onnx_file_whose_batch_is_fixed_at_one_answers_whole_batches_at_once(
    onnx_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = network()
    with caplog.at_level(logging.WARNING):
        answer = onnx_answer(onnx_file, SHAPE, CPU)
    assert "one image at a time" not in caplog.text
    images = ToyStream().batch(0).images
    with torch.no_grad():
        assert torch.allclose(answer(images), teacher(images), atol=1e-5)


def test_an_operator_that_insists_on_one_image_is_given_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Insisting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            logits = self.inner(x)
            return logits + torch.ones(1, CLASSES).cumsum(0) * logits.sum(0, keepdim=True)

    path, teacher = tmp_path / "teacher.onnx", Insisting().eval()
    export_subnet(teacher, SHAPE, path)
    with caplog.at_level(logging.WARNING):
        answer = onnx_answer(path, SHAPE, CPU)
    assert "one image at a time" in caplog.text
    images = ToyStream().batch(0).images
    with torch.no_grad():
        alone = torch.cat([teacher(images[i : i + 1]) for i in range(len(images))])
    assert torch.allclose(answer(images), alone, atol=1e-5)


@pytest.mark.parametrize("free", [True, False])
def test_a_program_of_torch_export_answers_as_its_network(
    program_file: Path, tmp_path: Path, free: bool
) -> None:
    teacher = network()
    path = program_file if free else save_program(teacher, tmp_path / "t.pt2", free=False)
    answer = exported_answer(path, SHAPE, CPU)
    images = ToyStream().batch(0).images
    with torch.no_grad():
        assert torch.allclose(answer(images), teacher(images), atol=1e-5)


def test_a_teacher_for_other_pictures_is_refused_with_both_sizes(
    onnx_file: Path, program_file: Path
) -> None:
    for read, path in ((onnx_answer, onnx_file), (exported_answer, program_file)):
        with pytest.raises(UsageError, match=r"takes images 1×8×8; this run's are 3×32×32"):
            read(path, (3, 32, 32), CPU)


def test_a_teacher_of_other_classes_is_refused_with_both_numbers() -> None:
    teacher = network(classes=7)
    with pytest.raises(UsageError, match="tells 7 classes apart; this run's images have 4"):
        check_answers(teacher, probe_images(SHAPE, CPU), n_classes=CLASSES, name="teacher.onnx")


@pytest.mark.parametrize("spoilt", [network(dropout=True).train(), network().train()])
def test_a_teacher_in_training_mode_is_refused(spoilt: nn.Module) -> None:
    # once with dropout on, once with batch norms that look at the batch
    with pytest.raises(UsageError, match="different answers: dropout or batch statistics"):
        check_answers(spoilt, probe_images(SHAPE, CPU), n_classes=CLASSES, name="t.pt2")


def test_a_sane_teacher_passes() -> None:
    check_answers(network(dropout=True), probe_images(SHAPE, CPU), n_classes=CLASSES, name="t")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def test_a_program_that_holds_a_pickled_object_is_refused_unread(
    program_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.pt2"
    spoil(
        program_file,
        bad,
        lambda name: name.endswith("sample_inputs/model.pt"),
        torch_file_of(Bomb()),
    )
    with pytest.raises(UsageError, match=r"holds 'good/data/sample_inputs/model.pt'"):
        exported_answer(bad, SHAPE, CPU)
    assert "unpickled" not in capsys.readouterr().out


def test_a_program_with_compiled_code_is_refused_unread(program_file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt2"
    spoil(program_file, bad, lambda name: False, b"", extra="good/data/aotinductor/model/code.so")
    with pytest.raises(UsageError, match="compiled code"):
        exported_answer(bad, SHAPE, CPU)


def torch_file_of(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, pickle_module=pickle)
    return stream.getvalue()


def spoil(good: Path, bad: Path, which: Any, content: bytes, extra: str | None = None) -> None:
    """Copy an archive with one member replaced or added."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if which(name) else source.read(name))
        if extra is not None:
            target.writestr(extra, b"\x7fELF")


@pytest.mark.parametrize(("name", "read"), [("t.onnx", onnx_answer), ("t.pt2", exported_answer)])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, read: Any) -> None:
    path = tmp_path / name
    path.write_bytes(b"no network at all")
    with pytest.raises(UsageError, match=name):
        read(path, SHAPE, CPU)
    with pytest.raises(UsageError, match="absent"):
        read(tmp_path / f"absent-{name}", SHAPE, CPU)


def test_label_smoothing_stays_in_the_part_of_the_labels() -> None:
    batch, logits = ToyStream().batch(0), torch.randn(16, CLASSES, generator=torch_generator(0))
    agreeing = Teacher(lambda x: logits, config(weight=0.5), sha256="")  # its divergence is 0
    loss = step(agreeing, label_smoothing=0.2).objective(logits, batch)
    expected = 0.5 * F.cross_entropy(logits, batch.labels, label_smoothing=0.2)
    assert float(loss) == pytest.approx(float(expected))
