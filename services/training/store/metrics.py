"""The metric store: points of runs in columnar segments.

Points arrive as small segments and are joined into large ones, which are never touched again. Every write locks the
row of its metric, so that segments are numbered in the order in which they were accepted: of two reports of one step
the later one counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import RowMapping, delete, func, insert, select, text, update

from libs.common.db.uow import ANY_ORG, UnitOfWork
from libs.common.domain import DomainError
from services.training.store import tables
from services.training.store.metric_columns import Points, join, pack, unpack

# A segment of so many points is left alone.
FULL_SEGMENT = 16_384
# So many small segments are joined; a curve then reads at most that many beside the full ones.
OPEN_SEGMENTS = 32
# Of one run, as far as anybody can choose them: the newest points of all are one message.
MOST_METRICS = 10_000
# From so many points on, columns are made beside the event loop; fewer take less than the way there.
MANY_POINTS = 2_000

# Arrays instead of rows of parameters: one statement, parsed once, however many metrics there are.
_ADD = text(
    """
    INSERT INTO run_metrics AS old (run_uid, org, key, point_count, segment_count, open_count, first_step, last_step,
        min_value, max_value, last_value, last_time)
    SELECT CAST(:run_uid AS uuid), CAST(:org AS text), key, points, 1, 1, first_step, last_step,
        min_value, max_value, last_value, to_timestamp(last_time / 1e6)
    FROM unnest(CAST(:keys AS text[]), CAST(:points AS bigint[]), CAST(:first_steps AS bigint[]),
        CAST(:last_steps AS bigint[]), CAST(:minima AS float8[]), CAST(:maxima AS float8[]),
        CAST(:last_values AS float8[]), CAST(:last_times AS bigint[]))
        AS new (key, points, first_step, last_step, min_value, max_value, last_value, last_time)
    ON CONFLICT (run_uid, key) DO UPDATE SET
        point_count = old.point_count + excluded.point_count,
        segment_count = old.segment_count + 1,
        open_count = old.open_count + 1,
        first_step = least(old.first_step, excluded.first_step),
        last_step = greatest(old.last_step, excluded.last_step),
        min_value = least(old.min_value, excluded.min_value),
        max_value = greatest(old.max_value, excluded.max_value),
        last_value = CASE WHEN excluded.last_step >= old.last_step THEN excluded.last_value ELSE old.last_value END,
        last_time = CASE WHEN excluded.last_step >= old.last_step THEN excluded.last_time ELSE old.last_time END
    RETURNING key, segment_count, open_count
    """
)
_ADD_SEGMENTS = text(
    """
    INSERT INTO run_metric_segments (run_uid, org, key, number, point_count, first_step, last_step,
        steps, times, points)
    SELECT CAST(:run_uid AS uuid), CAST(:org AS text), new.*
    FROM unnest(CAST(:keys AS text[]), CAST(:numbers AS bigint[]), CAST(:counts AS integer[]),
        CAST(:first_steps AS bigint[]), CAST(:last_steps AS bigint[]), CAST(:steps AS bytea[]),
        CAST(:times AS bytea[]), CAST(:points AS bytea[])) AS new
    """
)


# Segments as they are stored.
Rows = Sequence[RowMapping]


class RunMetrics:
    """Points of the runs of the unit of work's organization."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def report(self, run_uid: str, org: str, series: Mapping[str, Points]) -> None:
        """As `add`, for what callers send. Raises TOO_LARGE above the limit of metrics."""
        if not await self.add(run_uid, org, series):
            return
        columns = tables.run_metrics.c
        query = select(func.count()).where(columns.run_uid == run_uid, *self._tenant(columns.org))
        count = (await (await self._uow.connection()).execute(query)).scalar_one()
        if count > MOST_METRICS:
            message = f"The run would have {count:,} metrics; {MOST_METRICS:,} at most."
            raise DomainError("TOO_LARGE", message, limit=str(MOST_METRICS))

    async def add(self, run_uid: str, org: str, series: Mapping[str, Points]) -> bool:
        """Adds points to metrics of a run; whether one of these is new.

        Args:
            series: by key; none of them empty. Steps in any order, of the same step the last one counts.
        """
        many = sum(len(points) for points in series.values()) >= MANY_POINTS
        parts, columns = await asyncio.to_thread(_packed, series) if many else _packed(series)
        connection = await self._uow.connection()
        extremes = [_extremes(part.values) for part in parts.values()]
        first_steps = [int(part.steps[0]) for part in parts.values()]
        last_steps = [int(part.steps[-1]) for part in parts.values()]
        values = {
            "run_uid": run_uid,
            "org": org,
            "keys": list(parts),
            "points": [len(series[key]) for key in parts],
            "first_steps": first_steps,
            "last_steps": last_steps,
            "minima": [low for low, _ in extremes],
            "maxima": [high for _, high in extremes],
            "last_values": [float(part.values[-1]) for part in parts.values()],
            "last_times": [int(part.times[-1]) for part in parts.values()],
        }
        found = {row.key: row for row in await connection.execute(_ADD, values)}
        segments = {
            "run_uid": run_uid,
            "org": org,
            "keys": list(parts),
            "numbers": [found[key].segment_count for key in parts],
            "counts": [len(part) for part in parts.values()],
            "first_steps": first_steps,
            "last_steps": last_steps,
            **{name: [column[name] for column in columns] for name in ("steps", "times", "points")},
        }
        await connection.execute(_ADD_SEGMENTS, segments)
        for key in parts:
            if found[key].open_count >= OPEN_SEGMENTS:
                await self._join_open(run_uid, org, key, found[key].segment_count, found[key].open_count)
        return any(row.segment_count == 1 for row in found.values())

    async def _join_open(self, run_uid: str, org: str, key: str, last: int, count: int) -> None:
        """Makes one segment of the last `count`; it stays open while it is small."""
        connection, columns = await self._uow.connection(), tables.run_metric_segments.c
        here = (columns.run_uid == run_uid, columns.key == key, columns.number > last - count)
        query = select(tables.run_metric_segments).where(*here).order_by(columns.number)
        rows = list((await connection.execute(query)).mappings())
        # Sorting and packing many points takes a while: other calls go on meanwhile.
        whole, packed = await asyncio.to_thread(_whole, rows)
        await connection.execute(delete(tables.run_metric_segments).where(*here))
        segment = {
            "run_uid": run_uid,
            "org": org,
            "key": key,
            "number": last,
            "point_count": len(whole),
            "first_step": int(whole.steps[0]),
            "last_step": int(whole.steps[-1]),
        }
        await connection.execute(insert(tables.run_metric_segments).values({**segment, **packed}))
        metric = tables.run_metrics.c
        change = update(tables.run_metrics).where(metric.run_uid == run_uid, metric.key == key)
        await connection.execute(change.values(open_count=int(len(whole) < FULL_SEGMENT)))

    async def rows(
        self,
        run_uid: str,
        key: str,
        *,
        times: bool = False,
        first_step: int = 0,
        last_step: int | None = None,
    ) -> Rows:
        """The segments of a metric of a run in their order; `curve_of` makes a curve of them.

        Args:
            times: with the times of the points.
            first_step, last_step: only segments that have steps between them, both included.
        """
        columns = tables.run_metric_segments.c
        wanted = [columns.steps, columns.points, *([columns.times] if times else [])]
        query = select(*wanted).where(columns.run_uid == run_uid, columns.key == key, *self._tenant(columns.org))
        query = query.where(columns.last_step >= first_step)
        if last_step is not None:
            query = query.where(columns.first_step <= last_step)
        found = await (await self._uow.connection()).execute(query.order_by(columns.number))
        return list(found.mappings())

    async def values_until(self, run_uid: str, key: str, step: int, count: int) -> list[float]:
        """At most `count` values of a metric up to a step, oldest first; from its newest segments, to follow a run."""
        columns = tables.run_metric_segments.c
        query = select(columns.steps, columns.points).where(columns.run_uid == run_uid, columns.key == key)
        query = query.where(*self._tenant(columns.org)).order_by(columns.number.desc()).limit(OPEN_SEGMENTS + 1)
        parts: list[Points] = []
        for row in (await (await self._uow.connection()).execute(query)).mappings():
            part = _points(row, times=False)
            parts.insert(0, part.take(part.steps <= step))
            if sum(len(part) for part in parts) >= count:
                break
        return join(parts).values[-count:].tolist()

    async def keys(self, run_uid: str, size: int, after: str) -> list[RowMapping]:
        """At most `size` metrics of a run by name, behind one."""
        columns = tables.run_metrics.c
        query = select(tables.run_metrics).where(columns.run_uid == run_uid, columns.key > after)
        query = query.where(*self._tenant(columns.org)).order_by(columns.key).limit(size)
        return list((await (await self._uow.connection()).execute(query)).mappings())

    def _tenant(self, org: Any) -> tuple[Any, ...]:
        # The first wall; row-level security is the second.
        return () if self._uow.org == ANY_ORG else (org == self._uow.org,)


async def points_page(
    store: RunMetrics, run_uid: str, key: str, first_step: int, size: int
) -> tuple[Points, int | None]:
    """At most `size` points of a metric from a step on, and the step of the first one behind them, if there is one."""
    rows = await store.rows(run_uid, key, times=True, first_step=first_step)
    points = await asyncio.to_thread(curve_of, rows, times=True)
    begin = int(np.searchsorted(points.steps, first_step, "left"))
    page = points.take(slice(begin, begin + size))
    following = begin + size
    return page, int(points.steps[following]) if following < len(points) else None


def curve_of(rows: Rows, *, times: bool = False) -> Points:
    """The whole curve. A million points take 50 ms: not for the event loop.

    Args:
        rows: what `RunMetrics.rows` gave, with the same `times`.
    """
    return join([_points(row, times=times) for row in rows])


def _packed(series: Mapping[str, Points]) -> tuple[dict[str, Points], list[dict[str, bytes]]]:
    """Points by step, and their columns; by key, so that two calls lock the same rows in the same order."""
    parts = {key: join([series[key]]) for key in sorted(series)}
    return parts, [_columns(part) for part in parts.values()]


def _whole(rows: Rows) -> tuple[Points, dict[str, bytes]]:
    """The points of segments, and the columns of the one segment that they become."""
    whole = curve_of(rows, times=True)
    return whole, _columns(whole)


def _columns(part: Points) -> dict[str, bytes]:
    small = len(part) < FULL_SEGMENT
    return {
        "steps": pack(part.steps, differences=True, small=small),
        "times": pack(part.times, differences=True, small=small),
        "points": pack(part.values, differences=False, small=small),
    }


def _points(row: RowMapping, *, times: bool) -> Points:
    return Points(
        unpack(row["steps"], "<i8", differences=True),
        unpack(row["times"], "<i8", differences=True) if times else np.empty(0, np.int64),
        unpack(row["points"], "<f8", differences=False),
    )


def _extremes(values: Any) -> tuple[float | None, float | None]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (None, None)
