"""What counts as the right answer, and what a masked input is."""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = "<mask>"


def normalise(answer: str) -> str:
    """An answer without what never matters: white space around it, case, a final full stop."""
    return " ".join(answer.split()).strip().rstrip(".").casefold()


def is_right(expected: str, actual: str) -> bool:
    """Exact match after normalising. An empty answer is never right."""
    wanted = normalise(expected)
    return bool(wanted) and normalise(actual) == wanted


def masker(words: Sequence[str]) -> re.Pattern[str] | None:
    """Finds the words wherever they stand as a part of a name or alone, in any case; None when there are none."""
    if not words:
        return None
    longest_first = sorted(set(words), key=lambda word: (-len(word), word))
    return re.compile("|".join(re.escape(word) for word in longest_first), re.IGNORECASE)


def masked(text: str, pattern: re.Pattern[str]) -> str:
    """The text with every one of the words replaced."""
    return pattern.sub(MASK, text)
