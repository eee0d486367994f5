"""Rows as Parquet: columns of lists and objects as nested types where every row has the same shape, as JSON text
otherwise, marked so that an import reads it back as what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from libs.compute.versions import ARROW, BOOL, DOUBLE, INT, JSON, KIND, LONG, STRING, VersionReader
from services.dataset.engines.rows import MAX_EXACT_INT, widen

_PROVENANCE = {"source": pa.string(), "position": pa.int64()}
_SCALARS = {STRING: pa.string(), BOOL: pa.bool_(), INT: pa.int64(), LONG: pa.int64(), DOUBLE: pa.float64()}

# The type of a scalar, `list` with the shape of its elements, or an object with those of its fields; None: only nulls.
Shape = Any


class Mixed(Exception):
    """Values have no type in common."""


def shape_of(value: Any) -> Shape:
    """The shape of one value. Raises `Mixed`."""
    if value is None:
        return None
    if isinstance(value, list):
        return ("list", merged(map(shape_of, value)))
    if isinstance(value, dict):
        # Parquet has no object without fields.
        if not value:
            raise Mixed
        return ("object", {name: shape_of(value[name]) for name in sorted(value)})
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise Mixed
        return INT if abs(value) <= MAX_EXACT_INT else LONG
    return DOUBLE if isinstance(value, float) else STRING


def merged(shapes: Iterable[Shape]) -> Shape:
    """The shape that holds values of all these shapes, each exactly as it is. Raises `Mixed`."""
    found: Shape = None
    for shape in shapes:
        found = shape if found is None else found if shape is None else _merge(found, shape)
    return found


def _merge(one: Shape, other: Shape) -> Shape:
    if isinstance(one, str) and isinstance(other, str):
        kind = widen(one, other)
        if kind == JSON:
            raise Mixed
        return kind
    if isinstance(one, str) or isinstance(other, str) or one[0] != other[0]:
        raise Mixed
    if one[0] == "list":
        return ("list", merged([one[1], other[1]]))
    # A field that is missing and a field that is null are two things in JSON and one in Parquet.
    if one[1].keys() != other[1].keys():
        raise Mixed
    return ("object", {name: merged([shape, other[1][name]]) for name, shape in one[1].items()})


def arrow_type(shape: Shape) -> pa.DataType:
    """The Arrow type of a shape; what is null everywhere is text."""
    if shape is None:
        return pa.string()
    if isinstance(shape, str):
        return _SCALARS[shape]
    if shape[0] == "list":
        return pa.list_(arrow_type(shape[1]))
    return pa.struct([pa.field(name, arrow_type(inner)) for name, inner in shape[1].items()])


class ParquetRows:
    """Rows of versions as Arrow, all with one schema.

    Args:
        columns: Type of each column, in order; at least as wide as those of every version.
        nested: Shape of the columns whose values all have one.
        with_source: Adds `source` and `position`.
    """

    def __init__(self, columns: dict[str, str], nested: dict[str, Shape], with_source: bool) -> None:
        self._columns = columns
        self._types = {name: arrow_type(shape) for name, shape in nested.items()}
        self.text_columns = [name for name, kind in columns.items() if kind == JSON and name not in nested]
        fields = [self._field(name, kind) for name, kind in columns.items()]
        if with_source:
            fields += [pa.field(name, kind) for name, kind in _PROVENANCE.items()]
        self.schema = pa.schema(fields)

    def _field(self, name: str, kind: str) -> pa.Field:
        if name in self._types:
            return pa.field(name, self._types[name])
        return pa.field(name, ARROW[kind], metadata={KIND: JSON.encode()} if kind == JSON else None)

    def table(self, reader: VersionReader, numbers: np.ndarray) -> pa.Table:
        """These rows."""
        names = [name for name in self._columns if name in reader.index.columns]
        batch = reader.batch(names, numbers)
        return pa.table([self._array(batch, reader, field) for field in self.schema], schema=self.schema)

    def _array(self, batch: pa.RecordBatch, reader: VersionReader, field: pa.Field) -> pa.Array:
        if field.name not in batch.schema.names:
            return pa.nulls(batch.num_rows, field.type)
        array = batch.column(field.name)
        own, kind = reader.index.columns.get(field.name), self._columns.get(field.name)
        if field.name in self._types:
            return pa.array(_parsed(array.to_pylist()), field.type)
        if kind == JSON and own != JSON:
            texts = [None if value is None else orjson.dumps(value).decode() for value in array.to_pylist()]
            return pa.array(texts, pa.string())
        return array.cast(field.type)


def _parsed(texts: list[str | None]) -> Iterator[Any]:
    return (None if text is None else orjson.loads(text) for text in texts)


class Shapes:
    """Finds the shapes of columns as their values come by.

    Args:
        columns: That may have one.
    """

    def __init__(self, columns: Iterable[str]) -> None:
        self._found: dict[str, Shape] = dict.fromkeys(columns)

    @property
    def open(self) -> list[str]:
        """Columns whose values had one shape so far."""
        return list(self._found)

    def add(self, name: str, texts: list[str | None]) -> None:
        """Takes the next values of a column as JSON texts; a column of mixed shapes is given up."""
        try:
            self._found[name] = merged([self._found[name], *map(shape_of, _parsed(texts))])
        except (Mixed, RecursionError):
            del self._found[name]

    def finish(self) -> dict[str, Shape]:
        """Shape by column."""
        return self._found


def write_parquet(file: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Writes tables as one Parquet file, a row group each."""
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
