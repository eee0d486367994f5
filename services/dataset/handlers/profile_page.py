"""A profile as one HTML page: bars drawn as SVG, no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from argosy.dataset.v1 import dataset_pb2

# Units of a chart, which is as wide as its column: above the bars stands the largest count, below them the axis.
_WIDTH, _TOP, _HEIGHT, _BOTTOM = 460, 20, 130, 20
_STYLE = """
:root { --paper: #fff; --ink: #1c2733; --quiet: #55616e; --line: #d5dce4; --bar: #2f6f9f; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12181f; --ink: #dbe3ea; --quiet: #93a1ae; --line: #33404d; --bar: #6fb1df; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.3em; } h2 { font-size: 1.1em; margin: 2em 0 0; border-top: 1px solid var(--line); padding-top: 1em; }
p { margin: .3em 0 .8em; } .quiet, caption, figcaption, th { color: var(--quiet); font-weight: normal; }
.parts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24em), 1fr)); gap: 1em 2.5em; }
figure { margin: 0; min-width: 0; overflow-x: auto; } svg { display: block; width: 100%; }
svg rect { fill: var(--bar); } svg line { stroke: var(--quiet); } svg text { font-size: 13px; fill: var(--quiet); }
table { border-collapse: collapse; width: 100%; table-layout: fixed; } caption { text-align: left; }
td { padding: .1em .8em .1em 0; } td.value { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
td.number, table.quantiles { text-align: right; font-variant-numeric: tabular-nums; } td.number { padding-right: 0; }
table.quantiles { font-size: .8em; table-layout: auto; white-space: nowrap; }
table.quantiles :is(th, td) { padding: 0 0 0 .4em; text-align: right; }
"""


def page(profile: dataset_pb2.VersionProfile) -> str:
    """The page."""
    rows = f"{_rows(profile.row_count)}, {_bytes(profile.byte_count)}"
    if profile.profiled_rows < profile.row_count:
        rows += f"; figures from {profile.profiled_rows:,} of them, chosen at random"
    duplicates = f"Word for word the same as an earlier one: {_rows(profile.duplicate_rows)}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(profile.version)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(profile.version)}</h1><p>{rows}. {duplicates}.</p>",
        "<div class=parts>",
        _values("Files that the rows came from", profile.sources, profile.row_count),
        "</div>",
    ]
    parts += [_column(column, profile.profiled_rows) for column in profile.columns]
    if not profile.columns:
        parts.append("<p class=quiet>There are no columns.</p>")
    return "".join(parts)


def _column(column: dataset_pb2.ColumnProfile, rows: int) -> str:
    more = "more than " if column.distinct_is_more else ""
    missing = f"{column.missing:,} missing ({column.missing / max(1, rows):.1%})" if column.missing else "None missing"
    values = "value" if column.distinct == 1 else "different values"
    parts = [
        f"<h2>{escape(column.name)} <span class=quiet>{escape(column.kind)}</span></h2>",
        f"<p>{missing}, {more}{column.distinct:,} {values}.</p><div class=parts>",
    ]
    for title, field in (("Values", "numbers"), ("Characters of a text", "chars"), ("Words of a text", "words")):
        if column.HasField(field):
            parts.append(_distribution(title, getattr(column, field)))
    there = rows - column.missing
    languages = sum(language.count for language in column.languages)
    parts.append(_values(f"Languages of {languages:,} texts", column.languages, languages))
    # Of many values those that come once are shown by chance.
    all_are_shown = column.distinct <= len(column.top_values)
    frequent = [value for value in column.top_values if value.count > 1 or all_are_shown]
    parts.append(_values("Most frequent values", frequent, there))
    return "".join([*parts, "</div>"])


def _distribution(title: str, found: dataset_pb2.Distribution) -> str:
    if found.min == found.max:
        return f"<figure><figcaption>{escape(title)}</figcaption>always {_number(found.min)}</figure>"
    axis = ", logarithmic axis" if found.logarithmic else ""
    figures = [("mean", found.mean), *((f"{quantile.percent} %", quantile.value) for quantile in found.quantiles)]
    names = "".join(f"<th scope=col>{name}</th>" for name, _ in figures)
    values = "".join(f"<td>{_number(value)}</td>" for _, value in figures)
    return (
        f"<figure><figcaption>{escape(title)}{axis}</figcaption>{_histogram(title, found)}"
        f"<table class=quantiles title='Mean, and below what so many of a hundred lie'><tr>{names}</tr>"
        f"<tr>{values}</tr></table></figure>"
    )


def _histogram(title: str, found: dataset_pb2.Distribution) -> str:
    """Bars of equal width; on a logarithmic axis each is a factor wide."""
    counts, edges = list(found.counts), list(found.edges)
    step, most, floor = _WIDTH / max(1, len(counts)), max(counts, default=0) or 1, _TOP + _HEIGHT
    bars = [
        f"<rect x='{at * step:.1f}' y='{floor - _HEIGHT * count / most:.1f}' width='{max(1.0, step - 1):.1f}' "
        f"height='{_HEIGHT * count / most:.1f}'><title>{_number(low)} to {_number(high)}: {count:,}</title></rect>"
        for at, (count, low, high) in enumerate(zip(counts, edges, edges[1:], strict=False))
    ]
    middle = len(edges) // 2
    ticks = [(0.0, "start", found.min), (middle * step, "middle", edges[middle]), (_WIDTH, "end", found.max)]
    labels = "".join(
        f"<text x='{x:.1f}' y='{floor + 15}' text-anchor='{anchor}'>{_number(value)}</text>"
        for x, anchor, value in ticks
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {floor + _BOTTOM}' role=img aria-label='{escape(title)}'>"
        f"<text x='0' y='13'>highest bar: {most:,}</text>{''.join(bars)}"
        f"<line x1='0' y1='{floor}' x2='{_WIDTH}' y2='{floor}'/>{labels}</svg>"
    )


def _values(title: str, counted: Sequence[dataset_pb2.ValueCount], of: int) -> str:
    if not counted:
        return ""
    most = max(value.count for value in counted)
    lines = [
        f"<tr><td class=value title='{escape(value.value)}'>{escape(value.value[:60])}</td>"
        f"<td><svg height='12' aria-hidden=true><rect width='{max(0.5, 100 * value.count / most):.1f}%' height='12'/>"
        f"</svg></td><td class=number>{value.count:,}</td><td class=number>{value.count / max(1, of):.1%}</td></tr>"
        for value in counted
    ]
    widths = "<col style='width:42%'><col><col style='width:5.5em'><col style='width:4.5em'>"
    return f"<figure><table><caption>{escape(title)}</caption>{widths}{''.join(lines)}</table></figure>"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _number(value: float) -> str:
    """Four digits that count; more where they stand before the point."""
    if abs(value) >= 1e15:
        return f"{value:.4g}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"


def _bytes(count: int) -> str:
    size, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    for larger in units:
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
