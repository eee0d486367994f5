"""The task kind `training.import_model`: grants for the engine, and what it found as a version, exactly once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from argosy.training.v1 import training_events_pb2

from libs.common.blobs import BlobStore
from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import Parent, Secrecy
from libs.common.ids import uuid7
from libs.common.service import Runtime
from libs.common.tasks import Task, TaskKind
from services.training.clients.dataset import Datasets
from services.training.config import TrainingSettings
from services.training.domain.imported_card import imported_card
from services.training.domain.life_cycle import Event
from services.training.domain.model_files import IMPORT_KIND
from services.training.domain.models import ModelFile, ModelVersion
from services.training.jobs.run import kept, made
from services.training.store.repositories import ModelProjects, ModelVersions, TrainingRuns
from services.training.store.run_artifacts import RunArtifacts
from services.training.store.signing import ModelSigner

Json = dict[str, Any]

_GRANT_SECONDS = 86_400
# As many as uploads of one import.
_MOST_MODEL_FILES = 1_000


class ImportTasks:
    """Loads and applies imports.

    Args:
        database: of the service.
        blobs: has the files of outside runs.
        datasets: gives the right to read uploads.
        signer: signs the versions.
        settings: which folders and which hub are open.
        clock: gives the times of rows.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        datasets: Datasets,
        signer: ModelSigner,
        settings: TrainingSettings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._datasets = datasets
        self._signer = signer
        self._settings = settings
        self._clock = clock

    def kind(self) -> TaskKind:
        """For the service's definition."""
        return TaskKind(IMPORT_KIND, self._load, "services.training.engines.import_model:run", self._apply, keeps=kept)

    async def _load(self, task: Task, _runtime: Runtime) -> Json:
        work, settings = task.input, self._settings
        spec: Json = {"max_bytes": settings.model_max_bytes}
        if work["uploads"]:
            spec["uploads"] = [await self._upload(upload, task) for upload in work["uploads"]]
        elif work.get("run"):
            spec["uploads"] = await self._files(work["run"], work["run_path"], task)
        elif work["folder"]:
            spec |= {"folder": work["folder"], "open_folders": settings.open_folders}
        else:
            networks = [part.strip() for part in settings.model_hub_networks.split(",") if part.strip()]
            spec["hub"] = {"url": settings.model_hub, "networks": networks, **work["hub"]}
        return spec

    async def _upload(self, upload: str, task: Task) -> Json:
        granted = await self._datasets.grant_upload(upload, task.name, _GRANT_SECONDS)
        found = asdict(granted)
        return {**found, "name": upload, "manifest": found.pop("manifest_digest")}

    async def _files(self, name: str, path: str, task: Task) -> list[Json]:
        """The files of an outside run as uploads; their paths begin behind the folder."""
        async with self._database.system(read_only=True) as uow:
            run = await TrainingRuns(uow).get(name)
            files = await RunArtifacts(uow, run).list(path, _MOST_MODEL_FILES, "")
        found: list[Json] = []
        for file in files:
            parts = [{"sha256": part} for part in file.parts]
            manifest = await self._blobs.commit({"blobs": parts})
            grant = await self._blobs.grant(manifest, task.name, _GRANT_SECONDS)
            below = file.path[len(path) :].lstrip("/") or file.path.rpartition("/")[2]
            entry: Json = {"name": f"{name}/{file.path}", "file_name": below, "size": file.size}
            found.append(entry | {"manifest": manifest, "grant": grant})
        return found

    async def _apply(self, task: Task, result: Json, uow: UnitOfWork) -> Json:
        projects, now = ModelProjects(uow), self._clock.now()
        project = await projects.get(task.target, deleted=True, for_update=True)
        version = self._version(task, project.next_version(), result)
        version.begin(project.life_cycle, task.creator, now, f"asked for by {task.name}")
        reason = f"imported from {result['origin']}"[:1000]
        version.happen(Event.IMPORTED, project.life_cycle, "services/training", now, reason)
        self._signer.sign(version, now)
        project.update_time = now
        await projects.save(project)
        await ModelVersions(uow).insert(version)
        payload = training_events_pb2.ModelVersionCreated(version=version.name, manifest_digest=version.manifest_digest)
        uow.emit("training.model_version.created", version, payload)
        return made(version)

    def _version(self, task: Task, name: str, result: Json) -> ModelVersion:
        now, work = self._clock.now(), task.input
        if work.get("run"):
            result = result | {"origin": f"{work['run']}/{work['run_path']}".rstrip("/")}
        sources = work["uploads"] or [work.get("run") or result["origin"]]
        return ModelVersion(
            uid=uuid7(),
            name=name,
            create_time=now,
            update_time=now,
            creator=task.creator,
            labels=dict(work["labels"]),
            secrecy=Secrecy(work["secrecy"]),
            lineage=[Parent(source, relation="imported_from") for source in sources],
            manifest_digest=result["manifest_digest"],
            files=[ModelFile(file["path"], file["sha256"], file["size"]) for file in result["files"]],
            origin=result["origin"],
            licence=result["licence"],
            task=result["task"],
            parameter_count=result["parameter_count"],
            architecture=result["architecture"],
            context_length=result["context_length"],
            model_card=imported_card(name, result),
            description=work["description"],
        )
