"""The telemetry store: a journal, then Parquet, read by DuckDB.

`append` returns when the request is on disk. Rows wait in memory until a segment is full or old; then they become one
Parquet file a signal, named after the segment, and the segment goes. A kill between the two leaves both: the segment is
read again and the signals whose file exists are skipped, so nothing is lost and nothing is there twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.aiops.store import otlp
from services.aiops.store.columns import SCHEMAS, Row, publish, table_of, write_draft, write_parquet
from services.aiops.store.wal import SIGNALS, Frame, Segment, Signal, frames_of

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{12})(?:-(\d{12}))?\.parquet")
# Files of one signal are merged when there are this many, so that a query opens few.
_MERGE_AT = 48


@dataclass(frozen=True)
class Caps:
    """Bounds of the store. Bytes a signal on disk; rows and seconds after which memory goes to Parquet."""

    bytes_per_signal: int = 256 << 20
    rows_in_memory: int = 20_000
    seconds_in_memory: float = 60.0


def rows_of(frame: Frame) -> list[Row]:
    """Decodes a request. Raises google.protobuf.message.DecodeError for bytes that are none."""
    if frame.signal == "spans":
        return list(otlp.spans_of(ExportTraceServiceRequest.FromString(frame.body), frame.org))
    if frame.signal == "logs":
        return list(otlp.logs_of(ExportLogsServiceRequest.FromString(frame.body), frame.org))
    return list(otlp.metrics_of(ExportMetricsServiceRequest.FromString(frame.body), frame.org))


class TelemetryStore:
    """One owning process; any number of readers within it."""

    def __init__(self, root: Path, caps: Caps, monotonic: Callable[[], float]) -> None:
        self._root = root
        self._caps = caps
        self._monotonic = monotonic
        self._rows: dict[Signal, list[Row]] = {signal: [] for signal in SIGNALS}
        self._tables: dict[Signal, pa.Table | None] = dict.fromkeys(SIGNALS)
        self._lock = threading.Lock()
        self._waiting: list[tuple[Frame, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._oldest: float | None = None
        self._flushing = threading.Lock()
        for name in ("wal", *SIGNALS):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._connection = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "512MB"})
        self._connection.execute("SET enable_progress_bar = false")
        self._recover()

    # ------------------------------------------------------------------ in

    async def append(self, frame: Frame) -> None:
        """Returns when the frame is on disk. OSError when the disk is full; nothing is kept then."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((frame, future))
        self._wake.set()
        await future

    async def run(self) -> None:
        """Writes what waits, and moves memory to Parquet when it is full or old. Runs until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout=1.0)
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            if batch:
                await self._write(batch)
            if self._due():
                await self.flush()

    async def _write(self, batch: list[tuple[Frame, asyncio.Future[None]]]) -> None:
        try:
            faults = await asyncio.to_thread(self._commit, [frame for frame, _ in batch])
        except Exception as error:
            faults = [error] * len(batch)
        for (_, future), fault in zip(batch, faults, strict=True):
            if future.done():
                continue
            if fault is None:
                future.set_result(None)
            else:
                future.set_exception(fault)

    def _commit(self, frames: list[Frame]) -> list[Exception | None]:
        """Writes the frames that can be read; what is wrong with each. A broken one is its sender's fault alone."""
        faults: list[Exception | None] = []
        good: list[tuple[Frame, list[Row]]] = []
        for frame in frames:
            try:
                good.append((frame, rows_of(frame)))
                faults.append(None)
            except DecodeError as error:
                faults.append(error)
        if good:
            self._keep(good)
        return faults

    def _keep(self, decoded: list[tuple[Frame, list[Row]]]) -> None:
        with self._flushing:
            self._segment.append([frame for frame, _ in decoded])
            with self._lock:
                for frame, rows in decoded:
                    self._rows[frame.signal].extend(rows)
                    self._tables[frame.signal] = None
                if self._oldest is None:
                    self._oldest = self._monotonic()

    def _due(self) -> bool:
        if self._oldest is None:
            return False
        full = sum(len(rows) for rows in self._rows.values()) >= self._caps.rows_in_memory
        return full or self._monotonic() - self._oldest >= self._caps.seconds_in_memory

    async def flush(self) -> None:
        """Moves what is in memory to Parquet. A full disk leaves it where it is, in memory and in the journal."""
        try:
            await asyncio.to_thread(self._flush)
        except OSError as error:
            log.warning("telemetry stays in the journal: %s", error.strerror)
            self._oldest = self._monotonic()

    def _flush(self) -> None:
        with self._flushing:
            full = self._segment
            with self._lock:
                rows: dict[Signal, list[Row]] = {signal: list(kept) for signal, kept in self._rows.items()}
            if not any(rows.values()):
                return
            # All files or none: a signal that had its file already would be in the answers twice, and what comes to
            # the segment before the next try would not get into that file.
            drafts, following = self._draft(full.number, rows)
            with self._lock:
                for draft, path in drafts:
                    publish(draft, path)
                self._rows = {signal: [] for signal in SIGNALS}
                self._tables = dict.fromkeys(SIGNALS)
                self._oldest = None
                self._segment = following
            full.close()
            full.delete()
            for signal in SIGNALS:
                self._merge(signal)
                self._cap(signal)

    def _draft(self, number: int, rows: dict[Signal, list[Row]]) -> tuple[list[tuple[Path, Path]], Segment]:
        """(draft, place) of a file for each signal, and the next segment: whatever needs room on the disk."""
        drafts: list[tuple[Path, Path]] = []
        try:
            for signal, kept in rows.items():
                path = self._root / signal / f"{number:012d}.parquet"
                if kept:
                    drafts.append((write_draft(table_of(signal, kept), path), path))
            return drafts, Segment(self._root / "wal", number + 1)
        except OSError:
            for draft, _ in drafts:
                draft.unlink(missing_ok=True)
            raise

    # ------------------------------------------------------------------ upkeep

    def _recover(self) -> None:
        for signal in SIGNALS:
            for leftover in (self._root / signal).glob("*.tmp"):
                leftover.unlink()
            self._drop_merged(signal)
        numbers = sorted(int(path.stem) for path in (self._root / "wal").glob("*.wal"))
        last = max([self._last_number(), *numbers], default=0)
        for number in numbers:
            path = self._root / "wal" / f"{number:012d}.wal"
            rows: dict[Signal, list[Row]] = {signal: [] for signal in SIGNALS}
            for frame in frames_of(path):
                rows[frame.signal].extend(rows_of(frame))
            for signal, kept in rows.items():
                target = self._root / signal / f"{number:012d}.parquet"
                if kept and not target.exists():
                    write_parquet(table_of(signal, kept), target)
            path.unlink()
        self._segment = Segment(self._root / "wal", last + 1)

    def _files(self, signal: Signal) -> list[tuple[int, int, Path]]:
        found: list[tuple[int, int, Path]] = []
        for path in (self._root / signal).iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                first = int(match.group(1))
                found.append((first, int(match.group(2) or first), path))
        return sorted(found)

    def _last_number(self) -> int:
        return max((last for signal in SIGNALS for _, last, _ in self._files(signal)), default=0)

    def _merge(self, signal: Signal) -> None:
        files = self._files(signal)
        if len(files) < _MERGE_AT:
            return
        half = files[: _MERGE_AT // 2]
        table = pa.concat_tables([pq.read_table(path, schema=SCHEMAS[signal]) for _, _, path in half])
        path = self._root / signal / f"{half[0][0]:012d}-{half[-1][1]:012d}.parquet"
        draft = write_draft(table, path)
        with self._lock:
            publish(draft, path)
            self._drop_merged(signal)

    def _drop_merged(self, signal: Signal) -> None:
        """Deletes the files whose numbers a merged one covers: also after a kill between merging and deleting."""
        files = self._files(signal)
        for first, last, path in files:
            covered = (a <= first and last <= b and other != path for a, b, other in files if b > a)
            if any(covered):
                path.unlink()

    def _cap(self, signal: Signal) -> None:
        files = self._files(signal)
        total = sum(path.stat().st_size for _, _, path in files)
        for _, _, path in files[:-1]:
            if total <= self._caps.bytes_per_signal:
                return
            total -= path.stat().st_size
            with self._lock:
                path.unlink()
            log.info("telemetry over its cap: the oldest %s were dropped", signal)

    def close(self) -> None:
        """Moves memory to Parquet where the disk lets it; the journal has it in any case."""
        try:
            self._flush()
        except OSError as error:
            log.warning("telemetry stays in the journal: %s", error.strerror)
        self._segment.close()
        self._connection.close()

    # ------------------------------------------------------------------ out

    async def query(self, signal: Signal, sql: str, parameters: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement that reads from `{rows}`: every row of the signal, on disk and in memory."""
        return await asyncio.to_thread(self._query, signal, sql, list(parameters))

    def _query(self, signal: Signal, sql: str, parameters: list[object]) -> list[tuple[Any, ...]]:
        with self._lock:  # no file may go, and no row move from memory to a file, between listing and reading
            table = self._tables[signal]
            if table is None:
                table = self._tables[signal] = table_of(signal, self._rows[signal])
            files = [str(path) for _, _, path in self._files(signal)]
            cursor = self._connection.cursor()
            try:
                cursor.register("recent", table)
                source = "(SELECT * FROM recent"
                if files:
                    listed = ", ".join(f"'{file}'" for file in (f.replace("'", "''") for f in files))
                    source += f" UNION ALL SELECT * FROM read_parquet([{listed}])"
                return cursor.execute(sql.replace("{rows}", source + ")"), parameters).fetchall()
            finally:
                cursor.close()
