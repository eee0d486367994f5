"""Curves of runs as one SVG picture: a chart a metric, a colour a run, no script, nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

# Units of a chart: the plot, and around it room for the title, the numbers of the axes, and the legend below all.
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _GAP, _LEGEND = 600, 200, 70, 30, 30, 20, 18
_TICKS = 4
# Okabe and Ito (2008), told apart by people of every colour vision; more runs than colours get dashes as well.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a")
_DASHES = ("", "6 3", "2 3")
_STYLE = """
svg { background: #fff; font: 13px system-ui, sans-serif; } text { fill: #55616e; } .title { fill: #1c2733; }
.axis { stroke: #b8c1cb; } polyline { fill: none; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) { svg { background: #12181f; } text { fill: #93a1ae; } .title { fill: #dbe3ea; }
  .axis { stroke: #33404d; } }
"""


@dataclass(frozen=True)
class Line:
    """One curve: what the legend calls it, and its points (place on the axis, value)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """The curves of one metric."""

    title: str
    lines: Sequence[Line]


def picture(charts: Sequence[Chart], names: Sequence[str], by_time: bool, logarithmic: bool) -> str:
    """The picture.

    Args:
        names: of all lines of all charts, in the order of the legend.
        by_time: the axis is in seconds and not in steps.
        logarithmic: the scale of values; those that are not positive are left out.
    """
    chart_height = _TOP + _HEIGHT + _BOTTOM + _GAP
    width, height = _LEFT + _WIDTH + _GAP, len(charts) * chart_height + (len(names) + 1) * _LEGEND
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"role='img' aria-label='Curves of {len(names)} runs'><style>{_STYLE}</style>"
    ]
    for number, chart in enumerate(charts):
        parts.append(f"<g transform='translate({_LEFT} {number * chart_height + _TOP})'>")
        parts += _chart(chart, names, "seconds" if by_time else "steps", logarithmic)
        parts.append("</g>")
    for number, name in enumerate(names):
        y = len(charts) * chart_height + (number + 0.5) * _LEGEND
        parts.append(
            f"<line x1='{_LEFT}' x2='{_LEFT + 30}' y1='{y}' y2='{y}' {_stroke(number)}/>"
            f"<text x='{_LEFT + 38}' y='{y + 4}'>{escape(name)}</text>"
        )
    return "".join([*parts, "</svg>"])


def _chart(chart: Chart, names: Sequence[str], unit: str, logarithmic: bool) -> Iterator[str]:
    scale = ", logarithmic" if logarithmic else ""
    yield f"<text class='title' x='0' y='-12'>{escape(chart.title)}{scale}</text>"
    yield f"<path class='axis' fill='none' d='M0 0V{_HEIGHT}H{_WIDTH}'/>"
    shown = [(line, [point for point in line.points if _shows(point[1], logarithmic)]) for line in chart.lines]
    everything = [point for _, points in shown for point in points]
    if not everything:
        yield f"<text x='{_WIDTH / 2}' y='{_HEIGHT / 2}' text-anchor='middle'>no values</text>"
        return
    left, right = min(x for x, _ in everything), max(x for x, _ in everything)
    values = [_height(value, logarithmic) for _, value in everything]
    low, high = min(values), max(values)
    across, up = _WIDTH / ((right - left) or 1.0), _HEIGHT / ((high - low) or 1.0)
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        value = low + share * (high - low)
        yield (
            f"<text x='-6' y='{_HEIGHT * (1 - share) + 4:.1f}' text-anchor='end'>"
            f"{_number(10**value if logarithmic else value)}</text>"
            f"<text x='{_WIDTH * share:.1f}' y='{_HEIGHT + 18}' text-anchor='middle'>"
            f"{_number(left + share * (right - left))}{f' {unit}' if tick == _TICKS else ''}</text>"
        )
    for line, _ in shown:
        colour = _stroke(names.index(line.name))
        # A value that cannot be drawn is a gap in its line.
        for piece in _pieces(line.points, logarithmic):
            places = " ".join(
                f"{(x - left) * across:.1f},{_HEIGHT - (_height(value, logarithmic) - low) * up:.1f}"
                for x, value in piece
            )
            yield f"<polyline {colour} points='{places}'/>"
        wrong = sum(not math.isfinite(value) for _, value in line.points)
        if wrong:
            first = next(x for x, value in line.points if not math.isfinite(value))
            # A cross at the top where the values stop being numbers.
            yield (
                f"<text x='{max(0.0, min(float(_WIDTH), (first - left) * across)):.1f}' y='12' text-anchor='middle'>"
                f"<title>{escape(line.name)}: not finite from {_number(first)} {unit} on</title>×</text>"
            )


def _pieces(points: Sequence[tuple[float, float]], logarithmic: bool) -> Iterator[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for point in points:
        if _shows(point[1], logarithmic):
            piece.append(point)
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _shows(value: float, logarithmic: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not logarithmic)


def _height(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _stroke(number: int) -> str:
    dashes = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return f"stroke='{_COLOURS[number % len(_COLOURS)]}'" + (f" stroke-dasharray='{dashes}'" if dashes else "")


def _number(value: float) -> str:
    """Four digits that count."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
