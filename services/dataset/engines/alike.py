"""Near-duplicates: candidates of equal bands, verified by the exact Jaccard similarity of their shingles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.dataset.engines.minhash import buckets, jaccard
from services.dataset.engines.shingles import shingle_sets

# Members of one bucket that a further member is compared with when it is in no group yet: the first of each group, at
# most so many. Without a bound, a template with thousands of different fillings would be compared all with all.
_LEADERS = 64
# Texts shingled at once when candidates are verified.
_FETCH = 4096

Texts = Callable[[np.ndarray], Sequence[str]]
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Alike:
    """Text `row` repeats text `other`.

    Among repeats `other` is the text of the group that stays, and `similarity` that of the pair that joined `row` to
    the group.
    """

    row: int
    other: int
    similarity: float


class Shingles:
    """Shingle sets of those texts that are candidates, fetched once."""

    def __init__(self, rows: np.ndarray, texts: Texts, progress: Progress) -> None:
        self._sets: dict[int, np.ndarray] = {}
        for start in range(0, len(rows), _FETCH):
            block = rows[start : start + _FETCH]
            self._sets.update(zip(map(int, block), shingle_sets(texts(block)), strict=True))
            progress((start + len(block)) / len(rows))

    def similarity(self, one: int, other: int) -> float:
        """Exact Jaccard similarity."""
        return jaccard(self._sets[one], self._sets[other])


def find_repeats(
    sets: np.ndarray, bands: np.ndarray, threshold: float, texts: Texts, progress: Progress = lambda _: None
) -> list[Alike]:
    """Which texts to drop so that of every connected group of near-duplicates the first one stays.

    The answer depends on the texts and their order alone, not on how the hashes were computed.

    Args:
        sets: (n,) uint64, `minhash.set_hashes`; 0: no shingles, never alike.
        bands: (bands, n) uint64, `minhash.band_hashes`.
        threshold: Jaccard similarity from which two texts are alike.
        texts: Gives texts by number.
        progress: Told the share that is done.

    Returns:
        One entry a dropped text, ascending by text.
    """
    same = [Alike(int(row), int(group[0]), 1.0) for group in buckets(sets) if sets[group[0]] for row in group[1:]]
    distinct = np.ones(len(sets), bool)
    distinct[[alike.row for alike in same]] = False
    groups = [group for band in bands for group in _groups(band, np.flatnonzero(distinct & (sets != 0)))]
    candidates = np.unique(np.concatenate(groups)) if groups else np.zeros(0, np.int64)
    shingles = Shingles(candidates, texts, lambda share: progress(0.5 * share))
    forest = _Forest(len(sets))
    reasons: dict[int, float] = {}
    compared: set[tuple[int, int]] = set()
    for at, group in enumerate(groups):
        _join(group, threshold, shingles, forest, reasons, compared)
        if at % 1000 == 0:
            progress(0.5 + 0.5 * at / len(groups))
    near = [Alike(row, forest.root(row), similarity) for row, similarity in reasons.items()]
    return sorted([*(Alike(a.row, forest.root(a.other), 1.0) for a in same), *near], key=lambda alike: alike.row)


def find_leaks(
    sets: np.ndarray,
    bands: np.ndarray,
    is_reference: np.ndarray,
    threshold: float,
    texts: Texts,
    progress: Progress = lambda _: None,
) -> list[Alike]:
    """Which texts are near-duplicates of a reference text; `row` is the text, `other` the reference text.

    A split takes such training rows out, with the test rows for reference; a check of leakage counts test rows, with
    the training rows for reference. Args are those of `find_repeats`; `is_reference` is (n,) bool.
    """
    leaks: dict[int, Alike] = {}
    for group in buckets(sets):
        references = group[is_reference[group]]
        if sets[group[0]] and len(references):
            leaks.update({int(row): Alike(int(row), int(references[0]), 1.0) for row in group[~is_reference[group]]})
    open_rows = np.flatnonzero(sets != 0)
    groups: list[tuple[np.ndarray, np.ndarray]] = []
    for band in bands:
        for group in _groups(band, open_rows):
            references, others = _distinct(group[is_reference[group]], sets), group[~is_reference[group]]
            if len(references) and len(others):
                groups.append((others, references))
    candidates = np.unique(np.concatenate([part for group in groups for part in group])) if groups else np.zeros(0, int)
    shingles = Shingles(candidates, texts, lambda share: progress(0.5 * share))
    known: dict[tuple[int, int], float] = {}
    for at, (others, references) in enumerate(groups):
        for row in others:
            if int(row) not in leaks and (leak := _leak(int(row), references, sets, threshold, shingles, known)):
                leaks[leak.row] = leak
        if at % 1000 == 0:
            progress(0.5 + 0.5 * at / len(groups))
    return [leaks[row] for row in sorted(leaks)]


def _leak(
    row: int,
    references: np.ndarray,
    sets: np.ndarray,
    threshold: float,
    shingles: Shingles,
    known: dict[tuple[int, int], float],
) -> Alike | None:
    """The first reference text that the text is like. Equal texts are compared once, by the hash of their set."""
    for reference in references:
        key = (int(sets[row]), int(reference))
        similarity = known.get(key)
        if similarity is None:
            similarity = known[key] = shingles.similarity(row, int(reference))
        if similarity >= threshold:
            return Alike(row, int(reference), similarity)
    return None


def _distinct(rows: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """The first of the rows with each set of shingles, ascending."""
    return rows[np.sort(np.unique(sets[rows], return_index=True)[1])]


def _groups(band: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    return [rows[group] for group in buckets(band[rows])]


def _join(
    group: np.ndarray,
    threshold: float,
    shingles: Shingles,
    forest: _Forest,
    reasons: dict[int, float],
    compared: set[tuple[int, int]],
) -> None:
    """Joins the members of a bucket that are alike."""
    leaders: list[int] = []
    for member in map(int, group):
        root = forest.root(member)
        if any(forest.root(leader) == root for leader in leaders):
            continue
        for leader in leaders:
            if (leader, member) in compared:
                continue
            compared.add((leader, member))
            similarity = shingles.similarity(leader, member)
            if similarity >= threshold:
                # Each join makes one first text of a group into a repeat.
                reasons[forest.join(leader, member)] = similarity
                break
        else:
            if len(leaders) < _LEADERS:
                leaders.append(member)


class _Forest:
    """Disjoint sets whose root is the smallest member."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, member: int) -> int:
        """The smallest member of the set."""
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, one: int, other: int) -> int:
        """Joins two different sets and returns the root that is one no longer."""
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low
        return high
