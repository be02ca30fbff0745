"""The adapters of public latency data, on small files of the same schemas."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.bench.oracle_data import fbnet, hat, mnasnet, nb201, ofa_mbv3, read_folder
from tests.bench.oracle_data.gating import judge
from tests.bench.oracle_data.layers import NAMES, Part
from tests.bench.oracle_data.rivals import PREDICTORS
from tests.bench.oracle_data.scores import interval_scores, point_scores, splits
from tests.bench.oracle_data.series import Series, series_of
from tests.bench.oracle_data.targets import judged

pytest.importorskip("pyarrow", reason="Parquet and CSV need the extra 'parquet'")

DATA = os.environ.get("HILNAS_ORACLE_DATA", "")
"""Folder of the real public files; tests that need it are skipped without."""
needs_data = pytest.mark.skipif(not DATA, reason="HILNAS_ORACLE_DATA names no folder")

Table = Mapping[str, Sequence[object]]


def write_parquet(path: Path, table: Table) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({name: list(column) for name, column in table.items()}), path)


def write_csv(path: Path, table: Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def cells_table() -> Table:
    """Five cells: two that differ only in a dead edge, one that ignores its input."""
    edges = {
        "op_e01": [3, 3, 3, 0, 1],
        "op_e02": [0, 0, 3, 0, 1],
        "op_e12": [0, 0, 3, 0, 1],
        "op_e03": [1, 1, 3, 0, 1],
        "op_e13": [0, 0, 3, 3, 1],
        "op_e23": [0, 2, 3, 3, 1],
    }
    return {"arch_idx": [10, 11, 12, 13, 14], **edges, "help_cpu_ms": [1.0, 1.1, 9.0, 0.1, 0.5]}


def random_table(
    labels: Mapping[str, Sequence[object]], n: int, seed: int = 0
) -> dict[str, list[object]]:
    rng = np.random.default_rng(seed)
    return {
        label: [choices[int(i)] for i in rng.integers(0, len(choices), n)]
        for label, choices in labels.items()
    }


def mnasnet_table(n: int) -> dict[str, list[object]]:
    kinds: dict[str, Sequence[object]] = {"e": (1, 4, 6), "k": (3, 5), "l": (1, 2, 3), "se": (0, 1)}
    return random_table({label: kinds[label.split("_")[1]] for label in mnasnet.LABELS}, n)


def hat_table(n: int) -> dict[str, list[object]]:
    return random_table(
        {
            label: (1, 3, 6)
            if "layer_num" in label
            else (512, 640)
            if "embed" in label
            else (512.0, 1109.3333333333333, 2048.0)
            if "ffn" in label
            else (2.0, 4.666666666666667, 8.0)
            for label in hat.LABELS
        },
        n,
    )


def cell(**operators: int) -> np.ndarray:
    return np.array([[operators.get(f"e{i}{j}", 0) for i, j in nb201.EDGES]])


# -- layers --------------------------------------------------------------------------------------


def test_the_costs_of_a_depthwise_separable_convolution_are_those_of_the_textbook() -> None:
    costs = Part().conv(8, 8, kernel=3, size=4, groups=8).conv(8, 16, kernel=1, size=4).costs
    assert costs["macs_depthwise"] == 8 * 9 * 16
    assert costs["macs_pointwise"] == 8 * 16 * 16
    assert costs["macs"] == costs["macs_depthwise"] + costs["macs_pointwise"]
    assert costs["weight_bytes"] == 4 * (8 * 9 + 8 + 8 * 16 + 16)
    assert costs["activation_elements"] == 8 * 16 + 16 * 16


# -- NAS-Bench-201 -------------------------------------------------------------------------------


def test_the_densest_cell_has_the_published_macs() -> None:
    built = nb201.space()
    macs = built.table.column("macs", np.full((1, 6), 3))[0]
    assert macs / 1e6 == pytest.approx(220.12, rel=2e-3)


def test_average_pools_of_one_node_are_counted_once_and_those_of_two_nodes_twice() -> None:
    table = nb201.space().table
    pooled = [
        float(table.column("elements_pooled", cells)[0])
        for cells in (cell(), cell(e01=4), cell(e01=4, e02=4, e03=4), cell(e01=4, e12=4))
    ]
    one = pooled[1] - pooled[0]
    assert one > 0
    assert [p - pooled[0] for p in pooled] == pytest.approx([0, one, one, 2 * one])


def test_a_dead_edge_costs_something_but_has_no_live_cost() -> None:
    table = nb201.space().table
    without, dead = cell(e03=1), cell(e03=1, e01=3)
    assert table.column("macs", dead)[0] > table.column("macs", without)[0]
    assert table.column("live_macs", dead)[0] == table.column("live_macs", without)[0]
    assert table.column("live_macs", cell(e03=3))[0] == table.column("macs", cell(e03=3))[0]


def test_cells_that_ignore_their_input_are_left_out_and_equal_live_cells_are_one_group(
    tmp_path: Path,
) -> None:
    write_parquet(tmp_path / "cells.parquet", cells_table())
    (series,), skipped = read_folder(tmp_path)
    assert (series.name, skipped) == ("nb201/help_cpu", [])
    assert series.latency_ms.tolist() == pytest.approx([1.0, 1.1, 9.0, 0.5])
    assert series.groups[0] == series.groups[1]
    assert len(set(series.groups.tolist())) == 3


def test_measurements_by_index_join_the_cells_and_without_them_the_file_is_skipped(
    tmp_path: Path,
) -> None:
    measured = {
        "arch_idx": [12, 10, 12, 13],
        "device": ["pi5", "pi5", "pi5", "pi5"],
        "framework": ["onnx", "onnx", "litert", "onnx"],
        "task": ["cifar100"] * 4,
        "lat_ms_median": [9.0, 1.0, 8.0, 0.1],
        "lat_ms_var": [0.04, 0.0, 0.0, 0.0],
    }
    write_csv(tmp_path / "measured.csv", measured)
    found, skipped = read_folder(tmp_path)
    assert found == []
    assert "arch_idx" in skipped[0]
    write_parquet(tmp_path / "cells.parquet", cells_table())
    by_name = {series.name: series for series in read_folder(tmp_path)[0]}
    onnx = by_name["nb201/pi5-onnx-cifar100"]
    assert onnx.latency_ms.tolist() == [9.0, 1.0]
    assert onnx.genes.tolist() == [[3] * 6, [3, 0, 0, 1, 0, 0]]
    assert onnx.half_ms is not None
    assert onnx.half_ms[0] == pytest.approx(1.96 * 0.2 / 40**0.5)
    assert by_name["nb201/pi5-litert-cifar100"].latency_ms.tolist() == [8.0]


# -- chains of blocks ----------------------------------------------------------------------------


def test_fbnet_skips_where_the_shape_changes_cost_a_convolution() -> None:
    table = fbnet.space().table
    skips = np.full((1, 22), fbnet.BLOCKS.index("skip"))
    factors = table.factor_values(skips)[0]  # (n_factors, n_columns)
    by_name = {f.name: factors[i] for i, f in enumerate(table.factors)}
    assert by_name["op02"].sum() == 0
    assert by_name["op05"].sum() > 0


def test_mnasnet_throughput_becomes_milliseconds_per_image_and_missing_values_are_left_out(
    tmp_path: Path,
) -> None:
    table = mnasnet_table(3) | {
        "throughput_x__mean": [500.0, None, 2000.0],
        "throughput_x__std": [1.0, 1.0, 1.0],
        "latency_y__mean": [1.0, 2.0, 3.0],
    }
    write_parquet(tmp_path / "mnasnet.parquet", table)
    by_name = {series.name: series for series in read_folder(tmp_path)[0]}
    assert set(by_name) == {"mnasnet/throughput_x", "mnasnet/latency_y"}
    assert by_name["mnasnet/throughput_x"].latency_ms.tolist() == [2.0, 0.5]
    assert "1 networks" in by_name["mnasnet/throughput_x"].notes[0]


def test_squeeze_and_excitation_shows_in_its_own_column() -> None:
    table = mnasnet.space().table
    zero = np.zeros((1, len(mnasnet.LABELS)), dtype=np.int64)
    one = zero.copy()
    one[0, mnasnet.LABELS.index("block3_se")] = 1
    assert table.column("elements_gated", zero)[0] == 0
    assert table.column("elements_gated", one)[0] > 0


def test_blocks_beyond_the_depth_are_off_whatever_the_file_says_about_them(tmp_path: Path) -> None:
    row: dict[str, list[object]] = {"r": [128, 128]}
    row |= {f"k{i:02d}": [7, 7] for i in range(20)} | {f"e{i:02d}": [6, 6] for i in range(20)}
    row |= {f"d{stage}": [2, 2] for stage in range(5)}
    row["k02"], row["e03"] = [3, 5], [3, 4]  # of blocks that are not there
    write_csv(tmp_path / "ofa.csv", row | {"help_gpu_1_ms": [5.0, 5.0]})
    ((series,), _) = read_folder(tmp_path)
    assert (series.genes[0] == series.genes[1]).all()
    assert series.groups[0] == series.groups[1]
    assert series.genes[0, 3] == ofa_mbv3.choices(2).index(ofa_mbv3.OFF)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (nb201.space, (*NAMES, *nb201.LIVE_NAMES)),
        (fbnet.space, NAMES),
        (mnasnet.space, NAMES),
        (ofa_mbv3.space, NAMES),
    ],
)
def test_every_space_has_the_columns_of_the_layers(build: object, names: tuple[str, ...]) -> None:
    assert callable(build)
    table = build().table
    assert tuple(column.name for column in table.columns) == names
    assert table.column("macs", np.zeros((1, len(table.decisions)), dtype=np.int64))[0] > 0


# -- gates ---------------------------------------------------------------------------------------


def test_latencies_without_architecture_signal_are_refused_and_real_ones_are_not(
    tmp_path: Path,
) -> None:
    table = hat_table(300)
    noise = np.random.default_rng(1).normal(1.0, 0.05, (2, 300))
    work = np.array(table["decoder_layer_num"], dtype=np.float64) * np.array(
        table["decoder_ffn_embed_dim_avg"], dtype=np.float64
    )
    table |= {
        "task": ["toy"] * 300,
        "session": ["main"] * 300,
        "latency_mean_encoder": (0.3 * noise[0]).tolist(),
        "latency_mean_decoder": (work * noise[1] / 1000).tolist(),
    }
    write_parquet(tmp_path / "hat.parquet", table)
    verdicts = {series.name: judge(series) for series in read_folder(tmp_path)[0]}
    assert verdicts["hat/toy-main/encoder"].refused
    assert "no architecture signal" in verdicts["hat/toy-main/encoder"].failed["signal"]
    assert not verdicts["hat/toy-main/decoder"].refused


def test_sums_of_blocks_are_named_and_do_not_count_as_measured() -> None:
    space = fbnet.space()
    genes = np.random.default_rng(0).integers(0, 9, (400, 22))
    summed = series_of("fbnet/sum", space, genes, space.table.column("macs", genes) / 1e6)
    assert not judge(summed).refused
    assert not judge(summed).measured


# -- scores and rivals ---------------------------------------------------------------------------


def test_isomorphic_networks_stay_on_one_side_of_every_split() -> None:
    groups = np.repeat(np.arange(100), 3)
    for _, split in splits(groups, 3):
        assert not set(groups[split.test]) & set(groups[split.rest])
        assert len(split.test) + len(split.rest) == len(groups)
        assert len(split.test) == pytest.approx(100, abs=3)


def test_scores_of_known_errors() -> None:
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    found = point_scores(np.array([1.0, 2.12, 3.0, 4.8]), truth)
    assert found["within_5"] == 0.5
    assert found["within_10"] == 0.75
    assert found["mape"] == pytest.approx((0.06 + 0.2) / 4)
    assert found["spearman"] == pytest.approx(1.0)


def test_a_constant_width_that_covers_as_much_is_told_beside_ours() -> None:
    truth = np.linspace(1.0, 10.0, 300)
    predicted = truth * np.where(np.arange(300) % 2, 1.05, 0.95)
    found = interval_scores(predicted, predicted * 0.9, predicted * 1.1, truth)
    assert found["coverage"] == 1.0
    assert found["width"] == pytest.approx(0.1)
    assert found["constant_width"] == pytest.approx(0.5 / float(np.median(predicted)))


@pytest.mark.parametrize("method", PREDICTORS)
def test_every_predictor_learns_latencies_that_are_proportional_to_macs(method: str) -> None:
    space = fbnet.space()
    genes = np.random.default_rng(0).integers(0, 9, (160, 22))
    latency = 1.0 + space.table.column("macs", genes) / 1e7
    series = Series(name="toy", space=space, genes=genes, latency_ms=latency, groups=np.arange(160))
    found = PREDICTORS[method](series, np.arange(100), np.arange(100, 160))
    assert np.abs(found.latency_ms / latency[100:] - 1).mean() < 0.1
    assert found.latency_ms.shape == (60,)


def test_targets_take_the_median_over_measured_series_only() -> None:
    scores = {"within_10": 0.97, "coverage": 0.9, "width": 0.05}
    found = {
        ("mnasnet/a", 50): scores,
        ("mnasnet/b", 50): {**scores, "within_10": 0.91},
        ("mnasnet/sum", 50): {**scores, "within_10": 0.0},
    }
    rows = judged(found, {}, ["mnasnet/a", "mnasnet/b"])
    row = next(r for r in rows if (r["data"], r["n"]) == ("MnasNet", 50))
    assert row["ours"] == pytest.approx(0.94)
    assert (row["passes_must"], row["passes_aim"]) == (True, False)
    assert next(r for r in rows if r["n"] == 20)["ours"] is None


# -- the real files ------------------------------------------------------------------------------


@needs_data
def test_the_real_transformer_files_are_all_refused_and_no_other_series_is() -> None:
    verdicts = {series.name: judge(series) for series in read_folder(Path(DATA))[0]}
    assert verdicts
    for name, verdict in verdicts.items():
        assert verdict.refused == ("signal" in verdict.failed) == name.startswith("hat/"), name


@needs_data
def test_our_macs_of_real_networks_agree_with_those_of_the_files() -> None:
    from tests.bench.oracle_data.folder import read_columns

    file = read_columns(Path(DATA) / "ofa_mbv3_latency.parquet")
    series = ofa_mbv3.read(file)[0]
    macs = series.space.table.column("macs", series.genes) / 1e6
    assert np.abs(macs / file["mmacs_w1.2"].astype(np.float64) - 1).max() < 1e-4
