"""The task kind `training.run`: grants for the engine, and what it found as rows, exactly once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from argosy.training.v1 import training_events_pb2

from libs.common.blobs import BlobStore
from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import DomainError, Needs, Parent
from libs.common.ids import uuid7
from libs.common.service import Runtime
from libs.common.tasks import Kept, Task, TaskKind
from libs.compute.mesh import MeshAccess
from services.training.clients.dataset import Datasets
from services.training.domain.algorithm_card import algorithm_card
from services.training.domain.algorithms import Entry
from services.training.domain.card import model_card
from services.training.domain.costs import cost_of, needs_of
from services.training.domain.estimate import Rates
from services.training.domain.life_cycle import Event
from services.training.domain.models import REWARD, TEXT_GENERATION, ModelFile, ModelVersion
from services.training.domain.runs import EventKind, RunEvent, RunState
from services.training.domain.trainings import TrainingRun
from services.training.jobs.run_progress import RunProgress
from services.training.store.algorithms import entry_of
from services.training.store.encodings import Encodings
from services.training.store.given_up import give_up
from services.training.store.machine_rates import MachineRates
from services.training.store.repositories import ModelProjects, ModelVersions, TrainingRuns
from services.training.store.run_events import RunEvents
from services.training.store.signing import ModelSigner

Json = dict[str, Any]

KIND = "training.run"
# The longest that a grant may live; an attempt that takes longer has read its data by then.
_GRANT_SECONDS = 86_400
# What a run writes it writes until its end: own code may take thirty days.
_WRITE_SECONDS = 32 * 86_400.0


class RunTasks:
    """Loads and applies runs.

    Args:
        database: of the service.
        blobs: of the service.
        datasets: gives the right to read rows.
        signer: signs the versions that runs make.
        clock: gives the times of rows.
    """

    def __init__(
        self, database: Database, blobs: BlobStore, datasets: Datasets, signer: ModelSigner, clock: Clock
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._datasets = datasets
        self._signer = signer
        self._clock = clock

    def kind(self) -> TaskKind:
        """For the service's definition. The carrier only waits; the workers that it starts book their own CPUs."""
        progress = RunProgress(self._clock)
        return TaskKind(
            KIND,
            self._load,
            "services.training.engines.train:run",
            self._apply,
            resources={"num_cpus": 0},
            on_start=progress.started,
            checkpoint=progress.checkpoint,
            metrics=progress.metrics,
            on_pause=progress.paused,
            on_interruption=progress.interrupted,
            on_failure=progress.ended,
            on_retry=progress.retried,
            grant_seconds=_WRITE_SECONDS,
            needs=self._needs,
            keeps=kept,
        )

    async def _needs(self, task: Task, runtime: Runtime) -> Needs:
        async with self._database.system(read_only=True) as uow:
            run = await TrainingRuns(uow).get(task.target, deleted=True)
        return needs_of(run.spec, run.estimate)

    async def _load(self, task: Task, runtime: Runtime) -> Json:
        async with self._database.system(read_only=True) as uow:
            run = await TrainingRuns(uow).get(task.target)
        return await self.load(run, task, runtime)

    async def load(self, run: TrainingRun, task: Task, runtime: Runtime) -> Json:
        """What the engine takes for a run, or for the trials of a search."""
        async with self._database.system(read_only=True) as uow:
            base = await ModelVersions(uow).get(run.base_model_version) if run.base_model_version else None
            entry = await entry_of(uow, run.algorithm_version) if run.algorithm_version else None
            adapter = None
            if base is not None and base.is_adapter:
                adapter, base = base, await ModelVersions(uow).get(base.base_model_version)
            frozen = [await ModelVersions(uow).get(name) for name in run.spec.frozen_versions]
        if entry is not None:
            return await self._load_algorithm(task, run, entry[0])
        loaded: Json = {"spec": run.spec.to_json(), "train": await self._dataset_grant(run.dataset_version, task)}
        if run.validation_version:
            loaded["validation"] = await self._dataset_grant(run.validation_version, task)
            mesh = asdict(MeshAccess.of(runtime.settings))
            loaded["comparison"] = {"test": run.validation_version, "train": run.dataset_version, "mesh": mesh}
        for part, version in (("base", base), ("base_adapter", adapter)):
            if version is not None:
                loaded[part] = await self._model_grant(version, task)
        loaded["frozen"] = {version.name: await self._model_grant(version, task) for version in frozen}
        digests = [loaded[part]["manifest_digest"] for part in ("train", "validation") if part in loaded]
        return {**loaded, "encodings": await self._encodings(digests, task)}

    async def _encodings(self, dataset_digests: list[str], task: Task) -> Json:
        """Grants for what earlier runs of the organization have encoded of versions that this one may read."""
        async with self._database.system(read_only=True) as uow:
            offered = await Encodings(uow).offered(task.org, dataset_digests)
        found: Json = {}
        for key, digest in offered.items():
            # The sweep may have been faster.
            with suppress(DomainError):
                grant = await self._blobs.grant(digest, task.name, _GRANT_SECONDS)
                found[key] = {"grant": grant, "manifest_digest": digest}
        return found

    async def _model_grant(self, version: ModelVersion, task: Task) -> Json:
        grant = await self._blobs.grant(version.manifest_digest, task.name, _GRANT_SECONDS)
        return {"name": version.name, "grant": grant, "manifest_digest": version.manifest_digest}

    async def _load_algorithm(self, task: Task, run: TrainingRun, entry: Entry) -> Json:
        given: Json = {"code": entry.code, "parameters": run.parameters, "columns": entry.columns}
        if entry.program is not None:
            digest = entry.program.digest
            grant = await self._blobs.grant(digest, task.name, _GRANT_SECONDS)
            limits = asdict(entry.program.limits)
            given["script"] = {"name": entry.id, "grant": grant, "manifest_digest": digest, "limits": limits}
        loaded: Json = {
            "algorithm": given,
            "seed": run.spec.seed,
            "threads": run.spec.threads_per_worker,
        }
        for part, version in (("train", run.dataset_version), ("validation", run.validation_version)):
            if version:
                loaded[part] = await self._dataset_grant(version, task, media=True)
        return loaded

    async def _dataset_grant(self, version: str, task: Task, *, media: bool = False) -> Json:
        granted = await self._datasets.grant_read(version, task.name, _GRANT_SECONDS, media=media)
        given = {"grant": granted.grant, "manifest_digest": granted.manifest_digest}
        return {**given, "media_grant": granted.media_grant} if media else given

    async def _apply(self, task: Task, result: Json, uow: UnitOfWork) -> Json:
        runs = TrainingRuns(uow)
        run = await runs.get(task.target, deleted=True, for_update=True)
        return await self.succeed(task, run, result, uow)

    async def succeed(self, task: Task, run: TrainingRun, result: Json, uow: UnitOfWork) -> Json:
        """Publishes what the engine made of a run; the result of its task."""
        version = await self._publish(task, run, result, uow)
        run.model_version = version.name
        run.results = result["results"]
        run.framework = result["framework"]
        if "usage" in result:
            await self._keep_usage(run, result["usage"], version.size, uow)
        run.state, run.update_time = RunState.SUCCEEDED, version.create_time
        await TrainingRuns(uow).save(run)
        if run.checkpoint is not None:
            await give_up(uow, task, [run.checkpoint.manifest_digest], self._clock.now())
        event = RunEvent(EventKind.SUCCEEDED, run.update_time, f"made {version.name}", {"model_version": version.name})
        await RunEvents(uow).add(run, event)
        uow.emit("training.run.succeeded", run)
        return {**made(version), "results": run.results}

    async def _keep_usage(self, run: TrainingRun, usage: Json, storage: int, uow: UnitOfWork) -> None:
        """What the run has cost, and how fast it computed, for the estimates of the next ones."""
        tokens = round(run.results.get("tokens", 0.0))
        run.actual = cost_of(run.spec, usage["seconds"], usage["memory_bytes"], tokens, storage).to_json()
        if rates := usage.get("rates"):
            threads = max(1, run.spec.threads_per_worker)
            await MachineRates(uow).keep(threads, Rates(**rates), self._clock.now())

    async def _publish(self, task: Task, run: TrainingRun, result: Json, uow: UnitOfWork) -> ModelVersion:
        """Makes what the engine wrote the newest version of the project."""
        projects = ModelProjects(uow)
        project = await projects.get(run.model_project, deleted=True, for_update=True)
        version = self._version(run, project.next_version(), result)
        version.task = await _task_of(run, uow)
        if version.is_adapter:
            earlier = await ModelVersions(uow).get(run.base_model_version, deleted=True)
            version.base_model_version = earlier.base_model_version if earlier.is_adapter else earlier.name
        began, cycle = task.start_time or run.create_time, project.life_cycle
        version.begin(cycle, run.creator, run.create_time, f"asked for by {run.name}")
        version.happen(Event.RUN_STARTED, cycle, "services/training", began, f"{run.name} began")
        version.happen(Event.RUN_SUCCEEDED, cycle, "services/training", version.create_time, f"made by {run.name}")
        version.update_time = version.create_time
        self._signer.sign(version, version.create_time)
        made_with = result.get("train_framework") or f"torch {result['framework']['torch']}"
        project.train_framework = project.train_framework or made_with
        project.update_time = version.create_time
        await projects.save(project)
        await ModelVersions(uow).insert(version)
        payload = training_events_pb2.ModelVersionCreated(
            version=version.name, manifest_digest=version.manifest_digest, training_run=run.name
        )
        uow.emit("training.model_version.created", version, payload)
        return version

    def _version(self, run: TrainingRun, name: str, result: Json) -> ModelVersion:
        now = self._clock.now()
        digest, parameter_count = result["manifest_digest"], result["parameter_count"]
        results, framework, architecture = result["results"], result["framework"], result["architecture"]
        length = result["context_length"]
        card = (
            algorithm_card(run, name, digest, parameter_count, results, framework)
            if run.algorithm_version
            else model_card(run, name, digest, parameter_count, length, results, framework, architecture)
        )
        data = [parent for parent in run.lineage if parent.digest]
        return ModelVersion(
            uid=uuid7(),
            name=name,
            create_time=now,
            update_time=now,
            creator=run.creator,
            labels=dict(run.labels),
            secrecy=run.secrecy,
            lineage=[Parent(run.name, relation="made_by"), *data],
            manifest_digest=digest,
            files=[ModelFile(file["path"], file["sha256"], file["size"]) for file in result["files"]],
            training_run=run.name,
            base_model_version=run.base_model_version,
            parameter_count=parameter_count,
            architecture=result["architecture"],
            context_length=result["context_length"],
            model_card=card,
        )


def made(version: ModelVersion) -> Json:
    """What the result of a task says of the version that it made; `kept` reads it."""
    return {
        "model_version": version.name,
        "manifest_digest": version.manifest_digest,
        "model_bytes": version.size,
    }


def kept(task: Task) -> Kept:
    """A task that has succeeded leaves the files of its model version, any other one its newest checkpoint."""
    if task.state == "SUCCEEDED" and task.result is not None:
        return Kept(task.result["model_version"], task.result["model_bytes"])
    return Kept(task.name, (task.checkpoint or {}).get("bytes", 0))


async def _task_of(run: TrainingRun, uow: UnitOfWork) -> str:
    """What the model of a run does."""
    if run.algorithm_version:
        entry, _ = await entry_of(uow, run.algorithm_version)
        return entry.task
    return REWARD if run.spec.scores else TEXT_GENERATION
