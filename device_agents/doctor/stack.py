"""Checks of what runs networks: runtimes, the newest files they take, the NPU's software."""

from __future__ import annotations

from device_agents.devices import DeviceSpec
from device_agents.doctor.check import Check, Probe, items, text
from device_agents.limits import OnnxLimits

USUAL_IR, USUAL_OPSET = 8, 17
"""What the reference network and exported subnets need."""


def runtimes(said: Probe, device: DeviceSpec) -> Check:
    """The runtime that the device asks for, and the others that work there."""
    offered = items(said, "runtimes")
    works = [f"{text(r, 'name', 40)} {text(r, 'version', 40)}" for r in offered if "version" in r]
    broken = [r for r in offered if r.get("broken")]
    mine = [r for r in offered if r.get("name") == device.runtime and "version" in r]
    if mine:
        providers = mine[0].get("providers")
        names = providers if isinstance(providers, list) else []
        listed = ", ".join(str(name)[:40] for name in names[:8])
        evidence = "; ".join(works) + (f"; providers: {text({'p': listed}, 'p')}" if listed else "")
        return Check(name="runtimes", state="ok", evidence=evidence)
    quoted = "; ".join(f"{text(r, 'name', 40)} is broken: {text(r, 'broken', 300)}" for r in broken)
    problem = quoted or text(said, "runtimes_problem", 300)
    seen = f"{device.runtime} does not work; " + ("; ".join(works) or "no runtime works")
    return Check(
        name="runtimes",
        state="fail",
        evidence=f"{seen}; {problem}" if problem else seen,
        remedy=f"hilnas devices bootstrap {device.name}",
    )


def telemetry(found_files: bool | None) -> Check:
    """Whether onnxruntime sent usage data from this login."""
    switch = "runtimes run with telemetry off"
    if found_files is None:
        return Check(name="telemetry", state="unknown", evidence=f"{switch}; its files: not seen")
    if found_files:
        return Check(
            name="telemetry",
            state="warn",
            evidence=f"{switch}, but another program's onnxruntime left its telemetry files here",
            remedy="ORT_DISABLE_TELEMETRY=1 for that program",
        )
    return Check(name="telemetry", state="ok", evidence=f"{switch}; it left no files here")


def limits(found: OnnxLimits, device: DeviceSpec) -> Check:
    """The newest ONNX file that the runtime takes."""
    if found.ir is None or found.opset is None:
        why = next(iter(found.errors.values()), "")
        return Check(
            name="ONNX limits",
            state="fail",
            evidence=f"not even the oldest file loads: {why}",
            remedy=f"hilnas devices bootstrap {device.name}",
        )
    evidence = f"up to IR version {found.ir} and opset {found.opset}"
    if found.takes(USUAL_IR, USUAL_OPSET):
        return Check(name="ONNX limits", state="ok", evidence=evidence)
    return Check(
        name="ONNX limits",
        state="fail",
        evidence=f"{evidence}; IR version {USUAL_IR} and opset {USUAL_OPSET} are needed",
        remedy=f"hilnas devices bootstrap {device.name}",
    )


def npu(said: Probe, device: DeviceSpec) -> Check:
    """Driver and library versions of an NPU; they must agree with the converter's."""
    needed = device.runtime == "rknn"
    found = said.get("npu")
    if not isinstance(found, dict):
        evidence = "no sign of an NPU"
        if not needed:
            return Check(name="NPU", state="ok", evidence=evidence)
        remedy = "a system image with the vendor's NPU driver"
        return Check(name="NPU", state="fail", evidence=evidence, remedy=remedy)
    if text(found, "stack") == "rocket":
        return Check(
            name="NPU",
            state="fail" if needed else "warn",
            evidence="the mainline driver 'rocket': another stack, which runs no .rknn files",
            remedy="a system image with the vendor's kernel, for rknn",
        )
    libraries = items(found, "libraries")
    driver = text(found, "driver", 80) or "driver version not readable (root only)"
    copies = [
        f"{text(c, 'path', 80)} {text(c, 'version', 60) or 'of unknown version'} "
        f"({text(c, 'sha256', 12)})"
        for c in libraries
    ]
    evidence = "; ".join([driver, *copies]) if copies else f"{driver}; no librknnrt.so"
    if len({text(c, "sha256", 64) for c in libraries}) > 1:
        remedy = "keep one librknnrt.so: which one a program finds is left to chance"
        return Check(name="NPU", state="warn", evidence=evidence, remedy=remedy)
    if not copies:
        remedy = "put the vendor's librknnrt.so for this driver into /usr/lib"
        return Check(
            name="NPU", state="fail" if needed else "warn", evidence=evidence, remedy=remedy
        )
    if not text(found, "driver"):
        return Check(name="NPU", state="unknown", evidence=evidence)
    return Check(name="NPU", state="ok", evidence=evidence)
