"""
Charts as SVG text: panels of bars, panels of lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_BAR, _GAP, _LABELS, _WIDTH = 16, 6, 215, 480
_PLOT_WIDTH, _PLOT_HEIGHT, _LEFT, _LEGEND = 330, 220, 64, 18
_COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8d6a9f", "#b08900", "#5f6b6d", "#2a9d8f", "#9c2c5a")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.t{font-weight:600}.s{fill:#57606a;font-size:11px}"
    ".g{stroke:#d0d7de;stroke-width:1}.b{fill:#9aa7b2}.o{fill:#0b6e4f}"
)


@dataclass(frozen=True, slots=True)
class Bars:
    """A panel of horizontal bars from zero; the one named *ours* stands out."""

    title: str
    values: Mapping[str, float]
    ours: str = "akv"
    unit: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return _WIDTH, 34 + len(self.values) * (_BAR + _GAP)

    def draw(self) -> Iterator[str]:
        """Draw at the origin."""
        yield _text(0, 16, self.title, "t")
        most = max(self.values.values(), default=1.0) or 1.0
        room = _WIDTH - _LABELS - 90
        for number, (name, value) in enumerate(self.values.items()):
            y = 28 + number * (_BAR + _GAP)
            length = max(1.0, value / most * room)
            kind = "o" if name.startswith(self.ours) else "b"
            yield _text(_LABELS - 8, y + 12, name, "", "end")
            yield f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>'
            yield _text(_LABELS + length + 6, y + 12, f"{shown(value)}{self.unit}", "s")


@dataclass(frozen=True, slots=True)
class Lines:
    """A panel of lines over equally spaced steps, on a logarithmic scale."""

    title: str
    steps: Sequence[str]
    series: Mapping[str, Sequence[float | None]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return _LEFT + _PLOT_WIDTH + 20, 24 + _PLOT_HEIGHT + 34 + _LEGEND * len(self.series)

    def draw(self) -> Iterator[str]:
        """Draw at the origin."""
        yield _text(0, 16, self.title, "t")
        found = [value for each in self.series.values() for value in each if value]
        low = math.floor(math.log10(min(found, default=1.0)))
        high = max(low + 1, math.ceil(math.log10(max(found, default=10.0))))
        bottom = 28 + _PLOT_HEIGHT

        def y_of(value: float) -> float:
            return bottom - (math.log10(value) - low) / (high - low) * _PLOT_HEIGHT

        def x_of(step: int) -> float:
            return _LEFT + _PLOT_WIDTH * (step + 0.5) / len(self.steps)

        for power in range(low, high + 1):
            y = y_of(10.0**power)
            yield f'<line class="g" x1="{_LEFT}" x2="{_LEFT + _PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _text(_LEFT - 6, y + 4, shown(10.0**power), "s", "end")
        for step, label in enumerate(self.steps):
            yield _text(x_of(step), bottom + 18, label, "s", "middle")
        for number, (name, values) in enumerate(self.series.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            points = [(x_of(step), y_of(value)) for step, value in enumerate(values) if value]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'
            yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
            y = bottom + 38 + number * _LEGEND
            yield f'<rect x="{_LEFT}" y="{y - 9}" width="14" height="4" fill="{colour}"/>'
            yield _text(_LEFT + 20, y - 3, name, "s")


def chart(title: str, panels: Sequence[Bars | Lines], columns: int = 2) -> str:
    """Arrange panels in a drawing."""
    widths, heights = zip(*(panel.size for panel in panels), strict=True)
    step = max(widths) + 24
    columns = min(columns, len(panels))
    rows = [heights[start : start + columns] for start in range(0, len(panels), columns)]
    height = 48 + sum(max(row) + 16 for row in rows)
    width = columns * step + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff" rx="6"/>',
        _text(24, 28, title, "t"),
    ]
    y = 48
    for number, row in enumerate(rows):
        for column, panel in enumerate(panels[number * columns : (number + 1) * columns]):
            parts += [f'<g transform="translate({24 + column * step} {y})">', *panel.draw(), "</g>"]
        y += max(row) + 16
    return "\n".join([*parts, "</svg>", ""])


def shown(value: float) -> str:
    """A number for people."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if value >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
