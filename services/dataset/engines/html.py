"""Taking HTML out of text without taking out what only looks like it.

Technical text is full of `<class 'int'>` and `List<int>`, so only the elements of the HTML standard count as tags.
"""

from __future__ import annotations

import html
import re


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# https://html.spec.whatwg.org/multipage/indices.html#elements-3, with the obsolete ones that old pages still have.
_ELEMENTS = _names(
    """a abbr acronym address applet area article aside audio b base basefont bdi bdo big blink blockquote body br
    button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl dt em embed
    fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe
    img input ins kbd label legend li link main map mark marquee menu meta meter nav nobr noframes noscript object ol
    optgroup option output p param picture pre progress q rp rt ruby s samp script search section select slot small
    source span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead time title tr
    track tt u ul var video wbr"""
)
_BLOCKS = _names(
    """address article aside blockquote br center dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5
    h6 header hr li main nav ol p pre section table tr ul"""
)
# What stands in them is not text.
_SILENT = ("script", "style", "template", "noframes")
_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*)(?:\s[^<>]*|/)?>")
_DOCTYPE = re.compile(r"<!DOCTYPE[^<>]*>", re.IGNORECASE)


def strip_html(text: str) -> str:
    """The text without tags, comments, scripts and styles, and with entities decoded.

    A block element becomes a line break, so that words on both sides stay apart. Runs in linear time on any input.
    """
    if "<" in text:
        text = _cut(text, "<!--", "-->")
        for element in _SILENT:
            text = _cut(text, f"<{element}", f"</{element}>")
        text = _TAG.sub(_replace, _DOCTYPE.sub("", text))
    return html.unescape(text) if "&" in text else text


def _replace(match: re.Match[str]) -> str:
    name = match[1].lower()
    if name not in _ELEMENTS:
        return match[0]
    return "\n" if name in _BLOCKS else ""


def _cut(text: str, start: str, end: str) -> str:
    """Removes everything from `start` to `end`, in any case; an opening without an end stays, as it is no element."""
    lower = text.lower()
    if start not in lower or len(lower) != len(text):
        # Lower-casing changed the length (a capital dotted I does): positions would not match, and such text has no
        # script.
        return text
    kept: list[str] = []
    at = 0
    while (begin := lower.find(start, at)) >= 0 and (stop := lower.find(end, begin + len(start))) >= 0:
        after = lower[begin + len(start) : begin + len(start) + 1]
        if start != "<!--" and after not in (">", " ", "\t", "\n", "/"):
            kept.append(text[at : begin + len(start)])
            at = begin + len(start)
            continue
        kept.append(text[at:begin])
        at = stop + len(end)
    kept.append(text[at:])
    return "".join(kept)
