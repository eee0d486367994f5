"""One HTTP request and its answer, on top of raw ASGI."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol

from libs.common.clock import Clock
from libs.common.errors import ArgosyError
from services.gateway.http.errors import HttpError, error_body, http_status, retry_after

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"
EVENTS = b"text/event-stream"
BYTES = b"application/octet-stream"

# Nothing that the gateway answers is to be framed, sniffed, cached or run. CORS stays off: no header allows another
# origin.
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_JSON_HEAD = b"".join(b"%s: %s\r\n" % line for line in ((b"content-type", JSON), *SECURITY_HEADERS))
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
# A client that sends its body slower than this is holding a place that others need.
BODY_SECONDS = 30.0
# So it is, by this rate, where the body is a file that may take longer: a slow line of a mobile phone has more.
BODY_BYTES_A_SECOND = 8 * 1024
_DISCARD_SECONDS = 5.0
_DISCARD_BYTES = 64 * 1024 * 1024


class Connection(Protocol):
    """What our HTTP protocol puts into the scope: says when the client has gone."""

    on_lost: Callable[[], object] | None

    def reply(self, cycle: Any, head: bytes, body: bytes) -> bool:
        """Sends a whole answer of status 200 at once; False if the usual way must be taken."""
        ...


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


class Exchange:
    """A request with everything that an answer needs.

    Attributes:
        headers: of the request, names in lower case; of a name given twice the last one.
        request_id: the caller's X-Request-Id, else the trace id.
        trace_id: 32 hexadecimal digits, the caller's if it sent a traceparent.
        parent_id: span id of the caller, empty for none.
        span_id: 16 hexadecimal digits of the span of this request.
        sampled: whether the caller wants the trace recorded; without a traceparent it is.
        status: of the answer, 0 until it starts.
        complete: the last byte of the answer was given to the socket.
        extra: headers that the answer gets besides, such as those of the rate limit.
        route: what the span is called.
        attributes: of the span.
        started: wall time of the arrival.
        began: monotonic time of the arrival, in seconds.
    """

    __slots__ = (
        "_body_ended",
        "_receive",
        "_send",
        "attributes",
        "began",
        "clock",
        "complete",
        "connection",
        "extra",
        "headers",
        "method",
        "parent_id",
        "path",
        "query",
        "request_id",
        "route",
        "sampled",
        "span_id",
        "started",
        "status",
        "trace_id",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, clock: Clock) -> None:
        self.clock = clock
        self.started = clock.now()
        self.began = clock.monotonic()
        self._receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode("ascii", "replace")
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.connection: Connection | None = scope.get("argosy.connection")
        self.status = 0
        self.complete = False
        self._body_ended = False
        self.extra: list[tuple[bytes, bytes]] = []
        self.route = ""
        self.attributes: dict[str, str] = {}
        self._identify()

    def _identify(self) -> None:
        given = self.headers.get(b"traceparent")
        parent = _TRACEPARENT.match(given) if given is not None else None
        if parent is not None:
            self.trace_id = parent[1].decode()
            self.parent_id = parent[2].decode()
            self.sampled = bool(int(parent[3], 16) & 1)
        else:
            self.trace_id = f"{random.getrandbits(128):032x}"
            self.parent_id = ""
            self.sampled = True
        self.span_id = f"{random.getrandbits(64):016x}"
        wanted = self.headers.get(b"x-request-id")
        self.request_id = wanted.decode() if wanted is not None and _REQUEST_ID.match(wanted) else self.trace_id

    @property
    def traceparent(self) -> str:
        """W3C trace context of this request for whom it calls."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    @property
    def _cycle(self) -> Any:
        """uvicorn's cycle of this very request, where the protocol is ours: `receive` is a method of it."""
        return self._receive.__self__  # type: ignore[attr-defined]

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """gRPC metadata that every call on behalf of this request carries."""
        return (("x-request-id", self.request_id), ("traceparent", self.traceparent))

    def content_length(self) -> int | None:
        """The stated length of the body. Raises BODY_INVALID if it is no number."""
        value = self.headers.get(b"content-length")
        if value is None:
            return None
        if not value.isdigit() or len(value) > 18:
            raise ArgosyError("BODY_INVALID", "Content-Length is not a number.")
        return int(value)

    def require_content_type(self, wanted: bytes) -> None:
        """Raises 415 unless the body is of this type; one without a type passes as this type."""
        given = self.headers.get(b"content-type")
        if given is None or given == wanted or given.partition(b";")[0].strip().lower() == wanted:
            return
        shown = given.decode("ascii", "replace")[:100]
        message = f"This route takes {wanted.decode()}, not {shown}."
        raise HttpError(415, ArgosyError("BODY_INVALID", message, metadata={"content_type": shown}))

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises TOO_LARGE above `limit` bytes, 408 when it comes too slowly, ClientGone when it ends
        early.
        """
        stated = self.content_length()
        if stated is not None and stated > limit:
            raise _too_large(limit)
        if self.connection is not None and not self._cycle.more_body:
            return await self._gather(limit)  # all of it has come: nothing to wait for
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._gather(limit)
        except TimeoutError:
            error = ArgosyError("BODY_INVALID", f"The body did not come within {BODY_SECONDS:.0f} seconds.")
            raise HttpError(408, error, ((b"connection", b"close"),)) from None

    async def _gather(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._next()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body piece by piece. Raises 408 when it comes too slowly, ClientGone when it ends early.

        The time until a piece comes counts, not the time that whoever takes it needs. At first it may be BODY_SECONDS;
        BODY_BYTES_A_SECOND that have come buy a second more, up to BODY_SECONDS again.
        """
        left, more = BODY_SECONDS, True
        while more:
            asked = self.clock.monotonic()
            try:
                async with asyncio.timeout(left):
                    message = await self._next()
            except TimeoutError:
                text = f"The body comes more slowly than {BODY_BYTES_A_SECOND:,} bytes a second."
                error = ArgosyError("BODY_INVALID", text)
                raise HttpError(408, error, ((b"connection", b"close"),)) from None
            piece = message.get("body", b"")
            left -= self.clock.monotonic() - asked
            left = min(BODY_SECONDS, left + len(piece) / BODY_BYTES_A_SECOND)
            if piece:
                yield piece
            more = message.get("more_body", False)

    async def discard(self) -> None:
        """Reads what is left of the body away, within bounds.

        A client that still writes when the connection is closed sees a reset instead of the answer.
        """
        left = _DISCARD_BYTES
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not self._body_ended and left > 0:
                    left -= len((await self._next()).get("body", b""))
        except TimeoutError:
            return

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        self._body_ended = not message.get("more_body", False)
        return message

    async def start(self, status: int, content_type: bytes, headers: Headers = (), length: int | None = None) -> None:
        """Sends status and headers; `length` None for a body whose length is not known."""
        self.status = status
        lines = [(b"content-type", content_type), (b"x-request-id", self.request_id.encode()), *SECURITY_HEADERS]
        if length is not None:
            lines.append((b"content-length", b"%d" % length))
        lines.append((b"traceparent", self.traceparent.encode()))
        lines.extend(self.extra)
        replaced = {name for name, _ in headers}
        if replaced:
            lines = [line for line in lines if line[0] not in replaced]
            lines.extend(headers)
        await self._send({"type": "http.response.start", "status": status, "headers": lines})

    async def write(self, data: bytes, more: bool = True) -> None:
        """Sends a piece of the body."""
        self.complete = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def respond(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Sends the whole answer."""
        await self.start(status, content_type, headers, len(body))
        await self.write(body, more=False)

    async def succeed(self, body: bytes) -> None:
        """Sends a whole JSON answer of status 200, the cheap way where there is one."""
        connection = self.connection
        if connection is not None:
            limits = b"".join(b"%s: %s\r\n" % line for line in self.extra)
            identity = b"x-request-id: %s\r\ntraceparent: %s\r\n" % (
                self.request_id.encode(),
                self.traceparent.encode(),
            )
            if connection.reply(self._cycle, _JSON_HEAD + identity + limits, body):
                self.status, self.complete = 200, True
                return
        await self.respond(200, body)

    async def fail(self, error: ArgosyError, status: int | None = None, headers: Headers = ()) -> None:
        """Answers with an error."""
        status = status or http_status(error)
        lines = list(headers)
        wait = retry_after(error)
        if wait is not None:
            lines.append((b"retry-after", wait))
        if status == 401:
            lines.append((b"www-authenticate", b"Bearer"))
        if status == 413:
            await self.discard()
            lines.append((b"connection", b"close"))
        await self.respond(status, error_body(error, status, self.request_id), JSON, lines)


def _too_large(limit: int) -> ArgosyError:
    return ArgosyError("TOO_LARGE", f"The body is larger than {limit} bytes.", metadata={"limit": str(limit)})
