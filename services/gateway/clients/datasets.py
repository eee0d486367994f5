"""Uploaded files of the OpenAI routes: datasets, their uploads and imports."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from argosy.common.v1 import task_pb2, task_service_pb2, task_service_pb2_grpc
from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc

from libs.common.clock import Clock
from libs.common.errors import ArgosyError
from services.gateway.clients.applications import Metadata
from services.gateway.clients.backends import StubSource
from services.gateway.domain import openai_names as names
from services.gateway.http.caller import Authenticate, Caller

_SECONDS = 10.0
# A part is written and synced before it is answered; a commit reads the whole file once.
_PART_SECONDS = 30.0
_COMMIT_SECONDS = 600.0
_DOWNLOAD_SECONDS = 3600.0
_POLL_SECONDS = 0.2
_ENDED = frozenset(
    {task_pb2.Task.STATE_SUCCEEDED, task_pb2.Task.STATE_FAILED, task_pb2.Task.STATE_CANCELLED},
)
# Marks a dataset as a file of the OpenAI routes, with what OpenAI says of a file beside its content.
PURPOSE_LABEL, BYTES_LABEL, NAME_LABEL = "openai-purpose", "openai-bytes", "openai-filename"


@dataclass(frozen=True)
class StoredFile:
    """A file as the dataset service has it.

    Attributes:
        dataset: with the labels of the file.
        version: its newest version; None while there is none.
        task: its newest task; None when there is a version, or no task was begun.
    """

    dataset: dataset_pb2.Dataset
    version: dataset_pb2.DatasetVersion | None
    task: task_pb2.Task | None

    @property
    def fault(self) -> str:
        """Why the file is of no use, naming the line; empty if it is, or may still become so."""
        if self.version is not None:
            report = self.version.report
            if not report.line_error_count:
                return ""
            first = report.line_errors[0]
            return f"Line {first.line}: {first.error}. Lines at fault: {report.line_error_count}."
        if self.task is None:
            return "The upload was broken off; upload the file again."
        if self.task.state == task_pb2.Task.STATE_FAILED:
            return self.task.error.message
        return "Its import was cancelled." if self.task.state == task_pb2.Task.STATE_CANCELLED else ""

    @property
    def pending(self) -> bool:
        """Whether the file is still being read."""
        return self.version is None and self.task is not None and self.task.state not in _ENDED


class Datasets:
    """The way to datasets.

    Args:
        channels: to dataset.
        clock: paces the questions whether a task has ended.
    """

    def __init__(self, channels: StubSource, clock: Clock) -> None:
        self._stub: dataset_service_pb2_grpc.DatasetServiceStub = channels.stub(
            dataset_service_pb2_grpc.DatasetServiceStub, "dataset"
        )
        self._tasks: task_service_pb2_grpc.TaskServiceStub = channels.stub(
            task_service_pb2_grpc.TaskServiceStub, "dataset"
        )
        self._clock = clock

    async def upload(
        self,
        parts: AsyncIterator[bytes],
        file_name: str,
        upload_id: str,
        authenticate: Authenticate,
        metadata: Metadata,
    ) -> tuple[str, int, bytes]:
        """Uploads a file part by part.

        Args:
            parts: of at most 8 MiB each.
            file_name: as its sender calls it.
            upload_id: the same one continues the same upload, where this was broken off.
            authenticate: gives who sends it; asked for each part, as an upload may take longer than a token lives.

        Returns:
            Name of the upload, bytes of the file and its first line, as far as the first part has it.
        """

        async def call(seconds: float) -> dict[str, Any]:
            return {"metadata": ((await authenticate()).authorization, *metadata), "timeout": seconds}

        upload = await self._stub.CreateUpload(
            dataset_service_pb2.CreateUploadRequest(
                parent=f"orgs/{(await authenticate()).org}",
                upload_id=upload_id,
                file_name=file_name,
                request_id=upload_id,
            ),
            **await call(_PART_SECONDS),
        )
        offset, head, whole = 0, b"", hashlib.sha256()
        async for part in parts:
            head = head or part.partition(b"\n")[0]
            whole.update(part)
            request = dataset_service_pb2.AppendUploadRequest(
                name=upload.name,
                offset=offset,
                data=part,
                sha256=(await asyncio.to_thread(hashlib.sha256, part)).hexdigest(),
                request_id=f"{upload_id}-{offset}",
            )
            await self._stub.AppendUpload(request, **await call(_PART_SECONDS))
            offset += len(part)
        if offset:
            await self._stub.CommitUpload(
                dataset_service_pb2.CommitUploadRequest(
                    name=upload.name, sha256=whole.hexdigest(), request_id=f"{upload_id}-commit"
                ),
                **await call(_COMMIT_SECONDS),
            )
        return upload.name, offset, head

    async def keep(
        self,
        name: str,
        labels: dict[str, str],
        upload: str,
        import_format: str,
        caller: Caller,
        metadata: Metadata,
    ) -> StoredFile:
        """Makes a dataset of a committed upload and begins its import.

        Args:
            name: of the dataset.
            labels: what is to be said of the file.
            import_format: `openai` or `dpo`.
        """
        parent, _, dataset_id = name.rpartition("/datasets/")
        call: dict[str, Any] = {"metadata": (caller.authorization, *metadata), "timeout": _SECONDS}
        dataset = await self._stub.CreateDataset(
            dataset_service_pb2.CreateDatasetRequest(
                parent=parent,
                dataset_id=dataset_id,
                dataset=dataset_pb2.Dataset(
                    display_name=labels[NAME_LABEL][:100], type=dataset_pb2.DATASET_TYPE_TEXT, labels=labels
                ),
                request_id=f"{dataset_id}-create",
            ),
            **call,
        )
        task = await self._stub.ImportVersion(
            dataset_service_pb2.ImportVersionRequest(
                parent=name, upload=upload, format=import_format, request_id=f"{dataset_id}-import"
            ),
            **call,
        )
        return StoredFile(dataset, None, task)

    async def get(self, name: str, caller: Caller, metadata: Metadata) -> StoredFile | None:
        """A file; None if there is no dataset of this name, or it is no file. Raises what dataset raises."""
        request = dataset_service_pb2.GetDatasetRequest(name=name)
        call: dict[str, Any] = {"metadata": (caller.authorization, *metadata), "timeout": _SECONDS}
        try:
            dataset = await self._stub.GetDataset(request, **call)
        except ArgosyError as error:
            if error.is_reason("NOT_FOUND"):
                return None
            raise
        return await self.state(dataset, caller, metadata) if PURPOSE_LABEL in dataset.labels else None

    async def state(self, dataset: dataset_pb2.Dataset, caller: Caller, metadata: Metadata) -> StoredFile:
        """What became of the import of a file."""
        call: dict[str, Any] = {"metadata": (caller.authorization, *metadata), "timeout": _SECONDS}
        if dataset.latest_version:
            version = dataset_service_pb2.GetDatasetVersionRequest(name=dataset.latest_version)
            return StoredFile(dataset, await self._stub.GetDatasetVersion(version, **call), None)
        parent = dataset.name.partition("/datasets/")[0] + "/dataset"
        tasks = task_service_pb2.ListTasksRequest(parent=parent, target=dataset.name, page_size=1)
        found = await self._tasks.ListTasks(tasks, **call)
        return StoredFile(dataset, None, found.tasks[0] if found.tasks else None)

    async def read(self, name: str, seconds: float, caller: Caller, metadata: Metadata) -> StoredFile | None:
        """A file, when its import has ended or after so many seconds; None if there is none."""
        end = self._clock.monotonic() + seconds
        while True:
            found = await self.get(name, caller, metadata)
            if found is None or not found.pending or self._clock.monotonic() >= end:
                return found
            await self._clock.sleep(_POLL_SECONDS)

    async def files(
        self, purpose: str, after: str, oldest_first: bool, size: int, caller: Caller, metadata: Metadata
    ) -> AsyncIterator[dataset_pb2.Dataset]:
        """The datasets of files of a purpose that the caller may see.

        Args:
            after: name of the dataset that they stand behind; empty: from the first.
            oldest_first: else the newest.
            size: how many are read at once.
        """
        request = dataset_service_pb2.ListDatasetsRequest(
            parent=f"orgs/{caller.org}",
            labels=[f"{PURPOSE_LABEL}={purpose}"],
            after=after,
            oldest_first=oldest_first,
            page_size=size,
        )
        while True:
            page = await self._stub.ListDatasets(request, metadata=(caller.authorization, *metadata), timeout=_SECONDS)
            for dataset in page.datasets:
                if names.is_file(dataset.name.rpartition("/")[2]):
                    yield dataset
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def delete(self, name: str, caller: Caller, metadata: Metadata) -> None:
        """Deletes a dataset; it can be undeleted for thirty days."""
        request = dataset_service_pb2.DeleteDatasetRequest(name=name)
        await self._stub.DeleteDataset(request, metadata=(caller.authorization, *metadata), timeout=_SECONDS)

    async def lines(self, version: str, seconds: float, caller: Caller, metadata: Metadata) -> AsyncIterator[bytes]:
        """The rows of a version as JSON lines, in pieces.

        Args:
            seconds: that the export may take.

        Raises:
            ArgosyError: CONTENT_INVALID, the export failed; DEADLINE_EXCEEDED, it is not done yet.
        """
        call: dict[str, Any] = {"metadata": (caller.authorization, *metadata), "timeout": _SECONDS}
        task = await self._stub.ExportVersion(
            dataset_service_pb2.ExportVersionRequest(name=version, format="jsonl"), **call
        )
        end = self._clock.monotonic() + seconds
        while task.state not in _ENDED:
            if self._clock.monotonic() >= end:
                message = "The file is still being written; ask again."
                raise ArgosyError("DEADLINE_EXCEEDED", message, retry_after=5.0)
            await self._clock.sleep(_POLL_SECONDS)
            task = await self._tasks.GetTask(task_service_pb2.GetTaskRequest(name=task.name), **call)
        if task.state != task_pb2.Task.STATE_SUCCEEDED:
            raise ArgosyError("CONTENT_INVALID", task.error.message or "The file could not be written.")
        request = dataset_service_pb2.DownloadVersionExportRequest(name=task.result["export"])
        answers = self._stub.DownloadVersionExport(
            request, metadata=(caller.authorization, *metadata), timeout=_DOWNLOAD_SECONDS
        )
        try:
            async for answer in answers:
                yield answer.data
        finally:
            await answers.aclose()
