"""What networks achieve when they are trained alone: read from a table, or from retrained runs.

A table is CSV, JSON lines (both also with ``.gz``), or JSON: a list of objects, or an object whose
keys are genomes, as NAS-Bench-Macro is published. Architectures stand in one column or in a column
per decision. The files of NAS-Bench-Macro and NAS-Bench-201 are recognised by their columns. A
folder stands for every network that ``hilnas retrain`` has left in it, with its accuracy on the
test images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latency_tables.arch import Arch, Decision
from latency_tables.errors import DataError, InvalidArchError, UsageError
from latency_tables.files import sha256_bytes, sha256_file
from pipeline.ranking.genomes import arch_of_columns, parse_arch
from pipeline.ranking.tables import Row, read_rows

GENOME_COLUMNS = ("arch", "genome", "architecture", "arch_str")
ACCURACY_COLUMNS = ("accuracy", "acc", "mean_acc", "test_accuracy", "test_acc", "top1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A benchmark's table: its columns, and which accuracy belongs to how many classes."""

    name: str
    columns: frozenset[str]
    accuracy: Mapping[int, str]


FORMS = (
    Form(
        name="NAS-Bench-Macro",
        columns=frozenset({"mean_acc", "std", "params", "flops"}),
        accuracy={10: "mean_acc"},
    ),
    Form(
        name="NAS-Bench-201",
        columns=frozenset({"arch", "cifar10_test_200", "cifar100_test_200"}),
        accuracy={10: "cifar10_test_200", 100: "cifar100_test_200", 120: "imagenet16_test_200"},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One network and what it achieves; an architecture named several times has the mean."""

    arch: Arch
    truth: float
    n_rows: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """All that one source knows; ``n_blank`` rows had no accuracy."""

    source: str
    form: str
    column: str
    sha256: str
    known: tuple[Known, ...]
    n_rows: int
    n_blank: int


def read_truth(
    path: Path,
    decisions: Sequence[Decision],
    *,
    n_classes: int,
    validate: Callable[[Arch], None],
    column: str | None = None,
    genomes: str | None = None,
) -> Truth:
    """Read a table or a folder of retrained networks.

    Args:
        path: see the module.
        decisions: of the space, in whose order genomes are written.
        n_classes: of the data set; picks the column of a recognised table.
        validate: raises InvalidArchError for an architecture that is not of the space.
        column: of the accuracies, where it cannot be told.
        genomes: column of the architectures, where it cannot be told.

    Raises:
        UsageError: no such file, or no such column; names the columns that there are.
        DataError: a line cannot be read, or its architecture does not fit; names line and value.
    """
    if path.is_dir():
        return _read_retrained(path, validate)
    rows = read_rows(path)
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    form = next((f for f in FORMS if f.columns <= set(columns)), None)
    read = _arch_reader(path, columns, decisions, genomes)
    name = _accuracy_column(path, columns, column, form, n_classes)
    found: dict[Arch, list[float]] = {}
    n_blank = 0
    for place, row in rows:
        arch = _checked(path, place, row, read, validate)
        value = _number(path, place, name, row.get(name))
        if value is None:
            n_blank += 1
        else:
            found.setdefault(arch, []).append(value)
    if not found:
        raise DataError(f"column {name!r} of {path} is empty in all {len(rows)} rows")
    return Truth(
        source=path.name,
        form=form.name if form else "table",
        column=name,
        sha256=sha256_file(path),
        known=_means(found),
        n_rows=len(rows),
        n_blank=n_blank,
    )


def read_archs(
    path: Path,
    decisions: Sequence[Decision],
    *,
    validate: Callable[[Arch], None],
    genomes: str | None = None,
) -> list[Arch]:
    """Read the architectures of a table, whatever else it holds.

    Raises:
        UsageError: no such file, or no column of architectures.
        DataError: a line cannot be read, or its architecture does not fit.
    """
    rows = read_rows(path)
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    read = _arch_reader(path, columns, decisions, genomes)
    return [_checked(path, place, row, read, validate) for place, row in rows]


def _checked(
    path: Path,
    place: str,
    row: Row,
    read: Callable[[Row], Arch],
    validate: Callable[[Arch], None],
) -> Arch:
    try:
        arch = read(row)
        validate(arch)
    except InvalidArchError as error:
        raise DataError(f"{path}, {place}: {error.message}", hint=error.hint) from None
    return arch


def _means(found: Mapping[Arch, Sequence[float]]) -> tuple[Known, ...]:
    return tuple(
        Known(arch=arch, truth=math.fsum(values) / len(values), n_rows=len(values))
        for arch, values in found.items()
    )


# -- columns -------------------------------------------------------------------------------------


def _arch_reader(
    path: Path, columns: Sequence[str], decisions: Sequence[Decision], given: str | None
) -> Callable[[Row], Arch]:
    """How the architecture of a row is read."""
    labels = [decision.label for decision in decisions]
    for prefix in ("", "arch."):  # the second is how latency tables are written as CSV
        names = [f"{prefix}{label}" for label in labels]
        if given is None and set(names) <= set(columns):
            return lambda row: arch_of_columns([row.get(name, "") for name in names], decisions)
    name = given or next((c for c in GENOME_COLUMNS if c in columns), None)
    if name is None or name not in columns:
        wanted = repr(given) if given else f"{', '.join(GENOME_COLUMNS)} or one per decision"
        raise UsageError(
            f"{path} has no column of architectures ({wanted}); it has {', '.join(columns)}",
            hint=f"--genomes {columns[0]}",
        )
    return lambda row: _arch_of(row.get(name), decisions)


def _arch_of(value: object, decisions: Sequence[Decision]) -> Arch:
    if isinstance(value, dict):
        return parse_arch(json.dumps(value), decisions)
    if isinstance(value, list):
        return arch_of_columns(value, decisions)
    if not isinstance(value, str):  # as a number it may have lost its leading zeros
        raise InvalidArchError(f"the architecture {value!r} is no text, list or object")
    return parse_arch(value, decisions)


def _accuracy_column(
    path: Path, columns: Sequence[str], given: str | None, form: Form | None, n_classes: int
) -> str:
    if given is not None:
        if given not in columns:
            raise UsageError(f"{path} has no column {given!r}; it has {', '.join(columns)}")
        return given
    if form is not None and form.accuracy.get(n_classes) in columns:
        return form.accuracy[n_classes]
    likely = [c for c in ACCURACY_COLUMNS if c in columns]
    if len(likely) == 1:
        return likely[0]
    which = (
        f"several columns of accuracies ({', '.join(likely)})"
        if likely
        else ("no column that is known to hold accuracies")
    )
    raise UsageError(
        f"{path} has {which}; its columns are {', '.join(columns)}",
        hint=f"--column {(likely or columns)[-1]}",
    )


def _number(path: Path, place: str, column: str, value: object) -> float | None:
    """The accuracy of a row; None where the cell is blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{path}, {place}: {column} is {value!r}, not a number")
    return number


# -- retrained runs ------------------------------------------------------------------------------


def _read_retrained(folder: Path, validate: Callable[[Arch], None]) -> Truth:
    """Every ``retrained*/retrain.json`` of a run folder, or of the run folders in a folder."""
    paths = sorted(folder.glob("retrained*/retrain.json"))
    paths = paths or sorted(folder.glob("*/retrained*/retrain.json"))
    if not paths:
        raise UsageError(
            f"{folder} holds no retrained networks",
            hint=f"hilnas retrain {folder} --arch 2 --name retrained-2",
        )
    found: dict[Arch, list[float]] = {}
    for path in paths:
        try:
            told = json.loads(path.read_text())
            arch = Arch.from_dict(told["arch"])
            value = float(told["retrained"]["test"]["value"])
            validate(arch)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read: {error!r}") from None
        except InvalidArchError as error:
            raise DataError(f"{path}: {error.message}", hint=error.hint) from None
        found.setdefault(arch, []).append(value)
    digests = "".join(sha256_file(path) for path in paths)
    return Truth(
        source=folder.name,
        form="retrained networks",
        column="retrained.test",
        sha256=sha256_bytes(digests.encode()),
        known=_means(found),
        n_rows=len(paths),
        n_blank=0,
    )
