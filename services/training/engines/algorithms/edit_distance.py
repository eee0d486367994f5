"""Edit distance and the character error rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def edit_distance(one: Sequence[object], other: Sequence[object]) -> int:
    """Fewest insertions, deletions and substitutions from one to the other (Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for line, given in enumerate(one, 1):
        diagonal, row[0] = row[0], line
        for place, wanted in enumerate(other, 1):
            changed = diagonal + (given != wanted)
            diagonal = row[place]
            row[place] = min(changed, diagonal + 1, row[place - 1] + 1)
    return row[-1]


def character_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Edits from the texts that were read to the right ones, for each character of the right ones.

    Args:
        pairs: what was read, and what is right.
    """
    edits = characters = 0
    for read, right in pairs:
        edits += edit_distance(read, right)
        characters += len(right)
    return edits / max(1, characters)
