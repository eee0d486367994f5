"""The kinds of tasks that read versions, and those that make some."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from argosy.dataset.v1 import dataset_events_pb2

from libs.common.blobs import BlobStore, nested_manifests
from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import Parent, Secrecy, inherit_secrecy
from libs.common.ids import resource_id, uuid7
from libs.common.tasks import Task, TaskKind
from services.dataset.config import DatasetSettings, networks
from services.dataset.domain.detectors import Detector
from services.dataset.domain.exports import KEPT_TIME, Export, choices_digest
from services.dataset.domain.findings import Findings
from services.dataset.domain.human_work import WANTED_PRECISION
from services.dataset.domain.tasks import (
    ANNOTATE,
    AUGMENT,
    CLEAN,
    EXPORT,
    IMPORT,
    LEAKAGE,
    MAKE_DETECTOR,
    PROFILE,
    SPLIT,
    WORK_REPORT,
)
from services.dataset.domain.versions import Content, DatasetVersion, new_version
from services.dataset.store.detectors import Detectors
from services.dataset.store.repositories import (
    Datasets,
    DatasetVersions,
    Exports,
    LeakageChecks,
    Profiles,
    Uploads,
    WorkReports,
)
from services.dataset.store.work import WorkAssignments, WorkItems, WorkProjects

# Longer than any task may take on data that fits one machine's disk.
_GRANT_SECONDS = 24 * 3600
# What a name in a lineage may have; a link may be longer.
_NAME_CHARACTERS = 512


class Kinds:
    """Loads and applies tasks.

    Args:
        database: The service's.
        blobs: The service's.
        clock: Gives the times of versions.
        settings: Say how far imports reach outside.
    """

    def __init__(self, database: Database, blobs: BlobStore, clock: Clock, settings: DatasetSettings) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._settings = settings

    def all(self) -> list[TaskKind]:
        """For the service's definition."""
        engines = "services.dataset.engines"
        return [
            TaskKind(IMPORT, self._load_import, f"{engines}.importing:run", self._apply_import),
            TaskKind(CLEAN, self._load_version, f"{engines}.cleaning:run", self._apply_clean),
            TaskKind(SPLIT, self._load_version, f"{engines}.splitting:run", self._apply_split),
            TaskKind(AUGMENT, self._load_augment, f"{engines}.augmenting:run", self._apply_augment),
            TaskKind(PROFILE, self._load_version, f"{engines}.profile:run", self._apply_profile),
            TaskKind(WORK_REPORT, self._load_answers, f"{engines}.work_report:run", self._apply_work_report),
            TaskKind(EXPORT, self._load_export, f"{engines}.exporting:run", self._apply_export),
            TaskKind(MAKE_DETECTOR, self._load_weights, f"{engines}.detection.making:run", self._apply_detector),
            TaskKind(ANNOTATE, self._load_annotate, f"{engines}.annotating:run", self._apply_annotate),
            # A training or an evaluation waits for it, while others may hold every CPU of Ray's books for hours.
            TaskKind(
                LEAKAGE, self._load_leakage, f"{engines}.leakage:run", self._apply_leakage, resources={"num_cpus": 0}
            ),
        ]

    async def _load_import(self, task: Task, _runtime: Any) -> dict[str, Any]:
        work = task.input
        async with self._database.system(read_only=True) as uow:
            upload = await Uploads(uow).alive(work["upload"], self._clock.now()) if "upload" in work else None
            base = await DatasetVersions(uow).find(work["base"]) if work["base"] else None
        spec: dict[str, Any] = {name: work.get(name, "") for name in ("format", "media_type", "is_table")}
        if upload is None:
            spec |= self._outside(work)
        else:
            digest = upload.manifest_digest
            spec |= {"upload": digest, "upload_grant": await self._grant(digest, task), "file_name": upload.file_name}
        if base is not None:
            spec |= {"base": base.manifest_digest, "base_grant": await self._grant(base.manifest_digest, task)}
        return spec

    def _outside(self, work: dict[str, Any]) -> dict[str, Any]:
        """What an engine needs to fetch: the name of a secret, never what is in it."""
        settings = self._settings
        folder = settings.import_sqlite_folder
        limits = {
            "networks": networks(settings.import_networks),
            "max_bytes": settings.import_max_bytes,
            "max_seconds": settings.import_max_seconds,
            "sqlite_folder": "" if folder is None else str(folder),
        }
        if "uri" in work:
            return {"uri": work["uri"], **limits}
        identity = settings.peers.get("identity", "")
        return {"secret": work["secret"], "query": work["query"], "identity": identity, **limits}

    async def _load_version(self, task: Task, _runtime: Any) -> dict[str, Any]:
        async with self._database.system(read_only=True) as uow:
            version = await DatasetVersions(uow).get(task.input["version"])
        digest = version.manifest_digest
        return {**task.input, "version": digest, "grant": await self._grant(digest, task)}

    async def _load_answers(self, task: Task, _runtime: Any) -> dict[str, Any]:
        async with self._database.system(read_only=True) as uow:
            project = await WorkProjects(uow).get(task.input["project"])
            answers = await WorkAssignments(uow).answers(project)
            proposed = await WorkItems(uow).proposed(project)
        given = {"answers": answers, "proposed": proposed}
        blob = await self._blobs.put(await asyncio.to_thread(lambda: json.dumps(given).encode()))
        manifest = await self._blobs.commit({"blobs": [{"sha256": blob.sha256, "size": blob.size}]})
        spec = {"given": blob.sha256, "grant": await self._grant(manifest, task)}
        spec |= {"fields": project.form["fields"], "price_micros": project.price_micros}
        return spec | {"wanted_precision": task.input.get("wanted_precision", WANTED_PRECISION)}

    async def _load_export(self, task: Task, _runtime: Any) -> dict[str, Any]:
        splits: list[dict[str, str]] = []
        async with self._database.system(read_only=True) as uow:
            for given in task.input["splits"]:
                version = await DatasetVersions(uow).get(given["version"])
                splits.append({**given, "manifest": version.manifest_digest})
        for split in splits:
            split["grant"] = await self._grant(split["manifest"], task)
        return {**task.input, "splits": splits}

    async def _load_augment(self, task: Task, runtime: Any) -> dict[str, Any]:
        spec = await self._load_version(task, runtime)
        media = nested_manifests(await self._blobs.load_manifest(spec["version"]))
        return {**spec, "media_grant": await self._grant(media[0], task) if media else ""}

    async def _load_weights(self, task: Task, _runtime: Any) -> dict[str, Any]:
        """What a detector is made of: an archive of weights, or how to train one."""
        if "upload" not in task.input:
            return dict(task.input)
        async with self._database.system(read_only=True) as uow:
            upload = await Uploads(uow).alive(task.input["upload"], self._clock.now())
        digest = upload.manifest_digest
        return {**task.input, "archive": digest, "archive_grant": await self._grant(digest, task)}

    async def _load_annotate(self, task: Task, runtime: Any) -> dict[str, Any]:
        spec = await self._load_augment(task, runtime)
        async with self._database.system(read_only=True) as uow:
            detector = await Detectors(uow).get(task.input["detector"])
        digest = detector.manifest_digest
        return {**spec, "kind": detector.kind, "detector": digest, "detector_grant": await self._grant(digest, task)}

    async def _load_leakage(self, task: Task, _runtime: Any) -> dict[str, Any]:
        spec = dict(task.input)
        async with self._database.system(read_only=True) as uow:
            for side in ("test", "train"):
                spec[side] = (await DatasetVersions(uow).get(task.input[f"{side}_version"])).manifest_digest
        for side in ("test", "train"):
            spec[f"{side}_grant"] = await self._grant(spec[side], task)
        return spec

    async def _grant(self, manifest_digest: str, task: Task) -> str:
        return await self._blobs.grant(manifest_digest, task.name, _GRANT_SECONDS)

    async def _apply_import(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        content = {name: value for name, value in result.items() if name != "origin"}
        parents = await self._imported_from(task, result, uow)
        version = await self._publish(uow, task, task.input["dataset"], content, parents)
        return {"version": version.name, "row_count": version.row_count}

    @staticmethod
    async def _imported_from(task: Task, result: dict[str, Any], uow: UnitOfWork) -> list[Parent]:
        origin = result.get("origin")
        if origin is not None:
            return [Parent(origin["address"][:_NAME_CHARACTERS], origin["digest"], "imported_from")]
        upload = await Uploads(uow).find(task.input["upload"])
        return [Parent(upload.name, upload.digest, "imported_from")] if upload is not None else []

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

    async def _apply_annotate(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        before = await DatasetVersions(uow).get(task.input["version"])
        detector = await Detectors(uow).get(task.input["detector"], deleted=True)
        parents = [before.as_parent("annotated_from"), detector.as_parent()]
        version = await self._publish(uow, task, before.parent, result, parents, before.secrecy, detector.secrecy)
        return {"version": version.name, "row_count": version.row_count}

    async def _apply_detector(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        work, now = task.input, self._clock.now()
        upload = await Uploads(uow).find(work["upload"]) if "upload" in work else None
        detector = Detector(
            uid=uuid7(),
            name=work["detector"],
            create_time=now,
            update_time=now,
            creator=task.creator,
            labels=work["labels"],
            secrecy=Secrecy(work["secrecy"]),
            lineage=[Parent(upload.name, upload.digest, "imported_from")] if upload is not None else [],
            display_name=work["display_name"],
            description=work["description"],
            kind=work["kind"],
            task=task.name,
            **result,
        )
        await Detectors(uow).insert(detector)
        return {"detector": detector.name, "manifest_digest": detector.manifest_digest}

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
        version = await DatasetVersions(uow).get(task.input["version"])
        await Profiles(uow).put(self._findings(task, version.name, version.secrecy, result["profile"]))
        return {"version": version.name}

    async def _apply_work_report(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        project = await WorkProjects(uow).get(task.input["project"])
        await WorkReports(uow).put(self._findings(task, project.name, project.secrecy, result["figures"]))
        return {"project": project.name, "answers": result["answers"]}

    async def _apply_export(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        names = [split["version"] for split in task.input["splits"]]
        versions, now = [await DatasetVersions(uow).get(name) for name in names], self._clock.now()
        export = Export(
            uid=uuid7(),
            name=f"{task.input['version']}/exports/{resource_id('ex')}",
            create_time=now,
            update_time=now,
            creator=task.creator,
            secrecy=inherit_secrecy(*(version.secrecy for version in versions)),
            lineage=[version.as_parent("exported_from") for version in versions],
            expire_time=now + KEPT_TIME,
            format=task.input["format"],
            choices=choices_digest(task.input),
            task=task.name,
            **result,
        )
        await Exports(uow).insert(export)
        return {"export": export.name, "manifest_digest": export.manifest_digest}

    async def _apply_leakage(self, task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
        versions = [await DatasetVersions(uow).get(task.input[f"{side}_version"]) for side in ("test", "train")]
        found, secrecy = result["leakage"], inherit_secrecy(*(version.secrecy for version in versions))
        # Somebody may have asked the same at the same time; the answer is the same too.
        await LeakageChecks(uow).put(self._findings(task, task.input["check"], secrecy, found))
        return {name: found[name] for name in ("exact_rows", "near_rows", "test_rows", "leaked_share")}

    def _findings(self, task: Task, name: str, secrecy: Secrecy, figures: dict[str, Any]) -> Findings:
        now = self._clock.now()
        return Findings(
            uid=uuid7(),
            name=name,
            create_time=now,
            update_time=now,
            creator=task.creator,
            secrecy=secrecy,
            figures=figures,
            task=task.name,
        )

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
