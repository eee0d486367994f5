"""Calls RPCs for HTTP requests: one answer as JSON, streams as events, files as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.common.errors import ArgosyError
from libs.common.media_types import SHOWN_TYPES
from services.gateway.clients.backends import Backends
from services.gateway.http import sse
from services.gateway.http.caller import Caller
from services.gateway.http.errors import error_body, http_status
from services.gateway.http.exchange import BYTES, EVENTS, JSON, Exchange
from services.gateway.http.routes import Match
from services.gateway.http.transcode import build_request, to_json

# A part of an upload in JSON is 8 MiB in base64, and something around it.
BODY_BYTES = 12 * 1024 * 1024
# The field of the first message of a file that says what it is.
STATED_TYPE = "content_type"


class Methods:
    """What stands behind the routes.

    Args:
        backends: the services.
    """

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def call(self, exchange: Exchange, match: Match, caller: Caller | None) -> None:
        """Answers one request. Raises what the RPC raised."""
        body = await exchange.body(BODY_BYTES)
        if body:
            exchange.require_content_type(JSON)
        request = build_request(match, exchange.query, body)
        route = match.route
        method = self._backends.callable(route.method, match.area)
        metadata = exchange.call_metadata()
        if caller is not None:
            metadata = (caller.authorization, *metadata)
        if not route.policy.streams:
            answer = await method(request, metadata=metadata, timeout=route.policy.max_deadline)
            await exchange.succeed(to_json(answer))
            return
        sse.resume(request, route.method.output_type, exchange.headers.get(b"last-event-id", b""))
        answers = method(request, metadata=metadata, timeout=route.policy.max_deadline)
        try:
            await self._stream(exchange, answers, route.method.output_type)
        finally:
            await answers.aclose()

    async def _stream(self, exchange: Exchange, answers: AsyncIterator[Message], answer: Descriptor) -> None:
        content = content_field(answer)
        wants_events = EVENTS in exchange.headers.get(b"accept", b"")
        if content is not None and not wants_events:
            await _download(exchange, answers, content)
        else:
            await _events(exchange, answers)


def content_field(answer: Descriptor) -> str | None:
    """The field of a streamed answer that holds the bytes of a file; None if it is not a file."""
    files = [field.name for field in answer.fields if field.type == FieldDescriptor.TYPE_BYTES]
    return files[0] if len(files) == 1 else None


async def _download(exchange: Exchange, answers: AsyncIterator[Message], content: str) -> None:
    first: Any = await anext(answers, None)
    stated: str = getattr(first, STATED_TYPE, "")
    # A browser opens what it can show, and keeps all else as a file.
    shown = stated in SHOWN_TYPES
    disposition = (b"content-disposition", b"inline" if shown else b"attachment")
    await exchange.start(200, stated.encode() if shown else BYTES, (disposition,))
    if first is not None:
        await exchange.write(getattr(first, content))
        async for answer in answers:
            await exchange.write(getattr(answer, content))
    await exchange.write(b"", more=False)


async def _events(exchange: Exchange, answers: AsyncIterator[Message]) -> None:
    async with sse.EventWriter(exchange).open() as writer:
        try:
            async for message in answers:
                await writer.send(to_json(message), event_id=sse.position(message))
            await writer.send(b"{}", event="end")
        except ArgosyError as error:
            if not writer.started:
                raise
            body = error_body(error, http_status(error), exchange.request_id)
            await writer.send(body, event="error")
        await writer.close()
