"""Curves as TensorBoard's event files, and event files as curves of outside runs."""

from __future__ import annotations

import asyncio
import io
import re
import zipfile
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from argosy import event_files
from argosy.training.v1 import outside_run_service_pb2 as pb

from libs.common.domain import invalid
from libs.common.rpc.call import Call
from services.training.domain.outside_runs import ENDED, require_outside_run
from services.training.domain.run_filter import microseconds
from services.training.domain.trainings import TrainingRun
from services.training.handlers.outside_runs import settle
from services.training.store.metric_columns import Points
from services.training.store.metrics import MOST_METRICS, RunMetrics, points_page
from services.training.store.repositories import TrainingRuns

if TYPE_CHECKING:
    from services.training.app import App

# As `MetricSeries.key` has it.
_KEY = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_./ -]{0,248}[A-Za-z0-9_])?")
_LAST_STEP = 1 << 53
_PAGE_KEYS, _PAGE_POINTS = 1_000, 25_000
_SHOWN_FAULTS = 100


class _Sink(io.RawIOBase):
    """What a zip is written to: bytes that are taken away piece by piece."""

    def __init__(self) -> None:
        self.held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.held += data
        return len(data)

    def take(self) -> bytes:
        """All that was written since the last time."""
        data = bytes(self.held)
        self.held.clear()
        return data


async def download_event_files(
    request: pb.DownloadEventFilesRequest, call: Call[App]
) -> AsyncIterator[pb.DownloadEventFilesResponse]:
    runs = await TrainingRuns(call.uow).named(request.runs)
    await call.uow.rollback()
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for run in runs:
            with archive.open(file_name(run), "w", force_zip64=True) as file:
                async for piece in _pieces(run, call):
                    await asyncio.to_thread(file.write, piece)
                    if sink.held:
                        yield pb.DownloadEventFilesResponse(data=sink.take())
    yield pb.DownloadEventFilesResponse(data=sink.take())


def file_name(run: TrainingRun) -> str:
    """Where the events of a run lie: `packages/3/events.out.tfevents.1790000000.argosy`."""
    _, _, _, training, _, number = run.name.split("/")
    return f"{training}/{number}/events.out.tfevents.{int(run.create_time.timestamp())}.argosy"


async def _pieces(run: TrainingRun, call: Call[App]) -> AsyncIterator[bytes]:
    """An event file in pieces; a transaction a piece, as a download may take long."""
    yield event_files.opening(int(microseconds(run.create_time)))
    after: str | None = ""
    while after is not None:
        async with call.deps.database.unit_of_work(call.org, call.principal.subject, read_only=True) as uow:
            keys = [row["key"] for row in await RunMetrics(uow).keys(run.uid, _PAGE_KEYS, after)]
        for key in keys:
            step: int | None = 0
            while step is not None:
                async with call.deps.database.unit_of_work(call.org, call.principal.subject, read_only=True) as uow:
                    points, step = await points_page(RunMetrics(uow), run.uid, key, step, _PAGE_POINTS)
                yield await asyncio.to_thread(_records, key, points)
        after = keys[-1] if len(keys) == _PAGE_KEYS else None


def _records(key: str, points: Points) -> bytes:
    columns = zip(points.steps.tolist(), points.times.tolist(), points.values.tolist(), strict=True)
    return b"".join(event_files.scalar(key, step, time, value) for step, time, value in columns)


async def import_event_file(request: pb.ImportEventFileRequest, call: Call[App]) -> pb.ImportEventFileResponse:
    async with call.deps.database.unit_of_work(call.org, call.principal.subject, read_only=True) as uow:
        require_outside_run(await TrainingRuns(uow).get(request.name))
    # A hundred thousand records take seconds: other calls go on meanwhile, and have the connection.
    part = await asyncio.to_thread(event_files.read_part, request.data, request.offset, request.last)
    scalars = [scalar for scalar in part.scalars if _fits(scalar)]
    faults = part.faults + _unfit(part.scalars, request.offset)
    series = _series(scalars)
    if len(series) > MOST_METRICS:
        raise invalid("data", f"has {len(series):,} tags; {MOST_METRICS:,} at most")
    if series:
        runs = TrainingRuns(call.uow)
        run = await runs.get(request.name)
        if run.state in ENDED:
            run = await runs.get(request.name, for_update=True)
        await RunMetrics(call.uow).report(run.uid, run.org, series)
        if run.state in ENDED:
            await settle(run, call)
    return pb.ImportEventFileResponse(
        next_offset=part.next_offset,
        point_count=len(scalars),
        skipped_count=part.skipped,
        fault_count=len(faults),
        faults=[pb.EventFault(offset=fault.offset, reason=fault.reason) for fault in faults[:_SHOWN_FAULTS]],
    )


def _fits(scalar: event_files.Scalar) -> bool:
    return scalar.step <= _LAST_STEP and _KEY.fullmatch(scalar.tag) is not None


def _unfit(scalars: Sequence[event_files.Scalar], offset: int) -> list[event_files.Fault]:
    """Scalars that can be no points of a metric; one fault a tag, as all its values have the same."""
    tags = {scalar.tag: scalar for scalar in scalars if not _fits(scalar)}
    return [
        event_files.Fault(
            offset,
            f"step {scalar.step} of {tag[:100]!r} is above {_LAST_STEP}"
            if scalar.step > _LAST_STEP
            else f"the tag {tag[:100]!r} is no metric: letters, digits, and _ . / - or spaces between them",
        )
        for tag, scalar in tags.items()
    ]


def _series(scalars: Sequence[event_files.Scalar]) -> dict[str, Points]:
    columns: dict[str, tuple[list[int], list[int], list[float]]] = {}
    for scalar in scalars:
        steps, times, values = columns.setdefault(scalar.tag, ([], [], []))
        steps.append(scalar.step)
        times.append(scalar.time)
        values.append(scalar.value)
    return {
        tag: Points(np.array(steps, np.int64), np.array(times, np.int64), np.array(values, np.float64))
        for tag, (steps, times, values) in columns.items()
    }
