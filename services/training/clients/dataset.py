"""Dataset: versions to learn from, and the right to read their rows."""

from __future__ import annotations

from dataclasses import dataclass

from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

from libs.common.domain import DomainError, Secrecy
from libs.common.rpc.client import Channels, Metadata


@dataclass(frozen=True)
class DatasetVersion:
    """An immutable version, as far as training needs it.

    Attributes:
        columns: name to type.
    """

    name: str
    manifest_digest: str
    row_count: int
    columns: dict[str, str]
    secrecy: Secrecy


@dataclass(frozen=True)
class DatasetGrant:
    """The right to read the rows of a version for a while."""

    manifest_digest: str
    grant: str


@dataclass(frozen=True)
class UploadGrant:
    """The right to read the pieces of a committed upload for a while."""

    manifest_digest: str
    grant: str
    file_name: str
    size: int


class Datasets:
    """The dataset service, as far as training needs it.

    Args:
        channels: ways to other services.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def _stub(self) -> dataset_service_pb2_grpc.DatasetServiceStub:
        return self._channels.stub(dataset_service_pb2_grpc.DatasetServiceStub, "dataset")

    async def version(self, name: str, metadata: Metadata) -> DatasetVersion:
        """A dataset version.

        Args:
            name: resource name.
            metadata: carries the token of whoever may read it.

        Raises:
            ArgosyError: NOT_FOUND, PEER_UNAVAILABLE.
        """
        request = dataset_service_pb2.GetDatasetVersionRequest(name=name)
        message: dataset_pb2.DatasetVersion = await self._stub().GetDatasetVersion(request, metadata=metadata)
        return DatasetVersion(
            name=message.name,
            manifest_digest=message.manifest_digest,
            row_count=message.row_count,
            columns={column.name: column.type for column in message.columns},
            secrecy=Secrecy(message.secrecy),
        )

    async def sample(self, name: str, rows: int, metadata: Metadata) -> list[dict[str, str]]:
        """The first rows of a version, column to text.

        Args:
            rows: at most this many.
            metadata: carries the token of whoever may read it.
        """
        request = dataset_service_pb2.PreviewRowsRequest(parent=name, page_size=rows)
        answer = await self._stub().PreviewRows(request, metadata=metadata)
        return [{column: _text(value) for column, value in row.fields.fields.items()} for row in answer.rows]

    async def grant_read(self, name: str, holder: str, seconds: int) -> DatasetGrant:
        """Lets Ray workers read the rows of a version.

        Args:
            name: resource name of the version.
            holder: the task.
            seconds: life of the grant, at most a day.
        """
        request = dataset_service_pb2.GrantReadRequest(name=name, holder=holder, ttl_seconds=seconds)
        answer = await self._stub().GrantRead(request)
        return DatasetGrant(answer.manifest_digest, answer.grant)

    async def require_committed(self, upload: str, metadata: Metadata) -> None:
        """Refuses an upload that is still open.

        Args:
            metadata: carries the token of whoever may read it.

        Raises:
            ArgosyError: NOT_FOUND, PEER_UNAVAILABLE.
            DomainError: STATE_CONFLICT.
        """
        request = dataset_service_pb2.GetUploadRequest(name=upload)
        message: dataset_pb2.Upload = await self._stub().GetUpload(request, metadata=metadata)
        if message.state != dataset_pb2.Upload.STATE_COMMITTED:
            text = f"{upload} is not committed."
            raise DomainError("STATE_CONFLICT", text, name=upload, state="OPEN", wanted="COMMITTED")

    async def grant_upload(self, upload: str, holder: str, seconds: int) -> UploadGrant:
        """Lets Ray workers read a committed upload.

        Args:
            holder: the task.
            seconds: life of the grant, at most a day.
        """
        request = dataset_service_pb2.GrantUploadReadRequest(name=upload, holder=holder, ttl_seconds=seconds)
        answer = await self._stub().GrantUploadRead(request)
        return UploadGrant(answer.manifest_digest, answer.grant, answer.file_name, answer.size)


def _text(value: Value) -> str:
    """A value of a row as the engines read it."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind in ("list_value", "struct_value"):
        return json_format.MessageToJson(value, indent=None)
    return "" if kind in (None, "null_value") else str(getattr(value, kind))
