"""The task `eval.run`: load grants, evaluate on Ray, apply the report."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from argosy.eval.v1 import eval_events_pb2

from libs.common.db.uow import UnitOfWork
from libs.common.service import Runtime
from libs.common.tasks import Task, TaskError, TaskKind
from libs.compute.mesh import MeshAccess
from services.eval.domain.evaluations import CANCELLED, FAILED, RUNNING, TASK_KIND, Evaluation
from services.eval.store.repositories import Evaluations

if TYPE_CHECKING:
    from services.eval.app import App


class Evaluate:
    """Steps of the task; see TaskKind."""

    def __init__(self, app: App) -> None:
        self._app = app

    def kind(self) -> TaskKind:
        return TaskKind(
            name=TASK_KIND,
            load=self.load,
            entrypoint="services.eval.engines.evaluate:run",
            resources={"num_cpus": 0.5},
            on_start=self.on_start,
            apply=self.apply,
            on_failure=self.on_failure,
        )

    async def load(self, task: Task, runtime: Runtime) -> dict[str, Any]:
        """What the engine needs: the spec, read grants, and where the mesh is. No credential."""
        async with self._app.database.system(read_only=True) as uow:
            evaluation = await Evaluations(uow).get(task.target)
        dataset = await self._app.dataset.grant(evaluation.dataset_version, task.name)
        baseline = None
        if evaluation.baseline_version:
            baseline = await self._app.dataset.grant(evaluation.baseline_version, task.name)
        return {
            "evaluation": evaluation.name,
            "model_version": evaluation.model_version,
            "spec": evaluation.spec,
            "dataset": dataset,
            "baseline": baseline,
            # An evaluation that was queued before an upgrade does not say.
            "trained_on": task.input.get("trained_on", []),
            "mesh": asdict(MeshAccess.of(runtime.settings)),
        }

    async def on_start(self, task: Task, uow: UnitOfWork) -> None:
        evaluation = await Evaluations(uow).get(task.target, for_update=True)
        evaluation.move_to(RUNNING)
        await self._save(evaluation, uow)

    async def apply(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        evaluation = await Evaluations(uow).get(task.target, for_update=True)
        report = result["report"]
        evaluation.succeed(report, result["samples"]["sha256"])
        await self._save(evaluation, uow)
        verdict = report.get("verdict") or {}
        succeeded = eval_events_pb2.EvaluationSucceeded(
            evaluation=evaluation.name,
            model_version=evaluation.model_version,
            gate=verdict.get("gate", ""),
            open=verdict.get("open", False),
        )
        uow.emit("eval.evaluation.succeeded", evaluation, succeeded)
        uow.after_commit(self._app.recorder.ring)
        return {"evaluation": evaluation.name, "score": report["score"]["value"]}

    async def on_failure(self, task: Task, error: TaskError, uow: UnitOfWork) -> None:
        evaluation = await Evaluations(uow).get(task.target, for_update=True)
        evaluation.move_to(CANCELLED if error.reason == "CANCELLED" else FAILED)
        await self._save(evaluation, uow)
        uow.emit("eval.evaluation.failed", evaluation)

    async def _save(self, evaluation: Evaluation, uow: UnitOfWork) -> None:
        evaluation.update_time = self._now()
        await Evaluations(uow).save(evaluation)

    def _now(self) -> datetime:
        return self._app.clock.now()
