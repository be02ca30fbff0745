"""Supernet Shifting on a dictionary: codes stay, every copy moves by its share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.kshot.dictionary import KShotSupernet
from pipeline.kshot.fresh import kshot_supernet
from pipeline.kshot.simplex_net import SimplexNet
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.spaces import load_space
from pipeline.spaces.base import Space
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.shifting import Shifter
from pipeline.supernet.weights import load_supernet
from tests.pipeline.training.toys import CLASSES, SHAPE, ToyStream, toy_space, toy_supernet

CONFIG = ShiftingConfig(batches=2, images_per_batch=16, lr=0.05, momentum=0.0, weight_decay=0.0)


def dictionary(space: Space) -> KShotSupernet:
    """Three copies under codes that differ from one architecture to the next."""
    supernet = kshot_supernet(space, toy_supernet(space), 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = SimplexNet(space.decisions, 3, random=True)
    assert supernet.simplex_net is not None
    supernet.simplex_net.load_state_dict(drawn.state_dict())
    return supernet


def weights_of(supernet: KShotSupernet) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in supernet.named_parameters()}


def test_a_candidate_moves_every_copy_of_its_weights_by_the_copys_share_of_the_code() -> None:
    space = toy_space()
    supernet = dictionary(space)
    arch = space.sample(np.random.default_rng(0))
    code, before = supernet.code(arch), weights_of(supernet)
    buffers = {n: b.clone() for n, b in supernet.named_buffers()}
    shifter = Shifter(space, supernet, ToyStream(), CONFIG, seed=0)
    shifter.learn(arch, 0)
    shifter.step()
    used = {id(p) for p in supernet.subnet_parameters(arch)}
    changes = {n: p.detach() - before[n] for n, p in supernet.named_parameters()}
    moved = {n for n, change in changes.items() if change.any()}
    assert moved <= {n for n, p in supernet.named_parameters() if id(p) in used}
    matrices = [n for n, p in supernet.first.named_parameters() if p.ndim > 1 and id(p) in used]
    assert matrices
    for name in matrices:
        for k in (1, 2):
            share = changes[f"copies.0.{name}"] * code[k] / code[0]
            torch.testing.assert_close(changes[f"copies.{k}.{name}"], share, atol=1e-6, rtol=1e-3)
    assert supernet.code(arch).equal(code)
    assert all(b.equal(buffers[n]) for n, b in supernet.named_buffers())


def test_scores_follow_the_shifted_dictionary_and_its_file_holds_it(tmp_path: Path) -> None:
    space = load_space("mobilenetv2_widths", preset="tiny", input_shape=SHAPE, n_classes=CLASSES)
    supernet = dictionary(space)
    batches = [ToyStream(batch_size=64).batch(7)], [ToyStream(batch_size=64).batch(8)]
    scorer = Scorer(space, supernet, *batches)
    rng = np.random.default_rng(1)
    archs = [space.sample(rng) for _ in range(2)]
    before = [scorer.score(arch).loss for arch in archs]
    shifter = Shifter(space, supernet, ToyStream(), CONFIG, seed=0)
    for place, arch in enumerate(archs):
        shifter.learn(arch, 2 * place)
    shifter.step()
    after = [scorer.score(arch).loss for arch in archs]
    assert all(a != b for a, b in zip(after, before, strict=True))
    shifter.write_supernet(tmp_path / "shifted.safetensors", {})
    read = load_supernet(space, tmp_path / "shifted.safetensors")
    assert isinstance(read, KShotSupernet)
    assert [Scorer(space, read, *batches).score(arch).loss for arch in archs] == after


def test_a_shifted_dictionary_goes_on_from_its_state_with_the_same_bits(tmp_path: Path) -> None:
    space = toy_space()
    rng = np.random.default_rng(1)
    archs = [space.sample(rng) for _ in range(2)]
    config = CONFIG.model_copy(update={"momentum": 0.9})
    whole = Shifter(space, dictionary(space), ToyStream(), config, seed=0)
    for place, arch in enumerate(archs):
        whole.learn(arch, 2 * place)
        whole.step()
        if place == 0:
            whole.save(tmp_path / "state.safetensors", {})
    resumed = Shifter(space, dictionary(space), ToyStream(), config, seed=0)
    resumed.load(tmp_path / "state.safetensors")
    resumed.learn(archs[1], 2)
    resumed.step()
    expected = whole.supernet.state_dict()
    found = resumed.supernet.state_dict()
    assert all(found[n].equal(expected[n]) for n in expected)
