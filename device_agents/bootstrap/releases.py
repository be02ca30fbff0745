"""Which wheels exist: package × version → Python ABIs, C library and processors they run on.

Resolved with pip against the package index in November 2026, one question per ABI, processor and
age of the C library (2.26, 2.27, 2.28, 2.31, 2.40). Rows that a board can never need are left out.
What a file promises is not always what it needs: the GLIBCXX column was read from the libraries
inside onnxruntime 1.16.3, 1.19.2 and 1.32.0 and numpy 1.24.4, 1.26.4 and 2.4.6; the rows between
take those of their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, ...]
Libc = tuple[str, Version]

BOTH = ("aarch64", "x86_64")

OLD_GLIBC: Libc = ("glibc", (2, 17))
GLIBC_2_24: Libc = ("glibc", (2, 24))
GLIBC_2_27: Libc = ("glibc", (2, 27))
GLIBC_2_28: Libc = ("glibc", (2, 28))
GLIBC_2_31: Libc = ("glibc", (2, 31))
GLIBC_2_35: Libc = ("glibc", (2, 35))
MUSL_1_2: Libc = ("musl", (1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One version of a package and where its wheels run; the libc is the oldest that will do.

    ``numpy_below`` is the first numpy that it was not built for. ``glibcxx`` is the newest symbol
    version that it asks of the board's libstdc++, () where it asks for none.
    """

    version: Version
    abis: tuple[str, ...]
    libc: Libc
    machines: tuple[str, ...] = BOTH
    numpy_below: Version = ()
    glibcxx: Version = ()

    @property
    def text(self) -> str:
        """The version as pip writes it."""
        return ".".join(map(str, self.version))


def _ort(version: Version, abis: str, libc: Libc, numpy_below: Version = ()) -> Release:
    glibcxx = (3, 4, 19) if libc == OLD_GLIBC else (3, 4, 22)
    return Release(
        version=version,
        abis=tuple(abis.split()),
        libc=libc,
        numpy_below=numpy_below,
        glibcxx=glibcxx,
    )


def _numpy(version: Version, abis: str, libc: Libc, glibcxx: Version = ()) -> Release:
    return Release(version=version, abis=tuple(abis.split()), libc=libc, glibcxx=glibcxx)


def _openvino(
    version: Version, abis: str, libc: Libc, machine: str, numpy_below: Version
) -> Release:
    return Release(
        version=version,
        abis=tuple(abis.split()),
        libc=libc,
        machines=(machine,),
        numpy_below=numpy_below,
    )


def _ncnn(version: Version, abis: str, libc: Libc) -> Release:
    return Release(version=version, abis=tuple(abis.split()), libc=libc)


_NEW = "cp311 cp312 cp313 cp314"
_EVERY = ("cp37m", "cp38", "cp39", "cp310", "cp311", "cp312", "cp313", "cp314")

RELEASES: dict[str, tuple[Release, ...]] = {
    # newest first; both processors have the same rows
    "onnxruntime": (
        _ort((1, 32, 0), f"{_NEW} cp313t cp314t", GLIBC_2_28),
        _ort((1, 28, 0), _NEW, GLIBC_2_27),
        _ort((1, 23, 2), "cp310", GLIBC_2_27),
        _ort((1, 19, 2), "cp38 cp39", GLIBC_2_27),
        _ort((1, 16, 3), "cp38 cp39 cp310 cp311", OLD_GLIBC, (2,)),  # before numpy 2
        _ort((1, 14, 1), "cp37m", GLIBC_2_27, (2,)),
        _ort((1, 14, 1), "cp37m", OLD_GLIBC, (2,)),
    ),
    "numpy": (
        _numpy((2, 5, 5), "cp312 cp313 cp314 cp314t", GLIBC_2_27, (3, 4, 21)),
        _numpy((2, 4, 6), "cp311 cp313t", GLIBC_2_27, (3, 4, 21)),
        _numpy((2, 4, 6), "cp311 cp312 cp313", MUSL_1_2),
        _numpy((2, 2, 6), "cp310 cp311 cp312 cp313", OLD_GLIBC),
        _numpy((2, 2, 6), "cp310", MUSL_1_2),
        _numpy((2, 0, 2), "cp39", OLD_GLIBC),
        _numpy((2, 0, 2), "cp39", MUSL_1_2),
        _numpy((1, 26, 4), "cp39 cp310 cp311 cp312", OLD_GLIBC),
        _numpy((1, 24, 4), "cp38", OLD_GLIBC),
        _numpy((1, 21, 6), "cp37m", OLD_GLIBC),
    ),
    # the ceilings of numpy are those of the packages' own metadata
    "openvino": (
        _openvino((2026, 4, 1), "cp310 cp311 cp312 cp313", GLIBC_2_28, "x86_64", (2, 6)),
        _openvino((2026, 4, 1), "cp310 cp311 cp312 cp313", GLIBC_2_35, "aarch64", (2, 6)),
        _openvino((2025, 4, 1), "cp310 cp311 cp312 cp313", OLD_GLIBC, "x86_64", (2, 4)),
        _openvino((2025, 3, 0), "cp39", OLD_GLIBC, "x86_64", (2, 3)),
        _openvino((2025, 3, 0), "cp39", GLIBC_2_35, "aarch64", (2, 3)),
        _openvino((2025, 2, 0), "cp39 cp310 cp311 cp312 cp313", GLIBC_2_31, "aarch64", (2, 3)),
        _openvino((2024, 4, 0), "cp38", OLD_GLIBC, "x86_64", (2, 1)),
        _openvino((2024, 4, 0), "cp38", GLIBC_2_31, "aarch64", (2, 1)),
        _openvino((2023, 2, 0), "cp38 cp39 cp310 cp311", GLIBC_2_24, "aarch64", (2,)),
    ),
    # wheels for armv7l (2.31) and riscv64 (2.39) exist too, but no numpy beside them
    "ncnn": (
        _ncnn((1, 0, 20261020), "cp39 cp310 cp311 cp312 cp313", GLIBC_2_24),
        _ncnn((1, 0, 20261020), "cp39 cp310 cp311 cp312 cp313", MUSL_1_2),
        _ncnn((1, 0, 20260526), "cp38", GLIBC_2_24),
    ),
    # its own metadata sets no ceiling for numpy; the converter of the same release sets 1.26.4
    "rknn-toolkit-lite2": (
        Release(
            version=(2, 5, 0),
            abis=("cp37m", "cp38", "cp39", "cp310", "cp311", "cp312"),
            libc=OLD_GLIBC,
            machines=("aarch64",),
            numpy_below=(2,),
        ),
    ),
    "psutil": (Release(version=(7, 2, 2), abis=_EVERY, libc=OLD_GLIBC),),
    "ruamel.yaml": (
        Release(version=(0, 19, 1), abis=_EVERY[2:], libc=OLD_GLIBC),
        Release(version=(0, 18, 16), abis=("cp38",), libc=OLD_GLIBC),
    ),
}

# What a session imports, no more: the other packages that the metadata names (protobuf, sympy,
# coloredlogs, opencv …) serve tools that never run on a board.
RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "numpy"),
    "openvino": ("openvino", "numpy"),
    "ncnn": ("ncnn", "numpy"),
    "rknn": ("rknn-toolkit-lite2", "numpy", "psutil", "ruamel.yaml"),
}
