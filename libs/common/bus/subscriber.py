"""The way in: each event is applied once, however often and by whichever way it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from argosy.common.v1 import event_pb2, event_pb2_grpc
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from opentelemetry.trace import SpanKind

from libs.common.bus.bus import STREAM, Bus
from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.db import inbox
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from libs.common.obs import extract, meter, traceparent, tracer

_log = logging.getLogger(__name__)

Handler = Callable[[event_pb2.Event, UnitOfWork], Awaitable[None]]

# An event whose handler failed this often is a dead letter.
MAX_ATTEMPTS = 5
# Longer than any handler: long work is a task, which a handler only creates.
_ACK_SECONDS = 30.0
# A request that NATS forgot in a restart is only noticed when it ends.
_FETCH_SECONDS = 2.0
_MAX_DELAY_SECONDS = 30.0
_RECONCILE_SECONDS = 30.0
# Until the first reading of a producer's outbox has succeeded.
_FIRST_RECONCILE_SECONDS = 2.0
_PAGE = 200
# Something that the handler needs is away: that says nothing about the event, so it is tried for ever.
_TRANSIENT = frozenset(
    {
        "DATABASE_UNAVAILABLE",
        "PEER_UNAVAILABLE",
        "COMPUTE_UNAVAILABLE",
        "STORAGE_UNAVAILABLE",
        "STORAGE_FULL",
        "OVERLOADED",
        "DRAINING",
        "DEADLINE_EXCEEDED",
        "CONFLICT",
    }
)


class Stubs(Protocol):
    """What a subscriber needs of `libs.common.rpc.client.Channels`."""

    def stub(self, stub_class: type[Any], service: str, /) -> Any:
        """A stub of a peer."""
        ...


class Subscriber:
    """Applies the events of other services.

    They come over the bus at once, and from `ListEvents` of their producers at start and on a slow beat, so that a bus
    that lost everything delays events but loses none. A handler may see the events of one resource out of order after
    a failure: it compares `event.resource_version` where that matters.

    Args:
        database: of the service; a handler's unit of work acts in the organization of the event.
        bus: of the process.
        channels: ways to the producers.
        service: name of the service, and of its consumer.
        subscriptions: event type pattern -> async (event, uow). In a pattern, `*` stands for one part:
            `training.model_version.*`. Handlers must be re-runnable; they call peers before they use the unit of work.
        producers: services whose outboxes are read; by default the first parts of the patterns.
        clock: for beats.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        channels: Stubs,
        service: str,
        subscriptions: Mapping[str, Handler],
        producers: Sequence[str] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._database = database
        self._bus = bus
        self._channels = channels
        self._service = service
        self._subscriptions = [(pattern.split("."), handler) for pattern, handler in subscriptions.items()]
        areas = {parts[0] for parts, _ in self._subscriptions}
        if "*" in areas and not producers:
            raise ValueError("a subscription to every area must name its producers")
        self._producers = list(producers) or sorted(areas)
        self._clock = clock
        self._applied = meter().create_counter("argosy.events.applied", description="events applied by this service")
        self._failed = meter().create_counter(
            "argosy.events.failed", description="attempts to apply an event that failed"
        )

    async def run(self) -> None:
        """Applies events until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._consume(), name="consume")
            for producer in self._producers:
                group.create_task(self._keep_reconciled(producer), name=f"reconcile {producer}")

    # From the bus.

    async def _consume(self) -> None:
        while True:
            jetstream = await self._bus.jetstream()
            try:
                consumer = await self._bind(jetstream)
                try:
                    while self._bus.connected:
                        await self._fetch(consumer)
                finally:
                    # Its own failure must not hide a cancellation.
                    with suppress(NatsError):
                        await consumer.unsubscribe()
            except (NatsError, OSError) as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # nats-py turns a cancellation into "connection closed" when the connection closes at the same time.
                    raise asyncio.CancelledError from error
                _log.warning("the consumer is made again: %s", error or type(error).__name__)
                await self._clock.sleep(1)

    async def _bind(self, jetstream: JetStreamContext) -> JetStreamContext.PullSubscription:
        config = ConsumerConfig(
            durable_name=self._service,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=_ACK_SECONDS,
            # We count attempts ourselves: NATS counts those that failed because a database was away, too.
            max_deliver=-1,
            max_ack_pending=256,
            filter_subjects=[f"ev.*.{'.'.join(parts)}" for parts, _ in self._subscriptions],
        )
        await jetstream.add_consumer(STREAM, config)
        return await jetstream.pull_subscribe_bind(self._service, STREAM)

    async def _fetch(self, consumer: JetStreamContext.PullSubscription) -> None:
        try:
            messages = await consumer.fetch(1, timeout=_FETCH_SECONDS)
        except TimeoutError:
            # Nothing came, or NATS was started again and forgot the request.
            return
        for message in messages:
            await self._receive(message)

    async def _receive(self, message: Msg) -> None:
        try:
            event = event_pb2.Event.FromString(message.data)
        except DecodeError:
            _log.error("a message on %s is not an event", message.subject)
            await message.term()
            return
        if await self.apply(event):
            await message.ack()
        else:
            delivered = message.metadata.num_delivered or 1
            await message.nak(delay=min(2.0 ** (delivered - 1), _MAX_DELAY_SECONDS))

    # From the producers.

    async def _keep_reconciled(self, producer: str) -> None:
        done_once = False
        while True:
            try:
                await self.reconcile(producer)
                done_once = True
            except (DomainError, ArgosyError) as error:
                if error.reason not in _TRANSIENT:
                    _log.warning("the events of %s cannot be read: %s", producer, error)
            await self._clock.sleep(_RECONCILE_SECONDS if done_once else _FIRST_RECONCILE_SECONDS)

    async def reconcile(self, producer: str) -> None:
        """Applies whatever of a producer's outbox was not applied yet.

        Raises:
            ArgosyError, DomainError: the producer or our database is away.
        """
        stub = self._channels.stub(event_pb2_grpc.EventServiceStub, producer)
        types = self._exact_types(producer)
        async with self._database.reading() as connection:
            cursor = await inbox.position(connection, self._service, producer)
        while True:
            request = event_pb2.ListEventsRequest(after_cursor=cursor, page_size=_PAGE, types=types)
            answer = await stub.ListEvents(request)
            reached = answer.next_cursor
            for event in answer.events:
                if not await self.apply(event):
                    # Goes on here at the next beat.
                    reached = event.cursor - 1
                    break
            if reached != cursor:
                async with self._database.system() as uow:
                    await inbox.move(await uow.connection(), self._service, producer, reached)
            if len(answer.events) < _PAGE or reached != answer.next_cursor:
                return
            cursor = reached

    def _exact_types(self, producer: str) -> list[str]:
        """The types to ask for; empty, which means all, as soon as one pattern has a `*`."""
        patterns = [parts for parts, _ in self._subscriptions if parts[0] in (producer, "*")]
        return [] if any("*" in parts for parts in patterns) else [".".join(parts) for parts in patterns]

    # Once.

    async def apply(self, event: event_pb2.Event) -> bool:
        """Runs the handlers of an event, once for ever; False when it has to be tried again."""
        handlers = self._handlers(event.type)
        if not handlers:
            return True
        context = extract({"traceparent": event.traceparent}) if event.traceparent else None
        try:
            async with self._database.reading() as connection:
                if await inbox.seen(connection, self._service, event.id):
                    return True
            with tracer().start_as_current_span(f"{event.type} process", context, SpanKind.CONSUMER):
                await self._run(handlers, event)
        except inbox.AlreadyAppliedError:
            return True
        except Exception as error:
            return await self._failed_on(event, error)
        self._applied.add(1, {"type": event.type})
        return True

    async def _run(self, handlers: list[Handler], event: event_pb2.Event) -> None:
        async def take(connection: Any) -> None:
            await inbox.take(connection, self._service, event.id)

        trace = traceparent() or event.traceparent
        async with self._database.unit_of_work(event.org, f"services/{self._service}", trace, first=take) as uow:
            for handler in handlers:
                await handler(event, uow)
            await inbox.forget_failure(await uow.connection(), self._service, event.id)

    def _handlers(self, event_type: str) -> list[Handler]:
        parts = event_type.split(".")
        return [handler for pattern, handler in self._subscriptions if _matches(pattern, parts)]

    async def _failed_on(self, event: event_pb2.Event, error: Exception) -> bool:
        """Counts the failure; True when the event was given up."""
        self._failed.add(1, {"type": event.type})
        if isinstance(error, DomainError | ArgosyError) and error.reason in _TRANSIENT:
            _log.info("%s %s waits: %s", event.type, event.id, error)
            return False
        _log.warning("%s %s failed", event.type, event.id, exc_info=error)
        text = f"{type(error).__name__}: {error}"[:2000]
        try:
            async with self._database.system() as uow:
                connection = await uow.connection()
                dead = await inbox.note_failure(connection, self._service, event, text, MAX_ATTEMPTS)
        except DomainError:
            return False
        if dead:
            _log.error("%s %s is a dead letter after %d attempts", event.type, event.id, MAX_ATTEMPTS)
        return dead


def _matches(pattern: list[str], parts: list[str]) -> bool:
    return len(pattern) == len(parts) and all(
        wanted in ("*", part) for wanted, part in zip(pattern, parts, strict=True)
    )
