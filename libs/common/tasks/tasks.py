"""What RPCs do to tasks, in their own unit of work."""

from __future__ import annotations

from typing import Any

from argosy.common.v1 import task_pb2

from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError
from libs.common.ids import resource_id, uuid7
from libs.common.tasks import store
from libs.common.tasks.kinds import DEFAULT_MAX_ATTEMPTS
from libs.common.tasks.task import ENDED, Json, Task


class Tasks:
    """The tasks of one service.

    Args:
        service: Name of the service; the third part of every task's name.
    """

    def __init__(self, service: str) -> None:
        self.service = service

    async def create(
        self,
        uow: UnitOfWork,
        org: str,
        kind: str,
        target: str,
        input: Json,
        creator: str,
        labels: dict[str, str] | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    ) -> task_pb2.Task:
        """Queues a task with everything else that the unit of work does: it exists if, and only if, that commits.

        Args:
            kind: Name of a TaskKind.
            target: Resource that it works on.
            input: What `TaskKind.load` needs; JSON without secrets.
            creator: `users/...` or `services/...`.
            max_attempts: How often it is started when actors, workers or Ray are lost. Errors of the engine are final.
        """
        row: dict[str, Any] = {
            "uid": uuid7(),
            "org": org,
            "name": f"orgs/{org}/{self.service}/tasks/{resource_id()}",
            "kind": kind,
            "target": target,
            "creator": creator,
            "labels": labels or {},
            "traceparent": uow.scope.traceparent,
            "input": input,
            "state": "QUEUED",
            "max_attempts": max_attempts,
        }
        return (await store.add(uow, row)).to_proto()

    async def cancel(self, uow: UnitOfWork, name: str) -> task_pb2.Task:
        """Asks a task to stop; its worker does it. A task that has ended stays as it ended. Raises NOT_FOUND."""
        return (await self._cancel(uow, name)).to_proto()

    async def retry(self, uow: UnitOfWork, name: str) -> task_pb2.Task:
        """Queues a failed or cancelled task again; it resumes from its newest checkpoint.

        Raises:
            DomainError: NOT_FOUND; STATE_CONFLICT in any other state.
        """
        task = await store.get(uow, name, for_update=True)
        if task.state not in ("FAILED", "CANCELLED"):
            message = f"{name} is {task.state}; only a failed or cancelled task can be retried."
            raise DomainError("STATE_CONFLICT", message, name=name, state=task.state, wanted="FAILED")
        changed = await store.change(
            uow,
            task,
            state="QUEUED",
            error=None,
            end_time=None,
            cancel_requested=False,
            pause_requested=False,
            message="",
            max_attempts=task.attempt + DEFAULT_MAX_ATTEMPTS,
        )
        return changed.to_proto()

    async def pause(self, uow: UnitOfWork, name: str) -> task_pb2.Task:
        """Asks a task to stop at its next checkpoint, until `resume`. For kinds whose engine asks `ctx.pausing()`.

        Raises:
            DomainError: NOT_FOUND; STATE_CONFLICT when it is neither waiting nor running.
        """
        task = await store.get(uow, name, for_update=True)
        if task.state not in ("QUEUED", "RUNNING"):
            message = f"{name} is {task.state}; only a waiting or running task can be paused."
            raise DomainError("STATE_CONFLICT", message, name=name, state=task.state, wanted="RUNNING")
        if task.pause_requested:
            return task.to_proto()
        return (await store.change(uow, task, pause_requested=True)).to_proto()

    async def resume(self, uow: UnitOfWork, name: str) -> task_pb2.Task:
        """Queues a paused task again; it goes on from its checkpoint.

        Raises:
            DomainError: NOT_FOUND; STATE_CONFLICT when it is not paused.
        """
        task = await store.get(uow, name, for_update=True)
        if task.state != "PAUSED":
            message = f"{name} is {task.state}; only a paused task can be resumed."
            raise DomainError("STATE_CONFLICT", message, name=name, state=task.state, wanted="PAUSED")
        attempts = task.attempt + DEFAULT_MAX_ATTEMPTS
        return (await store.change(uow, task, state="QUEUED", max_attempts=attempts)).to_proto()

    async def _cancel(self, uow: UnitOfWork, name: str) -> Task:
        task = await store.get(uow, name, for_update=True)
        if task.state in ENDED or task.cancel_requested:
            return task
        # Nobody works on a paused task: it waits again, for the worker that ends it.
        state = "QUEUED" if task.state == "PAUSED" else task.state
        return await store.change(uow, task, state=state, cancel_requested=True)
