"""Cleaning rules for one text: what changes it, and what drops its row."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.dataset.engines.html import strip_html
from services.dataset.engines.personal import find_personal_data

# Characters of East Asian scripts, which write no spaces: each counts as a word.
_EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]+")
_EAST_ASIAN_CHARACTER = re.compile(f"[{_EAST_ASIAN}]")
_BLANKS_BEFORE_BREAK = re.compile(r"[^\S\n]+\n")
_MANY_BREAKS = re.compile(r"\n{3,}")
# Gopher (arXiv 2112.11446, appendix A1.1) counts hash signs and ellipses.
_SYMBOLS = re.compile(r"#|\.\.\.|…")
# Lines a text must have before a repeated one means anything.
_LEAST_LINES = 4


@dataclass(frozen=True)
class Rules:
    """Which rules apply; the fields are those of `argosy.dataset.v1.CleaningRules`."""

    strip_html: bool = False
    normalise: bool = False
    min_chars: int = 0
    max_chars: int = 0
    min_words: int = 0
    min_alpha_ratio: float = 0.0
    max_repeated_line_ratio: float = 0.0
    max_symbol_ratio: float = 0.0
    exact_duplicates: bool = False
    near_duplicate_threshold: float = 0.0
    banned_words: tuple[str, ...] = ()
    drop_personal_data: bool = False
    _banned: tuple[frozenset[str], tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        folded = [" ".join(words(banned.casefold())) for banned in self.banned_words]
        single = frozenset(banned for banned in folded if banned and " " not in banned)
        object.__setattr__(self, "_banned", (single, tuple(f" {banned} " for banned in folded if " " in banned)))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Rules:
        """Rules from their JSON form."""
        return cls(**{**spec, "banned_words": tuple(spec.get("banned_words", ()))})

    @property
    def banned(self) -> tuple[frozenset[str], tuple[str, ...]]:
        """Banned words, and banned phrases with a blank on both sides, all case-folded."""
        return self._banned


def words(text: str) -> list[str]:
    """Words of a text: runs of letters, digits and underscores; each East Asian character is one."""
    return _WORD.findall(text)


def is_east_asian(text: str) -> bool:
    """Whether the text has a character of a script that writes no spaces."""
    return not text.isascii() and _EAST_ASIAN_CHARACTER.search(text) is not None


def change(text: str, rules: Rules) -> tuple[str, list[str]]:
    """Applies the rules that change text. Returns the text and the names of the rules that changed it."""
    changed: list[str] = []
    if rules.strip_html and (stripped := strip_html(text)) != text:
        text = stripped
        changed.append("strip_html")
    if rules.normalise and (normal := normalise(text)) != text:
        text = normal
        changed.append("normalise")
    return text, changed


def normalise(text: str) -> str:
    """Unicode NFC, line feeds only, no blanks before a line's end, at most one empty line, nothing around the text.

    Blanks inside a line stay: in code and tables they mean something.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("\u2028", "\n").replace("\u2029", "\n\n")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x00" in text:
        text = text.replace("\x00", "")
    return _MANY_BREAKS.sub("\n\n", _BLANKS_BEFORE_BREAK.sub("\n", text)).strip()


def comparable(text: str) -> str:
    """The form in which exact duplicates are equal: NFC, every run of white space one blank."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def find_fault(text: str, rules: Rules) -> tuple[str, str] | None:
    """The first rule that drops the text, and why; None when it stays."""
    length = len(text)
    if length < rules.min_chars:
        return "min_chars", f"{length} characters, at least {rules.min_chars} wanted"
    if rules.max_chars and length > rules.max_chars:
        return "max_chars", f"{length} characters, at most {rules.max_chars} wanted"
    found = words(text) if rules.min_words or rules.max_symbol_ratio else []
    if len(found) < rules.min_words:
        return "min_words", f"{len(found)} words, at least {rules.min_words} wanted"
    for check in (_alpha_fault, _repetition_fault):
        if fault := check(text, rules):
            return fault
    if rules.max_symbol_ratio:
        ratio = len(_SYMBOLS.findall(text)) / max(1, len(found))
        if ratio > rules.max_symbol_ratio:
            return "max_symbol_ratio", f"{ratio:.2f} symbols a word, at most {rules.max_symbol_ratio:g} wanted"
    if rules.banned_words and (banned := _find_banned(text, rules)):
        return "banned_words", f"has {banned!r}"
    if rules.drop_personal_data and (kind := find_personal_data(text)):
        return "drop_personal_data", f"has {kind}"
    return None


def _alpha_fault(text: str, rules: Rules) -> tuple[str, str] | None:
    if not rules.min_alpha_ratio:
        return None
    dense = "".join(text.split())
    ratio = sum(map(str.isalpha, dense)) / max(1, len(dense))
    if ratio >= rules.min_alpha_ratio:
        return None
    return "min_alpha_ratio", f"{ratio:.2f} of the characters are letters, at least {rules.min_alpha_ratio:g} wanted"


def _repetition_fault(text: str, rules: Rules) -> tuple[str, str] | None:
    if not rules.max_repeated_line_ratio:
        return None
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    if len(lines) < _LEAST_LINES:
        return None
    most = Counter(lines).most_common(1)[0][1]
    ratio = most / len(lines)
    # One line out of four is a share too; only a line that comes again is repeated.
    if most < 2 or ratio <= rules.max_repeated_line_ratio:
        return None
    limit = rules.max_repeated_line_ratio
    return "max_repeated_line_ratio", f"one line makes {ratio:.2f} of the lines, at most {limit:g} wanted"


def _find_banned(text: str, rules: Rules) -> str | None:
    single, phrases = rules.banned
    found = words(text.casefold())
    for word in found:
        if word in single:
            return word
    if phrases:
        line = f" {' '.join(found)} "
        return next((phrase.strip() for phrase in phrases if phrase in line), None)
    return None
