"""Reading a version for programs in batches, and comparing two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from libs.compute.versions import VersionIndex, VersionReader

# Bytes of canonical content in one batch. Ids, sources and offsets come on top; the whole stays under 1 MiB.
_BATCH_BYTES = 640 * 1024
# Rows of one batch: at 150 bytes of ids and provenance each, 2,048 rows leave room for the content.
_BATCH_ROWS = 2048


def batches(reader: VersionReader, projection: list[str], start: int, stop: int) -> Iterator[tuple[bytes, int]]:
    """Arrow IPC streams of one record batch each, at most 1 MiB unless a single row is larger.

    Args:
        reader: The version.
        projection: Columns beside `row_id`, `source` and `position`; empty: all.
        start: First row.
        stop: Row after the last.

    Yields:
        The stream and the number of the row after its last.
    """
    names = projection or list(reader.index.columns)
    while start < stop:
        end = _batch_end(reader.index, start, stop)
        batch = reader.batch(names, np.arange(start, end))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        yield sink.getvalue().to_pybytes(), end
        start = end


def _batch_end(index: VersionIndex, start: int, stop: int) -> int:
    sizes = np.cumsum(index.size[start : min(stop, start + _BATCH_ROWS)], dtype=np.int64)
    return start + max(1, int(np.searchsorted(sizes, _BATCH_BYTES, side="right")))


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
