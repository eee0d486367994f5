"""A search as one SVG: the history of the best, parallel coordinates, importances; nothing from elsewhere."""

from __future__ import annotations

from html import escape

from argosy.training.v1 import search_pb2 as pb

from services.training.domain.searches import HyperparameterSearch

# Units of the picture: two charts of this size above each other, with room for words around them, then one bar a path.
_WIDTH, _HEIGHT, _SIDE, _GAP, _BAR = 640, 200, 70, 60, 22
_STYLE = """
:root { --paper: #fff; --ink: #1c2733; --quiet: #55616e; --line: #d5dce4; --bar: #2f6f9f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12181f; --ink: #dbe3ea; --quiet: #93a1ae; --line: #33404d; --bar: #6fb1df; } }
.paper { fill: var(--paper); } text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
text.title { font-size: 14px; fill: var(--ink); } circle, rect.bar { fill: var(--bar); }
line { stroke: var(--line); } polyline { fill: none; stroke: var(--line); }
polyline.best { stroke: var(--bar); stroke-width: 2; }
"""


def picture(search: HyperparameterSearch, report: pb.SearchReport) -> str:
    """The picture.

    Args:
        report: of the same search.
    """
    second = _GAP + _HEIGHT + _GAP + _GAP
    third = second + _HEIGHT + _GAP
    bars = _bars(report, third)
    height = third + (len(report.importances) + 1) * _BAR if bars else third
    width = _WIDTH + 2 * _SIDE
    objective = search.plan.objective
    goal = "highest" if objective.maximize else "lowest"
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(report.states.items()))
    title = f"{search.id}: {objective.result} ({goal} is best), {states or 'no trials yet'}"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' "
        f"aria-label='{escape(title)}'><style>{_STYLE}</style>",
        f"<rect class='paper' width='{width}' height='{height}'/>",
        f"<text class='title' x='{_SIDE}' y='24'>{escape(title)}</text>",
    ]
    if report.history:
        parts += [_history(search, report, _GAP), _coordinates(search, report, second), bars]
    return "".join([*parts, "</svg>"])


def _history(search: HyperparameterSearch, report: pb.SearchReport, top: int) -> str:
    """A dot for each finished trial, and the best value so far as steps."""
    points = sorted(report.history, key=lambda point: point.number)
    values = [point.value for point in points]
    low, high = min(values), max(values)
    last = max(1, points[-1].number)

    def x(number: int) -> float:
        return _SIDE + _WIDTH * number / last

    def y(value: float) -> float:
        return top + _HEIGHT * (1 - _share(value, low, high))

    dots = "".join(
        f"<circle cx='{x(point.number):.1f}' cy='{y(point.value):.1f}' r='3'>"
        f"<title>trial {point.number}: {point.value:.5g} after {point.seconds:.0f} s</title></circle>"
        for point in points
    )
    steps: list[str] = []
    best = points[0].value
    for point in points:
        steps.append(f"{x(point.number):.1f},{y(best):.1f}")
        if search.plan.objective.better(point.value, best):
            best = point.value
            steps.append(f"{x(point.number):.1f},{y(best):.1f}")
    bottom = top + _HEIGHT
    return (
        f"<line x1='{_SIDE}' y1='{bottom}' x2='{_SIDE + _WIDTH}' y2='{bottom}'/>"
        f"<text x='{_SIDE - 8}' y='{top + 4}' text-anchor='end'>{high:.4g}</text>"
        f"<text x='{_SIDE - 8}' y='{bottom + 4}' text-anchor='end'>{low:.4g}</text>"
        f"<text x='{_SIDE}' y='{bottom + 18}'>trial 0</text>"
        f"<text x='{_SIDE + _WIDTH}' y='{bottom + 18}' text-anchor='end'>{last}</text>"
        f"{dots}<polyline class='best' points='{' '.join(steps)}'/>"
    )


def _coordinates(search: HyperparameterSearch, report: pb.SearchReport, top: int) -> str:
    """An axis for each path, the objective last, and a line for each finished trial; the best one stands out."""
    values = [line.value for line in report.lines]
    low, high = min(values), max(values)
    count = len(report.axes)
    places = [_SIDE + _WIDTH * index / count for index in range(count + 1)]
    lines: list[str] = []
    for line in sorted(report.lines, key=lambda line: line.number == search.best_trial):
        heights = [*line.positions, _share(line.value, low, high)]
        points = " ".join(
            f"{x:.1f},{top + _HEIGHT * (1 - height):.1f}" for x, height in zip(places, heights, strict=True)
        )
        best = " class='best'" if line.number == search.best_trial else ""
        lines.append(
            f"<polyline{best} points='{points}'><title>trial {line.number}: {line.value:.5g}</title></polyline>"
        )
    ends = [
        (axis.choices[0], axis.choices[-1]) if axis.choices else (f"{axis.low:.4g}", f"{axis.high:.4g}")
        for axis in report.axes
    ]
    names = [*(axis.path for axis in report.axes), search.plan.objective.result]
    words: list[str] = []
    for index, (x, name, (first, last)) in enumerate(
        zip(places, names, [*ends, (f"{low:.4g}", f"{high:.4g}")], strict=True)
    ):
        # Names of neighbours stand one above the other, so that they do not run into each other.
        above = top - 24 - 16 * (index % 2)
        words.append(f"<line x1='{x:.1f}' y1='{top}' x2='{x:.1f}' y2='{top + _HEIGHT}'/>")
        for y, text in ((above, name), (top - 6, last), (top + _HEIGHT + 16, first)):
            words.append(f"<text x='{x:.1f}' y='{y}' text-anchor='middle'>{escape(text[:40])}</text>")
    return "".join([*lines, *words])


def _bars(report: pb.SearchReport, top: int) -> str:
    if not report.importances:
        return ""
    shares = sorted(report.importances.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"<text class='title' x='{_SIDE}' y='{top}'>Share in what makes a trial good</text>"]
    for index, (path, share) in enumerate(shares):
        y = top + 8 + index * _BAR
        lines.append(
            f"<rect class='bar' x='{_SIDE}' y='{y}' width='{max(1.0, share * _WIDTH / 2):.1f}' height='{_BAR - 6}'/>"
            f"<text x='{_SIDE + share * _WIDTH / 2 + 8:.1f}' y='{y + 12}'>{escape(path)} {share:.0%}</text>"
        )
    return "".join(lines)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5
