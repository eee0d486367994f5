"""What a run goes through while its task is carried: states, metrics, events. All in the task's transactions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from libs.common.clock import Clock
from libs.common.db.uow import UnitOfWork
from libs.common.tasks import Task, TaskError
from services.training.domain.divergence import HISTORY, OnDivergence, begins_to_diverge, has_diverged
from services.training.domain.run_filter import microseconds
from services.training.domain.runs import EventKind, RunEvent, RunState
from services.training.domain.trainings import Checkpoint, TrainingRun
from services.training.store.encodings import Encodings
from services.training.store.given_up import give_up
from services.training.store.metric_columns import Points
from services.training.store.metrics import RunMetrics
from services.training.store.repositories import TrainingRuns
from services.training.store.run_events import RunEvents

Json = dict[str, Any]

# The metric that tells of divergence, in every phase that reports it.
_LOSS = "loss"
# One reports how long it takes still; that is the task's affair and no curve.
_NO_CURVE = frozenset({"eta_seconds"})


class RunProgress:
    """The hooks of `training.run`.

    Args:
        clock: gives the times of rows.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def started(self, task: Task, uow: UnitOfWork) -> None:
        """An attempt begins."""
        run = await self._follow(task, uow, RunState.RUNNING)
        await self._tell(uow, run, EventKind.STARTED, f"attempt {task.attempt} started", attempt=str(task.attempt))

    async def checkpoint(self, task: Task, checkpoint: Json, uow: UnitOfWork) -> None:
        """Shows the newest complete checkpoint on the run. The first ones have encoded rows and no weights yet."""
        runs, now = TrainingRuns(uow), self._clock.now()
        run = await runs.get(task.target, deleted=True, for_update=True)
        if run.checkpoint is None:
            # The carrier tells the newest checkpoint only: the first weights may come before the rows were told of.
            await Encodings(uow).remember(task.org, checkpoint.get("plan", {}).get("encodings", ()), now)
        if "manifest_digest" not in checkpoint:
            return
        phase, step, replaced = checkpoint["phase"], checkpoint["step"], run.checkpoint
        run.checkpoint = Checkpoint(step, phase, checkpoint["manifest_digest"], now)
        run.update_time = now
        await runs.save(run)
        if replaced is not None and replaced.manifest_digest != run.checkpoint.manifest_digest:
            await give_up(uow, task, [replaced.manifest_digest], now)
        message = f"checkpoint {_place(run.checkpoint)}"
        await self._tell(uow, run, EventKind.CHECKPOINT, message, phase=phase, step=str(step))

    async def metrics(self, task: Task, events: Sequence[Json], uow: UnitOfWork) -> TaskError | None:
        """Stores points as they come; an error where the loss has run away and the run is to stop then."""
        run = await TrainingRuns(uow).get(task.target, deleted=True)
        series = series_of(events)
        if not series:
            return None
        store = RunMetrics(uow)
        await store.add(run.uid, run.org, series)
        verdict: TaskError | None = None
        for key in series:
            if key.rsplit(".", 1)[-1] == _LOSS:
                verdict = verdict or await self._watch(run, key, series[key], store, uow)
        return verdict

    async def paused(self, task: Task, uow: UnitOfWork) -> None:
        """The engine stopped at a checkpoint, or had not begun."""
        run = await self._follow(task, uow, RunState.PAUSED)
        where = _place(run.checkpoint) if run.checkpoint else "before its first step"
        await self._tell(uow, run, EventKind.PAUSED, f"paused {where}")
        uow.emit("training.run.paused", run)

    async def interrupted(self, task: Task, why: str, uow: UnitOfWork) -> None:
        """An attempt was lost."""
        run = await TrainingRuns(uow).get(task.target, deleted=True)
        message = f"attempt {task.attempt} was lost: {why}"
        await self._tell(uow, run, EventKind.WORKER_LOST, message, attempt=str(task.attempt))

    async def retried(self, task: Task, actor: str, uow: UnitOfWork) -> None:
        """Somebody asked for the task again, by `TaskService`: its run is at work again too."""
        run = await self._follow(task, uow, RunState.QUEUED)
        await self._tell(uow, run, EventKind.RETRIED, f"retried by {actor}", actor=actor)

    async def ended(self, task: Task, error: TaskError, uow: UnitOfWork) -> None:
        """The task failed for good, or was cancelled."""
        cancelled = error.reason == "CANCELLED"
        run = await self._follow(task, uow, RunState.CANCELLED if cancelled else RunState.FAILED)
        if cancelled:
            await self._tell(uow, run, EventKind.CANCELLED, "cancelled")
        else:
            await self._tell(uow, run, EventKind.FAILED, error.message, **{**error.metadata, "reason": error.reason})
        uow.emit("training.run.cancelled" if cancelled else "training.run.failed", run)

    async def _follow(self, task: Task, uow: UnitOfWork, state: RunState) -> TrainingRun:
        runs = TrainingRuns(uow)
        run = await runs.get(task.target, deleted=True, for_update=True)
        run.state, run.update_time = state, self._clock.now()
        return await runs.save(run)

    async def _tell(self, uow: UnitOfWork, run: TrainingRun, kind: EventKind, message: str, **details: str) -> None:
        await RunEvents(uow).add(run, RunEvent(kind, self._clock.now(), message, details))

    async def _watch(
        self, run: TrainingRun, key: str, added: Points, store: RunMetrics, uow: UnitOfWork
    ) -> TaskError | None:
        """Looks at each new loss beside those before it."""
        phase, stop = key.rsplit(".", 1)[0], run.spec.on_divergence is OnDivergence.STOP
        steps = sorted({int(step) for step in added.steps})
        losses = await store.values_until(run.uid, key, steps[-1], HISTORY + 4 + len(steps))
        for number, step in enumerate(steps):
            seen = losses[: len(losses) - len(steps) + number + 1]
            if begins_to_diverge(seen):
                message = f"the loss of {phase} has jumped to {seen[-1]:.4g} at step {step}"
                await self._tell(uow, run, EventKind.ALERT, message, phase=phase, step=str(step))
                uow.emit("training.run.diverged", run)
            if stop and has_diverged(seen):
                message = f"The {phase} phase diverged at step {step}: the loss has jumped to {seen[-1]:.4g}."
                return TaskError("TRAINING_DIVERGED", message, {"phase": phase, "step": str(step)})
        return None


def _place(checkpoint: Checkpoint) -> str:
    return f"at step {checkpoint.step} of {checkpoint.phase}" if checkpoint.step else f"behind {checkpoint.phase}"


def series_of(events: Sequence[Json]) -> dict[str, Points]:
    """Metrics of a task as points of a run: `sft.loss` is the loss of phase `sft`."""
    columns: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for event in events:
        time = microseconds(datetime.fromisoformat(event["time"]))
        for name, value in event["values"].items():
            if name not in _NO_CURVE:
                steps, times, values = columns.setdefault(f"{event['phase']}.{name}", ([], [], []))
                steps.append(event["step"])
                times.append(time)
                values.append(value)
    return {
        key: Points(np.array(steps, np.int64), np.array(times, np.int64), np.array(values, np.float64))
        for key, (steps, times, values) in columns.items()
    }
