"""Runtime fragment: RKNN on a Rockchip NPU, through librknnrt.so, else through rknn-toolkit-lite2.

No NPU was at hand: the code is tested against a C library with the same symbols, see
docs/runtimes.md. The model file is a ``.rknn`` that the host made (``converters/rknn.py``); beside
it may lie ``model.rknn.json`` with the names and shapes of the ONNX file and the toolkit's version.

Four times exist for one frame, and they are never mixed:

========================  =======================================================================
``device_run_us``         what the driver counts for the run (PERF_RUN)
``run_wall_us``           host time of rknn_run: adds driver, interrupts, operators on the CPU
``call_wall_us``          host time of set inputs + run + get outputs: adds conversion of data.
                          **The latency that is reported**: what an application waits for, and
                          what other runtimes report
layers                    PERF_DETAIL, from a second context that is slower: ``profile`` only
========================  =======================================================================
"""

from __future__ import annotations

import json
import os
import statistics
from time import perf_counter_ns
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from device_agents.board import rknn_api, rknn_lite
from device_agents.board.rknn_api import Context, Library, RknnError
from device_agents.board.rknn_detail import npu_share, parse_detail

PROVIDER = "NPU"
NAMES = "model.rknn.json"
CORE_MASKS = {"auto": 0, "0": 1, "1": 2, "2": 4, "0_1": 3, "0_1_2": 7, "all": 0xFFFF}
DEFAULT_MASK = "0"  # "auto" takes any idle core, and several cores are sometimes slower than one
OPTIONS = ("api", "core_mask", "sweep", "detail")
EVIDENCE_RUNS = 20
PROFILE_RUNS = 3

_TYPES = {
    rknn_api.INT8: "int8",
    rknn_api.UINT8: "uint8",
    rknn_api.INT16: "int16",
    rknn_api.UINT16: "uint16",
    rknn_api.INT32: "int32",
    rknn_api.UINT32: "uint32",
    rknn_api.INT64: "int64",
    rknn_api.BOOL: "bool",
}
_CODES = {name: code for code, name in _TYPES.items()}
_CODES["float"] = rknn_api.FLOAT32

Json = Dict[str, Any]


def describe() -> Json:
    """Library, its version and the driver's. Raises ImportError saying where was looked."""
    paths = rknn_api.find_libraries()
    problems = []
    for path in paths:
        try:
            Library(path)
        except OSError as error:
            problems.append(str(error))
            continue
        library = rknn_api.describe_library(path)
        return {
            "name": "rknn",
            "version": library["version"] or "sha256:" + library["sha256"][:16],
            "provider": PROVIDER,
            "providers": [PROVIDER],
            "api": "librknnrt",
            "library": library,
            "other_libraries": [p for p in paths if p != path],
            "driver": rknn_api.driver_version(),
        }
    try:
        return dict(rknn_lite.describe(), driver=rknn_api.driver_version())
    except ImportError as error:
        problems.append(str(error))
    raise ImportError(
        "no usable {} in {} ({})".format(
            rknn_api.LIBRARY, ", ".join(rknn_api.FOLDERS), "; ".join(problems)
        )
    )


def Session(path: str, **settings: Any) -> Any:
    """Load a network with whichever interface works; ``options["api"]`` insists on one."""
    options = settings.get("options") or {}
    _check_options(options)
    api = options.get("api", "")
    for library in rknn_api.find_libraries() if api != "lite" else ():
        try:
            loaded = Library(library)
        except OSError:
            continue
        return NpuSession(path, loaded, **settings)
    if api == "librknnrt":
        raise RuntimeError("no usable {} on this board".format(rknn_api.LIBRARY))
    return rknn_lite.LiteSession(
        path, read_names(path), _mask(options.get("core_mask", DEFAULT_MASK)), **settings
    )


class NpuSession:
    """One network on the NPU; ``inputs`` are (name, shape as in ONNX, element type).

    ``options``: ``core_mask`` (a key of :data:`CORE_MASKS`), ``sweep`` (true: evidence tries every
    mask), ``detail`` (false: no pass for the share of operators on the NPU). The NPU has no
    threads, spinning or levels of optimisation of ours. Raises RknnError, ValueError.
    """

    def __init__(
        self,
        path: str,
        library: Library,
        *,
        threads: int,
        spinning: bool,
        optimization: str,
        provider: str = "",
        options: Optional[Json] = None,
    ) -> None:
        del threads, spinning, optimization
        if provider not in ("", PROVIDER):
            raise ValueError("RKNN provider {!r}; allowed: {}".format(provider, PROVIDER))
        self._options = options or {}
        self._library = library
        self._names = read_names(path)
        # the folder is removed after loading; the open file stays readable for the detail pass
        self._file = open(path, "rb")  # noqa: SIM115
        self._context: Optional[Context] = None
        try:
            self._context = self._open()
            self.core_mask = self._choose_cores(self._context)
        except Exception:
            self.close()
            raise
        names = self._given("inputs", self._context.inputs)
        self.inputs: List[Tuple[str, Sequence[int], str]] = [
            (name, _onnx_shape(attr), _element(attr))
            for name, attr in zip(names, self._context.inputs)  # noqa: B905
        ]
        self.output_names = self._given("outputs", self._context.outputs)
        self._feeds: Json = {}

    def _open(self, flags: int = 0) -> Context:
        self._file.seek(0)
        try:
            return self._library.open(self._file.read(), flags)
        except RknnError as error:
            made = self._names.get("toolkit")
            if made:
                raise RuntimeError(
                    "{} (file made by rknn-toolkit2 {}, library {})".format(
                        error, made, self._library.path
                    )
                ) from None
            raise

    def close(self) -> None:
        """Free the network; may be called twice."""
        if self._context is not None:
            self._context.close()
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self.close()

    def _choose_cores(self, context: Context) -> str:
        """The mask that holds; chips with one core refuse all, which matters only if asked for."""
        asked = self._options.get("core_mask")
        try:
            context.set_core_mask(_mask(asked or DEFAULT_MASK))
        except RknnError:
            if asked is not None:
                raise
            return "none"
        return str(asked or DEFAULT_MASK)

    def _given(self, part: str, attrs: Sequence[rknn_api.TensorAttr]) -> List[str]:
        """ONNX names where the host told them: the toolkit appends to some of them."""
        told = [entry["name"] for entry in self._names.get(part) or []]
        if len(told) == len(attrs):
            return told
        return [attr.name.decode("utf-8", "replace") for attr in attrs]

    def _loaded(self) -> Context:
        if self._context is None:
            raise RuntimeError("the network was closed")
        return self._context

    def prepare(self, feeds: Json) -> Callable[[], List[Any]]:
        """A call without arguments: set inputs, run, get outputs as float32."""
        steps, results = self._bind(self._loaded(), feeds)
        self._feeds = feeds
        set_inputs, run, get_outputs = steps

        def call() -> List[Any]:
            set_inputs()
            run()
            get_outputs()
            outputs: List[Any] = results()
            return outputs

        return call

    def _bind(self, context: Context, feeds: Json) -> Any:
        """The three steps of a frame, and its outputs in the order of the ONNX dimensions."""
        import numpy

        arrays = []
        inputs = (rknn_api.Input * len(self.inputs))()
        for index, (name, _, kind) in enumerate(self.inputs):
            attr = context.inputs[index]
            array = numpy.asarray(feeds[name])
            if attr.fmt == rknn_api.NHWC and array.ndim == 4:
                array = array.transpose(0, 2, 3, 1)  # not timed: an application keeps NHWC images
            dtype = "float32" if kind == "float" else kind
            array = numpy.ascontiguousarray(array, dtype=dtype)
            if array.size != attr.n_elems:
                raise ValueError(
                    "input {!r} has {} elements, the network takes {}".format(
                        name, array.size, attr.n_elems
                    )
                )
            arrays.append(array)
            inputs[index] = rknn_api.Input(
                index=index,
                buf=array.ctypes.data,
                size=array.nbytes,
                pass_through=0,
                type=_CODES[kind],
                fmt=attr.fmt if array.ndim == 4 else rknn_api.UNDEFINED,
            )
        outputs = (rknn_api.Output * len(context.outputs))()
        buffers = []
        for index, attr in enumerate(context.outputs):
            buffer = numpy.zeros(attr.n_elems, dtype=numpy.float32)
            buffers.append(buffer)
            outputs[index] = rknn_api.Output(1, 1, index, buffer.ctypes.data, buffer.nbytes)

        def results() -> List[Any]:
            return [
                _onnx_order(buffer, attr)
                for buffer, attr in zip(buffers, context.outputs)  # noqa: B905
            ]

        return context.binding(inputs, outputs, (arrays, buffers)), results

    def phases(self, feeds: Json) -> List[Tuple[str, Callable[[], Any]]]:
        """The steps of one frame, in order."""
        steps, _ = self._bind(self._loaded(), feeds)
        return list(zip(("set inputs", "run", "get outputs"), steps))  # noqa: B905

    def profile(self, feeds: Json) -> List[Json]:
        """Median ns of each layer from a second context that collects them."""
        context = self._open(rknn_api.COLLECT_PERF)
        try:
            if self.core_mask != "none":
                context.set_core_mask(CORE_MASKS[self.core_mask])
            steps, _ = self._bind(context, feeds)
            tables = []
            for _ in range(PROFILE_RUNS):
                for step in steps:
                    step()
                tables.append(parse_detail(context.detail()))
        finally:
            context.close()
        rows: List[Json] = tables[-1]
        for index, row in enumerate(rows):
            times = [table[index]["ns"] for table in tables if len(table) == len(rows)]
            row["ns"] = int(statistics.median(times))
        return rows

    def evidence(self) -> Json:
        """The four times, versions, memory, cores; after the timed runs, on their inputs."""
        context = self._loaded()
        steps, _ = self._bind(context, self._feeds)
        frames = _frames(context, steps)
        found: Json = {
            "headline": "call_wall_us",
            "core_mask": self.core_mask,
            "attr_bytes": context.attr_bytes,
            "library": self._library.path,
            "n_frames": EVIDENCE_RUNS,
            "times": _summary(frames),
            # frame by frame: whether the NPU's time moves while the rest is steady
            "npu_ns": [round(1000 * us) for us in frames["device_run_us"]],
            "run_ns": [round(1000 * us) for us in frames["call_wall_us"]],
            "toolkit": self._names.get("toolkit"),
            "calibration": self._names.get("calibration"),
        }
        for name, ask in (("versions", context.versions), ("memory", context.memory)):
            try:
                found[name] = ask()
            except RknnError as error:
                found[name] = {"error": str(error)}
        if self._options.get("detail", True):
            try:
                found["npu_share"] = npu_share(self.profile(self._feeds))
            except RuntimeError as error:
                found["npu_share"] = {"error": str(error)[:300]}
        if self._options.get("sweep"):
            found["core_masks"] = self._sweep(context, steps)
        return found

    def _sweep(self, context: Context, steps: Any) -> Json:
        """Times under every core mask; one that fails is told and does not end the sweep."""
        found: Json = {}
        for name, mask in CORE_MASKS.items():
            try:
                context.set_core_mask(mask)
                found[name] = _summary(_frames(context, steps))
            except RknnError as error:
                found[name] = {"error": str(error)[:300]}
        if self.core_mask != "none":
            context.set_core_mask(CORE_MASKS[self.core_mask])
        return found


def _frames(context: Context, steps: Any) -> Dict[str, List[float]]:
    """The three times of each of a few frames, in µs."""
    set_inputs, run, get_outputs = steps
    taken: Dict[str, List[float]] = {"device_run_us": [], "run_wall_us": [], "call_wall_us": []}
    for _ in range(EVIDENCE_RUNS):
        start = perf_counter_ns()
        set_inputs()
        before = perf_counter_ns()
        run()
        after = perf_counter_ns()
        get_outputs()
        end = perf_counter_ns()
        taken["device_run_us"].append(context.run_us())
        taken["run_wall_us"].append((after - before) / 1000)
        taken["call_wall_us"].append((end - start) / 1000)
    return taken


def _summary(taken: Dict[str, List[float]]) -> Json:
    return {
        name: {"median": statistics.median(times), "min": min(times), "max": max(times)}
        for name, times in taken.items()
    }


def read_names(path: str) -> Json:
    """What the host wrote beside the model; {} where it wrote nothing. Raises ValueError."""
    try:
        with open(os.path.join(os.path.dirname(path), NAMES)) as stream:
            names = json.load(stream)
    except FileNotFoundError:
        return {}
    for part in ("inputs", "outputs"):
        entries = names.get(part) if isinstance(names, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("name"), str) for e in entries
        ):
            raise ValueError("{} does not list {}".format(NAMES, part))
    result: Json = names
    return result


def _check_options(options: Json) -> None:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(
            "RKNN option {!r} does not exist; allowed: {}".format(unknown[0], ", ".join(OPTIONS))
        )
    if options.get("api", "") not in ("", "librknnrt", "lite"):
        raise ValueError("api {!r}; allowed: librknnrt, lite".format(options["api"]))
    if options.get("core_mask") is not None:
        _mask(options["core_mask"])


def _mask(name: Any) -> int:
    if str(name) not in CORE_MASKS:
        raise ValueError("core mask {!r}; allowed: {}".format(name, ", ".join(CORE_MASKS)))
    return CORE_MASKS[str(name)]


def _onnx_shape(attr: rknn_api.TensorAttr) -> List[int]:
    shape = attr.shape()
    if attr.fmt == rknn_api.NHWC and len(shape) == 4:
        return [shape[0], shape[3], shape[1], shape[2]]
    return shape


def _onnx_order(buffer: Any, attr: rknn_api.TensorAttr) -> Any:
    array = buffer.reshape(attr.shape())
    if attr.fmt == rknn_api.NHWC and array.ndim == 4:
        return array.transpose(0, 3, 1, 2)
    return array


def _element(attr: rknn_api.TensorAttr) -> str:
    """Quantised inputs are fed as floats, which the library converts; true integers are not."""
    if attr.qnt_type != 0 or attr.type in (rknn_api.FLOAT32, rknn_api.FLOAT16):
        return "float"
    return _TYPES.get(attr.type, "type {}".format(attr.type))


__all__ = ["CORE_MASKS", "NpuSession", "Session", "describe"]
