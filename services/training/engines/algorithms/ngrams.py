"""Words of a text without a dictionary, and their n-grams."""

from __future__ import annotations

import re
import zlib

# A character of Chinese, Japanese or Korean is a word here; so no dictionary is needed.
_SINGLE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")
# What a long text is about stands in its beginning; and no text may take the memory of thousands.
_MOST_WORDS = 1_000
MOST_CHARACTERS = 4_000
_SHORTEST = 2


def words_of(text: str) -> list[str]:
    """The first thousand words of a text, in lower case."""
    return [found.group() for _, found in zip(range(_MOST_WORDS), _WORD.finditer(text.lower()), strict=False)]


def word_grams(text: str, longest: int) -> list[str]:
    """One to `longest` words in a row."""
    words = words_of(text)
    return [
        " ".join(words[start : start + length])
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    ]


def character_grams(text: str, longest: int) -> list[str]:
    """Two to `longest` characters in a row, in lower case and with one space for all that is between words."""
    line = f" {' '.join(text.lower()[:MOST_CHARACTERS].split())} "
    return [
        line[start : start + length]
        for length in range(_SHORTEST, longest + 1)
        for start in range(len(line) - length + 1)
    ]


def ngrams(text: str, longest: int, buckets: int) -> list[int]:
    """Buckets of the n-grams of a text of one to `longest` words, in lower case."""
    return [zlib.crc32(gram.encode()) % buckets for gram in word_grams(text, longest)]
