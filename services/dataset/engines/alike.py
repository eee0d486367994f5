"""Near-duplicates: candidates of equal bands, verified by the exact Jaccard similarity of their shingles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.dataset.engines.minhash import buckets, jaccard
from services.dataset.engines.shingles import shingle_sets

# Members of one bucket that a further member is compared with when it is in no group yet: the first of each group, at
# most so many; of references, the first so many. Without a bound, a template with thousands of different fillings would
# be compared all with all.
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
    the training rows for reference. Args are those of `find_repeats`; `is_reference` is (n,) bool; `progress` is told
    after every text, and what it raises ends the search.

    Of each bucket a text is compared with the first 64 different references, as repeats are with so many leaders. A
    text of a template with more fillings than that may so be like a later reference of the bucket and be missed, unless
    they share a smaller bucket too: whatever in them is not the template makes them share one.
    """
    leaks: dict[int, Alike] = {}
    for group in buckets(sets):
        references = group[is_reference[group]]
        if sets[group[0]] and len(references):
            leaks.update({int(row): Alike(int(row), int(references[0]), 1.0) for row in group[~is_reference[group]]})
    exact = np.zeros(len(sets), bool)
    exact[list(leaks)] = True
    open_rows = np.flatnonzero((sets != 0) & ~is_reference & ~exact)
    # Equal texts are in the same buckets and have the same answer: the first of them is compared.
    asked = _distinct(open_rows, sets)
    buckets_of, references_of = _meetings(asked, _distinct(np.flatnonzero((sets != 0) & is_reference), sets), bands)
    met = np.unique(np.concatenate([np.array(list(buckets_of), np.int64), *references_of]))
    shingles = Shingles(met, texts, lambda share: progress(0.5 * share))
    near: dict[int, Alike] = {}
    for at, (row, numbers) in enumerate(buckets_of.items(), 1):
        if leak := _leak(row, [references_of[number] for number in numbers], threshold, shingles):
            near[int(sets[row])] = leak
        progress(0.5 + 0.5 * at / len(buckets_of))
    for row in map(int, open_rows):
        if found := near.get(int(sets[row])):
            leaks[row] = replace(found, row=row)
    return [leaks[row] for row in sorted(leaks)]


def _meetings(
    asked: np.ndarray, references: np.ndarray, bands: np.ndarray
) -> tuple[dict[int, list[int]], list[np.ndarray]]:
    """The buckets in which each text meets references, and the references of each bucket that are compared."""
    is_asked = np.zeros(bands.shape[1], bool)
    is_asked[asked] = True
    both = np.sort(np.concatenate([asked, references]))
    buckets_of: dict[int, list[int]] = {}
    references_of: list[np.ndarray] = []
    for band in bands:
        for group in _groups(band, both):
            rows, met = group[is_asked[group]], group[~is_asked[group]]
            if len(rows) and len(met):
                for row in map(int, rows):
                    buckets_of.setdefault(row, []).append(len(references_of))
                references_of.append(met[:_LEADERS])
    return buckets_of, references_of


def _leak(row: int, met: list[np.ndarray], threshold: float, shingles: Shingles) -> Alike | None:
    """The first reference text of the buckets that the text is like: one is enough."""
    for reference in dict.fromkeys(int(reference) for references in met for reference in references):
        similarity = shingles.similarity(row, reference)
        if similarity >= threshold:
            return Alike(row, reference, similarity)
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
