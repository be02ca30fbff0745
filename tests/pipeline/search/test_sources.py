import numpy as np
import pytest

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import MeasurementError
from latency_tables.records import Measurement, Statistics, Verdict
from latency_tables.sampler import make_sampler
from pipeline.search.config import SearchConfig
from pipeline.search.limits import Limit
from pipeline.search.run_search import make_searcher
from pipeline.search.sources import answer_of, exact_proposer, live_source, oracle_source


def measurement(**changes):
    ms = 1_000_000
    statistics = Statistics(
        n_samples=90, n_rounds=3, median_ns=5 * ms, min_ns=4 * ms, p10_ns=4 * ms, mean_ns=5 * ms,
        std_ns=1000, mad_ns=1000, p90_ns=6 * ms, p95_ns=None, p99_ns=None, ci_low_ns=4_900_000,
        ci_high_ns=5_100_000, round_medians_ns=(5 * ms,) * 3, first_ns=9 * ms, load_ns=10 * ms,
        warmup_runs=5, converged=True,
    )  # fmt: skip
    fields = {
        "net_id": "n", "arch": Arch({"block": "k3"}), "space_id": "s", "onnx_sha256": "0",
        "artefact_sha256": "0", "runtime": {"name": "onnxruntime", "version": "1"}, "threads": 1,
        "cores": (), "device_name": "board", "device_fp": "f", "statistics": statistics,
    }  # fmt: skip
    return Measurement(**{**fields, **changes})


def test_a_good_record_is_a_measured_latency():
    answer = answer_of(measurement())
    assert (answer.latency_ms, answer.source, answer.n) == (5.0, "measured", 90)
    assert answer.low_ms < 5.0 < answer.high_ms


def test_a_failing_verdict_blames_the_board():
    verdict = Verdict(code="THROTTLED", severity="fail", evidence="1.4 of 1.8 GHz")
    answer = answer_of(measurement(verdicts=(verdict,)))
    assert isinstance(answer, MeasurementError)
    assert (answer.code, answer.blames) == ("THROTTLED", "board")
    assert "1.4 of 1.8 GHz" in str(answer)


@pytest.mark.parametrize("blames", ["board", "candidate", "host"])
def test_a_failed_record_keeps_who_is_to_blame(blames):
    error = {"code": "RUN_CRASHED", "message": "signal 11", "blames": blames}
    answer = answer_of(measurement(statistics=None, error=error))
    assert (answer.code, answer.blames) == ("RUN_CRASHED", blames)


def test_live_latencies_come_in_the_order_asked():
    class Device:
        def measure(self, archs):
            return [measurement(net_id=str(arch["block"])) for arch in archs]

    first, second = live_source(Device())([Arch({"block": "a"}), Arch({"block": "b"})])
    assert first.key != second.key
    assert first.key == measurement(net_id="a").key


def test_an_oracle_is_asked_by_ticket(world, make_estimate):
    class Oracle:
        def submit(self, archs):
            return list(archs)

        def collect(self, ticket):
            return [make_estimate(t) for t in world.latencies_ms(ticket)]

    arch = world.table.minimum("macs")[1]
    assert [e.latency_ms for e in oracle_source(Oracle())([arch, arch])] == [1.1, 1.1]


def test_the_exact_sampler_proposes_what_random_draws_never_find(make_world):
    world = make_world(n=20)
    evaluator = world.evaluator(Limit(metric="macs", bound=10e6))
    config = SearchConfig(population=30, parents=5, crossover=10, mutation=10)
    proposed = []
    exact = exact_proposer(world.table, "macs", 10e6)

    def propose(rng, n):
        proposed.extend(found := exact(rng, n))
        return found

    asked = make_searcher(config, evaluator, seed=0, propose=propose).ask()
    assert len(asked) == 30
    assert set(asked) <= set(proposed)
    assert all(world.table.cost(arch, "macs") <= 10e6 for arch in asked)


@pytest.mark.parametrize(("bound", "rare"), [(40e6, True), (1e9, False)])
def test_the_sampler_is_asked_at_once_only_where_few_keep_the_limit(make_world, bound, rare):
    world = make_world(n=20)
    config = SearchConfig(population=30, parents=5, crossover=10, mutation=10)
    evaluator = world.evaluator(Limit(metric="macs", bound=bound))
    exact, drawn = exact_proposer(world.table, "macs", bound), []
    assert (exact.share < 0.1) == rare
    checked = evaluator.violations
    evaluator.violations = lambda archs: drawn.extend(archs) or checked(archs)
    asked = make_searcher(config, evaluator, seed=0, propose=exact).ask()
    at_random = make_searcher(config, evaluator, seed=0).ask()
    assert len(asked) == 30
    assert (asked == at_random) == (not rare)
    if rare:
        assert drawn[:30] == asked  # nothing was drawn in vain


def test_the_first_generation_is_uniform_whichever_way_it_is_drawn(make_world):
    """A bound that 5 % keep: rejected uniform draws and exact ones have the same mean cost."""
    world = make_world(n=20)
    bound = float(make_sampler(world.table, "macs").quantiles(0.05))
    rng = np.random.default_rng(0)
    exact = world.table.column(
        "macs", make_sampler(world.table, "macs").sample(rng, 0, bound, 4_000)
    )
    sizes = [len(d.choices) for d in world.table.decisions]
    uniform = world.table.column("macs", rng.integers(0, sizes, (80_000, len(sizes))))
    kept = uniform[uniform <= bound]
    error = np.hypot(exact.std() / np.sqrt(len(exact)), kept.std() / np.sqrt(len(kept)))
    assert abs(exact.mean() - kept.mean()) < 4 * error


def test_a_limit_without_an_exact_sampler_is_proposed_by_rejection():
    labels = [f"b{i}" for i in range(20)]
    table = CostTable(
        [Decision(label=x, choices=(0, 1)) for x in labels],
        [Column(name="peak", unit="byte", reduce="max")],
        [Factor(name=x, labels=(x,), values=np.array([[1.0], [2.0]])) for x in labels[:3]],
    )
    proposer = exact_proposer(table, "peak", 1.0)
    assert not proposer.sampler.exact
    assert proposer.share == pytest.approx(0.125, abs=0.01)
    archs = proposer(np.random.default_rng(0), 20)
    assert [table.cost(arch, "peak") for arch in archs] == [1.0] * 20
