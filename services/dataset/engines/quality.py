"""The filters of Gopher, C4 and FineWeb for whole pages of text. Their thresholds are those of the recipe.

Where the papers leave something open, these do what datatrove (github.com/huggingface/datatrove) does, whose figures
the field compares with; words are ours (`word_table`), so punctuation is no word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.dataset.engines.chinese import fold_script
from services.dataset.engines.rules import is_east_asian, out_of_bounds, words
from services.dataset.engines.texts import Texts
from services.dataset.engines.word_table import WordTable, hash_of

Limits = Mapping[str, Any]


@dataclass(frozen=True)
class Language:
    """What the filters need to know about a language.

    Attributes:
        stop_words: words that every text of some length has.
        ends: marks that end a line which is a sentence (C4).
        terminal: marks that end a line which is prose (FineWeb).
        sentence_end: finds the ends of sentences inside a line.
        policy: phrases of lines about cookies and terms; Chinese ones in simplified characters.
        filler: phrases of texts that say nothing.
    """

    stop_words: tuple[str, ...]
    ends: tuple[str, ...]
    terminal: tuple[str, ...]
    sentence_end: re.Pattern[str]
    policy: tuple[str, ...]
    filler: tuple[str, ...] = ("lorem ipsum",)


_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
LANGUAGES = {
    "en": Language(
        # Gopher, arXiv 2112.11446, appendix A1.1.
        stop_words=("the", "be", "to", "of", "and", "that", "have", "with"),
        ends=(".", "?", "!", '"', "'"),
        terminal=(".", "?", "!", "。", "？", "！", "؟", "।"),
        sentence_end=re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)"),
        policy=_POLICY,
    ),
    "zh": Language(
        # The most frequent characters of Chinese text, as Gopher's are of English; one of them has two forms.
        stop_words=("的", "是", "在", "了", "和", "有", "不", "这", "這"),
        ends=("。", "？", "！", "；", "”", "」", "』", ".", "?", "!", ";", '"'),
        terminal=("。", "？", "！", "；", "…", ".", "?", "!", ";"),
        sentence_end=re.compile(r"[。？！；]+[”」』）]*|[.!?;]+[\"”]*(?=\s|$)"),
        policy=(*_POLICY, "使用条款", "隐私政策", "cookie政策", "使用cookie", "版权所有", "免责声明"),
    ),
}
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


class GopherQuality:
    """Whether a text reads like prose (arXiv 2112.11446, appendix A1.1)."""

    def __init__(self, limits: Limits, language: Language) -> None:
        self._limits = limits
        self._stop = np.array([hash_of(word) for word in language.stop_words], np.uint64)

    def __call__(self, texts: Texts) -> None:
        """Drops texts."""
        rows, table = texts.words
        means = table.sums(table.chars) / np.maximum(table.counts, 1)
        letters = table.sums(table.letters) / np.maximum(table.counts, 1)
        stops = self._stop_words(table)
        for at, count, mean, with_letter, stop in zip(rows, table.counts, means, letters, stops, strict=True):
            if at not in texts.faults:
                reason = self._fault(texts.texts[at], int(count), mean, with_letter, int(stop))
                if reason:
                    texts.drop(at, reason)

    def _stop_words(self, table: WordTable) -> np.ndarray:
        """(texts,) int64: different stop words of each text."""
        found = np.zeros(len(table.first) - 1, np.int64)
        text_of = table.text_of
        for stop in self._stop:
            found[np.unique(text_of[table.hashes == stop])] += 1
        return found

    def _fault(self, text: str, count: int, mean: float, with_letter: float, stop: int) -> str | None:
        limits = self._limits
        per_word = limits["max_symbols_per_word"]
        reason = (
            out_of_bounds(count, "words", limits["min_words"], limits["max_words"])
            or out_of_bounds(mean, "characters a word", limits["min_mean_word"], limits["max_mean_word"])
            or out_of_bounds(text.count("#") / max(1, count), "hash signs a word", None, per_word)
            or out_of_bounds((text.count("...") + text.count("…")) / max(1, count), "ellipses a word", None, per_word)
        )
        if reason:
            return reason
        lines = text.splitlines()
        bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines) / max(1, len(lines))
        ellipses = sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / max(1, len(lines))
        return (
            out_of_bounds(bullets, "of the lines begin with a bullet", None, limits["max_bullet_lines"])
            or out_of_bounds(ellipses, "of the lines end with an ellipsis", None, limits["max_ellipsis_lines"])
            or out_of_bounds(with_letter, "of the words have a letter", limits["min_words_with_letter"], None)
            or out_of_bounds(stop, "stop words", limits["min_stop_words"], None)
        )


class C4Quality:
    """Keeps the lines that are sentences (arXiv 1910.10683, section 2.2)."""

    def __init__(self, limits: Limits, language: Language) -> None:
        self._limits = limits
        self._language = language

    def __call__(self, texts: Texts) -> None:
        """Changes and drops texts."""
        for at in texts.left:
            kept, reason = self._lines(texts.texts[at])
            if reason:
                texts.drop(at, reason)
            else:
                texts.replace(at, "\n".join(kept))

    def _lines(self, text: str) -> tuple[list[str], str | None]:
        limits, language = self._limits, self._language
        least, longest = limits["min_words_per_line"] or 0, limits["max_word_chars"]
        kept: list[str] = []
        sentences = 0
        for line in text.splitlines():
            line, spaced = line.strip(), line.split()
            # East Asian scripts write no spaces: what looks like one long word is a sentence.
            if longest is not None and any(len(word) > longest for word in spaced) and not is_east_asian(line):
                continue
            if "[" in line:
                line = _CITATION.sub("", line)
            if not line.endswith(language.ends) or line.endswith("..."):
                continue
            if (len(words(line)) if is_east_asian(line) else len(spaced)) < least:
                continue
            lower = fold_script(line.lower())
            filler = next((phrase for phrase in language.filler if phrase in lower), None)
            if filler is not None:
                return [], f"has {filler!r}"
            if "javascript" in lower:
                continue
            if "{" in line:
                return [], "has a curly bracket"
            if any(phrase in lower for phrase in language.policy):
                continue
            sentences += max(1, len(language.sentence_end.findall(line)))
            kept.append(line)
        return kept, out_of_bounds(sentences, "sentences", limits["min_sentences"], None)


class FineWebQuality:
    """Whether a text is a list, a menu or repeated lines (arXiv 2406.17557, section 3.6)."""

    def __init__(self, limits: Limits, language: Language) -> None:
        self._limits = limits
        self._terminal = language.terminal

    def __call__(self, texts: Texts) -> None:
        """Drops texts."""
        rows, table = texts.words
        for at, count in zip(rows, table.counts, strict=True):
            if at not in texts.faults:
                reason = self._fault(texts.texts[at], int(count))
                if reason:
                    texts.drop(at, reason)

    def _fault(self, text: str, count: int) -> str | None:
        limits = self._limits
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return "no line"
        ends = sum(line.endswith(self._terminal) for line in lines) / len(lines)
        short = sum(len(line) <= limits["short_line_chars"] for line in lines) / len(lines)
        breaks = text.count("\n")
        again = repeated(lines)[1] / (len(text) - breaks)
        return (
            out_of_bounds(ends, "of the lines end with a terminal mark", limits["min_terminal_lines"], None)
            or out_of_bounds(short, "of the lines are short", None, limits["max_short_lines"])
            or out_of_bounds(again, "of the characters repeat a line", None, limits["max_duplicate_line_chars"])
            or out_of_bounds(breaks / max(1, count), "line breaks a word", None, limits["max_breaks_per_word"])
        )


def repeated(pieces: Iterable[str]) -> tuple[int, int]:
    """Pieces that came before, and their characters."""
    seen: set[str] = set()
    number = chars = 0
    for piece in pieces:
        if piece in seen:
            number += 1
            chars += len(piece)
        else:
            seen.add(piece)
    return number, chars
