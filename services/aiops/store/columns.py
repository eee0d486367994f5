"""Rows as Arrow tables and Parquet files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from services.aiops.domain.telemetry import LogRecord, MetricPoint, Span
from services.aiops.store.wal import Signal

Row = Span | LogRecord | MetricPoint

SCHEMAS: dict[Signal, pa.Schema] = {
    "spans": pa.schema(
        [
            ("org", pa.string()),
            ("trace_id", pa.string()),
            ("span_id", pa.string()),
            ("parent_span_id", pa.string()),
            ("service", pa.string()),
            ("name", pa.string()),
            ("kind", pa.string()),
            ("start", pa.int64()),
            ("duration", pa.int64()),
            ("status", pa.string()),
            ("status_message", pa.string()),
            ("attributes", pa.string()),
            ("events", pa.string()),
        ]
    ),
    "logs": pa.schema(
        [
            ("org", pa.string()),
            ("time", pa.int64()),
            ("service", pa.string()),
            ("severity_number", pa.int32()),
            ("severity", pa.string()),
            ("body", pa.string()),
            ("trace_id", pa.string()),
            ("span_id", pa.string()),
            ("attributes", pa.string()),
        ]
    ),
    "metrics": pa.schema(
        [
            ("org", pa.string()),
            ("time", pa.int64()),
            ("service", pa.string()),
            ("name", pa.string()),
            ("kind", pa.string()),
            ("value", pa.float64()),
            ("count", pa.int64()),
            ("attributes", pa.string()),
        ]
    ),
}


def table_of(signal: Signal, rows: Sequence[Row]) -> pa.Table:
    schema = SCHEMAS[signal]
    columns: list[Any] = []
    for column in schema:
        if column.name == "attributes":
            values: list[Any] = [orjson.dumps(row.attributes).decode() for row in rows]
        elif column.name == "events":
            values = [_events(row) for row in rows]
        else:
            values = [getattr(row, column.name) for row in rows]
        columns.append(pa.array(values, column.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _events(row: Row) -> str:
    events = row.events if isinstance(row, Span) else []
    return orjson.dumps([asdict(event) for event in events]).decode()


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes whole or not at all: a draft, fsync, rename, fsync of the folder."""
    publish(write_draft(table, path), path)


def write_draft(table: pa.Table, path: Path) -> Path:
    """Writes and syncs the file beside its place, for `publish`. A full disk leaves nothing behind."""
    draft = path.with_suffix(".tmp")
    try:
        pq.write_table(table, draft, compression="zstd")
        with draft.open("rb") as file:
            os.fsync(file.fileno())
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return draft


def publish(draft: Path, path: Path) -> None:
    """Puts a draft in its place; needs no room on the disk."""
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
