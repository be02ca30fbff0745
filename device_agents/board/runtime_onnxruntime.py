"""Runtime fragment: ONNX Runtime with any of its providers, the CPU by default.

A fragment is a module named ``runtime_<name>`` in this package with ``describe`` and ``Session``.
It is imported in child processes only. onnxruntime is imported late, after the affinity is set
and its telemetry is off (wheels since 1.29 send usage data by default).

What is timed is ``InferenceSession.run`` with inputs that exist already, the call that a program
makes. :meth:`Session.phases` splits it by IO binding, in a pass of its own.
"""

from __future__ import annotations

import json
import os
from functools import partial
from time import perf_counter_ns
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

PROVIDER = "CPUExecutionProvider"
PROFILE_BYTES = 64 << 20
"""Largest profile that is read; a longer one is taken again with the fewest runs."""

_PROFILE_NS = 1_000_000_000
_PROFILE_RUNS = (3, 30)


def _module() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def describe() -> Dict[str, Any]:
    """Name, version and providers of this runtime. Raises ImportError where it is missing."""
    module = _module()
    return {
        "name": "onnxruntime",
        "version": module.__version__,
        "provider": PROVIDER,
        "providers": list(module.get_available_providers()),
    }


class Session:
    """One loaded network with explicit threads; ``inputs`` are (name, shape, element type).

    ``provider`` "" is the CPU; ``options`` are that provider's own. Raises ValueError where this
    build lacks the provider or cannot start it (onnxruntime itself would fall back in silence).
    """

    def __init__(
        self,
        path: str,
        *,
        threads: int,
        spinning: bool,
        optimization: str,
        provider: str = "",
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        module = self._module = _module()
        self._path, self._provider = path, provider or PROVIDER
        self._provider_options = {str(k): str(v) for k, v in (options or {}).items()}
        offered = module.get_available_providers()
        if self._provider not in offered:
            raise ValueError(
                "this onnxruntime has no provider {!r}; it has {}".format(provider, offered)
            )
        settings = module.SessionOptions()
        # an explicit count keeps the workers inside the mask of the process; 0 re-pins them to
        # all cores (microsoft/onnxruntime#10104)
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        settings.graph_optimization_level = {
            "all": module.GraphOptimizationLevel.ORT_ENABLE_ALL,
            "extended": module.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "basic": module.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "disabled": module.GraphOptimizationLevel.ORT_DISABLE_ALL,
        }[optimization]
        settings.log_severity_level = 3
        self._settings = settings
        self._session = self._open()
        started = self._session.get_providers()
        if self._provider not in started:
            raise ValueError(
                "provider {!r} does not start; {} would run".format(self._provider, started)
            )
        self.inputs: List[Tuple[str, Sequence[Any], str]] = [
            (node.name, list(node.shape), _element(node.type))
            for node in self._session.get_inputs()
        ]
        self.output_names = [node.name for node in self._session.get_outputs()]

    def _open(self) -> Any:
        providers: List[Any] = [(self._provider, self._provider_options)]
        if self._provider != PROVIDER:
            providers.append(PROVIDER)  # takes the operators that the other one lacks
        return self._module.InferenceSession(self._path, self._settings, providers=providers)

    def prepare(self, feeds: Dict[str, Any]) -> Callable[[], List[Any]]:
        """A call without arguments that runs once on ``feeds``: what is timed."""
        return partial(self._session.run, None, feeds)

    def phases(self, feeds: Dict[str, Any]) -> List[Tuple[str, Callable[[], Any]]]:
        """The steps of one run, in order: inputs to the provider, computing, outputs back."""
        binding = self._session.io_binding()

        def set_inputs() -> None:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for name in self.output_names:
                binding.bind_output(name)

        run = partial(self._session.run_with_iobinding, binding)
        return [
            ("set inputs", set_inputs),
            ("run", run),
            ("get outputs", binding.copy_outputs_to_cpu),
        ]

    def profile(self, feeds: Dict[str, Any]) -> List[Dict[str, Any]]:
        """Every call of every operator in some runs: name, op, provider and ns.

        Loads the file anew with the runtime's profiler, which slows the network down. The file must
        still be there. The profile lies beside it until it was read.
        """
        start = perf_counter_ns()
        self._session.run(None, feeds)
        once_ns = max(1, perf_counter_ns() - start)
        least, most = _PROFILE_RUNS
        for runs in (min(most, max(least, _PROFILE_NS // once_ns)), least):
            path = self._profile(feeds, runs)
            try:
                if os.path.getsize(path) <= PROFILE_BYTES:
                    return list(_operators(path))
            finally:
                os.unlink(path)
        raise ValueError("the profile of {} runs is over {} bytes".format(least, PROFILE_BYTES))

    def _profile(self, feeds: Dict[str, Any], runs: int) -> str:
        settings = self._settings
        settings.profile_file_prefix = os.path.join(os.path.dirname(self._path), "profile")
        settings.enable_profiling = True
        try:
            session = self._open()
        finally:
            settings.enable_profiling = False
        for _ in range(runs + 1):  # the first one is cold and left out
            session.run(None, feeds)
        path: str = session.end_profiling()
        return path


def _operators(path: str) -> Iterator[Dict[str, Any]]:
    """Read the profiler's trace: a list with one event per line, times in µs.

    The first call of each operator is left out: it allocates.
    """
    met = set()
    with open(path) as stream:
        for line in stream:
            text = line.strip().rstrip(",")
            if not text.startswith("{"):
                continue
            event = json.loads(text)
            name = event.get("name", "")
            if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
                continue
            if name not in met:
                met.add(name)
                continue
            about = event.get("args") or {}
            yield {
                "name": name[: -len("_kernel_time")],
                "op": about.get("op_name", ""),
                "provider": about.get("provider", ""),
                "ns": int(event["dur"]) * 1000,
            }


def _element(text: str) -> str:
    """``tensor(float)`` → ``float``; other kinds are kept and refused later."""
    return text[len("tensor(") : -1] if text.startswith("tensor(") else text
