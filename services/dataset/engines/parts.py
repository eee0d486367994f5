"""Parts: immutable Arrow IPC files of rows, content-addressed, shared by versions.

A part has the column `row_id` (32 bytes) and one column per column of its rows, typed as narrowly as its own rows
allow; the type that a version gives a column is at least as wide, so a part never has to be rewritten when a later
row widens a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from libs.compute.versions import ARROW, COLUMN_PREFIX, JSON, KIND, to_json
from services.dataset.engines.rows import Row, kind_of_all

# A part is closed when its rows have this many bytes of canonical content, or this many rows.
PART_BYTES = 8 * 1024 * 1024
PART_ROWS = 65_536

# Level 1 halves the file of text at about 400 MB/s.
_WRITE = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))


class Sink(Protocol):
    """Takes what is written."""

    def write(self, data: bytes) -> str:
        """Stores the bytes durably and returns their SHA-256 in hexadecimal."""
        ...


class Blobs(Sink, Protocol):
    """The part of the blob store that engines need."""

    def read(self, digest: str) -> bytes:
        """The whole blob."""
        ...

    def write_file(self, path: Path) -> str:
        """`write` of what is in a file."""
        ...


def encode(ids: Sequence[bytes], rows: Sequence[Row]) -> bytes:
    """The Arrow IPC file of these rows.

    Args:
        ids: Row ids, 32 bytes each.
        rows: Canonical rows in the same order.
    """
    fields = [pa.field("row_id", pa.binary(32))]
    arrays: list[pa.Array] = [pa.array(ids, pa.binary(32))]
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row.get(name) for row in rows]
        kind = kind_of_all(values)
        fields.append(pa.field(f"{COLUMN_PREFIX}{name}", ARROW[kind], metadata={KIND: kind.encode()}))
        arrays.append(_array(values, kind))
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=_WRITE) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _array(values: Sequence[object], kind: str) -> pa.Array:
    if kind == JSON:
        return pa.array([None if value is None else to_json(value) for value in values], pa.string())
    return pa.array(values, ARROW[kind])
