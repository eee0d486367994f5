"""One claimed task in the hands of a worker, until it has ended or somebody else has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from opentelemetry.trace import Status, StatusCode

from libs.common.blobs import BlobStore
from libs.common.clock import Clock
from libs.common.db.lease import Lease
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError, reason_of
from libs.common.ids import uuid7
from libs.common.obs import extract, traceparent, tracer
from libs.common.tasks import left_rooms, store
from libs.common.tasks.kinds import DEFAULT_MAX_ATTEMPTS, Driver, Report, TaskKind
from libs.common.tasks.quota import NoRoom, QuotaLedger
from libs.common.tasks.room import Room
from libs.common.tasks.store import LeaseLost, Wishes
from libs.common.tasks.task import Json, Task, TaskError, storable

_POLL_SECONDS = 0.25
# Something is away: a peer, the database, Ray. Asked again after this.
_AWAY_SECONDS = 1.0
_CANCEL_SECONDS = 10.0
_CANCEL_LOOK_SECONDS = 0.5
_MOST_BACKOFF_SECONDS = 30.0
_MOST_DOUBLINGS = 16
# Faults of our own code in `load`, `apply` and the like: a second look helps against races, a third does not.
_MOST_FAULTS = 3

_log = logging.getLogger(__name__)
T = TypeVar("T")


class _End(Exception):
    """The task ends as failed or cancelled, or this worker's part of it as paused."""

    def __init__(self, state: str, error: TaskError) -> None:
        super().__init__(error.message)
        self.state = state
        self.error = error


class _PutOff(Exception):
    """There is no room for the task yet: others go first."""

    def __init__(self, room: NoRoom) -> None:
        super().__init__(room.why)
        self.room = room


_CANCELLED = _End("CANCELLED", TaskError("CANCELLED", "The task was cancelled."))
_PAUSED = _End("PAUSED", TaskError("STATE_CONFLICT", "The task was paused."))


class Attempt:
    """Starts or adopts the carrier of a task, copies what it reports, and applies its end.

    Args:
        database: The service's own.
        driver: Ray.
        kind: What to do.
        runtime: Handed to `kind.load`.
        blobs: Gives the engine's write grant.
        lease: The claim, just made.
        task: The row after the claim.
        seconds: Length of the lease.
        clock: Its monotonic side fences: a worker that slept through its lease touches nothing.
        quota: Identity's ledger; None: there is no identity, and nothing is reserved.
    """

    def __init__(
        self,
        database: Database,
        driver: Driver,
        kind: TaskKind,
        runtime: Any,
        blobs: BlobStore | None,
        lease: Lease,
        task: Task,
        seconds: float,
        clock: Clock,
        quota: QuotaLedger | None = None,
    ) -> None:
        self._room = None if quota is None else Room(database, quota, kind, runtime, clock)
        self._database = database
        self._driver = driver
        self._kind = kind
        self._runtime = runtime
        self._blobs = blobs
        self._lease = lease
        self._task = task
        self._seconds = seconds
        self._clock = clock
        self._holds_until = clock.monotonic() + seconds
        self._cancel_since: float | None = None
        self._cancel_sent = False
        self._pause_wanted = task.pause_requested
        self._pause_sent = False
        # Once the end is being written the lease may go: the guard of that write decides alone.
        self._ending = False
        self._last_error = TaskError("COMPUTE_UNAVAILABLE", "The work was lost too often; see its log.", retryable=True)
        self._began = clock.monotonic()
        self._began_progress = task.progress

    async def run(self) -> None:
        """Returns when the task has ended, or another worker has it."""
        attributes = {"argosy.task": self._task.name, "argosy.org": self._task.org}
        context = extract({"traceparent": self._task.traceparent})
        with tracer().start_as_current_span(f"task {self._kind.name}", context=context, attributes=attributes) as span:
            try:
                async with asyncio.TaskGroup() as group:
                    beat = group.create_task(self._beat(), name="heartbeat")
                    beats = [beat]
                    if self._room is not None:
                        beats.append(group.create_task(self._room.hold(lambda: self._task), name="quota"))
                    try:
                        await self._carry()
                    except _End as end:
                        span.set_status(Status(StatusCode.ERROR, end.error.reason))
                        await self._finish(end)
                    except _PutOff as wait:
                        await self._put_off(wait.room)
                    for running in beats:
                        running.cancel()
                if self._room is not None:
                    await self._room.give_back(self._task)
            except* LeaseLost:
                _log.warning("another worker has %s", self._task.name)

    async def _carry(self) -> None:
        report = await self._adopt() if self._task.carrier and self._task.state == "RUNNING" else None
        while True:
            if report is None:
                await self._start()
                report = await self._follow()
            if report.state == "succeeded":
                await self._apply(report)
                return
            if report.state == "cancelled":
                raise _CANCELLED
            if report.state == "paused":
                raise _PAUSED
            if report.state == "failed":
                raise _End("FAILED", _task_error(report.error))
            await self._lost(report)
            report = None

    # Beginning.

    async def _adopt(self) -> Report:
        """The carrier of a worker that is gone may be anywhere between not made and finished: it says so itself."""
        _log.info("adopts %s, carried by %s", self._task.name, self._task.carrier)
        return await self._follow()

    async def _start(self) -> None:
        if self._task.cancel_requested:
            raise _CANCELLED
        if self._pause_wanted:
            raise _PAUSED
        if self._task.attempt >= self._task.max_attempts:
            raise _End("FAILED", self._last_error)
        number = self._task.attempt + 1
        await self._take_room()
        spec = await self._patiently("load", lambda: self._kind.load(self._task, self._runtime))
        grant = await self._patiently("grant", self._grant)
        # Loading may have taken so long, with identity away, that somebody else has got the room.
        await self._take_room()
        carrier = f"argosy-{self._database.service}-{self._task.uid}-{number}"
        await self._write(
            self._kind.on_start,
            state="RUNNING",
            attempt=number,
            carrier=carrier,
            carrier_cursor=0,
            message="waiting for compute",
            eta=None,
            start_time=store.STARTED,
        )
        self._began, self._began_progress = self._clock.monotonic(), self._task.progress
        await self._patiently("submit", lambda: self._submit(carrier, spec, grant, number))

    # Room in the quotas of whoever asked for the task.

    async def _take_room(self) -> None:
        """Reserves what the task needs. A later attempt of a task that runs has it already.

        Raises:
            _PutOff: There is no room yet.
            _End: The task needs more than a limit.
        """
        room = self._room
        if room is None or self._task.state == "RUNNING" or room.is_sure:
            return
        if not await self._patiently("needs", lambda: room.needs(self._task)):
            return
        if self._task.reservation is None:
            # Stored first: whatever happens from here on, the room is given back when the task has ended.
            await self._write(None, reservation=uuid7())
        missing = await self._patiently("reserve", lambda: room.reserve(self._task))
        if missing is not None:
            raise _PutOff(missing)

    async def _put_off(self, room: NoRoom) -> None:
        """Waits in the queue, in nobody's hands."""

        async def put_off() -> None:
            self._fence()
            self._ending = True
            message = storable(f"waiting for quota: {room.why}")
            async with self._unit_of_work() as uow:
                task = await store.lock(uow, self._lease)
                if task.message != message:
                    await store.record(uow, self._lease, task, (), 0.0, message=message)
                # Somebody asked for its end, or changed it meanwhile as there is room now: at once.
                wanted = task.cancel_requested or task.pause_requested or task.sequence != self._task.sequence
                await store.postpone(uow, self._lease, 0.0 if wanted else room.retry_seconds)

        await self._patiently("put off", put_off)

    async def _grant(self) -> str | None:
        if self._blobs is None:
            return None
        return await self._blobs.grant_write(self._task.uid, self._kind.grant_seconds)

    async def _submit(self, carrier: str, spec: Json, grant: str | None, number: int) -> None:
        self._fence()
        await self._driver.submit(
            carrier,
            self._kind.entrypoint,
            spec,
            kind=self._kind.name,
            attempt=number,
            resume=self._task.checkpoint,
            write_grant=grant,
            resources=self._kind.resources,
            traceparent=traceparent() or self._task.traceparent,
        )

    # Following.

    async def _follow(self) -> Report:
        """Copies what the carrier reports until it has ended or is lost."""
        while True:
            self._fence()
            try:
                report = await self._driver.poll(self._task.carrier, self._task.carrier_cursor)
            except DomainError as error:
                await self._show(error.message)
                await self._pause(_AWAY_SECONDS)
                continue
            await self._copy(report)
            if report.state not in ("pending", "running"):
                return report
            if self._cancel_since is not None and not self._cancel_sent:
                await self._patiently("cancel", lambda: self._driver.cancel(self._task.carrier))
                self._cancel_sent = True
            if self._pause_wanted and not self._pause_sent:
                await self._patiently("pause", lambda: self._driver.pause(self._task.carrier))
                self._pause_sent = True
            await self._pause(_POLL_SECONDS)

    async def _show(self, message: str) -> None:
        if self._task.message != message:
            await self._write(None, message=message)

    async def _copy(self, report: Report) -> None:
        """Writes what is new in the report, if anything is."""
        values: Json = {}
        task = self._task
        if report.progress is not None:
            fraction, message = report.progress["fraction"], storable(report.progress["message"])
            cost = {"cpu_seconds": round(report.cpu_seconds, 1), **report.progress["cost"]}
            if (fraction, message, report.progress["cost"]) != (task.progress, task.message, _without_cpu(task.cost)):
                values = {"progress": fraction, "message": message, "cost": cost, "eta": self._eta(fraction)}
        elif report.state == "running" and task.message == "waiting for compute":
            values = {"message": ""}
        new_checkpoint = report.checkpoint is not None and report.checkpoint != task.checkpoint
        if new_checkpoint:
            values |= {"checkpoint": report.checkpoint}
            if _advance(report.checkpoint) != _advance(task.checkpoint):
                # What was lost before it was not lost in vain: attempts count from the newest checkpoint.
                values |= {"max_attempts": max(task.max_attempts, task.attempt + DEFAULT_MAX_ATTEMPTS)}
        if not values and not report.events:
            return
        verdict: TaskError | None = None

        async def tell(task: Task, uow: UnitOfWork) -> None:
            nonlocal verdict
            kind, metrics = self._kind, [event for event in report.events if event["kind"] == "metrics"]
            if metrics and kind.metrics is not None:
                verdict = await kind.metrics(task, metrics, uow)
            if new_checkpoint and report.checkpoint is not None and kind.checkpoint is not None:
                await kind.checkpoint(task, report.checkpoint, uow)

        await self._write(tell, report.events, **values)
        if verdict is not None:
            raise _End("FAILED", verdict)

    def _eta(self, fraction: float) -> datetime | None:
        """As much time again as the share of the work done so far by this worker needed."""
        done = fraction - self._began_progress
        if done <= 0 or fraction >= 1:
            return None
        left = (self._clock.monotonic() - self._began) * (1 - fraction) / done
        return self._clock.now() + timedelta(seconds=min(left, 30 * 86_400.0))

    # Ending.

    async def _apply(self, report: Report) -> None:
        """The result, in one transaction with the end of the task. Committed once, whoever else tries."""

        async def apply() -> None:
            self._fence()
            self._ending = True
            async with self._unit_of_work() as uow:
                task = await store.lock(uow, self._lease)
                result = await self._kind.apply(task, report.result or {}, uow)
                values = {"state": "SUCCEEDED", "progress": 1.0, "message": "", "result": result}
                await self._end(task, uow, **values, **store.FINISHED)

        await self._patiently("apply", apply)
        await self._dismiss()

    async def _finish(self, end: _End) -> None:
        async def finish() -> None:
            self._fence()
            self._ending = True
            async with self._unit_of_work() as uow:
                task = await store.lock(uow, self._lease)
                ending = _CANCELLED if end is _PAUSED and task.cancel_requested else end
                if ending is _PAUSED:
                    values: Json = {"pause_requested": False, "message": "", "eta": None}
                    if self._kind.on_pause is not None:
                        await self._kind.on_pause(task, uow)
                else:
                    values = {"error": None if ending is _CANCELLED else ending.error.to_row(), **store.FINISHED}
                    if self._kind.on_failure is not None:
                        await self._kind.on_failure(task, ending.error, uow)
                await self._end(task, uow, state=ending.state, **values)

        faults = 0
        while True:
            try:
                await finish()
                break
            except LeaseLost:
                raise
            except Exception as error:  # `on_failure` is a service's code
                if not _passes(error):
                    faults += 1
                    _log.exception("cannot end %s", self._task.name)
                    if faults >= _MOST_FAULTS:
                        # Left to the lease: the next worker tries again.
                        raise LeaseLost from error
            await self._clock.sleep(_AWAY_SECONDS)
        await self._dismiss()

    async def _end(self, task: Task, uow: UnitOfWork, **values: Any) -> None:
        """Writes the end of the task, or its pause, and that its room is left: both or neither."""
        changed = await store.record(uow, self._lease, task, (), 0.0, reservation=None, **values)
        if task.reservation is not None:
            kept = self._kind.kept_of(changed)
            await left_rooms.leave(uow, task.org, task.reservation, task.name, task.creator, *kept)
        self._task = changed
        await store.release(uow, self._lease)

    async def _lost(self, report: Report) -> None:
        """The carrier, or something below it, is gone: waits a little, longer each time, before the next attempt."""
        why = report.error["message"] if report.error else "the carrier was lost"
        _log.warning("%s: %s", self._task.name, why)
        await self._dismiss()
        event = {
            "kind": "log",
            "severity": "WARNING",
            "body": f"attempt {self._task.attempt} was interrupted: {why}",
            "time": self._clock.now().isoformat(),
            "cursor": self._task.carrier_cursor,
        }
        told = self._kind.on_interruption
        hook = None if told is None else lambda task, uow: told(task, storable(why), uow)
        await self._write(hook, [event], message="interrupted, starts again")
        self._last_error = _task_error(report.error) if report.error else self._last_error
        await self._pause(min(2.0 ** min(self._task.attempt - 2, _MOST_DOUBLINGS), _MOST_BACKOFF_SECONDS))

    async def _dismiss(self) -> None:
        """Ends the carrier, if Ray answers; the worker's tidying does it otherwise."""
        if self._task.carrier:
            try:
                await self._driver.dismiss(self._task.carrier)
            except DomainError as error:
                _log.warning("%s stays for now: %s", self._task.carrier, error.message)

    # The lease.

    def _fence(self) -> None:
        """Raises LeaseLost when the lease has run out by our own clock, whatever the database would say."""
        if self._clock.monotonic() >= self._holds_until:
            raise LeaseLost

    def _unit_of_work(self) -> UnitOfWork:
        return self._database.system(traceparent=traceparent() or self._task.traceparent)

    async def _write(
        self,
        hook: Callable[[Task, UnitOfWork], Awaitable[None]] | None,
        events: Sequence[Json] = (),
        **values: Any,
    ) -> None:
        """Changes the row and renews the lease, in one transaction with the kind's hook."""

        async def write() -> None:
            self._fence()
            asked = self._clock.monotonic()
            async with self._unit_of_work() as uow:
                task = await store.lock(uow, self._lease)
                changed = await store.record(uow, self._lease, task, events, self._seconds, **values)
                if hook is not None:
                    await hook(changed, uow)
            self._task = changed
            self._renewed(asked, Wishes(changed.cancel_requested, changed.pause_requested))

        await self._patiently("write", write)

    async def _beat(self) -> None:
        """Holds the lease beside everything else, and looks whether somebody wants the task to stop."""
        renew_at = self._clock.monotonic() + self._seconds / 3
        while True:
            await self._clock.sleep(min(self._seconds / 6, _CANCEL_LOOK_SECONDS))
            asked = self._clock.monotonic()
            try:
                if asked < renew_at:
                    async with self._database.system(read_only=True) as uow:
                        self._noticed(await store.wishes(uow, self._lease))
                    continue
                async with self._database.system() as uow:
                    wishes = await store.renew(uow, self._lease, self._seconds)
            except LeaseLost:
                if self._ending:
                    return
                raise
            except DomainError as error:
                _log.warning("cannot renew the lease of %s: %s", self._task.name, error.message)
                self._fence()
                continue
            self._renewed(asked, wishes)
            renew_at = asked + self._seconds / 3

    def _renewed(self, asked: float, wishes: Wishes) -> None:
        """Counted from before the question, so that the fence falls before the database's lease ends."""
        self._holds_until = max(self._holds_until, asked + self._seconds)
        self._noticed(wishes)

    def _noticed(self, wishes: Wishes) -> None:
        self._pause_wanted = wishes.pause
        if wishes.cancel and self._cancel_since is None:
            self._cancel_since = self._clock.monotonic()

    async def _pause(self, seconds: float) -> None:
        """Sleeps. Raises LeaseLost, or ends a task that did not stop within ten seconds."""
        await self._clock.sleep(seconds)
        self._fence()
        if self._cancel_since is not None and self._clock.monotonic() - self._cancel_since > _CANCEL_SECONDS:
            raise _CANCELLED

    async def _patiently(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Does it again while something that it needs is away; the lease is held meanwhile.

        Raises:
            LeaseLost: Somebody else has the task.
            _End: The work cannot be done, or somebody wants it to stop.
        """
        faults = 0
        while True:
            try:
                return await work()
            except (LeaseLost, _End):
                raise
            except Exception as error:  # services' own code runs in here: its faults end the task, not the worker
                if not _passes(error):
                    faults += 1
                    if isinstance(error, DomainError | ArgosyError) or faults >= _MOST_FAULTS:
                        raise _End("FAILED", _as_task_error(error)) from error
                    _log.exception("%s of %s failed", what, self._task.name)
                await self._pause(_AWAY_SECONDS)


def _passes(error: Exception) -> bool:
    """Whether waiting helps, as the catalogue says."""
    if isinstance(error, DomainError | ArgosyError):
        try:
            return reason_of(error.reason).retry_after is not None
        except KeyError:
            return False
    return False


def _as_task_error(error: Exception) -> TaskError:
    if isinstance(error, DomainError | ArgosyError):
        return TaskError(error.reason, error.message, dict(error.metadata))
    return TaskError("INTERNAL", "Internal error.", retryable=True)


def _task_error(error: Json | None) -> TaskError:
    if error is None:
        return TaskError("INTERNAL", "Internal error.")
    metadata = {name: storable(str(value)) for name, value in error["metadata"].items()}
    return TaskError(error["reason"], storable(error["message"]), metadata, error["retryable"])


def _advance(checkpoint: Json | None) -> object:
    """How far the work has got: what a checkpoint has as `advance`, a number from 0, or else all of it."""
    return 0 if checkpoint is None else checkpoint.get("advance", checkpoint)


def _without_cpu(cost: Json) -> Json:
    return {name: value for name, value in cost.items() if name != "cpu_seconds"}
