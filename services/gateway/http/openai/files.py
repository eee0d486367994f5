"""`/v1/files`: JSON lines for fine-tuning. https://platform.openai.com/docs/api-reference/files

A file is a dataset of texts whose id is the file's, so that it has versions, lineage and permissions as every other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from typing import Any

import orjson
from argosy.dataset.v1 import dataset_pb2

from libs.common.errors import ArgosyError
from services.gateway.clients.applications import Metadata
from services.gateway.clients.datasets import BYTES_LABEL, NAME_LABEL, PURPOSE_LABEL, Datasets, StoredFile
from services.gateway.clients.trainings import Trainings
from services.gateway.domain import openai_names as names
from services.gateway.http.caller import Authenticator, Caller
from services.gateway.http.door import Handler
from services.gateway.http.errors import HttpError
from services.gateway.http.exchange import BYTES, Exchange
from services.gateway.http.multipart import Form, Part, boundary_of
from services.gateway.http.openai.errors import MissingError, ParameterError, status_of
from services.gateway.http.openai.guard import admit, guarded
from services.gateway.http.openai.job_answers import results_csv
from services.gateway.http.openai.listing import Json, list_body, parse_listing
from services.gateway.http.uploads import PART_BYTES, cut

PURPOSE = "fine-tune"
# As OpenAI: https://platform.openai.com/docs/api-reference/files/create
MOST_BYTES = 512 * 1024 * 1024
# OpenAI's default. A page of ours is shorter, because each file of it is looked at; `has_more` says so.
_MOST_LISTED = 10_000
_PAGE = 100
# A small file is imported by then, where Ray is awake; others are answered as `uploaded`.
_IMPORT_SECONDS = 2.0
_EXPORT_SECONDS = 120.0
_AT_ONCE = 16
_PREFERENCE = b'"preferred_output"'
_CHOSEN = "chosen"


class Files:
    """Handlers of the files.

    Args:
        authenticator: knows keys and tokens.
        datasets: keep the files.
        trainings: use them.
    """

    def __init__(self, authenticator: Authenticator, datasets: Datasets, trainings: Trainings) -> None:
        self._authenticator = authenticator
        self._datasets = datasets
        self._trainings = trainings

    def handlers(self) -> dict[str, dict[str, Handler]]:
        """Path -> HTTP method -> handler."""
        return {"/v1/files": {"POST": self.create, "GET": self.listed}}

    def prefixed(self) -> dict[str, dict[str, Handler]]:
        """Path prefix -> HTTP method -> handler."""
        return {"/v1/files/": {"GET": self.get, "DELETE": self.delete}}

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/files."""
        await guarded(exchange, self._create(exchange))

    async def listed(self, exchange: Exchange) -> None:
        """GET /v1/files."""
        await guarded(exchange, self._list(exchange))

    async def get(self, exchange: Exchange) -> None:
        """GET /v1/files/{file_id} and /v1/files/{file_id}/content."""
        content = exchange.path.endswith("/content")
        exchange.route = "GET /v1/files/{file_id}" + ("/content" if content else "")
        await guarded(exchange, self._content(exchange) if content else self._get(exchange))

    async def delete(self, exchange: Exchange) -> None:
        """DELETE /v1/files/{file_id}."""
        exchange.route = "DELETE /v1/files/{file_id}"
        await guarded(exchange, self._delete(exchange))

    async def _create(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        try:
            stored = await self._receive(exchange, caller)
        except (ArgosyError, HttpError) as failure:
            # A client that still writes would see a reset instead of the answer; what is too large `guarded` discards.
            if status_of(failure)[1] != 413:
                await exchange.discard()
            raise
        await exchange.respond(200, orjson.dumps(file_object(stored)))

    async def _receive(self, exchange: Exchange, caller: Caller) -> StoredFile:
        key = exchange.headers.get(b"idempotency-key", b"").decode("ascii", "replace")
        file_id = names.new_id("file", f"{caller.org} {caller.subject}", key)
        metadata = exchange.call_metadata()
        purpose, received = "", None
        async for part in Form(_limited(exchange.stream()), boundary_of(exchange)).parts():
            if part.name == "file":
                received = (part.file_name, *await self._upload(part, file_id, exchange))
            elif part.name == "purpose":
                purpose = _purpose(await part.text())
            else:
                shown = part.name[:64]
                raise ParameterError(shown, f"Unknown parameter: {shown!r}.", "unknown_parameter")
        if not purpose:
            raise ParameterError("purpose", "purpose: it is needed.", "missing_required_parameter")
        if received is None:
            raise ParameterError("file", "file: it is needed.", "missing_required_parameter")
        file_name, upload, size, head = received
        if not size:
            raise ParameterError("file", "file: it is empty.", "invalid_file")
        labels = {PURPOSE_LABEL: purpose, BYTES_LABEL: str(size), NAME_LABEL: file_name}
        name = names.dataset(caller.org, file_id)
        caller = await self._authenticator.authenticate(exchange.headers.get(b"authorization"))
        stored = await self._datasets.keep(
            name, labels, upload, "dpo" if _PREFERENCE in head else "openai", caller, metadata
        )
        return await self._datasets.read(name, _IMPORT_SECONDS, caller, metadata) or stored

    async def _upload(self, part: Part, file_id: str, exchange: Exchange) -> tuple[str, int, bytes]:
        file_name = part.file_name
        if not file_name or len(file_name) > 255 or any(letter in file_name for letter in "/\\\0"):
            raise ParameterError("file", "file: it needs a name of at most 255 characters without slashes.")

        def authenticate() -> Awaitable[Caller]:
            return self._authenticator.authenticate(exchange.headers.get(b"authorization"))

        parts = cut(part.data, PART_BYTES)
        return await self._datasets.upload(parts, file_name, file_id, authenticate, exchange.call_metadata())

    async def _list(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        listing = parse_listing(exchange.query, usual=_MOST_LISTED, most=_MOST_LISTED, others=("order", "purpose"))
        order = listing.others.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ParameterError("order", "order: must be asc or desc.")
        if listing.others.get("purpose", PURPOSE) != PURPOSE:
            await exchange.respond(200, list_body([], False))
            return
        if listing.after and not names.is_file(listing.after):
            raise listing.unknown()
        metadata, page = exchange.call_metadata(), replace(listing, limit=min(listing.limit, _PAGE))
        after = names.dataset(caller.org, listing.after) if listing.after else ""
        found, more = await page.page(
            self._datasets.files(PURPOSE, after, order == "asc", page.limit + 1, caller, metadata)
        )
        slots = asyncio.Semaphore(_AT_ONCE)

        async def state(dataset: dataset_pb2.Dataset) -> Json:
            async with slots:
                return file_object(await self._datasets.state(dataset, caller, metadata))

        data = await asyncio.gather(*(state(dataset) for dataset in found))
        await exchange.respond(200, list_body(data, more))

    async def _get(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        file_id = exchange.path.removeprefix("/v1/files/")
        job_id = names.job_of_results(file_id)
        if job_id is None:
            found = file_object(await self._find(file_id, caller, exchange.call_metadata()))
        else:
            content, created = await self._results(file_id, job_id, caller, exchange.call_metadata())
            found = _object(file_id, len(content), created, "step_metrics.csv", "fine-tune-results")
        await exchange.respond(200, orjson.dumps(found))

    async def _content(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        file_id = exchange.path.removeprefix("/v1/files/").removesuffix("/content")
        metadata = exchange.call_metadata()
        job_id = names.job_of_results(file_id)
        if job_id is not None:
            content, _ = await self._results(file_id, job_id, caller, metadata)
            await exchange.respond(200, content, b"text/csv")
            return
        stored = await self._find(file_id, caller, metadata)
        if stored.version is None:
            raise ParameterError("file_id", f"file_id: {stored.fault or 'The file is still being read.'}")
        pieces = self._datasets.lines(stored.version.name, _EXPORT_SECONDS, caller, metadata)
        if {"prompt", _CHOSEN, "rejected"} <= {column.name for column in stored.version.columns}:
            pieces = _as_preferences(pieces)
        # What is wrong shows at the first piece, before the status is sent.
        first = await anext(pieces, b"")
        await exchange.start(200, BYTES)
        await exchange.write(first)
        async for piece in pieces:
            await exchange.write(piece)
        await exchange.write(b"", more=False)

    async def _delete(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        file_id = exchange.path.removeprefix("/v1/files/")
        metadata = exchange.call_metadata()
        if names.job_of_results(file_id) is not None:
            raise ParameterError("file_id", "file_id: results belong to their job and cannot be deleted.")
        stored = await self._find(file_id, caller, metadata)
        user = await self._trainings.running_with(file_id, caller, metadata)
        if user:
            message = f"file_id: the job {user} uses the file; cancel it or wait for its end."
            raise HttpError(409, ParameterError("file_id", message, "file_in_use"))
        await self._datasets.delete(stored.dataset.name, caller, metadata)
        await exchange.respond(200, orjson.dumps({"id": file_id, "object": "file", "deleted": True}))

    async def _find(self, file_id: str, caller: Caller, metadata: Metadata) -> StoredFile:
        stored = None
        if names.is_file(file_id):
            stored = await self._datasets.get(names.dataset(caller.org, file_id), caller, metadata)
        if stored is None:
            raise MissingError("file_id", "File", file_id)
        return stored

    async def _results(self, file_id: str, job_id: str, caller: Caller, metadata: Metadata) -> tuple[bytes, int]:
        """The results of a job that has succeeded, and their time."""
        job = await self._trainings.job(names.training(caller.org, job_id), caller, metadata)
        if job is None or job.run is None or not job.run.model_version:
            raise MissingError("file_id", "File", file_id)
        metrics = await self._trainings.metrics(job.run.task, caller, metadata)
        return results_csv(job, metrics), job.run.update_time.seconds


async def _limited(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a body up to the limit of a file."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > MOST_BYTES:
            raise ArgosyError("TOO_LARGE", f"The file is larger than {MOST_BYTES} bytes.")
        yield piece


def file_object(stored: StoredFile) -> Json:
    """A file as OpenAI's clients read it."""
    dataset, labels = stored.dataset, stored.dataset.labels
    body = _object(
        _file_id(dataset),
        int(labels[BYTES_LABEL]) if labels[BYTES_LABEL].isdecimal() else 0,
        dataset.create_time.seconds,
        labels[NAME_LABEL],
        labels[PURPOSE_LABEL],
    )
    if stored.fault:
        return body | {"status": "error", "status_details": stored.fault}
    return body | ({"status": "uploaded"} if stored.version is None else {})


def _object(file_id: str, size: int, created: int, file_name: str, purpose: str) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": created,
        "expires_at": None,
        "filename": file_name,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }


async def _as_preferences(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines with `prompt`, `chosen` and `rejected` as OpenAI names them."""
    held = b""
    async for piece in pieces:
        *lines, held = (held + piece).split(b"\n")
        if lines:
            yield b"".join(_preference(line) for line in lines)


def _preference(line: bytes) -> bytes:
    row = orjson.loads(line)
    outputs = {"preferred_output": row.pop(_CHOSEN), "non_preferred_output": row.pop("rejected")}
    return orjson.dumps({"input": {"messages": row.pop("prompt"), **row}, **outputs}) + b"\n"


def _file_id(dataset: dataset_pb2.Dataset) -> str:
    return dataset.name.rpartition("/")[2]


def _purpose(value: str) -> str:
    if value != PURPOSE:
        raise ParameterError("purpose", f"purpose: only {PURPOSE} is supported, not {value[:64]!r}.", "invalid_purpose")
    return value
