"""Words of a text without spaces as tags of its characters, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

# Xue, 2003: a character begins a word, is in its middle, ends it, or is one by itself.
BEGIN, MIDDLE, END, SINGLE = range(4)
TAGS = 4
_NEXT = {BEGIN: (MIDDLE, END), MIDDLE: (MIDDLE, END), END: (BEGIN, SINGLE), SINGLE: (BEGIN, SINGLE)}
_FIRST, _LAST = (BEGIN, SINGLE), (END, SINGLE)
# 0 where one tag (row) may follow another (column), else minus infinity.
_MAY_FOLLOW = np.full((TAGS, TAGS), -np.inf)
for _before, _after in _NEXT.items():
    for _tag in _after:
        _MAY_FOLLOW[_tag, _before] = 0


def tags_of(words: Iterable[str]) -> list[int]:
    """A tag for each character."""
    tags: list[int] = []
    for word in words:
        tags += [SINGLE] if len(word) == 1 else [BEGIN, *[MIDDLE] * (len(word) - 2), END]
    return tags


def words_of(text: str, tags: Sequence[int]) -> list[str]:
    """The words that end where a tag says so."""
    words, start = [], 0
    for place, tag in enumerate(tags, 1):
        if tag in _LAST or place == len(text):
            words.append(text[start:place])
            start = place
    return words


def best_tags(scores: np.ndarray) -> list[int]:
    """The tags with the highest sum of scores that make whole words (Viterbi, 1967).

    Args:
        scores: float[characters, 4], at least one character.
    """
    total = np.where(np.isin(np.arange(TAGS), _FIRST), scores[0], -np.inf)
    came_from = np.zeros((len(scores), TAGS), np.int64)
    for place in range(1, len(scores)):
        ways = total[None] + _MAY_FOLLOW
        came_from[place] = ways.argmax(axis=1)
        total = ways.max(axis=1) + scores[place]
    tags = [int(np.where(np.isin(np.arange(TAGS), _LAST), total, -np.inf).argmax())]
    for place in range(len(scores) - 1, 0, -1):
        tags.append(int(came_from[place, tags[-1]]))
    return tags[::-1]


def longest_match(text: str, words: frozenset[str], longest: int) -> list[str]:
    """Takes the longest known word from each place on, or else one character (forward maximum matching).

    Args:
        longest: characters of the longest word.
    """
    found, start = [], 0
    while start < len(text):
        sizes = range(min(longest, len(text) - start), 1, -1)
        size = next((size for size in sizes if text[start : start + size] in words), 1)
        found.append(text[start : start + size])
        start += size
    return found


def f1(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Harmonic mean of precision and recall of words at their places (Sproat & Emerson, 2003).

    Args:
        pairs: words found in a text, and the right ones.
    """
    shared = found = wanted = 0
    for ours, right in pairs:
        shared += len(_spans(ours) & _spans(right))
        found += len(ours)
        wanted += len(right)
    return 2 * shared / max(1, found + wanted)


def _spans(words: Sequence[str]) -> set[tuple[int, int]]:
    spans, start = set(), 0
    for word in words:
        spans.add((start, start + len(word)))
        start += len(word)
    return spans
