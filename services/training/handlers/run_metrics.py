"""Metrics of runs: points in, curves and pictures out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from argosy.training.v1 import run_metrics_pb2
from argosy.training.v1 import run_service_pb2 as pb

from libs.common.db.mapping import timestamp
from libs.common.domain import invalid
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.training.domain.run_filter import microseconds
from services.training.domain.trainings import TrainingRun
from services.training.handlers.curves_picture import Chart, Line, picture
from services.training.store.metric_columns import Array, Points, join, thin
from services.training.store.metrics import MANY_POINTS, Rows, RunMetrics, curve_of
from services.training.store.repositories import TrainingRuns

if TYPE_CHECKING:
    from services.training.app import App

_DEFAULT_POINTS = 1_000
_LAST_STEP = 1 << 53
# At most 24 bytes a point in the answer, which may have 9 MiB.
_MOST_POINTS = 350_000
# The last second of the year 9999: microseconds later ones, as a double, are the year 10000.
_LAST_TIME = 253_402_300_799_000_000
# Of a line in a picture: two a pixel of its width.
_PICTURE_POINTS = 1_200


async def report_run_metrics(request: pb.ReportRunMetricsRequest, call: Call[App]) -> pb.ReportRunMetricsResponse:
    series = await series_from(request.series, call.clock.now())
    run = await TrainingRuns(call.uow).get(request.name)
    if series:
        await RunMetrics(call.uow).report(run.uid, run.org, series)
    return pb.ReportRunMetricsResponse(point_count=sum(len(given.values) for given in request.series))


async def list_run_metric_keys(request: pb.ListRunMetricKeysRequest, call: Call[App]) -> pb.ListRunMetricKeysResponse:
    run = await TrainingRuns(call.uow).get(request.parent)
    size = page_size(request.page_size)
    rows = await RunMetrics(call.uow).keys(run.uid, size + 1, PageToken.decode(request))
    keys = [
        run_metrics_pb2.RunMetricKey(
            key=row["key"],
            point_count=row["point_count"],
            first_step=row["first_step"],
            last_step=row["last_step"],
            min_value=row["min_value"],
            max_value=row["max_value"],
            last_value=row["last_value"],
            last_time=timestamp(row["last_time"].astimezone(UTC)),
        )
        for row in rows[:size]
    ]
    after = keys[-1].key if len(rows) > size else ""
    return pb.ListRunMetricKeysResponse(metric_keys=keys, next_page_token=PageToken.encode(request, after))


async def get_run_curves(request: pb.GetRunCurvesRequest, call: Call[App]) -> pb.GetRunCurvesResponse:
    most = max(10, request.max_points or _DEFAULT_POINTS)
    if most * len(request.runs) * len(request.keys) > _MOST_POINTS:
        raise invalid("max_points", f"all curves together may have {_MOST_POINTS:,} points")
    runs = await TrainingRuns(call.uow).named(request.runs)
    by_time = request.axis == pb.CURVE_AXIS_TIME
    window = (request.first_step, request.last_step or None)
    curves = await _curves(runs, request.keys, most, by_time, window, call)
    return pb.GetRunCurvesResponse(
        curves=[
            run_metrics_pb2.RunCurve(
                run=run.name,
                key=key,
                steps=thinned.steps.tolist(),
                times=thinned.times.tolist(),
                values=thinned.values.tolist(),
                point_count=count,
            )
            for run, key, thinned, count in curves
        ]
    )


async def render_run_curves(request: pb.RenderRunCurvesRequest, call: Call[App]) -> pb.RenderRunCurvesResponse:
    runs = await TrainingRuns(call.uow).named(request.runs)
    by_time = request.axis == pb.CURVE_AXIS_TIME
    curves = await _curves(runs, request.keys, _PICTURE_POINTS, by_time, (0, None), call)
    charts = [
        Chart(key, [_line(run, points, by_time) for run, found, points, _ in curves if found == key])
        for key in request.keys
    ]
    names = [_short(run.name) for run in runs]
    return pb.RenderRunCurvesResponse(svg=await asyncio.to_thread(picture, charts, names, by_time, request.logarithmic))


async def _curves(
    runs: Sequence[TrainingRun],
    keys: Sequence[str],
    most: int,
    by_time: bool,
    window: tuple[int, int | None],
    call: Call[App],
) -> list[tuple[TrainingRun, str, Points, int]]:
    """Run, key, thinned points and number of steps of each curve that is there."""
    store, found = RunMetrics(call.uow), list[tuple[TrainingRun, str, Points, int]]()
    # One curve in memory at a time, however many are asked for.
    for run, key in itertools.product(runs, keys):
        rows = await store.rows(run.uid, key, times=by_time, first_step=window[0], last_step=window[1])
        # Whole columns of millions of points: other calls go on meanwhile.
        thinned, count = await asyncio.to_thread(_thinned, rows, most, by_time, window)
        if count:
            found.append((run, key, thinned, count))
    return found


def _thinned(rows: Rows, most: int, by_time: bool, window: tuple[int, int | None]) -> tuple[Points, int]:
    first, last = window
    points = curve_of(rows, times=by_time)
    begin = int(np.searchsorted(points.steps, first, "left"))
    end = len(points) if last is None else int(np.searchsorted(points.steps, last, "right"))
    return thin(points.take(slice(begin, end)), most, by_time=by_time), max(0, end - begin)


def _line(run: TrainingRun, points: Points, by_time: bool) -> Line:
    """Over steps, or over the seconds since the run was created."""
    begin = microseconds(run.create_time)
    places = [(time - begin) / 1e6 for time in points.times.tolist()] if by_time else points.steps.tolist()
    return Line(_short(run.name), list(zip(places, points.values.tolist(), strict=True)))


def _short(name: str) -> str:
    """`packages/3` of `orgs/acme/trainings/packages/runs/3`."""
    return "/".join(name.split("/")[3::2])


async def series_from(given: Sequence[run_metrics_pb2.MetricSeries], now: datetime) -> dict[str, Points]:
    """Points by metric, none of them empty. Raises INVALID_FIELD that names the point.

    Args:
        now: time of points that have none.
    """
    many = sum(len(one.values) for one in given) >= MANY_POINTS
    return await asyncio.to_thread(_series_from, given, now) if many else _series_from(given, now)


def _series_from(given: Sequence[run_metrics_pb2.MetricSeries], now: datetime) -> dict[str, Points]:
    series: dict[str, Points] = {}
    for number, one in enumerate(given):
        points = _points_from(one, f"series[{number}]", int(microseconds(now)))
        if len(points):
            before = series.get(one.key)
            series[one.key] = points if before is None else join([before, points])
    return series


def _points_from(given: run_metrics_pb2.MetricSeries, where: str, now: int) -> Points:
    """The columns of a series. Raises INVALID_FIELD that names the point."""
    count = len(given.values)
    for name in ("steps", "times"):
        length = len(getattr(given, name))
        if length != count and (name == "steps" or length):
            raise invalid(f"{where}.{name}", f"has {length} entries beside {count} values")
    steps = _column(given.steps, f"{where}.steps", _LAST_STEP)
    times = _column(given.times, f"{where}.times", _LAST_TIME) if given.times else np.full(count, now, np.int64)
    return Points(steps, times, np.fromiter(given.values, np.float64, count))


def _column(numbers: Sequence[int], where: str, most: int) -> Array:
    column = np.fromiter(numbers, np.int64, len(numbers))
    wrong = np.flatnonzero((column < 0) | (column > most))
    if len(wrong):
        raise invalid(f"{where}[{wrong[0]}]", f"must be from 0 to {most}, not {column[wrong[0]]}")
    return column
