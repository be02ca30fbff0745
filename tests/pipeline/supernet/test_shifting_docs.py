import json
import re
from pathlib import Path

import numpy as np
import torch

from pipeline.search.config import SearchConfig
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import OneByOne
from pipeline.search.journal import Journal
from pipeline.search.run_search import make_searcher, search
from pipeline.search.shifting import Shifting
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.shifting import Shifter
from pipeline.supernet.weights import load_supernet
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet

PAGE = Path(__file__).resolve().parents[3] / "docs" / "shifting.md"


def test_the_table_of_keys_is_that_of_the_settings() -> None:
    section = PAGE.read_text().split("| key of `[search.shifting]`")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, flags=re.MULTILINE)
    known = {name: field.default for name, field in ShiftingConfig.model_fields.items()}
    assert {name: json.loads(default) for name, default in rows} == known


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    space = toy_space()
    supernet = toy_supernet(space)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    scorer = Scorer(space, supernet, [ToyStream(seed=1).batch(0)], [ToyStream(seed=2).batch(0)])
    config = ShiftingConfig(batches=1, images_per_batch=16, keep=4)
    settings = SearchConfig(
        population=4, parents=2, crossover=1, mutation=1, generations=1, shifting=config
    )
    evaluator = Evaluator(
        space=space, cost_table=space.cost_table(), score=scorer.score, supernet="w"
    )
    names = {
        "space": space,
        "supernet": supernet,
        "stream": ToyStream(),
        "config": config,
        "evaluator": evaluator,
        "searcher": make_searcher(settings, evaluator, seed=0, repeat=True),
        "identity": {"seed": 0},
        "folder": tmp_path,
        **{f.__name__: f for f in (Journal, OneByOne, Shifter, Shifting, search)},
    }
    exec(code, names)
    result = names["result"]
    assert {e.score.shift for e in result.archive} == {1}  # type: ignore[attr-defined]
    shifted = load_supernet(space, tmp_path / "shifted.safetensors").state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in shifted.items())
    assert np.isfinite([e.accuracy for e in result.archive]).all()  # type: ignore[attr-defined]
