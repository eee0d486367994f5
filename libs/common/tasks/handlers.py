"""TaskService, mounted by every service that has long work."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from argosy.common.v1 import task_pb2, task_service_pb2

from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.db.mapping import timestamp
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import DomainError
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.tasks import store
from libs.common.tasks.kinds import TaskKind
from libs.common.tasks.task import Task, event_to_proto, log_to_proto, metrics_to_proto
from libs.common.tasks.tasks import Tasks

# How soon a watcher sees a change, and how many events it gets in one look at the database.
_WATCH_SECONDS = 0.2
_WATCH_EVENTS = 500


class TaskServiceHandlers:
    """The RPCs of TaskService.

    Args:
        database: The service's own.
        service: Its name.
        kinds: Of its tasks.
    """

    def __init__(
        self, database: Database, service: str, clock: Clock = SYSTEM_CLOCK, kinds: Sequence[TaskKind] = ()
    ) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        self._database = database
        self._tasks = Tasks(service)
        self._clock = clock

    async def get_task(self, request: task_service_pb2.GetTaskRequest, call: Call[Any]) -> task_pb2.Task:
        return (await store.get(call.uow, request.name)).to_proto()

    async def list_tasks(
        self, request: task_service_pb2.ListTasksRequest, call: Call[Any]
    ) -> task_service_pb2.ListTasksResponse:
        size = page_size(request.page_size)
        state = task_pb2.Task.State.Name(request.state).removeprefix("STATE_") if request.state else ""
        _, org, area = request.parent.split("/")
        if area != self._tasks.service:
            raise DomainError("NOT_FOUND", f"{request.parent} is not a part of this service.", name=request.parent)
        position = _position(PageToken.decode(request))
        found = await store.page(call.uow, org, size + 1, position, state, request.target)
        page = found[:size]
        after = f"{page[-1].create_time.isoformat()}|{page[-1].uid}" if len(found) > size else ""
        return task_service_pb2.ListTasksResponse(
            tasks=[task.to_proto() for task in page], next_page_token=PageToken.encode(request, after)
        )

    async def list_task_logs(
        self, request: task_service_pb2.ListTaskLogsRequest, call: Call[Any]
    ) -> task_service_pb2.ListTaskLogsResponse:
        size = page_size(request.page_size, default=100)
        rows, after = await _page_of_events(call.uow, request, size, "log")
        return task_service_pb2.ListTaskLogsResponse(
            logs=[log_to_proto(row) for row in rows], next_page_token=PageToken.encode(request, after)
        )

    async def list_task_metrics(
        self, request: task_service_pb2.ListTaskMetricsRequest, call: Call[Any]
    ) -> task_service_pb2.ListTaskMetricsResponse:
        size = page_size(request.page_size, default=1_000, maximum=10_000)
        rows, after = await _page_of_events(call.uow, request, size, "metrics")
        return task_service_pb2.ListTaskMetricsResponse(
            metrics=[metrics_to_proto(row) for row in rows], next_page_token=PageToken.encode(request, after)
        )

    async def cancel_task(self, request: task_service_pb2.CancelTaskRequest, call: Call[Any]) -> task_pb2.Task:
        return await self._tasks.cancel(call.uow, request.name)

    async def retry_task(self, request: task_service_pb2.RetryTaskRequest, call: Call[Any]) -> task_pb2.Task:
        retried = await self._tasks.retry(call.uow, request.name)
        kind = self._kinds.get(retried.kind)
        if kind is not None and kind.on_retry is not None:
            await kind.on_retry(await store.get(call.uow, request.name), call.principal.subject, call.uow)
        return retried

    async def watch_task(
        self, request: task_service_pb2.WatchTaskRequest, call: Call[Any]
    ) -> AsyncIterator[task_pb2.TaskEvent]:
        """The task as it is; then events in order, and the task after each change. Holds no transaction in between."""
        seen = request.after_sequence
        first = True
        while True:
            task, rows = await self._look(call.org, request.name, seen)
            if first:
                # Under the watcher's own position, so that what follows still rises strictly.
                yield _state_event(task, seen)
                first = False
            for row in rows:
                yield event_to_proto(row)
                seen = row["sequence"]
            if len(rows) == _WATCH_EVENTS:
                continue
            if task.sequence > seen:
                seen = task.sequence
                yield _state_event(task, seen)
            if task.ended:
                return
            await self._clock.sleep(_WATCH_SECONDS)

    async def _look(self, org: str, name: str, seen: int) -> tuple[Task, Any]:
        """The task and what is new, up to the state that was read: both are of one moment for the watcher."""
        uow = self._database.unit_of_work(org, f"services/{self._tasks.service}", read_only=True)
        try:
            task = await store.get(uow, name)
            if task.sequence <= seen:
                return task, ()
            return task, await store.events(uow, task.uid, seen, _WATCH_EVENTS, until=task.sequence)
        finally:
            await uow.rollback()


def _state_event(task: Task, sequence: int) -> task_pb2.TaskEvent:
    return task_pb2.TaskEvent(sequence=sequence, time=timestamp(task.update_time), task=task.to_proto())


async def _page_of_events(uow: UnitOfWork, request: Any, size: int, kind: str) -> tuple[list[Any], str]:
    task = await store.get(uow, request.parent)
    after = PageToken.decode(request)
    if request.before_sequence:
        before = _number(after) if after else request.before_sequence
        found = await store.newest_events(uow, task.uid, before, size + 1, kind)
    else:
        found = await store.events(uow, task.uid, _number(after) if after else 0, size + 1, kind)
    page = list(found[:size])
    return page, str(page[-1]["sequence"]) if len(found) > size else ""


def _position(text: str) -> tuple[datetime, str] | None:
    if not text:
        return None
    moment, _, uid = text.partition("|")
    try:
        return datetime.fromisoformat(moment), str(uuid.UUID(uid))
    except ValueError:
        raise _bad_token() from None


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise _bad_token() from None
    if not 0 <= number < 1 << 63:
        raise _bad_token()
    return number


def _bad_token() -> DomainError:
    message = "page_token: is not one that this list gave"
    return DomainError("PAGE_TOKEN_INVALID", message, field="page_token")
