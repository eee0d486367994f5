"""Points of a metric as columns of bytes, and what is done with whole columns of them.

A column of a segment is 64-bit little-endian words, steps and times as differences to the word before. The bytes are
transposed, so that all first bytes come first, then all second ones (the shuffle filter of HDF5 and Blosc: neighbours
share sign, exponent and high digits), and packed with zlib. A small segment, which is joined with others soon, is
packed at level 0, which only copies.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Level 1 takes 0.3 microseconds a value and leaves 3 to 7 of 8 bytes; higher ones leave as much and take longer.
_LEVEL = 1


@dataclass(frozen=True)
class Points:
    """Points of one metric.

    Attributes:
        steps: int64[n].
        times: int64[n], microseconds since 1970; empty where nobody asked for them.
        values: float64[n].
    """

    steps: Array
    times: Array
    values: Array

    def __len__(self) -> int:
        return len(self.steps)

    def take(self, rows: Any) -> Points:
        """The points at these places: an index array, a mask or a slice."""
        return Points(self.steps[rows], self.times[rows] if len(self.times) else self.times, self.values[rows])


def pack(words: Array, *, differences: bool, small: bool) -> bytes:
    """The bytes of a column.

    Args:
        words: int64[n] or float64[n].
        differences: store the differences of neighbours, for integers that rise evenly.
        small: of a segment that will be joined with others.
    """
    if differences:
        words = np.diff(words, prepend=np.int64(0))
    shuffled = np.ascontiguousarray(words).view(np.uint8).reshape(-1, 8).T.tobytes()
    return zlib.compress(shuffled, 0 if small else _LEVEL)


def unpack(packed: bytes, dtype: str, *, differences: bool) -> Array:
    """What `pack` took. `dtype`: `<i8` or `<f8`."""
    shuffled = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(8, -1)
    words: Array = np.ascontiguousarray(shuffled.T).view(dtype).ravel()
    return np.cumsum(words) if differences else words


def join(parts: Sequence[Points]) -> Points:
    """All points by step; of those with the same step the last one in the order given."""
    if not parts:
        return Points(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    whole = parts[0]
    if len(parts) > 1:
        columns = ([getattr(part, name) for part in parts] for name in ("steps", "times", "values"))
        whole = Points(*(np.concatenate(column) for column in columns))
    rising = np.diff(whole.steps) > 0
    if rising.all():
        return whole
    whole = whole.take(np.argsort(whole.steps, kind="stable"))
    return whole.take(np.append(np.diff(whole.steps) > 0, True))


def thin(points: Points, most: int, *, by_time: bool = False) -> Points:
    """At most `most` points that look the same: the least and the greatest value of each of many parts of the axis.

    The extremes of a part are what a line over it covers (Jugel et al., 2014, "M4: a visualization-oriented time series
    data aggregation"); as there, the first and the last point of the curve stay. The first value of a part that is not
    finite stays too, so that it is seen.

    Args:
        points: by step.
        most: at least 10.
        by_time: the axis is time.
    """
    if len(points) <= most:
        return points
    finite = np.isfinite(points.values)
    all_finite = bool(finite.all())
    parts = (most - 2) // (2 if all_finite else 3)
    axis = points.times if by_time else points.steps
    # Times of a run that was resumed from an earlier step can fall; a part is then what lies between two places.
    axis = np.maximum.accumulate(axis) if by_time else axis
    limits = axis[0] + (int(axis[-1]) - int(axis[0]) + 1) * (np.arange(1, parts) / parts)
    edges = np.unique(np.concatenate([[0], np.searchsorted(axis, limits, "left"), [len(axis)]]))
    low = points.values if all_finite else np.where(finite, points.values, np.inf)
    high = points.values if all_finite else np.where(finite, points.values, -np.inf)
    kept = {0, len(points) - 1}
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        kept.add(begin + int(low[begin:end].argmin()))
        kept.add(begin + int(high[begin:end].argmax()))
        if not all_finite and not finite[begin:end].all():
            kept.add(begin + int(finite[begin:end].argmin()))
    return points.take(np.array(sorted(kept)))
