"""Filters for texts that repeat themselves: runs of words or characters, counted by their hashes in numpy passes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.dataset.engines.quality import repeated
from services.dataset.engines.rules import out_of_bounds
from services.dataset.engines.texts import Texts
from services.dataset.engines.word_table import BASE, WordTable, mix

Limits = Mapping[str, Any]

_TOP, _DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_PARAGRAPH, _LINE = re.compile(r"\n{2,}"), re.compile(r"\n+")


class Runs:
    """The distinct runs of n neighbours inside each text.

    Args:
        values: (m,) uint64, hashes of words or characters, text after text.
        first: (texts + 1,) int64; text i has values[first[i]:first[i + 1]].
        length: n.

    Attributes:
        texts: (r,) int64, the text of each distinct run.
        places: (r,) int64, where the run comes first.
        counts: (r,) int64, how often it comes in its text.
        again: places of runs that came before in their text.
    """

    def __init__(self, values: np.ndarray, first: np.ndarray, length: int) -> None:
        whole = max(0, len(values) - length + 1)
        runs = np.zeros(whole, np.uint64)
        for step in range(length):
            runs = runs * BASE + values[step : step + whole]
        counts = np.diff(first)
        text_of = np.repeat(np.arange(len(counts)), counts)[:whole]
        # A run must end inside its text.
        places = np.flatnonzero(np.arange(whole) + length <= first[1:][text_of])
        text_of = text_of[places]
        # The text is part of the key, so that equal runs of two texts do not meet.
        keys = mix(runs[places] + (text_of.astype(np.uint64) + np.uint64(1)) * BASE)
        order = np.argsort(keys)
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]]))
        earliest = np.minimum.reduceat(order, starts) if len(starts) else starts
        self.counts = np.diff(np.append(starts, len(keys)))
        self.places = places[earliest]
        self.texts = text_of[earliest]
        repeats = np.ones(len(places), bool)
        repeats[earliest] = False
        self.again = places[repeats]


class GopherRepetition:
    """Whether a text repeats itself (arXiv 2112.11446, table A1)."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._top = [(n, limits[f"max_top_{n}_gram"]) for n in _TOP]
        self._duplicate = [(n, limits[f"max_duplicate_{n}_gram"]) for n in _DUPLICATE]

    def __call__(self, texts: Texts) -> None:
        """Drops texts."""
        texts.judge(self._line_fault)
        rows, table = texts.words
        sizes = np.array([len(texts.texts[at]) for at in rows], np.int64)
        for n, limit in self._top:
            if limit is not None:
                shares = top_run_chars(table, n) / np.maximum(sizes, 1)
                for number in np.flatnonzero(shares > limit):
                    what = f"of the characters are the most frequent run of {n} words"
                    texts.drop(rows[number], str(out_of_bounds(float(shares[number]), what, None, limit)))
        self._drop_duplicates(texts, rows, table, sizes)

    def _line_fault(self, text: str) -> str | None:
        limits = self._limits
        size = max(1, len(text))
        for pieces, what, most, most_chars in (
            (
                _PARAGRAPH.split(text.strip()),
                "paragraphs",
                limits["max_duplicate_paragraphs"],
                limits["max_duplicate_paragraph_chars"],
            ),
            (_LINE.split(text), "lines", limits["max_duplicate_lines"], limits["max_duplicate_line_chars"]),
        ):
            number, chars = repeated(pieces)
            if number:
                reason = out_of_bounds(number / len(pieces), f"of the {what} came before", None, most) or out_of_bounds(
                    chars / size, f"of the characters are in {what} that came before", None, most_chars
                )
                if reason:
                    return reason
        return None

    def _drop_duplicates(self, texts: Texts, rows: Sequence[int], table: WordTable, sizes: np.ndarray) -> None:
        limits = [limit for _, limit in self._duplicate if limit is not None]
        if not limits:
            return
        # No run of five words or more repeats more characters than all words in repeated runs of five have, and few
        # texts have many of those.
        most = covered_chars(table, _DUPLICATE[0]) / np.maximum(sizes, 1)
        for number in np.flatnonzero(most > min(limits)):
            at = rows[number]
            if at in texts.faults:
                continue
            start, stop = table.first[number], table.first[number + 1]
            hashes, chars = table.hashes[start:stop], table.chars[start:stop]
            for n, limit in self._duplicate:
                share = duplicate_run_chars(hashes, chars, n) / int(sizes[number])
                what = f"of the characters are in runs of {n} words that came before"
                reason = out_of_bounds(share, what, None, limit)
                if reason:
                    texts.drop(at, reason)
                    break


class WordRepetition:
    """Whether runs of words come again (arXiv 2303.03915)."""

    def __init__(self, limits: Limits) -> None:
        self._run, self._limit = limits["run"], limits["max_share"]

    def __call__(self, texts: Texts) -> None:
        """Drops texts."""
        rows, table = texts.words
        runs = Runs(table.hashes, table.first, self._run)
        every, more = _totals(runs, len(rows))
        _drop(texts, rows, more / np.maximum(every, 1), f"of the runs of {self._run} words come again", self._limit)


class CharacterRepetition:
    """Whether a few runs of characters make up the text (arXiv 2303.03915)."""

    def __init__(self, limits: Limits) -> None:
        self._run, self._limit = limits["run"], limits["max_share"]

    def __call__(self, texts: Texts) -> None:
        """Drops texts."""
        rows = texts.left
        codes = [np.frombuffer(texts.texts[at].encode("utf-32-le", "replace"), np.uint32) for at in rows]
        first = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(one) for one in codes], out=first[1:])
        values = np.concatenate(codes).astype(np.uint64) if codes else np.zeros(0, np.uint64)
        runs = Runs(values, first, self._run)
        every, _ = _totals(runs, len(rows))
        distinct = np.bincount(runs.texts, minlength=len(rows))
        # The most frequent ones, as many as the square root of their number: those that come once do not count.
        often = np.flatnonzero(runs.counts > 1)
        often = often[np.lexsort((-runs.counts[often], runs.texts[often]))]
        begins = np.searchsorted(runs.texts[often], np.arange(len(rows)))
        rank = np.arange(len(often)) - begins[runs.texts[often]]
        taken = often[rank < np.sqrt(distinct).astype(np.int64)[runs.texts[often]]]
        most = np.bincount(runs.texts[taken], runs.counts[taken], minlength=len(rows))
        what = f"of the runs of {self._run} characters are the most frequent ones"
        _drop(texts, rows, most / np.maximum(every, 1), what, self._limit)


def top_run_chars(table: WordTable, n: int) -> np.ndarray:
    """(texts,) int64: characters of the most frequent run of n words, blanks between them included, times how often it
    comes; of equally frequent ones the first counts; 0 for texts of fewer words.
    """
    runs = Runs(table.hashes, table.first, n)
    # Count and place in one number, so that the largest is the most frequent run and of those the first.
    base = len(table.hashes) + 1
    best = np.zeros(len(table.first) - 1, np.int64)
    np.maximum.at(best, runs.texts, runs.counts * base - runs.places)
    counts = -(-best // base)
    chars = (_run_chars(table.chars, counts * base - best, n) + n - 1) * counts
    return np.where(counts > 0, chars, 0)


def covered_chars(table: WordTable, n: int) -> np.ndarray:
    """(texts,) int64: characters of all words in runs of n words that came before."""
    edges = np.zeros(len(table.hashes) + 1, np.int64)
    again = Runs(table.hashes, table.first, n).again
    np.add.at(edges, again, 1)
    np.add.at(edges, again + n, -1)
    return table.sums(np.where(np.cumsum(edges[:-1]) > 0, table.chars, 0))


def duplicate_run_chars(hashes: np.ndarray, chars: np.ndarray, n: int) -> int:
    """Characters in runs of n words that came before, read from the front: a repeated run is passed over whole."""
    size = len(hashes) - n + 1
    if size < 1:
        return 0
    runs = np.zeros(size, np.uint64)
    for step in range(n):
        runs = runs * BASE + hashes[step : step + size]
    listed = runs.tolist()
    lengths = _run_chars(chars, np.arange(size), n).tolist()
    seen: set[int] = set()
    found = at = 0
    while at < size:
        if listed[at] in seen:
            found += lengths[at]
            at += n
        else:
            seen.add(listed[at])
            at += 1
    return found


def _run_chars(chars: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    sums = np.zeros(len(chars) + 1, np.int64)
    np.cumsum(chars, out=sums[1:])
    return sums[np.minimum(places + n, len(chars))] - sums[places]


def _totals(runs: Runs, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """(texts,) each: all runs, and those that come more than once."""
    every = np.bincount(runs.texts, runs.counts, minlength=texts)
    more = np.bincount(runs.texts, np.where(runs.counts > 1, runs.counts, 0), minlength=texts)
    return every, more


def _drop(texts: Texts, rows: Sequence[int], shares: np.ndarray, what: str, limit: float | None) -> None:
    if limit is None:
        return
    for number in np.flatnonzero(shares > limit):
        texts.drop(rows[number], str(out_of_bounds(float(shares[number]), what, None, limit)))
