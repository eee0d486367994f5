"""Rules for one text: what its words are, what changes it, and why it goes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from services.dataset.engines.chinese import fold_script

# Characters of East Asian scripts, which write no spaces: each counts as a word.
_EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]+")
_EAST_ASIAN_CHARACTER = re.compile(f"[{_EAST_ASIAN}]")
_BLANKS_BEFORE_BREAK = re.compile(r"[^\S\n]+\n")
_MANY_BREAKS = re.compile(r"\n{3,}")
# Gopher (arXiv 2112.11446, appendix A1.1) counts hash signs and ellipses.
_SYMBOLS = re.compile(r"#|\.\.\.|…")
# Neither a letter of any script nor a mark that belongs to one.
_SPECIAL = re.compile(r"[\W\d_]")
# Lines a text must have before a repeated one means anything.
_LEAST_LINES = 4


def words(text: str) -> list[str]:
    """Words of a text: runs of letters, digits and underscores; each East Asian character is one."""
    return WORD.findall(text)


def is_east_asian(text: str) -> bool:
    """Whether the text has a character of a script that writes no spaces."""
    return not text.isascii() and _EAST_ASIAN_CHARACTER.search(text) is not None


def normalise(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """Unicode normal form, line feeds only, no blanks before a line's end, at most one empty line, nothing around.

    Blanks inside a line stay: in code and tables they mean something.
    """
    if not text.isascii():
        text = unicodedata.normalize(form, text).replace("\u2028", "\n").replace("\u2029", "\n\n")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x00" in text:
        text = text.replace("\x00", "")
    return _MANY_BREAKS.sub("\n\n", _BLANKS_BEFORE_BREAK.sub("\n", text)).strip()


def comparable(text: str) -> str:
    """The form in which exact duplicates are equal: NFC, Chinese in one script, every run of white space one blank."""
    return " ".join((text if text.isascii() else fold_script(unicodedata.normalize("NFC", text))).split())


def length_fault(text: str, *, min_chars: int | None, max_chars: int | None) -> str | None:
    """Why the text is too short or too long."""
    return out_of_bounds(len(text), "characters", min_chars, max_chars)


def out_of_bounds(value: float, what: str, least: float | None, most: float | None) -> str | None:
    """A reason with the figure and the limit that it breaks; None is no limit."""
    if least is not None and value < least:
        return f"{value:.4g} {what}, at least {least:g} wanted"
    if most is not None and value > most:
        return f"{value:.4g} {what}, at most {most:g} wanted"
    return None


def letters_fault(text: str, *, min_share: float | None) -> str | None:
    """Why too few of the characters that are not white space are letters."""
    if min_share is None:
        return None
    dense = "".join(text.split())
    share = sum(map(str.isalpha, dense)) / max(1, len(dense))
    return out_of_bounds(share, "of the characters are letters", min_share, None)


def repeated_line_fault(text: str, *, max_share: float | None) -> str | None:
    """Why one line comes too often."""
    if max_share is None:
        return None
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    if len(lines) < _LEAST_LINES:
        return None
    most = Counter(lines).most_common(1)[0][1]
    # One line out of four is a share too; only a line that comes again is repeated.
    return out_of_bounds(most / len(lines), "of the lines are the same", None, max_share) if most > 1 else None


def line_lengths_fault(
    text: str, *, min_mean: float | None, min_longest: int | None, max_longest: int | None
) -> str | None:
    """Why lines are too short or too long."""
    lines = text.splitlines()
    mean = len(text) / len(lines) if lines else 0.0
    longest = max(map(len, lines), default=0)
    return out_of_bounds(mean, "characters a line", min_mean, None) or out_of_bounds(
        longest, "characters in the longest line", min_longest, max_longest
    )


def special_characters_fault(text: str, *, max_share: float | None) -> str | None:
    """Why too many of the characters are digits, punctuation, white space or symbols."""
    if max_share is None:
        return None
    share = len(_SPECIAL.findall(text)) / max(1, len(text))
    return out_of_bounds(share, "of the characters are special", None, max_share)


def count_symbols(text: str) -> int:
    """Hash signs and ellipses."""
    return len(_SYMBOLS.findall(text))


class Banned:
    """Words and phrases that a text must not have.

    Args:
        given: in any case; single words are looked up, so ten thousand of them cost what one does.
    """

    def __init__(self, given: Iterable[str]) -> None:
        folded = [" ".join(words(banned.casefold())) for banned in given]
        self._single = frozenset(banned for banned in folded if banned and " " not in banned)
        self._phrases = tuple(f" {banned} " for banned in folded if " " in banned)

    def fault(self, text: str) -> str | None:
        """Which one the text has."""
        found = words(text.casefold())
        banned = next((word for word in found if word in self._single), None)
        if banned is None and self._phrases:
            line = f" {' '.join(found)} "
            banned = next((phrase.strip() for phrase in self._phrases if phrase in line), None)
        return None if banned is None else f"has {banned!r}"
