from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from services.aiops.domain.telemetry import Window
from services.aiops.store import queries
from services.aiops.store.queries import LogFilter, TraceFilter
from services.aiops.store.telemetry import Caps, TelemetryStore
from services.aiops.store.wal import Frame

ALL = Window(0, 2**62)
SECOND = 1_000_000_000


def _pair(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def spans(*given: tuple[str, str, int, int], org: str = "acme", trace: int = 1) -> bytes:
    """(service, name, start, duration) of each span, times in seconds."""
    request = ExportTraceServiceRequest()
    for number, (service, name, start, duration) in enumerate(given, 1):
        resource_spans = request.resource_spans.add()
        resource_spans.resource.attributes.append(_pair("service.name", service))
        span = resource_spans.scope_spans.add().spans.add(
            trace_id=trace.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            parent_span_id=(number - 1).to_bytes(8, "big") if number > 1 else b"",
            name=name,
            kind=2,
            start_time_unix_nano=start * SECOND,
            end_time_unix_nano=(start + duration) * SECOND,
        )
        if org:
            span.attributes.append(_pair("argosy.org", org))
    return request.SerializeToString()


def line(body: str, at: int = 1, org: str = "acme") -> bytes:
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    resource_logs.resource.attributes.append(_pair("service.name", "dataset"))
    record = resource_logs.scope_logs.add().log_records.add(
        time_unix_nano=at * SECOND, severity_number=9, severity_text="INFO", body=AnyValue(string_value=body)
    )
    record.attributes.append(_pair("argosy.org", org))
    return request.SerializeToString()


@contextlib.asynccontextmanager
async def opened(root: Path, caps: Caps | None = None):
    store = TelemetryStore(root, caps or Caps(), time.monotonic)
    writer = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


async def bodies(store: TelemetryStore) -> list[str]:
    return sorted(r.body for r in await queries.logs(store, None, ALL, LogFilter(), 1000, 0))


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.append(Frame("logs", None, line("one")))
        await store.append(Frame("logs", None, line("two")))
    # Nothing was flushed or closed: the next process only has the journal.
    async with opened(tmp_path) as store:
        assert await bodies(store) == ["one", "two"]
        await store.append(Frame("logs", None, line("three")))
        await store.flush()
        await store.append(Frame("logs", None, line("four")))
        assert await bodies(store) == ["four", "one", "three", "two"]
    async with opened(tmp_path) as store:
        assert await bodies(store) == ["four", "one", "three", "two"]


async def test_a_kill_between_file_and_journal_doubles_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.append(Frame("logs", None, line("one")))
        journal = next((tmp_path / "wal").glob("*.wal"))
        kept = journal.read_bytes()
        await store.flush()
    journal.write_bytes(kept)  # as if the process had died before deleting it
    async with opened(tmp_path) as store:
        assert await bodies(store) == ["one"]


async def test_a_torn_frame_was_never_acknowledged(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.append(Frame("logs", None, line("one")))
    journal = next((tmp_path / "wal").glob("*.wal"))
    with journal.open("ab") as file:
        file.write(b"\x00\x00\x01\x00half")
    async with opened(tmp_path) as store:
        assert await bodies(store) == ["one"]


async def test_many_files_are_merged_and_capped(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(60):
            await store.append(Frame("logs", None, line(f"{number:02d}", at=number)))
            await store.flush()
        assert len(list((tmp_path / "logs").glob("*.parquet"))) < 48
        assert await bodies(store) == [f"{number:02d}" for number in range(60)]
    async with opened(tmp_path, Caps(bytes_per_signal=1)) as store:
        await store.append(Frame("logs", None, line("last", at=99)))
        await store.flush()
        assert await bodies(store) == ["last"]


async def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.append(Frame("logs", None, line("before")))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        import signal

        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                await store.append(Frame("logs", None, line("x" * 1000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)
        await store.append(Frame("logs", None, line("after")))
    async with opened(tmp_path) as store:
        assert await bodies(store) == ["after", "before"]


async def test_service_stats_count_what_was_served(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.append(Frame("spans", None, spans(("gateway", "GET", 1, 4), ("dataset", "Get", 2, 2))))
        await store.append(Frame("spans", None, spans(("dataset", "Get", 5, 4), trace=2)))
        found = {s.service: s for s in await queries.service_stats(store, None, Window(0, 10 * SECOND))}
        assert found["dataset"].requests == 2
        assert found["dataset"].queries_per_second == pytest.approx(0.2)
        assert found["dataset"].p50 == pytest.approx(3.0)
        assert await queries.service_stats(store, "other", Window(0, 10 * SECOND)) == []


async def test_watching_for_an_hour_does_not_make_a_service_slow(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        watched = ("dataset", "argosy.common.v1.TaskService/WatchTask", 1, 8)
        await store.append(Frame("spans", None, spans(("dataset", "Get", 1, 1), watched)))
        await store.append(Frame("spans", None, spans(("gateway", "GET /v1/{name=orgs/*/*/tasks/*}:watch", 1, 8))))
        found = {s.service: s for s in await queries.service_stats(store, None, Window(0, 10 * SECOND))}
        assert (found["dataset"].requests, found["dataset"].p99) == (2, pytest.approx(1.0))
        assert {o.operation: o.p99 for o in found["dataset"].operations}[watched[1]] == pytest.approx(8.0)
        assert found["gateway"].p99 == 0.0


async def test_another_organization_sees_no_trace(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.append(Frame("spans", None, spans(("gateway", "GET", 1, 4), ("dataset", "Get", 2, 2))))
        trace_id = f"{1:032x}"
        assert [s.service for s in await queries.trace(store, "acme", trace_id)] == ["gateway", "dataset"]
        assert await queries.trace(store, "other", trace_id) == []
        assert await queries.traces(store, "other", ALL, TraceFilter(), 10, 0) == []
        [summary] = await queries.traces(store, "acme", ALL, TraceFilter(service="dataset"), 10, 0)
        assert (summary.root_service, summary.span_count, summary.duration) == ("gateway", 2, 4 * SECOND)


async def test_an_outsider_cannot_claim_an_organization(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.append(Frame("logs", "evil", line("mine", org="acme")))
        assert await queries.logs(store, "acme", ALL, LogFilter(), 10, 0) == []
        assert len(await queries.logs(store, "evil", ALL, LogFilter(), 10, 0)) == 1
