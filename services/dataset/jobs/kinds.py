"""The kinds of tasks that make versions."""

from __future__ import annotations

from typing import Any

from argosy.dataset.v1 import dataset_events_pb2

from libs.common.blobs import BlobStore, nested_manifests
from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import Parent, Secrecy
from libs.common.ids import uuid7
from libs.common.tasks import Task, TaskKind
from services.dataset.domain.profiles import Profile
from services.dataset.domain.tasks import AUGMENT, CLEAN, IMPORT, PROFILE, SPLIT
from services.dataset.domain.uploads import Upload
from services.dataset.domain.versions import Content, DatasetVersion, new_version
from services.dataset.store.repositories import Datasets, DatasetVersions, Profiles, Uploads

# Longer than any task may take on data that fits one machine's disk.
_GRANT_SECONDS = 24 * 3600


class Kinds:
    """Loads and applies tasks.

    Args:
        database: The service's.
        blobs: The service's.
        clock: Gives the times of versions.
    """

    def __init__(self, database: Database, blobs: BlobStore, clock: Clock) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock

    def all(self) -> list[TaskKind]:
        """For the service's definition."""
        engines = "services.dataset.engines"
        return [
            TaskKind(IMPORT, self._load_import, f"{engines}.importing:run", self._apply_import),
            TaskKind(CLEAN, self._load_version, f"{engines}.cleaning:run", self._apply_clean),
            TaskKind(SPLIT, self._load_version, f"{engines}.splitting:run", self._apply_split),
            TaskKind(AUGMENT, self._load_augment, f"{engines}.augmenting:run", self._apply_augment),
            TaskKind(PROFILE, self._load_version, f"{engines}.profile:run", self._apply_profile),
        ]

    async def _load_import(self, task: Task, _runtime: Any) -> dict[str, Any]:
        work = task.input
        async with self._database.system(read_only=True) as uow:
            upload = await Uploads(uow).alive(work["upload"], self._clock.now())
            base = await DatasetVersions(uow).find(work["base"]) if work["base"] else None
        spec = {
            "upload": upload.manifest_digest,
            "upload_grant": await self._grant(upload.manifest_digest, task),
            "file_name": upload.file_name,
            "format": work["format"],
            "media_type": work.get("media_type", ""),
        }
        if base is not None:
            spec |= {"base": base.manifest_digest, "base_grant": await self._grant(base.manifest_digest, task)}
        return spec

    async def _load_version(self, task: Task, _runtime: Any) -> dict[str, Any]:
        async with self._database.system(read_only=True) as uow:
            version = await DatasetVersions(uow).get(task.input["version"])
        digest = version.manifest_digest
        return {**task.input, "version": digest, "grant": await self._grant(digest, task)}

    async def _load_augment(self, task: Task, runtime: Any) -> dict[str, Any]:
        spec = await self._load_version(task, runtime)
        media = nested_manifests(await self._blobs.load_manifest(spec["version"]))
        return {**spec, "media_grant": await self._grant(media[0], task) if media else ""}

    async def _grant(self, manifest_digest: str, task: Task) -> str:
        return await self._blobs.grant(manifest_digest, task.name, _GRANT_SECONDS)

    async def _apply_import(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        upload = await Uploads(uow).find(task.input["upload"])
        parents = [_imported(upload)] if upload is not None else []
        version = await self._publish(uow, task, task.input["dataset"], result, parents)
        return {"version": version.name, "row_count": version.row_count}

    async def _apply_clean(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        if "sample_rows" in task.input:
            return result
        before = await DatasetVersions(uow).get(task.input["version"])
        parents = [before.as_parent("cleaned_from")]
        version = await self._publish(uow, task, before.parent, result, parents, before.secrecy)
        return {"version": version.name, "row_count": version.row_count}

    async def _apply_augment(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        before = await DatasetVersions(uow).get(task.input["version"])
        parents = [before.as_parent("augmented_from")]
        version = await self._publish(uow, task, before.parent, result, parents, before.secrecy)
        return {"version": version.name, "row_count": version.row_count}

    async def _apply_split(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        before = await DatasetVersions(uow).get(task.input["version"])
        parents = [before.as_parent("split_from")]
        answer: dict[str, Any] = {"leakage_count": result["train"]["report"]["leakage_count"]}
        for side in ("train", "test"):
            dataset = task.input[f"{side}_dataset"]
            version = await self._publish(uow, task, dataset, result[side], parents, before.secrecy)
            answer[f"{side}_version"] = version.name
            answer[f"{side}_row_count"] = version.row_count
        return answer

    async def _apply_profile(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        version, now = await DatasetVersions(uow).get(task.input["version"]), self._clock.now()
        profile = Profile(
            uid=uuid7(),
            name=version.name,
            create_time=now,
            update_time=now,
            creator=task.creator,
            secrecy=version.secrecy,
            figures=result["profile"],
            task=task.name,
        )
        await Profiles(uow).put(profile)
        return {"version": version.name}

    async def _publish(
        self,
        uow: UnitOfWork,
        task: Task,
        dataset_name: str,
        result: dict[str, Any],
        lineage: list[Parent],
        *secrecies: Secrecy,
    ) -> DatasetVersion:
        """Makes what an engine wrote the latest version of a dataset."""
        datasets = Datasets(uow)
        dataset = await datasets.get(dataset_name, for_update=True)
        version = new_version(
            dataset,
            Content(**result),
            uid=uuid7(),
            now=self._clock.now(),
            creator=task.creator,
            task=task.name,
            lineage=lineage,
            parents_secrecy=secrecies,
        )
        await DatasetVersions(uow).insert(version)
        await datasets.save(dataset)
        payload = dataset_events_pb2.DatasetVersionCreated(
            version=version.name,
            manifest_digest=version.manifest_digest,
            row_count=version.row_count,
            task=task.name,
        )
        uow.emit("dataset.version.created", version, payload)
        return version


def _imported(upload: Upload) -> Parent:
    return Parent(upload.name, upload.digest, "imported_from")
