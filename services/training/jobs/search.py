"""The task kind `training.search`: trials as rows, and the best of them as a run with a model version, exactly once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import Needs, Parent
from libs.common.ids import uuid7
from libs.common.service import Runtime
from libs.common.tasks import Task, TaskError, TaskKind
from libs.common.tasks import store as task_store
from services.training.domain.runs import EventKind, RunEvent
from services.training.domain.searches import HyperparameterSearch, Trial, trial_parameters, trial_spec
from services.training.domain.trainings import TrainingRun
from services.training.jobs.run import RunTasks, kept
from services.training.jobs.run_progress import series_of
from services.training.store.encodings import Encodings
from services.training.store.given_up import give_up
from services.training.store.metrics import RunMetrics
from services.training.store.repositories import TrainingRuns, Trainings
from services.training.store.run_events import RunEvents
from services.training.store.searches import Searches

Json = dict[str, Any]

KIND = "training.search"
_EVENTS_AT_ONCE = 1_000


class SearchTasks:
    """Loads and applies searches.

    Args:
        database: of the service.
        runs: gives what the engine of a run reads, and publishes.
        clock: gives the times of rows.
    """

    def __init__(self, database: Database, runs: RunTasks, clock: Clock) -> None:
        self._database = database
        self._runs = runs
        self._clock = clock

    def kind(self) -> TaskKind:
        """For the service's definition. Trials on Ray book their own CPUs."""
        return TaskKind(
            KIND,
            self._load,
            "services.training.engines.search:run",
            self._apply,
            resources={"num_cpus": 0},
            checkpoint=self._checkpoint,
            on_failure=self._failed,
            needs=self._needs,
            keeps=kept,
        )

    async def _needs(self, task: Task, runtime: Runtime) -> Needs:
        async with self._database.system(read_only=True) as uow:
            search = await Searches(uow).get(task.target, deleted=True)
        return search.plan.needs(search.spec, search.estimate)

    async def _load(self, task: Task, runtime: Runtime) -> Json:
        async with self._database.system(read_only=True) as uow:
            search = await Searches(uow).get(task.target, deleted=True)
        loaded = await self._runs.load(_run_of(search, search.name), task, runtime)
        return {**loaded, "search": search.plan.to_json()}

    async def _checkpoint(self, task: Task, checkpoint: Json, uow: UnitOfWork) -> None:
        """Shows the trials so far."""
        for plan in checkpoint["prepared"].values():
            await Encodings(uow).remember(task.org, plan.get("encodings", ()), self._clock.now())
        await give_up(uow, task, checkpoint.get("replaced", ()), self._clock.now())
        search = await Searches(uow).get(task.target, deleted=True, for_update=True)
        await self._keep(search, checkpoint["trials"], uow)
        await Searches(uow).save(search)

    async def _keep(self, search: HyperparameterSearch, trials: list[Json], uow: UnitOfWork) -> None:
        known = [Trial.from_json(trial) for trial in trials]
        await Searches(uow).keep_trials(search, known)
        search.saw(known)
        search.update_time = self._clock.now()

    async def _apply(self, task: Task, result: Json, uow: UnitOfWork) -> Json:
        search = await Searches(uow).get(task.target, deleted=True, for_update=True)
        await self._keep(search, result["trials"], uow)
        # Numbers have holes where a trial was cut off and the budget left no time for it.
        best = next(one for one in map(Trial.from_json, result["trials"]) if one.number == result["best_trial"])
        await Searches(uow).stop_trials(search)
        training = await Trainings(uow).get(search.training, deleted=True, for_update=True)
        run = _run_of(search, f"{training.name}/runs/{training.next_run_id()}")
        if search.algorithm_version:
            run.parameters = trial_parameters(search.parameters, best.parameters)
        else:
            run.spec = replace(trial_spec(search.spec, best.parameters, bool(search.base_model_version)), workers=1)
        run.create_time = run.update_time = search.update_time
        await Trainings(uow).save(training)
        await TrainingRuns(uow).insert(run)
        told = f"trial {best.number} of {search.name}"
        await RunEvents(uow).add(run, RunEvent(EventKind.CREATED, run.create_time, f"created by {told}"))
        await self._keep_curves(task, run, best, uow)
        uow.emit("training.run.created", run)
        applied = await self._runs.succeed(task, run, result["best"], uow)
        search.training_run, search.model_version = run.name, run.model_version
        search.importances = result["importances"]
        await Searches(uow).save(search)
        uow.emit("training.search.succeeded", search)
        return {**applied, "training_run": run.name, "best_trial": best.number, "trials": len(result["trials"])}

    async def _keep_curves(self, task: Task, run: TrainingRun, best: Trial, uow: UnitOfWork) -> None:
        """The curves of the best trial become those of the run. Of a trial that began again, the later points count."""
        begins, after = f"trial/{best.number}/", 0
        while rows := await task_store.events(uow, task.uid, after, _EVENTS_AT_ONCE, "metrics"):
            after = rows[-1]["sequence"]
            events = [
                {
                    **row["payload"],
                    "time": row["time"].isoformat(),
                    "phase": row["payload"]["phase"].removeprefix(begins),
                }
                for row in rows
                if row["payload"]["phase"].startswith(begins)
            ]
            if events:
                await RunMetrics(uow).add(run.uid, run.org, series_of(events))

    async def _failed(self, task: Task, error: TaskError, uow: UnitOfWork) -> None:
        search = await Searches(uow).get(task.target, deleted=True, for_update=True)
        search.update_time = self._clock.now()
        await Searches(uow).stop_trials(search)
        await Searches(uow).save(search)
        uow.emit("training.search.cancelled" if error.reason == "CANCELLED" else "training.search.failed", search)


def _run_of(search: HyperparameterSearch, name: str) -> TrainingRun:
    """The run that a trial of the search would be."""
    made_of = [parent for parent in search.lineage if parent.digest]
    return TrainingRun(
        uid=uuid7(),
        name=name,
        create_time=search.create_time,
        update_time=search.update_time,
        creator=search.creator,
        labels=dict(search.labels),
        secrecy=search.secrecy,
        lineage=[
            Parent(search.training, relation="run_of"),
            Parent(search.name, relation="best_trial_of"),
            *made_of,
        ],
        task=search.task,
        spec=search.spec,
        dataset_version=search.dataset_version,
        dataset_digest=search.dataset_digest,
        validation_version=search.validation_version,
        validation_digest=search.validation_digest,
        model_project=search.model_project,
        base_model_version=search.base_model_version,
        algorithm_version=search.algorithm_version,
        parameters=search.parameters,
    )
