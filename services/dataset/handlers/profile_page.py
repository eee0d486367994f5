"""A profile as one HTML page: bars drawn as SVG, no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from argosy.dataset.v1 import dataset_pb2

_WIDTH, _HEIGHT = 460, 130
# Rows of a table of values, and the width of its bars.
_BAR = 180
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #1c2733; }
h1 { font-size: 1.3em; } h2 { font-size: 1.1em; margin: 2em 0 .3em; border-top: 1px solid #d5dce4; padding-top: 1em; }
.parts { display: flex; flex-wrap: wrap; gap: 2em; } figure { margin: .5em 0; } figcaption { color: #55616e; }
table { border-collapse: collapse; } td { padding: .1em .8em .1em 0; vertical-align: middle; }
td.value { max-width: 20em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .quiet { color: #55616e; }
svg rect { fill: #2f6f9f; } svg text { font: 11px system-ui, sans-serif; fill: #55616e; }
@media (prefers-color-scheme: dark) { body { background: #12181f; color: #dbe3ea; } svg rect { fill: #6fb1df; }
h2 { border-color: #33404d; } .quiet, figcaption, svg text { color: #93a1ae; fill: #93a1ae; } }
"""


def page(profile: dataset_pb2.VersionProfile) -> str:
    """The page."""
    rows = f"{profile.row_count:,} rows, {_bytes(profile.byte_count)}"
    if profile.profiled_rows < profile.row_count:
        rows += f"; figures from {profile.profiled_rows:,} of them, chosen at random"
    duplicates = f"{profile.duplicate_rows:,} rows come again word for word."
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(profile.version)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(profile.version)}</h1><p>{rows}. {duplicates}</p>",
        "<div class=parts>",
        _values("Files that the rows came from", profile.sources, profile.row_count),
        "</div>",
    ]
    parts += [_column(column, profile.profiled_rows) for column in profile.columns]
    return "".join(parts)


def _column(column: dataset_pb2.ColumnProfile, rows: int) -> str:
    more = "more than " if column.distinct_is_more else ""
    missing = f"{column.missing:,} missing ({column.missing / max(1, rows):.1%})"
    parts = [
        f"<h2>{escape(column.name)} <span class=quiet>{escape(column.kind)}</span></h2>",
        f"<p>{missing}, {more}{column.distinct:,} different values.</p><div class=parts>",
    ]
    for title, field in (("Value", "numbers"), ("Characters of a text", "chars"), ("Words of a text", "words")):
        if column.HasField(field):
            parts.append(_histogram(title, getattr(column, field)))
    there = rows - column.missing
    languages = sum(language.count for language in column.languages)
    parts.append(_values(f"Languages of {languages:,} texts", column.languages, languages))
    parts.append(_values("Most frequent values", column.top_values, there))
    return "".join([*parts, "</div>"])


def _histogram(title: str, found: dataset_pb2.Distribution) -> str:
    """Bars of equal width; on a logarithmic axis each is a factor wide."""
    counts = list(found.counts)
    step, most = _WIDTH / max(1, len(counts)), max(counts, default=0) or 1
    bars = [
        f"<rect x='{at * step:.1f}' y='{_HEIGHT * (1 - count / most):.1f}' width='{max(1.0, step - 1):.1f}' "
        f"height='{_HEIGHT * count / most:.1f}'><title>{_number(low)} to {_number(high)}: {count:,}</title></rect>"
        for at, (count, low, high) in enumerate(zip(counts, found.edges, found.edges[1:], strict=False))
    ]
    quantiles = ", ".join(f"{quantile.percent} % {_number(quantile.value)}" for quantile in found.quantiles)
    axis = " (logarithmic axis)" if found.logarithmic else ""
    return (
        f"<figure><svg width='{_WIDTH}' height='{_HEIGHT + 18}' role=img aria-label='{escape(title)}'>{''.join(bars)}"
        f"<text x='0' y='{_HEIGHT + 14}'>{_number(found.min)}</text>"
        f"<text x='{_WIDTH}' y='{_HEIGHT + 14}' text-anchor='end'>{_number(found.max)}</text></svg>"
        f"<figcaption>{escape(title)}{axis}: mean {_number(found.mean)}; below: {quantiles}</figcaption></figure>"
    )


def _values(title: str, counted: Sequence[dataset_pb2.ValueCount], of: int) -> str:
    if not counted:
        return ""
    most = max(value.count for value in counted)
    lines = [
        f"<tr><td class=value title='{escape(value.value)}'>{escape(value.value[:60])}</td>"
        f"<td><svg width='{_BAR}' height='12'><rect width='{max(1.0, _BAR * value.count / most):.1f}' height='12'/>"
        f"</svg></td><td class=number>{value.count:,}</td><td class=number>{value.count / max(1, of):.1%}</td></tr>"
        for value in counted
    ]
    return f"<figure><figcaption>{escape(title)}</figcaption><table>{''.join(lines)}</table></figure>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def _bytes(count: int) -> str:
    size, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    for larger in units:
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
