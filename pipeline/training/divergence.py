"""Stop a run whose loss is not finite or blew up, before a bad state is saved.

Losses stay on the device until they are read, at log lines and before every checkpoint, because
reading one waits for the device. Then each of them is checked in order:

* not finite: stop;
* more than ``factor`` times the running median *and* above chance level (ln of the number of
  classes), once ``after`` losses are known: stop. The second condition keeps a single hard batch
  of a nearly perfect network from ending a healthy run.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latency_tables.errors import DivergedError

WINDOW = 100
"""Losses that the running median covers."""


class LossMonitor:
    """Collects the loss of every step and refuses bad ones.

    Args:
        factor: allowed multiple of the running median; None switches that check off.
        after: losses to see before the median is trusted.
        n_classes: for the chance level.
    """

    def __init__(self, *, factor: float | None, after: int, n_classes: int) -> None:
        self.factor, self.after = factor, after
        self.chance = math.log(max(2, n_classes))
        self.n_seen = 0
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.unlogged: list[float] = []
        self._unread: list[tuple[int, float, Tensor]] = []

    def add(self, step: int, lr: float, loss: Tensor) -> None:
        """Remember the loss (a detached scalar) of one step, without waiting for it."""
        self._unread.append((step, lr, loss))

    def read(self) -> None:
        """Wait for all losses and check them. Raises DivergedError."""
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        values = torch.stack([loss.float() for _, _, loss in unread]).tolist()
        for (step, lr, _), value in zip(unread, values, strict=True):
            self._check(step, lr, value)
            self.recent.append(value)
            self.unlogged.append(value)
            self.n_seen += 1

    def _check(self, step: int, lr: float, loss: float) -> None:
        median = statistics.median(self.recent) if self.recent else math.inf
        if not math.isfinite(loss):
            raise _diverged(f"the loss is {loss} at step {step}", lr, median)
        if self.factor is None or self.n_seen < self.after:
            return
        if loss > self.factor * median and loss > self.chance:
            what = f"the loss jumped to {loss:.4g} at step {step}, over {self.factor:g} times"
            raise _diverged(f"{what} its running median", lr, median)

    @property
    def mean(self) -> float | None:
        """Mean of the last losses that were read."""
        return math.fsum(self.recent) / len(self.recent) if self.recent else None

    def take_logged(self) -> float | None:
        """Mean of the losses since the last call."""
        values, self.unlogged = self.unlogged, []
        return math.fsum(values) / len(values) if values else None

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state; everything must have been read."""
        return {
            "n_seen": self.n_seen,
            "recent": list(self.recent),
            "unlogged": list(self.unlogged),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.n_seen = int(state["n_seen"])
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.unlogged = list(state["unlogged"])
        self._unread = []


def _diverged(what: str, lr: float, median: float) -> DivergedError:
    known = f"{median:.4g}" if math.isfinite(median) else "not known yet"
    return DivergedError(
        f"{what} (learning rate {lr:.4g}, running median of the loss {known}); "
        "the last good checkpoint is kept",
        hint="a lower train.optimizer.lr, some train.schedule.warmup_steps or train.clip_norm = 5",
    )
