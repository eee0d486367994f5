"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.common.aio import Background
from services.gateway.http.exchange import EVENTS, Exchange

# Proxies cut connections that are silent for a minute or less.
HEARTBEAT_SECONDS = 10.0
FIRST_SECONDS = 2.0
HEARTBEAT = b": keep-alive\n\n"
HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

# How a stream says where it stands, and the field of its request that resumes there.
_POSITIONS = (("sequence", "after_sequence"), ("cursor", "cursor"), ("cursor", "after_cursor"))
_INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT64)


class EventWriter:
    """Writes one stream of events to a client, with comments while there is nothing to say.

    The headers go out with the first event, so that a failure before it can still have a status of its own; or after
    FIRST_SECONDS, so that a client of a quiet stream knows that it is connected.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._quiet = True
        self.started = False

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[EventWriter]:
        """Keeps the stream alive until the block ends."""
        async with Background("sse") as background:
            background.start(self._beat(), name="heartbeat")
            yield self

    async def write(self, data: bytes) -> None:
        """Sends bytes that are events already."""
        self._quiet = False
        if not self.started:
            await self._start()
        await self._exchange.write(data)

    async def send(self, data: bytes, event: str = "", event_id: str = "") -> None:
        """Sends one event; `data` is JSON, so it has no line breaks."""
        head = b"event: %s\n" % event.encode() if event else b""
        if event_id:
            head += b"id: %s\n" % event_id.encode()
        await self.write(b"%sdata: %s\n\n" % (head, data))

    async def close(self, data: bytes = b"") -> None:
        """Ends the answer, with `data` as its last bytes."""
        if not self.started:
            await self._start()
        await self._exchange.write(data, more=False)

    async def _start(self) -> None:
        self.started = True
        await self._exchange.start(200, EVENTS, HEADERS)

    async def _beat(self) -> None:
        await self._exchange.clock.sleep(FIRST_SECONDS)
        if not self.started:
            await self._start()
        while True:
            await self._exchange.clock.sleep(HEARTBEAT_SECONDS)
            if self._quiet:
                await self._exchange.write(HEARTBEAT)
            self._quiet = True


def position(message: Message) -> str:
    """The id of the event that carries a message: its sequence or cursor; empty if it has none."""
    fields = message.DESCRIPTOR.fields_by_name
    for name, _ in _POSITIONS:
        if name in fields:
            value = getattr(message, name)
            return str(value) if value else ""
    return ""


def resume(request: Message, answer: Descriptor, last_event_id: bytes) -> None:
    """Sets the field of the request that makes a stream go on behind the event that the client saw last."""
    if len(last_event_id) > 256:
        return
    for seen, wanted in _POSITIONS:
        field = request.DESCRIPTOR.fields_by_name.get(wanted)
        if field is None or seen not in answer.fields_by_name:
            continue
        if field.cpp_type not in _INTEGERS:
            setattr(request, wanted, last_event_id.decode("ascii", "replace"))
        elif last_event_id.isdigit() and len(last_event_id) < 19:
            setattr(request, wanted, int(last_event_id))
        return
