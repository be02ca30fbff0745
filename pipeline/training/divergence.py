"""Stop a run whose loss is not finite or blew up, before a bad state is saved.

Losses stay on the device until they are read, at log lines and before every checkpoint, because
reading one waits for the device. Then each of them is checked in order:

* not finite: stop;
* a jump: more than ``factor`` times the running median and ``factor`` times chance level (ln of
  the number of classes), once ``after`` losses are known: stop;
* a collapse: ``COLLAPSED`` losses in a row at chance level, after a running median of less than
  half of it: stop.

Sampled paths make single losses noisy: a rare path of a good supernet may be at chance level, so
one such loss says nothing. While the last loss is, the state is ``doubtful`` and is not saved.
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

COLLAPSED = 20
"""Losses at chance level in a row that no luck of the draw explains."""
_AT_CHANCE = 0.9
_LEARNT = 0.5
"""Shares of the chance level: a loss above the first knows nothing, a median below the second has
learnt something."""


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
        self.n_at_chance = 0  # in a row, since something had been learnt

    @property
    def doubtful(self) -> bool:
        """Whether the last loss that was read may be the beginning of a collapse."""
        return self.n_at_chance > 0

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
        if loss > self.factor * max(median, self.chance):
            what = f"the loss jumped to {loss:.4g} at step {step}, over {self.factor:g} times"
            raise _diverged(f"{what} its running median and chance level", lr, median)
        learnt = self.doubtful or median < _LEARNT * self.chance
        at_chance = learnt and loss > _AT_CHANCE * self.chance
        self.n_at_chance = self.n_at_chance + 1 if at_chance else 0
        if self.n_at_chance >= COLLAPSED:
            what = f"the loss has been at chance level for {COLLAPSED} steps up to step {step}"
            raise _diverged(what, lr, median)

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
            "n_at_chance": self.n_at_chance,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.n_seen = int(state["n_seen"])
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.unlogged = list(state["unlogged"])
        self.n_at_chance = int(state["n_at_chance"])
        self._unread = []


def _diverged(what: str, lr: float, median: float) -> DivergedError:
    known = f"{median:.4g}" if math.isfinite(median) else "not known yet"
    return DivergedError(
        f"{what} (learning rate {lr:.4g}, running median of the loss {known}); "
        "the last good checkpoint is kept",
        hint="a lower train.optimizer.lr, some train.schedule.warmup_steps or train.clip_norm = 5",
    )
