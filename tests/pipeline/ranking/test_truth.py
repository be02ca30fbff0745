"""Tables of accuracies in all their forms, and what is wrong with them."""

import gzip
import json

import pytest

from latency_tables.arch import Arch, Decision
from latency_tables.errors import DataError, InvalidArchError, UsageError
from pipeline.ranking.choosing import choose, look_up
from pipeline.ranking.genomes import parse_arch
from pipeline.ranking.truth import read_archs, read_truth
from pipeline.spaces.nasbench201 import DECISIONS as CELL_DECISIONS

OPS = ("identity", "mb3_k3", "mb6_k5")
DECISIONS = tuple(Decision(label=f"layer{i}", choices=OPS) for i in (1, 2, 3))
SIZES = (Decision(label="depth", choices=(2, 3)), Decision(label="width", choices=(16, 24)))


def arch_of(*genes):
    return Arch.from_genes(DECISIONS, genes)


def read(path, **options):
    settings = {"n_classes": 10, "validate": lambda arch: None, **options}
    return read_truth(path, DECISIONS, **settings)


@pytest.fixture
def table(tmp_path):
    """Writes a file and gives its path."""

    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def pairs(truth):
    return {known.arch: known.truth for known in truth.known}


WANTED = {arch_of(0, 1, 2): 91.5, arch_of(2, 2, 0): 88.0}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "arch,accuracy\n012,91.5\n220,88\n"),
        ("t.csv.gz", "genome,acc,other\n012,91.5,x\n220,88,y\n"),
        ("t.csv", "\ufeffarch,accuracy\r\n012,91.5\r\n220,88\r\n"),
        ("t.csv", "layer1,layer2,layer3,top1\nidentity,mb3_k3,mb6_k5,91.5\n2,2,0,88\n"),
        ("t.csv", "arch.layer1,arch.layer2,arch.layer3,accuracy\n0,1,2,91.5\n2,2,0,88\n"),
        ("t.csv", 'arch,accuracy\n"identity, mb3_k3, mb6_k5",91.5\n"2, 2, 0",88\n'),
        ("t.jsonl", '{"arch": "012", "accuracy": 91.5}\n\n{"arch": [2, 2, 0], "accuracy": 88}\n'),
        ("t.jsonl.gz", '{"arch": "012", "accuracy": 91.5}\n{"arch": "220", "accuracy": "88"}\n'),
        ("t.json", '{"012": 91.5, "220": 88}'),
        ("t.json", '{"012": {"mean_acc": 91.5, "params": 1}, "220": {"mean_acc": 88.0}}'),
        ("t.json", '[{"arch": "012", "accuracy": 91.5}, {"arch": "220", "accuracy": 88}]'),
    ],
)  # fmt: skip
def test_a_table_says_the_same_in_every_form(table, name, text):
    assert pairs(read(table(text, name))) == WANTED


def test_an_architecture_may_be_written_as_the_front_has_it(table):
    arch = {"layer1": "identity", "layer2": "mb3_k3", "layer3": "mb6_k5"}
    path = table(json.dumps({"arch": arch, "accuracy": 91.5}) + "\n", "t.jsonl")
    assert pairs(read(path)) == {arch_of(0, 1, 2): 91.5}


def test_nas_bench_macro_is_recognised_by_its_columns(table):
    path = table("arch,test_acc_1,mean_acc,std,params,flops\n012,91.4,91.5,0.1,1,2\n")
    found = read(path)
    assert (found.form, found.column, found.known[0].truth) == ("NAS-Bench-Macro", "mean_acc", 91.5)


@pytest.mark.parametrize(("n_classes", "column"), [(10, "cifar10"), (120, "imagenet16")])
def test_nas_bench_201_is_recognised_and_gives_the_accuracies_of_the_data(table, n_classes, column):
    cell = "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    path = table(
        f"arch,cifar10_test_200,cifar100_test_200,imagenet16_test_200,flops_m\n{cell},90,60,30,2\n"
    )
    found = read_truth(path, CELL_DECISIONS, n_classes=n_classes, validate=lambda arch: None)
    assert found.form == "NAS-Bench-201"
    assert found.column == f"{column}_test_200"
    assert found.known[0].arch == Arch(
        {"op_e01": "none", "op_e02": "skip", "op_e12": "conv3x3", "op_e03": "none",
         "op_e13": "avgpool3x3", "op_e23": "conv1x1"}
    )  # fmt: skip


def test_the_column_asked_for_wins_over_the_one_that_is_recognised(table):
    path = table("arch,test_acc_1,mean_acc,std,params,flops\n012,91.4,91.5,0.1,1,2\n")
    assert read(path, column="test_acc_1").known[0].truth == 91.4


def test_a_network_named_several_times_has_the_mean_of_its_accuracies(table):
    (known,) = read(table("arch,accuracy\n012,90\n012,91\n012,92\n")).known
    assert (known.truth, known.n_rows) == (91, 3)


def test_rows_without_an_accuracy_are_counted_and_left_out(table):
    found = read(table("arch,accuracy\n012,90\n000,\n111, \n"))
    assert (len(found.known), found.n_blank, found.n_rows) == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arch,accuracy\n012,90\n013,90\n", r"line 3: gene 3 of 'layer3' is outside 0..2"),
        ("arch,accuracy\n12,90\n", r"line 2: '12' has 2 digits.*leading zeros lost"),
        ("arch,accuracy\nidentity mb3_k3 conv,90\n", r"line 2: 'layer3' cannot be 'conv'"),
        ("arch,accuracy\nidentity mb3_k3,90\n", "2 values given for 3 decisions"),
        ("arch,accuracy\nidentity 1 2,90\n", "mixed"),
        ('arch,accuracy\n"{""layer1"": ""identity""}",90\n', "line 2: .*missing: layer2, layer3"),
        ("arch,accuracy\n012,good\n", "line 2: accuracy is 'good', not a number"),
        ("arch,accuracy\n012,nan\n", "line 2: accuracy is 'nan'"),
        ("arch,accuracy\n012\n", "line 2 has other columns"),
        ("arch,accuracy\n", "holds no rows"),
        ("arch,accuracy\n012,\n", "is empty in all 1 rows"),
    ],
)
def test_a_line_that_does_not_fit_is_named_with_its_value(table, text, words):
    with pytest.raises(DataError, match=words):
        read(table(text))


def test_what_the_space_itself_refuses_is_named_with_its_line(table):
    def validate(arch):
        raise InvalidArchError("too wide")

    with pytest.raises(DataError, match="line 2: too wide"):
        read(table("arch,accuracy\n012,90\n"), validate=validate)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("arch,f1\n012,90\n", {}, "no column that is known to hold accuracies.*arch, f1"),
        ("arch,acc,top1\n012,90,91\n", {}, r"several columns of accuracies \(acc, top1\)"),
        ("arch,acc\n012,90\n", {"column": "accu"}, "no column 'accu'; it has arch, acc"),
        ("net,acc\n012,90\n", {}, "no column of architectures.*it has net, acc"),
        ("net,acc\n012,90\n", {"genomes": "arch"}, r"\('arch'\); it has net, acc"),
    ],
)
def test_a_missing_column_is_answered_with_those_there_are(table, text, options, words):
    with pytest.raises(UsageError, match=words):
        read(table(text), **options)


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("t.csv.gz", b"no gzip", DataError, "cannot be read"),
        ("t.json", b"[1, 2", DataError, "cannot be read"),
        ("t.json", b"3", DataError, "neither a list nor an object"),
        ("t.jsonl", b"[1]\n", DataError, "line 1 is no JSON object"),
        ("t.csv", b"arch,accuracy\n\xff\xfe,1\n", DataError, "cannot be read"),
        ("t.pkl", b"", UsageError, "tables end in .csv"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, error, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        read(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read(tmp_path / "t.csv")


def test_a_genome_given_as_a_number_is_refused_since_zeros_may_be_lost(table):
    with pytest.raises(DataError, match="line 1: the architecture 120 is no text"):
        read(table('{"arch": 120, "accuracy": 90}\n', "t.jsonl"))


def test_choices_that_are_numbers_win_over_their_positions():
    assert parse_arch("2, 24", SIZES) == Arch({"depth": 2, "width": 24})
    assert parse_arch("1, 0", SIZES) == Arch({"depth": 3, "width": 16})


# -- retrained runs ------------------------------------------------------------------------------


def retrained(folder, genes, value):
    folder.mkdir(parents=True)
    told = {"arch": dict(arch_of(*genes)), "retrained": {"test": {"value": value, "n_images": 9}}}
    (folder / "retrain.json").write_text(json.dumps(told))


def test_a_run_folder_gives_its_retrained_networks(tmp_path):
    retrained(tmp_path / "retrained", (0, 1, 2), 0.9)
    retrained(tmp_path / "retrained-2", (2, 2, 0), 0.8)
    assert pairs(read(tmp_path)) == {arch_of(0, 1, 2): 0.9, arch_of(2, 2, 0): 0.8}


def test_a_folder_of_runs_gives_those_of_all_and_the_mean_of_one_retrained_twice(tmp_path):
    retrained(tmp_path / "a" / "retrained", (0, 1, 2), 0.8)
    retrained(tmp_path / "b" / "retrained", (0, 1, 2), 0.9)
    (known,) = read(tmp_path).known
    assert known.truth == pytest.approx(0.85)
    assert known.n_rows == 2


def test_a_folder_without_retrained_networks_says_how_to_make_some(tmp_path):
    with pytest.raises(UsageError) as caught:
        read(tmp_path)
    assert "hilnas retrain" in caught.value.hint


def test_a_damaged_retrain_file_is_named(tmp_path):
    (tmp_path / "retrained").mkdir()
    (tmp_path / "retrained" / "retrain.json").write_text("{}")
    with pytest.raises(DataError, match=r"retrained/retrain\.json cannot be read"):
        read(tmp_path)


# -- which networks ------------------------------------------------------------------------------


def moved(arch):
    """Layers 2 and 3 may swap."""
    return str(arch["layer1"]) + "".join(sorted((str(arch["layer2"]), str(arch["layer3"]))))


@pytest.fixture
def all_27(table):
    rows = [f"{a}{b}{c},{9 * a + b + c}" for a in range(3) for b in range(3) for c in range(3)]
    return read(table("arch,accuracy\n" + "\n".join(rows) + "\n"))


def test_one_genome_of_isomorphic_ones_is_drawn(all_27):
    found = choose(all_27, moved, n=None, seed=0)
    assert len({moved(k.arch) for k in found.known}) == len(found.known) == 18
    assert (found.n_candidates, found.n_isomorphic) == (18, 9)
    assert len(choose(all_27, moved, n=None, seed=0, isomorphic=True).known) == 27


def test_the_sample_follows_from_the_seed(all_27):
    first, again, other = (
        [k.arch for k in choose(all_27, moved, n=8, seed=seed).known] for seed in (3, 3, 4)
    )
    assert first == again != other
    assert len(first) == 8


def test_listed_architectures_take_the_truth_of_isomorphic_ones(all_27, table):
    path = table("arch\n012\n021\n222\n")
    listed = read_archs(path, DECISIONS, validate=lambda arch: None)
    known = [k for k in all_27.known if k.arch != arch_of(0, 2, 1)]
    partial = type(all_27)(**{**{f: getattr(all_27, f) for f in all_27.__slots__}, "known": known})
    found = look_up(partial, moved, listed)
    assert [k.truth for k in found.known] == [3, 3, 22]
    assert found.n_unknown == 0


def test_listed_architectures_without_a_truth_are_counted(all_27):
    known = all_27.known[:9]  # those that begin with identity
    partial = type(all_27)(**{**{f: getattr(all_27, f) for f in all_27.__slots__}, "known": known})
    archs = [k.arch for k in all_27.known[5:14]]
    assert look_up(partial, moved, archs).n_unknown == 5
    with pytest.raises(DataError, match="knows 2 of the 4 architectures listed"):
        look_up(partial, moved, [k.arch for k in all_27.known[7:11]])


def test_too_few_networks_are_refused(table):
    truth = read(table("arch,accuracy\n012,90\n021,91\n000,3\n"))
    with pytest.raises(DataError, match="holds 2 networks of this space; an order needs"):
        choose(truth, moved, n=500, seed=0)
