"""A small drawing board for charts: axes, grid, points, lines, as inline SVG.

Colours are CSS classes, so that a chart follows the page into dark mode and onto paper. Output
depends on the data only: no ids, no clocks. Texts are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from pipeline.report.figures import visible

Point = tuple[float, float]

_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 56, 18, 16, 46


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: title, range, and how a tick is written, given its value and the ticks' step."""

    title: str
    low: float
    high: float
    label: Callable[[float, float], str]

    @classmethod
    def around(
        cls,
        title: str,
        values: Sequence[float],
        label: Callable[[float, float], str],
        *,
        floor: float | None = None,
    ) -> Axis:
        """An axis that holds ``values`` with some air, not reaching below ``floor``."""
        low, high = min(values), max(values)
        span = high - low or abs(high) * 0.2 or 1.0
        low, high = low - span * 0.07, high + span * 0.07
        return cls(
            title=title, low=low if floor is None else max(low, floor), high=high, label=label
        )

    def ticks(self, about: int) -> list[tuple[float, str]]:
        """About as many round numbers in the range, with their labels; steps are 1, 2, 5 · 10ⁿ."""
        raw = (self.high - self.low) / max(about, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next((m * power for m in (1, 2, 5) if m * power >= raw), 10 * power)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [(i * step, self.label(i * step, step)) for i in range(first, last + 1)]


class Plot:
    """A chart under construction; methods draw in data coordinates, in the order of calls.

    >>> axis = Axis(title="x", low=0, high=10, label=lambda v, step: f"{v:g}")
    >>> plot = Plot(axis, axis, caption="empty")
    >>> plot.dot((5, 5), "measured", "a <b>")
    >>> "a &lt;b&gt;" in plot.svg()
    True
    """

    def __init__(
        self, x: Axis, y: Axis, *, caption: str, width: int = 520, height: int = 340
    ) -> None:
        self.x, self.y, self.caption = x, y, caption
        self.width, self.height = width, height
        self.left, self.right = _MARGIN_LEFT, width - _MARGIN_RIGHT
        self.top, self.bottom = _MARGIN_TOP, height - _MARGIN_BOTTOM
        self._parts: list[str] = []
        self._draw_axes()

    def px(self, x: float) -> float:
        """Horizontal pixel of a data value."""
        share = (x - self.x.low) / (self.x.high - self.x.low)
        return round(self.left + share * (self.right - self.left), 1)

    def py(self, y: float) -> float:
        """Vertical pixel of a data value."""
        share = (y - self.y.low) / (self.y.high - self.y.low)
        return round(self.bottom - share * (self.bottom - self.top), 1)

    def dot(self, at: Point, style: str, title: str = "", *, radius: float = 3.2) -> None:
        """A circle with a tooltip."""
        self._parts.append(
            f'<circle class="{style}" cx="{self.px(at[0])}" cy="{self.py(at[1])}" r="{radius}">'
            f"{_title(title)}</circle>"
        )

    def bar(self, start: Point, end: Point, style: str) -> None:
        """A straight line between two points, such as an interval."""
        self._parts.append(
            f'<line class="{style}" x1="{self.px(start[0])}" y1="{self.py(start[1])}" '
            f'x2="{self.px(end[0])}" y2="{self.py(end[1])}"/>'
        )

    def line(self, points: Sequence[Point], style: str) -> None:
        """A polyline."""
        path = " ".join(f"{self.px(x)},{self.py(y)}" for x, y in points)
        self._parts.append(f'<polyline class="{style}" points="{path}"/>')

    def shade_right_of(self, x: float, style: str) -> None:
        """Fill everything to the right of ``x``."""
        start = min(max(self.px(x), self.left), self.right)
        self._parts.append(
            f'<rect class="{style}" x="{start}" y="{self.top}" '
            f'width="{round(self.right - start, 1)}" height="{self.bottom - self.top}"/>'
        )

    def text(
        self, at: Point, words: str, style: str, *, dx: float = 0, dy: float = 0,
        anchor: str = "start",
    ) -> None:  # fmt: skip
        """A label near a point, shifted by (dx, dy) pixels and kept inside the chart."""
        x, y = self.px(at[0]) + dx, self.py(at[1]) + dy
        room = 6.4 * len(words)  # of a 12 px system font, generously
        if anchor == "start" and x + room > self.right:
            x, anchor = self.px(at[0]) - dx, "end"
        elif anchor == "end" and x - room < self.left:
            x, anchor = self.px(at[0]) - dx, "start"
        self._label(x, max(self.top + 10, min(self.bottom - 4, y)), words, style, anchor)

    def svg(self) -> Markup:
        """The finished chart."""
        return Markup(
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{_escaped(self.caption)}">{"".join(self._parts)}</svg>'
        )

    def _draw_axes(self) -> None:
        for value, words in self.x.ticks(max(3, (self.right - self.left) // 75)):
            at = self.px(value)
            self._parts.append(
                f'<line class="grid" x1="{at}" y1="{self.top}" x2="{at}" y2="{self.bottom}"/>'
            )
            self._label(at, self.bottom + 17, words, "tick", "middle")
        for value, words in self.y.ticks(max(3, (self.bottom - self.top) // 52)):
            at = self.py(value)
            self._parts.append(
                f'<line class="grid" x1="{self.left}" y1="{at}" x2="{self.right}" y2="{at}"/>'
            )
            self._label(self.left - 8, at + 4, words, "tick", "end")
        self._parts.append(
            f'<line class="axis" x1="{self.left}" y1="{self.bottom}" x2="{self.right}" '
            f'y2="{self.bottom}"/>'
        )
        middle = (self.left + self.right) / 2
        self._label(middle, self.height - 8, self.x.title, "axis-title", "middle")
        centre = (self.top + self.bottom) / 2
        self._parts.append(
            f'<text class="axis-title" text-anchor="middle" '
            f'transform="translate(13 {centre}) rotate(-90)">{_escaped(self.y.title)}</text>'
        )

    def _label(self, x: float, y: float, words: str, style: str, anchor: str) -> None:
        self._parts.append(
            f'<text class="{style}" x="{round(x, 1)}" y="{round(y, 1)}" '
            f'text-anchor="{anchor}">{_escaped(words)}</text>'
        )


def _escaped(words: str) -> str:
    return escape(visible(words))


def _title(words: str) -> str:
    return f"<title>{_escaped(words)}</title>" if words else ""
