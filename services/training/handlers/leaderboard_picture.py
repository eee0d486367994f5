"""A leaderboard as one SVG: a line a model with its interval, then the columns that matter; nothing from elsewhere."""

from __future__ import annotations

from html import escape

from argosy.training.v1 import automl_pb2, search_pb2

# Units of the picture: room for names at the left and for numbers at the right of the lines, and the height of a line.
_NAMES, _WIDTH, _NUMBERS, _LINE, _TOP = 190, 420, 230, 22, 70
_MOST_LINES = 30
_STYLE = """
:root { --paper: #fff; --ink: #1c2733; --quiet: #55616e; --line: #d5dce4; --bar: #2f6f9f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12181f; --ink: #dbe3ea; --quiet: #93a1ae; --line: #33404d; --bar: #6fb1df; } }
.paper { fill: var(--paper); } text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
text.title { font-size: 14px; fill: var(--ink); } circle, rect.bar { fill: var(--bar); } line { stroke: var(--line); }
"""


def picture(board: automl_pb2.Leaderboard) -> str:
    """The picture."""
    finished = [entry for entry in board.entries if entry.state == search_pb2.SearchTrial.STATE_FINISHED]
    lines = _entries(board, finished[:_MOST_LINES])
    second = _TOP + len(finished[:_MOST_LINES]) * _LINE + _LINE
    bars = _importances(board, second)
    height = second + (min(len(board.importances), _MOST_LINES) + 2) * _LINE if bars else second
    width = _NAMES + _WIDTH + _NUMBERS
    title = f"{board.target_column}: {board.task}, {len(finished)} of {len(board.entries)} models finished"
    return "".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' "
            f"aria-label='{escape(title)}'><style>{_STYLE}</style>",
            f"<rect class='paper' width='{width}' height='{height}'/>",
            f"<text class='title' x='16' y='24'>{escape(title)}</text>",
            f"<text x='16' y='44'>{escape(_told(board))}</text>",
            *lines,
            *bars,
            "</svg>",
        ]
    )


def _told(board: automl_pb2.Leaderboard) -> str:
    """The main figure of the mean of the models, in words."""
    if not board.figures:
        return f"{board.metric} on parts of the rows that the model had not learned; small is good"
    figure = board.figures[0]
    return (
        f"together {figure.name} {figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g}) on held-out rows; "
        f"best alone {figure.best_single.value:.4g}, trivial baseline {figure.baseline.value:.4g}"
    )


def _entries(board: automl_pb2.Leaderboard, entries: list[automl_pb2.LeaderboardEntry]) -> list[str]:
    if not entries:
        return []
    low, high = min(entry.low for entry in entries), max(entry.high for entry in entries)
    scale = _WIDTH / ((high - low) or 1.0)
    lines: list[str] = []
    for place, entry in enumerate(entries):
        y = _TOP + place * _LINE
        left, middle, right = (_NAMES + (each - low) * scale for each in (entry.low, entry.score, entry.high))
        weight = f", {entry.weight:.0%} of the mean" if entry.weight else ""
        what = ", ".join(f"{name} {value:.4g}" for name, value in sorted(entry.parameters.items()))
        lines.append(
            f"<text x='16' y='{y + 4}'>{entry.rank}. {escape(entry.family)} ({entry.number})</text>"
            f"<line x1='{left:.1f}' y1='{y}' x2='{right:.1f}' y2='{y}'/>"
            f"<circle cx='{middle:.1f}' cy='{y}' r='4'><title>{escape(what)}</title></circle>"
            f"<text x='{_NAMES + _WIDTH + 12}' y='{y + 4}'>{entry.score:.4g}, {entry.fit_seconds:.2g} s{weight}</text>"
        )
    return lines


def _importances(board: automl_pb2.Leaderboard, top: int) -> list[str]:
    if not board.importances:
        return []
    shown = sorted(board.importances.items(), key=lambda item: (-item[1], item[0]))[:_MOST_LINES]
    # Where every column only disturbs, there is nothing to draw but a first stroke.
    scale = _WIDTH / max(1e-12, *(value for _, value in shown))
    title = f"How much {board.metric} grows when a column is shuffled"
    lines = [f"<text class='title' x='16' y='{top}'>{escape(title)}</text>"]
    for place, (name, value) in enumerate(shown, 1):
        y = top + place * _LINE
        width = max(1.0, value * scale)
        lines.append(
            f"<text x='16' y='{y + 12}'>{escape(name[:24])}</text>"
            f"<rect class='bar' x='{_NAMES}' y='{y}' width='{width:.1f}' height='{_LINE - 6}'/>"
            f"<text x='{_NAMES + width + 8:.1f}' y='{y + 12}'>{value:.4g}</text>"
        )
    return lines
