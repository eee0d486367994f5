"""How alike two texts are, character by character."""

from __future__ import annotations

# Characters of a text that are compared: half a millisecond a pair.
COMPARED_CHARACTERS = 500


def edit_similarity(one: str, other: str) -> float:
    """1 less the edit distance by the length of the longer text; 1 of equal texts, 0 of texts with nothing in common.

    Only the first `COMPARED_CHARACTERS` of either are looked at.
    """
    if one == other:
        return 1.0
    one, other = one[:COMPARED_CHARACTERS], other[:COMPARED_CHARACTERS]
    longer = max(len(one), len(other))
    return 1 - edit_distance(one, other) / longer


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements that make one text of the other (Levenshtein 1966).

    A column of the table of distances is kept as its steps up and down, one bit each in an integer of any length:
    Hyyrö (2003), "A bit-vector algorithm for computing Levenshtein and Damerau edit distances", Nordic Journal of
    Computing 10, 29-39, figure 3.
    """
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for at, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << at
    every, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, distance = every, 0, len(one)
    for character in other:
        equal = places.get(character, 0)
        level = ((((equal & up) + up) ^ up) | equal | down) & every
        right_up, right_down = down | (every & ~(level | up)), level & up
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = right_up << 1 | 1
        up = ((right_down << 1) | ~(level | right_up)) & every
        down = right_up & level
    return distance
