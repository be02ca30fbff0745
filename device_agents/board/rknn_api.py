"""librknnrt.so through ctypes: the part of the RKNN C API that running a network needs.

Written from the public C interface; not from its header. What differs between releases is handled
here: structures grew (the description of a tensor has 372 bytes in some, 376 in others), and some
releases want exactly their own size while others accept more. Every query therefore writes into a
large buffer, names a size, and tries the next one where the library calls it invalid.

No NPU was at hand when this was written: it is tested against a C library with the same symbols.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import re
import sys
import tempfile
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

LIBRARY = "librknnrt.so"
FOLDERS = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/arm-linux-gnueabihf",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/oem/usr/lib",
    "/vendor/lib64",
    "/vendor/lib",
)
"""Where firmware puts the library; folders on ``sys.path`` come first (``bootstrap`` fills one)."""
DRIVER_FILES = ("/sys/kernel/debug/rknpu/version", "/proc/rknpu/version")

COLLECT_PERF = 8  # flag of rknn_init: times of single layers, which slows the frame
FLOAT32, FLOAT16, INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64, BOOL = range(10)
NCHW, NHWC, NC1HWC2, UNDEFINED = range(4)

_NUMBERS, _INPUT, _OUTPUT, _DETAIL, _RUN_TIME, _VERSIONS, _MEMORY = range(7)
_PARAM_INVALID = -5
_BUFFER_BYTES = 4096
_MAX_DIMS, _MAX_TENSORS = 16, 256
_MAX_DETAIL_BYTES = 1 << 24
_ERRORS = {
    -1: "execution failed",
    -2: "time-out",
    -3: "the NPU is not available",
    -4: "out of memory",
    -5: "invalid parameter",
    -6: "invalid model",
    -7: "invalid context",
    -8: "invalid input",
    -9: "invalid output",
    -10: "library and driver do not fit this NPU",
    -11: "the model was precompiled for another driver",
    -12: "the model's optimization level needs another driver",
    -13: "the model was made for another platform",
}

Json = Dict[str, Any]
# 32-bit Arm has 32-bit handles, everything else 64-bit ones
_Context = (
    ctypes.c_uint32
    if ctypes.sizeof(ctypes.c_void_p) == 4 and os.uname().machine.startswith("arm")
    else ctypes.c_uint64
)


class RknnError(RuntimeError):
    """A call of the library failed; ``code`` is what it returned, ``log`` what it printed."""

    def __init__(self, call: str, code: int, log: str = "", hint: str = "") -> None:
        text = "{} returned {} ({})".format(call, code, _ERRORS.get(code, "unknown code"))
        super().__init__("; ".join(part for part in (text, log, hint) if part))
        self.code, self.log = code, log


class TensorAttr(ctypes.Structure):
    """Description of an input or output; older releases end before ``h_stride``."""

    _fields_ = [
        ("index", ctypes.c_uint32),
        ("n_dims", ctypes.c_uint32),
        ("dims", ctypes.c_uint32 * _MAX_DIMS),
        ("name", ctypes.c_char * 256),
        ("n_elems", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("fmt", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("qnt_type", ctypes.c_int32),
        ("fl", ctypes.c_int8),
        ("zp", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("w_stride", ctypes.c_uint32),
        ("size_with_stride", ctypes.c_uint32),
        ("pass_through", ctypes.c_uint8),
        ("h_stride", ctypes.c_uint32),
    ]

    def shape(self) -> List[int]:
        """Sizes of the dimensions, in the order of ``fmt``."""
        return [int(size) for size in self.dims[: min(self.n_dims, _MAX_DIMS)]]


class Input(ctypes.Structure):
    """One entry of what rknn_inputs_set takes."""

    _fields_ = [
        ("index", ctypes.c_uint32),
        ("buf", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
        ("pass_through", ctypes.c_uint8),
        ("type", ctypes.c_int32),
        ("fmt", ctypes.c_int32),
    ]


class Output(ctypes.Structure):
    """One entry of what rknn_outputs_get fills."""

    _fields_ = [
        ("want_float", ctypes.c_uint8),
        ("is_prealloc", ctypes.c_uint8),
        ("index", ctypes.c_uint32),
        ("buf", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
    ]


class _Detail(ctypes.Structure):
    _fields_ = [("text", ctypes.c_void_p), ("length", ctypes.c_uint64)]


class _Memory(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_uint32),
        ("internal", ctypes.c_uint32),
        ("dma", ctypes.c_uint64),
        ("sram", ctypes.c_uint32),
        ("free_sram", ctypes.c_uint32),
    ]


def find_libraries(folders: Sequence[str] = FOLDERS) -> List[str]:
    """Every distinct librknnrt.so, in the order of preference; several on one board are common."""
    found: List[str] = []
    seen = set()
    for folder in [*sys.path, *folders]:
        path = os.path.join(folder or ".", LIBRARY)
        if os.path.isfile(path) and os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            found.append(path)
    return found


def describe_library(path: str) -> Json:
    """Path, SHA-256 and the version that is written inside the file ("" where none is)."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            match = re.search(rb"librknnrt version: ([0-9][0-9A-Za-z.]{0,30})", content)
            version = match.group(1).decode() if match else ""
    return {"path": path, "sha256": digest.hexdigest(), "version": version}


def driver_version(files: Sequence[str] = DRIVER_FILES) -> str:
    """The NPU driver's version as the kernel tells it; "" where it does not (often root only)."""
    for path in files:
        try:
            with open(path) as stream:
                match = re.search(r"\d+\.\d+\.\d+", stream.read(200))
        except OSError:
            continue
        if match:
            return match.group(0)
    return ""


class Library:
    """A loaded librknnrt.so. Raises OSError where it cannot be loaded or lacks a function."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._dll = ctypes.CDLL(path)
            pointer, number, context = ctypes.c_void_p, ctypes.c_uint32, _Context
            for name, arguments in (
                ("rknn_init", [pointer, pointer, number, number, pointer]),
                ("rknn_destroy", [context]),
                ("rknn_query", [context, ctypes.c_int, pointer, number]),
                ("rknn_inputs_set", [context, number, pointer]),
                ("rknn_run", [context, pointer]),
                ("rknn_outputs_get", [context, number, pointer, pointer]),
                ("rknn_outputs_release", [context, number, pointer]),
            ):
                self._declare(name, arguments)
        except AttributeError as error:
            raise OSError("{} is no RKNN runtime: {}".format(path, error)) from None
        try:
            self._declare("rknn_set_core_mask", [context, ctypes.c_int])
            self.has_core_masks = True
        except AttributeError:  # releases before 1.3
            self.has_core_masks = False

    def _declare(self, name: str, arguments: List[Any]) -> None:
        function = getattr(self._dll, name)
        function.argtypes, function.restype = arguments, ctypes.c_int

    def function(self, name: str) -> Callable[..., int]:
        """A function of the library by name."""
        result: Callable[..., int] = getattr(self._dll, name)
        return result

    def open(self, model: bytes, flags: int = 0) -> "Context":
        """Load a network. Raises RknnError with what the library printed."""
        return Context(self, model, flags)


class Context:
    """A loaded network; ``close`` it."""

    def __init__(self, library: Library, model: bytes, flags: int) -> None:
        self.library = library
        self._handle = _Context(0)
        self.attr_bytes = 0
        with _printed() as log:
            code = library.function("rknn_init")(
                ctypes.byref(self._handle), model, len(model), flags, None
            )
        if code != 0:
            self._handle = _Context(0)
            raise RknnError("rknn_init", code, log.text(), remedy(log.text()))
        try:
            numbers = self._query(_NUMBERS, (8,))
            n_inputs, n_outputs = (ctypes.c_uint32 * 2).from_buffer(numbers)
            if not (0 < n_inputs <= _MAX_TENSORS and 0 < n_outputs <= _MAX_TENSORS):
                raise RknnError(
                    "rknn_query", 0, "{} inputs, {} outputs".format(n_inputs, n_outputs)
                )
            self.inputs = [self._attr(_INPUT, index) for index in range(n_inputs)]
            self.outputs = [self._attr(_OUTPUT, index) for index in range(n_outputs)]
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Free the network; may be called twice."""
        if self._handle.value:
            self.library.function("rknn_destroy")(self._handle)
            self._handle = _Context(0)

    def _query(self, command: int, sizes: Sequence[int], index: int = 0) -> Any:
        """The answer in a buffer that is larger than any of them. Raises RknnError."""
        buffer = (ctypes.c_uint8 * _BUFFER_BYTES)()
        code = 0
        for size in _sizes(sizes):
            ctypes.memset(buffer, 0, _BUFFER_BYTES)
            ctypes.c_uint32.from_buffer(buffer).value = index
            code = self.library.function("rknn_query")(self._handle, command, buffer, size)
            if code == 0:
                if command in (_INPUT, _OUTPUT):
                    self.attr_bytes = size
                return buffer
            if code != _PARAM_INVALID:
                break
        raise RknnError("rknn_query({})".format(command), code)

    def _attr(self, command: int, index: int) -> TensorAttr:
        known = (self.attr_bytes,) if self.attr_bytes else (376, 372)
        return TensorAttr.from_buffer(self._query(command, known, index))

    def set_core_mask(self, mask: int) -> None:
        """Choose the NPU cores. Raises RknnError where library or chip refuse."""
        if not self.library.has_core_masks:
            raise RknnError("rknn_set_core_mask", -5, "this library has no core masks")
        self._check("rknn_set_core_mask", mask)

    def binding(self, inputs: Any, outputs: Any, held: Any) -> Tuple[Callable[[], None], ...]:
        """The three steps of one frame as calls without arguments: set inputs, run, get outputs.

        ``inputs`` and ``outputs`` hold only addresses; ``held`` is what must live as long as they.
        """
        handle, check = self._handle, self._checked
        set_inputs = self.library.function("rknn_inputs_set")
        run = self.library.function("rknn_run")
        get = self.library.function("rknn_outputs_get")
        release = self.library.function("rknn_outputs_release")
        n_inputs, n_outputs = len(inputs), len(outputs)

        def set_all(memory: Any = held) -> None:
            del memory
            check("rknn_inputs_set", set_inputs(handle, n_inputs, inputs))

        def run_once() -> None:
            check("rknn_run", run(handle, None))

        def get_all(memory: Any = held) -> None:
            del memory
            check("rknn_outputs_get", get(handle, n_outputs, outputs, None))
            check("rknn_outputs_release", release(handle, n_outputs, outputs))

        return set_all, run_once, get_all

    def run_us(self) -> int:
        """Duration of the last run as the driver counts it, in µs; valid after the outputs."""
        return int(ctypes.c_int64.from_buffer(self._query(_RUN_TIME, (8,))).value)

    def versions(self) -> Tuple[str, str]:
        """Versions of library and driver."""
        raw = bytes(self._query(_VERSIONS, (512,)))
        return _text(raw[:256]), _text(raw[256:512])

    def memory(self) -> Dict[str, int]:
        """Bytes of weights and of intermediate tensors; more where the library tells it."""
        memory = _Memory.from_buffer(self._query(_MEMORY, (64, 8)))
        return {
            "weight_bytes": memory.weight,
            "internal_bytes": memory.internal,
            "dma_bytes": memory.dma,
            "sram_bytes": memory.sram,
        }

    def detail(self) -> str:
        """The table of layers; only for a context opened with COLLECT_PERF, after the outputs."""
        detail = _Detail.from_buffer(self._query(_DETAIL, (ctypes.sizeof(_Detail),)))
        if not detail.text or not 0 < detail.length <= _MAX_DETAIL_BYTES:
            return ""
        return _text(ctypes.string_at(detail.text, detail.length))

    def _check(self, name: str, *arguments: Any) -> None:
        self._checked(name, self.library.function(name)(self._handle, *arguments))

    @staticmethod
    def _checked(name: str, code: int) -> None:
        if code != 0:
            raise RknnError(name, code)


def remedy(log: str) -> str:
    """What to do about a refused model, from what the library printed.

    >>> remedy("E RKNN: Invalid RKNN model version 6")[:47]
    'librknnrt.so is older than the toolkit that mad'
    """
    if re.search(r"invalid rknn model version", log, re.IGNORECASE):
        return (
            "librknnrt.so is older than the toolkit that made the file: install the library of "
            "the toolkit's release on the board, or convert with the library's release"
        )
    if re.search(r"target.?platform|platform.{0,20}match", log, re.IGNORECASE):
        return "convert for this board's chip: runtime option target"
    return ""


def _sizes(known: Sequence[int]) -> Iterator[int]:
    """Known sizes, one that is larger than all, then each multiple of 4 for strict libraries."""
    yield from known
    yield 1024
    yield from (size for size in range(8, 1024, 4) if size not in known)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip()


class _Log:
    def __init__(self, stream: Any) -> None:
        self._stream, self._text = stream, ""

    def text(self) -> str:
        """The lines that name an error, else the last ones; at most 600 characters."""
        lines = [line.strip() for line in self._text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("E ")]
        return " | ".join((errors or lines)[-6:])[-600:]

    def read(self) -> None:
        self._stream.seek(0)
        self._text = self._stream.read(1 << 16).decode("utf-8", "replace")


@contextlib.contextmanager
def _printed() -> Iterator[_Log]:
    """Catch what native code prints on fd 1 and 2: the only place where it says why."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    sys.stderr.flush()
    libc.fflush(None)
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    with tempfile.TemporaryFile() as stream:
        log = _Log(stream)
        try:
            for fd, _ in kept:
                os.dup2(stream.fileno(), fd)
            yield log
        finally:
            libc.fflush(None)
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)
            log.read()
