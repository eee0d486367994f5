"""Parts: immutable Arrow IPC files of rows, content-addressed, shared by versions.

A part has the column `row_id` (32 bytes) and one column per column of its rows, typed as narrowly as its own rows allow; the type
that a version gives a column is at least as wide, so a part never has to be rewritten when a later row widens a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from services.dataset.engines.rows import BOOL, DOUBLE, INT, JSON, LONG, STRING, Row, kind_of, widen

# A part is closed when its rows have this many bytes of canonical content, or this many rows.
PART_BYTES = 8 * 1024 * 1024
PART_ROWS = 65_536

_ARROW = {
    STRING: pa.string(),
    BOOL: pa.bool_(),
    INT: pa.int64(),
    LONG: pa.int64(),
    DOUBLE: pa.float64(),
    JSON: pa.string(),
}
_KIND = b"argosy.kind"
# Level 1 halves the file of text at about 400 MB/s.
_WRITE = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))


class Blobs(Protocol):
    """The part of the blob store that engines need."""

    def read(self, digest: str) -> bytes:
        """The whole blob."""
        ...

    def write(self, data: bytes) -> str:
        """Stores the bytes durably and returns their SHA-256 in hexadecimal."""
        ...


def encode(ids: Sequence[bytes], rows: Sequence[Row]) -> bytes:
    """The Arrow IPC file of these rows.

    Args:
        ids: Row ids, 32 bytes each.
        rows: Canonical rows in the same order.
    """
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            kind = kind_of(value)
            seen = kinds.get(name)
            kinds[name] = kind if seen is None else widen(seen, kind)
    fields = [pa.field("row_id", pa.binary(32))]
    arrays: list[pa.Array] = [pa.array(ids, pa.binary(32))]
    for name, kind in kinds.items():
        # Prefixed, because a row may have a column of any name, also `row_id`.
        fields.append(pa.field(f"c.{name}", _ARROW[kind], metadata={_KIND: kind.encode()}))
        arrays.append(_array([row.get(name) for row in rows], kind))
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=_WRITE) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


class Part:
    """A part in memory."""

    def __init__(self, data: bytes) -> None:
        self.table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        self.kinds = {
            field.name.removeprefix("c."): (field.metadata or {})[_KIND].decode()
            for field in self.table.schema
            if field.name != "row_id"
        }

    def column(self, name: str, kind: str, slots: np.ndarray) -> pa.Array:
        """Values of one column as type `kind`, which must be at least as wide as the part's own; nulls where it has none."""
        own = self.kinds.get(name)
        if own is None:
            return pa.nulls(len(slots), _ARROW[kind])
        values = self.table.column(f"c.{name}").take(pa.array(slots)).combine_chunks()
        return _cast(values, own, kind)

    def rows(self, slots: np.ndarray) -> list[Row]:
        """Whole canonical rows."""
        taken = self.table.take(pa.array(slots))
        rows: list[Row] = [{} for _ in range(len(slots))]
        for name, kind in self.kinds.items():
            for row, value in zip(rows, taken.column(f"c.{name}").to_pylist(), strict=True):
                if value is not None:
                    row[name] = orjson.loads(value) if kind == JSON else value
        return rows


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a column of type `kind`."""
    return _ARROW[kind]


def _array(values: list[object], kind: str) -> pa.Array:
    if kind == JSON:
        return pa.array([None if value is None else _json(value) for value in values], pa.string())
    return pa.array(values, _ARROW[kind])


def _cast(values: pa.Array, own: str, kind: str) -> pa.Array:
    if own == kind:
        return values
    if kind == JSON:
        return pa.array([None if value is None else _json(value) for value in values.to_pylist()], pa.string())
    return cast(pa.Array, pc.cast(values, _ARROW[kind]))


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
