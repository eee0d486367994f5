"""The telemetry store when the disk fills up between two of its files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from pathlib import Path
from typing import Any

import pytest

from services.aiops.domain.telemetry import Window
from services.aiops.store import queries, telemetry
from services.aiops.store.queries import LogFilter, TraceFilter
from services.aiops.store.telemetry import Caps, TelemetryStore
from services.aiops.store.wal import Frame
from tests.integration.aiops.test_aiops_ingest import line, trace

ALL = Window(0, 2**62)


async def test_a_disk_that_fills_between_two_files_neither_doubles_nor_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TelemetryStore(tmp_path, Caps(), time.monotonic)
    writer = asyncio.ensure_future(store.run())

    async def counts() -> tuple[int, int]:
        traces = await queries.traces(store, "acme", ALL, TraceFilter(), 100, 0)
        logs = await queries.logs(store, "acme", ALL, LogFilter(), 100, 0)
        return sum(found.span_count for found in traces), len(logs)

    async def send(number: int) -> None:
        await store.append(Frame("spans", None, trace(number, ("gateway", "GET")).SerializeToString()))
        await store.append(Frame("logs", None, line(str(number)).SerializeToString()))

    write = telemetry.write_draft

    def full(table: Any, path: Path) -> Path:
        if path.parent.name == "logs":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(table, path)

    try:
        await send(1)
        with monkeypatch.context() as patch:
            patch.setattr(telemetry, "write_draft", full)
            await store.flush()
            assert await counts() == (1, 1)
            await send(2)
        await store.flush()
        assert await counts() == (2, 2)
        assert not list((tmp_path / "spans").glob("*.tmp"))
    finally:
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer
    await asyncio.to_thread(store.close)
    again = TelemetryStore(tmp_path, Caps(), time.monotonic)
    store = again
    assert await counts() == (2, 2)
    again.close()
