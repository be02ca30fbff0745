"""Ctrl-C between steps: the first one ends the run after the current step, the second at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """While entered, remembers SIGINT instead of raising in the middle of a step.

    Nothing is changed outside the main thread, where Python delivers no signals, and where
    SIGINT is ignored, as in a background job of a shell.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        before = signal.getsignal(signal.SIGINT)
        # None: a handler of another language, which could not be put back
        if threading.current_thread() is threading.main_thread() and before not in (
            None,
            signal.SIG_IGN,
        ):
            self._before = signal.signal(signal.SIGINT, self._remember)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
            self._installed = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
