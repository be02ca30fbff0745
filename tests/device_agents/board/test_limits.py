"""How new an ONNX file may be: by loading a ladder of tiny ones, whatever they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from device_agents.board import limits
from device_agents.board.rounds import RoundFailed
from device_agents.limits import OLDEST_IR, OnnxLimits, find_limits, ladder
from device_agents.link.local import LocalTransport
from device_agents.link.session import Session
from latency_tables.errors import MissingRuntimeError, ProtocolError

BLOB = "0" * 64


class Child:
    """A supervisor whose child loads models in this process; some kill it."""

    def __init__(self, *, highest: int, deadly: tuple[int, ...] = (), dies_at_start: bool = False):
        self.highest, self.deadly, self.dies_at_start = highest, deadly, dies_at_start
        self.runs = 0
        self.fatal = None
        self.clean = True
        self.message = "died of SIGSEGV"

    def run(self, task: Any, on_event: Callable[[str, Any], None], **timeouts: float) -> Child:
        self.runs += 1
        self.clean = False
        if self.dies_at_start:
            return self
        for index in task["left"]:
            on_event("trying", {"index": index})
            version = task["models"][index]["opset"]
            if version in self.deadly:
                return self
            error = None if version <= self.highest else f"opset {version} is too new"
            on_event("tried", {"index": index, "error": error})
        self.clean = True
        return self


def request(*opsets: int) -> dict[str, Any]:
    models = [{"of": "opset", "ir": 8, "opset": opset, "blob": BLOB} for opset in opsets]
    return {"runtime": "any", "models": models}


def test_the_highest_opset_that_loads_is_the_limit() -> None:
    said = limits.find(Child(highest=17), request(15, 16, 17, 18))
    assert said == {
        "ir": None,
        "opset": 17,
        "errors": {"opset 18": "opset 18 is too new"},
    }


def test_a_model_that_kills_the_process_does_not_hide_the_others() -> None:
    child = Child(highest=19, deadly=(16, 18))
    said = limits.find(child, request(15, 16, 17, 18, 19))
    assert said["opset"] == 19
    assert set(said["errors"]) == {"opset 16", "opset 18"}
    assert child.runs == 3


def test_a_runtime_that_dies_by_itself_ends_the_search() -> None:
    with pytest.raises(RoundFailed, match="SIGSEGV"):
        limits.find(Child(highest=17, dies_at_start=True), request(15, 16))


@pytest.mark.parametrize("wrong", [{"blob": "../x"}, {"ir": 0}, {"of": "size"}])
def test_a_ladder_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    asked = request(15)
    asked["models"][0].update(wrong)
    with pytest.raises(ValueError, match=r"model|allowed"):
        limits.find(Child(highest=17), asked)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(LocalTransport(tmp_path / "agent"))


def test_the_installed_onnxruntime_is_newer_than_the_oldest_rung(session: Session) -> None:
    with session:
        found = find_limits(session)
    assert found.ir is not None
    assert found.ir > OLDEST_IR
    # an independent look: the files at and above the limits, loaded here
    for of, ir, opset, content in ladder():
        limit, version = (found.ir, ir) if of == "ir" else (found.opset, opset)
        loads = _loads(content)
        assert loads is (version <= (limit or 0)), (of, version, limit)


def _loads(content: bytes) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def test_a_runtime_that_is_missing_says_so(session: Session) -> None:
    with session, pytest.raises(MissingRuntimeError):
        find_limits(session, "nowhere")


def test_versions_that_are_none_are_not_believed(session: Session, monkeypatch: Any) -> None:
    session.open()
    monkeypatch.setattr(Session, "request", lambda *_, **__: {"ir": "9", "opset": 1})
    with pytest.raises(ProtocolError, match="no version"):
        find_limits(session)
    session.close()


def test_a_board_that_loads_nothing_takes_nothing() -> None:
    assert not OnnxLimits(ir=None, opset=None).takes(1, 1)
