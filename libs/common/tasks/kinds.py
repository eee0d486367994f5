"""What a service says about one kind of long work, and what the worker needs from Ray."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from libs.common.db.uow import UnitOfWork
from libs.common.domain import Needs
from libs.common.tasks.task import Json, Task, TaskError

DEFAULT_MAX_ATTEMPTS = 5
# A training may take a day; the worker makes a new grant for each attempt.
_GRANT_SECONDS = 24 * 3600.0


class Kept(NamedTuple):
    """What a task leaves behind of storage: what keeps it, by its name, and how many bytes."""

    holder: str
    kept_bytes: int


@dataclass(frozen=True)
class TaskKind:
    """One kind of long work: load, compute, apply.

    The hooks (`on_start`, `checkpoint`, `metrics`, `apply`, `on_...`) run in the transaction that changes the task's
    row, guarded by its lease: they happen exactly once, or not at all. They may run again after a roll-back, so no
    network calls.

    Args:
        name: `<area>.<verb>`, such as `dataset.clean`.
        load: (task, runtime) -> the engine's spec: JSON, read grants, no secrets. May call peers and the database. Runs
            before every attempt; `task.checkpoint` is what it resumes from.
        entrypoint: `package.module:function` of the engine.
        apply: (task, result, uow) -> the task's result for callers; stores what the engine computed.
        resources: For Ray: `num_cpus`, `num_gpus`, `memory`, ...
        needs: (task, runtime) -> what it holds of quotas while it runs, for kinds whose engine books more than
            `resources` says; None: those.
        keeps: task -> what it leaves behind, of a task that has just ended or paused; None: nothing.
        on_start: (task, uow): an attempt begins.
        checkpoint: (task, checkpoint, uow): the engine has a new checkpoint.
        metrics: (task, events, uow): the engine reported numbers; each event has `phase`, `step`, `values` and `time`.
            An error that it returns ends the task as failed, after everything that was reported has been stored.
        on_failure: (task, error, uow): the task failed for good or was cancelled (reason CANCELLED).
        on_pause: (task, uow): the engine stopped at a checkpoint as it was asked to, or had not begun.
        on_interruption: (task, why, uow): an attempt was lost; the next one follows.
        on_retry: (task, actor, uow): somebody asked for a failed or cancelled task again; in his transaction.
        grant_seconds: Life of the write grant of one attempt.
        driver: What carries it; None: Ray. A roll-out, for example, is carried by rows that a reconciler works on.
    """

    name: str
    load: Callable[[Task, Any], Awaitable[Json]]
    entrypoint: str
    apply: Callable[[Task, Json, UnitOfWork], Awaitable[Json]]
    resources: Mapping[str, float] = field(default_factory=lambda: {"num_cpus": 1})
    on_start: Callable[[Task, UnitOfWork], Awaitable[None]] | None = None
    checkpoint: Callable[[Task, Json, UnitOfWork], Awaitable[None]] | None = None
    on_failure: Callable[[Task, TaskError, UnitOfWork], Awaitable[None]] | None = None
    metrics: Callable[[Task, Sequence[Json], UnitOfWork], Awaitable[TaskError | None]] | None = None
    on_pause: Callable[[Task, UnitOfWork], Awaitable[None]] | None = None
    on_interruption: Callable[[Task, str, UnitOfWork], Awaitable[None]] | None = None
    on_retry: Callable[[Task, str, UnitOfWork], Awaitable[None]] | None = None
    grant_seconds: float = _GRANT_SECONDS
    driver: Driver | None = None
    needs: Callable[[Task, Any], Awaitable[Needs]] | None = None
    keeps: Callable[[Task], Kept] | None = None

    async def needs_of(self, task: Task, runtime: Any) -> Needs:
        """What a task of this kind holds of quotas while it runs."""
        if self.needs is not None:
            return await self.needs(task, runtime)
        booked = self.resources
        return Needs(booked.get("num_cpus", 0.0), booked.get("num_gpus", 0.0), round(booked.get("memory", 0.0)))

    def kept_of(self, task: Task) -> Kept:
        """What a task of this kind leaves behind."""
        return Kept(task.name, 0) if self.keeps is None else self.keeps(task)


class Report(Protocol):
    """What a carrier says; see `libs.compute.client.CarrierReport`."""

    @property
    def state(self) -> str: ...
    @property
    def events(self) -> list[Json]: ...
    @property
    def progress(self) -> Json | None: ...
    @property
    def checkpoint(self) -> Json | None: ...
    @property
    def result(self) -> Json | None: ...
    @property
    def error(self) -> Json | None: ...
    @property
    def cpu_seconds(self) -> float: ...


class Driver(Protocol):
    """The part of `libs.compute.client.RayDriver` that tasks use. Raises COMPUTE_UNAVAILABLE while Ray is away."""

    async def submit(
        self,
        name: str,
        entrypoint: str,
        spec: Json,
        *,
        kind: str = "",
        attempt: int = 1,
        resume: Json | None = None,
        write_grant: str | None = None,
        resources: Mapping[str, float] | None = None,
        traceparent: str = "",
    ) -> None: ...

    async def poll(self, name: str, cursor: int = 0) -> Report: ...

    async def cancel(self, name: str) -> None: ...

    async def pause(self, name: str) -> None: ...

    async def dismiss(self, name: str) -> None: ...

    async def list(self, prefix: str = "") -> list[str]: ...

    async def close(self) -> None: ...
