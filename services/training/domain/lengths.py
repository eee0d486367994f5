"""How long the rows of a sample are in tokens, as counts in buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SMALLEST = 16


@dataclass(frozen=True)
class Lengths:
    """Lengths of the rows of a sample in one phase.

    Attributes:
        phase: its name.
        limit: context in tokens.
        estimated: whether they were guessed from characters, where the tokenizer is still to be learned.
        bounds: upper bound of each bucket in tokens, itself included; each twice the one before.
        counts: rows in each bucket.
        cut_share: of the rows that are longer than the context, 0 to 1; pre-training cuts none.
        mean, p95, longest: in tokens.
    """

    phase: str
    limit: int
    estimated: bool
    bounds: tuple[int, ...]
    counts: tuple[int, ...]
    cut_share: float
    mean: float
    p95: int
    longest: int

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Lengths:
        """From `dataclasses.asdict`."""
        values: dict[str, Any] = {**data, "bounds": tuple(data["bounds"]), "counts": tuple(data["counts"])}
        return cls(**values)


def histogram(phase: str, limit: int, lengths: Sequence[int], *, estimated: bool, packed: bool) -> Lengths:
    """The lengths of at least one row.

    Args:
        packed: whether rows are cut into sequences one behind the other, so that none loses anything.
    """
    ordered = sorted(lengths)
    bounds = [_SMALLEST]
    while bounds[-1] < ordered[-1]:
        bounds.append(2 * bounds[-1])
    counts = [0] * len(bounds)
    for length in ordered:
        counts[max(0, math.ceil(math.log2(max(length, 1) / _SMALLEST)))] += 1
    cut = 0 if packed else sum(length > limit for length in ordered)
    # Nearest rank: at least 95 of 100 rows are not longer.
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    mean = sum(ordered) / len(ordered)
    return Lengths(phase, limit, estimated, tuple(bounds), tuple(counts), cut / len(ordered), mean, p95, ordered[-1])
