"""Does the exported file compute what torch computed? Measured on real images, refused when not.

Two numbers decide. The largest difference of any logit must stay within the tolerance, which is a
share of the largest logit (and of one where all are smaller), because float32 rounding grows with
the numbers. And every image whose best two logits lie further apart than that must get the same
class. Images that torch itself cannot tell apart do not count against the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latency_tables.errors import ParityError
from pipeline.onnx_runtime import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """How far two sets of logits are apart.

    ``allowed`` is the largest difference allowed, in units of the logits; ``agreement`` the share
    of all images with the same class, ``n_decided`` the images whose class torch is sure of, and
    ``n_flipped`` those among them that got another class.
    """

    n_images: int
    max_abs_diff: float
    allowed: float
    agreement: float
    n_decided: int
    n_flipped: int

    @property
    def ok(self) -> bool:
        """Whether the file may be used; a difference that is no number never is."""
        return self.max_abs_diff <= self.allowed and self.n_flipped == 0

    def require(self, name: str) -> None:
        """Raise ParityError, with the numbers, unless :attr:`ok`."""
        if self.ok:
            return
        raise ParityError(
            f"{name} and torch disagree on {self.n_images} real images: logits differ by up to "
            f"{self.max_abs_diff:.3g} ({self.allowed:.3g} is allowed), {self.n_flipped} of "
            f"{self.n_decided} clear decisions changed, argmax agrees on {self.agreement:.1%}",
            hint="another opset in [export]; a larger tolerance only if the difference is harmless",
        )


def compare_logits(expected: FloatArray, actual: FloatArray, *, tolerance: float) -> ParityReport:
    """Compare logits (N, n_classes) of torch and of the file.

    Raises:
        ParityError: shapes differ, or there is nothing to compare.

    >>> logits = np.array([[1.0, 2.0], [5.0, 3.0]], np.float32)
    >>> compare_logits(logits, logits + np.float32(1e-5), tolerance=1e-4).ok
    True
    """
    if expected.shape != actual.shape or expected.ndim != 2:
        raise ParityError(f"logits of torch are {expected.shape}, those of the file {actual.shape}")
    if len(expected) == 0:
        raise ParityError("parity needs at least one image")
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    allowed = tolerance * max(1.0, float(np.max(np.abs(expected))))
    same = expected.argmax(axis=1) == actual.argmax(axis=1)
    ordered = np.sort(expected.astype(np.float64), axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if expected.shape[1] > 1 else ordered[:, -1] * 0
    decided = margin > allowed
    return ParityReport(
        n_images=len(expected),
        max_abs_diff=float(difference.max()),
        allowed=allowed,
        agreement=float(same.mean()),
        n_decided=int(decided.sum()),
        n_flipped=int((decided & ~same).sum()),
    )
