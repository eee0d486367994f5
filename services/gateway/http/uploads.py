"""Uploads by PUT: a body of any length, cut into the parts that the dataset service takes.

`PUT /v1/orgs/{org}/uploads/{upload}` with `Content-Range: bytes 8388608-16777215/*` (or without it, from the start)
appends what the body holds; `Content-Range: bytes */*` with an empty body asks where the upload stands. Each part
carries its SHA-256 and an id made from its place and content, so that a part sent twice is written once.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2

from libs.common.errors import ArgosyError
from services.gateway.clients.backends import Backends
from services.gateway.http.caller import Authenticate
from services.gateway.http.exchange import Exchange
from services.gateway.http.transcode import to_json

PART_BYTES = 8 * 1024 * 1024
_PART_SECONDS = 30.0
_PATH = re.compile(r"/v1/(orgs/[^/:%]+/uploads/[^/:%]+)\Z")
_RANGE = re.compile(rb"bytes (?:(\d{1,15})-(\d{1,15})|\*)/(?:\d{1,15}|\*)\Z")


def upload_name(path: str) -> str | None:
    """The upload that a path names; None for another path."""
    matched = _PATH.match(path)
    return matched[1] if matched else None


class Uploads:
    """Takes files by PUT.

    Args:
        backends: the services.
        part_bytes: size of the parts.
    """

    ROUTE = "PUT /v1/{upload=orgs/*/uploads/*}"

    def __init__(self, backends: Backends, part_bytes: int = PART_BYTES) -> None:
        service = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"]
        self._append: Any = backends.callable(service.methods_by_name["AppendUpload"], "dataset")
        self._get: Any = backends.callable(service.methods_by_name["GetUpload"], "dataset")
        self._part_bytes = part_bytes

    async def put(self, exchange: Exchange, authenticate: Authenticate, name: str) -> None:
        """Appends a body to an upload and answers where it stands.

        Args:
            authenticate: asked for each part, as an upload may take longer than a token lives.
        """
        start, length = _range(exchange)
        if length == 0:
            request = dataset_service_pb2.GetUploadRequest(name=name)
            metadata = ((await authenticate()).authorization, *exchange.call_metadata())
            upload = await self._get(request, metadata=metadata, timeout=_PART_SECONDS)
        else:
            upload = await self._parts(exchange, name, start, length, authenticate)
        await exchange.respond(200, to_json(upload))

    async def _parts(
        self, exchange: Exchange, name: str, offset: int, length: int | None, authenticate: Authenticate
    ) -> dataset_pb2.Upload:
        upload: dataset_pb2.Upload | None = None
        end = None if length is None else offset + length
        async for part in cut(exchange.stream(), self._part_bytes):
            if end is not None and offset + len(part) > end:
                raise ArgosyError("BODY_INVALID", "The body is longer than Content-Range says.")
            digest = await asyncio.to_thread(_digest, part)
            request = dataset_service_pb2.AppendUploadRequest(
                name=name,
                offset=offset,
                data=part,
                sha256=digest,
                # The same part of the same file in another upload is another request.
                request_id=f"put-{_digest(name.encode())[:12]}-{offset}-{digest[:24]}",
            )
            metadata = ((await authenticate()).authorization, *exchange.call_metadata())
            upload = await self._append(request, metadata=metadata, timeout=_PART_SECONDS)
            offset += len(part)
        if upload is None or (end is not None and offset != end):
            raise ArgosyError("BODY_INVALID", "The body is shorter than Content-Range says, or empty.")
        return upload


def _range(exchange: Exchange) -> tuple[int, int | None]:
    """Where the body starts in the file, and how long it is; None while that is not known, 0 for a question only."""
    stated = exchange.content_length()
    value = exchange.headers.get(b"content-range")
    if value is None:
        if stated == 0:
            raise ArgosyError("BODY_INVALID", "The body is empty.")
        return 0, stated
    matched = _RANGE.match(value)
    if matched is None:
        raise ArgosyError("BODY_INVALID", "Content-Range must read `bytes 0-8388607/*` or `bytes */*`.")
    if matched[1] is None:
        return 0, 0
    start, last = int(matched[1]), int(matched[2])
    length = last - start + 1
    if length <= 0 or (stated is not None and stated != length):
        raise ArgosyError("BODY_INVALID", "Content-Range and Content-Length do not fit together.")
    return start, length


async def cut(pieces: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in parts of `size`, the last one shorter."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _digest(part: bytes) -> str:
    return hashlib.sha256(part).hexdigest()
