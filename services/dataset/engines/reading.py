"""Reading rows of a version: whole rows for people, Arrow batches for programs, text columns for engines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import cast

import numpy as np
import pyarrow as pa

from services.dataset.engines.index import VersionIndex
from services.dataset.engines.parts import Blobs, Part, arrow_type
from services.dataset.engines.rows import STRING, Row

# Decoded parts kept: a version in its original order needs one, a cleaned one two (old rows and changed rows).
_CACHED_PARTS = 4
# Bytes of canonical content in one batch. Ids, sources and offsets come on top; the whole stays under 1 MiB.
_BATCH_BYTES = 640 * 1024
# Rows of one batch: at 150 bytes of ids and provenance each, 2,048 rows leave room for the content.
_BATCH_ROWS = 2048


class VersionReader:
    """Reads a version. Not for use by two threads at once."""

    def __init__(self, index: VersionIndex, blobs: Blobs) -> None:
        self.index = index
        self._blobs = blobs
        self._parts: OrderedDict[int, Part] = OrderedDict()

    def rows(self, numbers: np.ndarray) -> list[Row]:
        """Whole canonical rows, without provenance, in the order of `numbers`."""
        rows: list[Row] = [{} for _ in range(len(numbers))]
        for part, where, slots in self._by_part(numbers):
            for at, row in zip(where, part.rows(slots), strict=True):
                rows[at] = row
        return rows

    def column(self, name: str, numbers: np.ndarray, kind: str | None = None) -> pa.Array:
        """One column of these rows, as the type that the version gives it or as `kind`."""
        kind = kind or self.index.columns.get(name, STRING)
        pieces: list[pa.Array] = []
        order: list[np.ndarray] = []
        for part, where, slots in self._by_part(numbers):
            pieces.append(part.column(name, kind, slots))
            order.append(where)
        if not pieces:
            return pa.array([], arrow_type(kind))
        joined = pieces[0] if len(pieces) == 1 else cast(pa.Array, pa.concat_arrays(pieces))
        back = np.empty(len(numbers), np.int64)
        back[np.concatenate(order)] = np.arange(len(numbers))
        return joined.take(pa.array(back))

    def texts(self, name: str, numbers: np.ndarray) -> list[str]:
        """One column as text; a missing value is empty, other types are written as JSON."""
        kind = self.index.columns.get(name, STRING)
        values = self.column(name, numbers, kind).to_pylist()
        if kind == STRING:
            return [value or "" for value in values]
        return ["" if value is None else _text(value) for value in values]

    def batches(self, projection: list[str], start: int, stop: int) -> Iterator[tuple[bytes, int]]:
        """Arrow IPC streams of one record batch each, at most 1 MiB unless a single row is larger.

        Args:
            projection: Columns beside `row_id`, `source` and `position`; empty: all.
            start: First row.
            stop: Row after the last.

        Yields:
            The stream and the number of the row after its last.
        """
        names = projection or list(self.index.columns)
        while start < stop:
            end = self._batch_end(start, stop)
            yield self._batch(names, np.arange(start, end)), end
            start = end

    def _batch_end(self, start: int, stop: int) -> int:
        sizes = np.cumsum(self.index.size[start : min(stop, start + _BATCH_ROWS)], dtype=np.int64)
        return start + max(1, int(np.searchsorted(sizes, _BATCH_BYTES, side="right")))

    def _batch(self, names: list[str], numbers: np.ndarray) -> bytes:
        index = self.index.select(numbers)
        arrays: list[pa.Array] = [
            pa.array([row.tobytes().hex() for row in index.row_ids], pa.string()),
            pa.array([index.sources[code] for code in index.source], pa.string()),
            pa.array(index.position, pa.int64()),
        ]
        fields = [pa.field("row_id", pa.string()), pa.field("source", pa.string()), pa.field("position", pa.int64())]
        for name in names:
            kind = index.columns[name]
            arrays.append(self.column(name, numbers))
            fields.append(pa.field(name, arrow_type(kind), metadata={b"argosy.kind": kind.encode()}))
        batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    def _by_part(self, numbers: np.ndarray) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
        """For each part that has some of the rows: the part, places in `numbers`, slots in the part."""
        parts = self.index.part[numbers]
        slots = self.index.slot[numbers]
        for number in np.unique(parts):
            where = np.flatnonzero(parts == number)
            yield self._part(int(number)), where, slots[where]

    def _part(self, number: int) -> Part:
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = Part(self._blobs.read(self.index.parts[number]))
            if len(self._parts) > _CACHED_PARTS:
                self._parts.popitem(last=False)
        else:
            self._parts.move_to_end(number)
        return part


def shard_range(row_count: int, shard: int, shard_count: int) -> tuple[int, int]:
    """First row and row after the last of one of `shard_count` equal parts."""
    return row_count * shard // shard_count, row_count * (shard + 1) // shard_count


def difference(base: VersionIndex, other: VersionIndex) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of `other` that `base` lacks, rows of `base` that `other` lacks, and how many rows are in both.

    Counted with repetition: a row that stands twice in `base` and once in `other` went once.
    """
    codes = np.unique(np.concatenate([_keys(base), _keys(other)]), return_inverse=True)[1]
    base_codes, other_codes = codes[: len(base)], codes[len(base) :]
    kinds = int(codes.max()) + 1 if len(codes) else 0
    in_base, in_other = np.bincount(base_codes, minlength=kinds), np.bincount(other_codes, minlength=kinds)
    added = np.flatnonzero(_occurrence(other_codes) >= in_base[other_codes])
    removed = np.flatnonzero(_occurrence(base_codes) >= in_other[base_codes])
    return added, removed, len(other) - len(added)


def _keys(index: VersionIndex) -> np.ndarray:
    # numpy compares byte strings without their trailing zeros, which at equal width is still exact.
    return np.ascontiguousarray(index.row_ids).view("S32").reshape(-1)


def _occurrence(codes: np.ndarray) -> np.ndarray:
    """How many equal codes stand before each."""
    order = np.argsort(codes, kind="stable")
    ranked = codes[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=-1))
    rank = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    result = np.empty(len(codes), np.int64)
    result[order] = rank
    return result


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value)
