import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

from pipeline.search.config import Measured, SearchConfig
from pipeline.search.evaluator import Evaluator
from pipeline.search.front import choose_winner
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit
from pipeline.search.measuring import LiveMeasurer
from pipeline.search.run_search import make_searcher, search, search_identity
from pipeline.search.sources import oracle_source

PAGE = Path(__file__).resolve().parents[3] / "docs" / "search.md"


def test_the_table_of_keys_is_that_of_the_settings():
    section = PAGE.read_text().split("| key of `[search]`")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, flags=re.MULTILINE)
    known = {name: field.default for name, field in SearchConfig.model_fields.items()}
    assert {name: json.loads(default) for name, default in rows} == known


def test_the_page_names_every_way_of_measuring():
    page = PAGE.with_name("latency_in_the_loop.md").read_text()
    section = page.split("| `measure` | measured during")[1].split("\n\n")[0]
    assert re.findall(r'^\| `"(\w+)"`', section, flags=re.MULTILINE) == list(get_args(Measured))


def test_the_example_of_the_documentation_runs(world, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    oracle = SimpleNamespace(submit=lambda archs: archs, collect=world.latencies)
    names = {
        "space": SimpleNamespace(
            decisions=world.decisions,
            canonical=world.canonical,
            cost_table=lambda: world.table,
            space_id="world",
        ),
        "limits": (Limit(metric="latency_ms", bound=3.0, device="rpi4"),),
        "scorer": world,
        "oracle": oracle,
        "weights_hash": "w",
        "config": SearchConfig(population=10, parents=4, crossover=4, mutation=4, generations=2),
        "folder": tmp_path,
        "live_source": lambda oracle: world.latencies,  # a record per network needs a device
        **{f.__name__: f for f in (Evaluator, Journal, LiveMeasurer, choose_winner, make_searcher)},
        **{f.__name__: f for f in (oracle_source, search, search_identity)},
    }
    exec(code, names)
    front = json.loads((tmp_path / "front.json").read_text())
    assert front["points"][front["winner"]]["measured"]["rpi4"]["latency_ms"] <= 3.0
