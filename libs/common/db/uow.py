"""One transaction: rows, the answer to a request id and the events that tell of it, all or nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, Self

from argosy.common.v1 import event_pb2
from google.protobuf.message import Message
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.db import errors, idempotency, outbox
from libs.common.db.idempotency import RequestKey
from libs.common.domain import DomainError, Resource

# Sees the rows of every organization: for jobs, the relay and administrators across organizations.
ANY_ORG = "*"
# A statement never gets more than this, whatever the deadline.
_MAX_STATEMENT_SECONDS = 60.0

_BEGIN = text(
    "SELECT set_config('argosy.org', :org, true), set_config('statement_timeout', :timeout, true),"
    " set_config('transaction_read_only', :read_only, true)"
)

_PING = text("SELECT 1")


class Sealer(Protocol):
    """Keeps bytes so that only this service can read them; `libs.common.secrets.Keyring` is one."""

    def seal(self, plaintext: bytes, aad: bytes) -> bytes: ...

    def open(self, sealed: bytes, aad: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """For whom a unit of work acts.

    Attributes:
        org: organization whose rows it sees, or `*`.
        actor: `users/alice`, `serviceAccounts/ci` or `services/training`; stands in events.
        traceparent: W3C trace context of the call.
        deadline: in seconds of time.monotonic(); 0: none.
        read_only: PostgreSQL refuses writes.
        request: makes the work happen once; see `idempotency`.
        first: runs in the transaction before anything else, when it is opened.
    """

    org: str
    actor: str
    traceparent: str = ""
    deadline: float = 0.0
    read_only: bool = False
    request: RequestKey | None = None
    first: Callable[[AsyncConnection], Awaitable[None]] | None = None


class UnitOfWork:
    """One transaction, opened when it is first needed. Never make a network call between its first use and its end."""

    def __init__(self, engine: AsyncEngine, scope: Scope, clock: Clock, sealer: Sealer | None = None) -> None:
        self.scope = scope
        self._sealer = sealer
        self._engine = engine
        self._clock = clock
        self._connection: AsyncConnection | None = None
        self._events: list[event_pb2.Event] = []
        self._callbacks: list[Callable[[], None]] = []
        self._ended = False

    @property
    def org(self) -> str:
        """Organization whose rows this sees, or `*`."""
        return self.scope.org

    @property
    def actor(self) -> str:
        """Who acts."""
        return self.scope.actor

    async def connection(self) -> AsyncConnection:
        """The connection, inside the transaction.

        Raises:
            DomainError: DATABASE_UNAVAILABLE; OVERLOADED when every connection is busy; DEADLINE_EXCEEDED; CONFLICT
                when the same request has just been served: look its answer up.
        """
        if self._ended:
            raise RuntimeError("this unit of work has ended")
        if self._connection is None:
            connection = await _connect(self._engine)
            try:
                await self._begin(connection)
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _begin(self, connection: AsyncConnection) -> None:
        scope = self.scope
        left = scope.deadline - time.monotonic() if scope.deadline else _MAX_STATEMENT_SECONDS
        if left <= 0:
            raise DomainError("DEADLINE_EXCEEDED", "The deadline passed.")
        timeout = str(max(1, int(min(left, _MAX_STATEMENT_SECONDS) * 1000)))
        read_only = "on" if scope.read_only else "off"
        await connection.execute(_BEGIN, {"org": scope.org, "timeout": timeout, "read_only": read_only})
        if scope.request is not None:
            await idempotency.claim(connection, scope.org, scope.request)
        if scope.first is not None:
            await scope.first(connection)

    def emit(self, event_type: str, resource: Resource, payload_message: Message | None = None) -> event_pb2.Event:
        """Adds an event that leaves if, and only if, this commits.

        Args:
            event_type: `<area>.<resource>.<verb in the past>`, such as `dataset.version.created`.
            resource: after it was inserted or saved.
            payload_message: the message of <area>_events.proto for this type.
        """
        event = outbox.make_event(
            event_type,
            resource,
            actor=self.scope.actor,
            traceparent=self.scope.traceparent,
            occur_time=self._clock.now(),
            payload=payload_message,
        )
        self._events.append(event)
        return event

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Calls back once the rows are durable, such as to wake a worker. Not called after a roll-back."""
        self._callbacks.append(callback)

    async def remember(self, method: str, request_id: str, digest: bytes, answer: bytes) -> None:
        """Keeps the answer to a request id with the rest of this transaction.

        Raises:
            DomainError: CONFLICT when the same request was answered meanwhile.
        """
        key = RequestKey(method, request_id, digest)
        connection = await self.connection()
        if self.scope.request is None:
            await idempotency.claim(connection, self.scope.org, key)
        if self._sealer is not None:
            answer = self._sealer.seal(answer, _aad(self.scope.org, key))
        await idempotency.store(connection, self.scope.org, key, answer)

    async def commit(self) -> None:
        """Makes everything durable. For the binder, jobs and subscribers; handlers never call it."""
        try:
            if self._events:
                await outbox.store(await self.connection(), self._events)
            if self._connection is not None:
                await self._connection.commit()
        finally:
            await self._end()
        for callback in self._callbacks:
            callback()

    async def rollback(self) -> None:
        """Undoes everything. Harmless after a commit."""
        await self._end()

    async def _end(self) -> None:
        self._ended = True
        connection, self._connection = self._connection, None
        if connection is not None:
            # Rolls back what was not committed; a broken connection is thrown away by the pool.
            await connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Commits, or rolls back after an exception. For code outside handlers."""
        if self._ended:
            return
        if kind is None:
            await self.commit()
        else:
            await self.rollback()


class Database:
    """The database of one service.

    Args:
        engine: of `create_engine`.
        service: name of the service; acts in events of background work.
        clock: gives the times of events.
    """

    def __init__(self, engine: AsyncEngine, service: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.engine = engine
        self.service = service
        self._clock = clock
        self._sealer: Sealer | None = None

    def seal_answers(self, sealer: Sealer) -> None:
        """Answers kept for request ids are sealed from now on: for a service whose answers hold secrets."""
        self._sealer = sealer

    def unit_of_work(
        self,
        org: str,
        actor: str,
        traceparent: str = "",
        deadline: float = 0.0,
        *,
        read_only: bool = False,
        request: RequestKey | None = None,
        first: Callable[[AsyncConnection], Awaitable[None]] | None = None,
    ) -> UnitOfWork:
        """A unit of work; see `Scope` for the arguments."""
        scope = Scope(org, actor, traceparent, deadline, read_only, request, first)
        return UnitOfWork(self.engine, scope, self._clock, self._sealer)

    def system(self, *, read_only: bool = False, traceparent: str = "") -> UnitOfWork:
        """A unit of work across organizations, for jobs."""
        return self.unit_of_work(ANY_ORG, f"services/{self.service}", traceparent, read_only=read_only)

    async def recall(self, org: str, method: str, request_id: str, digest: bytes) -> bytes | None:
        """The answer that this request got before; None if it is new. In a short transaction of its own.

        Raises:
            DomainError: REQUEST_ID_REUSED when the same id came with another body.
        """
        async with self.reading(org) as connection:
            key = RequestKey(method, request_id, digest)
            answer = await idempotency.find(connection, org, key)
        if answer is None or self._sealer is None:
            return answer
        return self._sealer.open(answer, _aad(org, key))

    @asynccontextmanager
    async def reading(self, org: str = ANY_ORG) -> AsyncGenerator[AsyncConnection]:
        """A read-only transaction."""
        uow = self.unit_of_work(org, f"services/{self.service}", read_only=True)
        try:
            yield await uow.connection()
        finally:
            await uow.rollback()

    async def ping(self) -> None:
        """Raises DATABASE_UNAVAILABLE if the database does not answer; for readiness."""
        connection = await _connect(self.engine)
        try:
            await connection.execute(_PING)
        finally:
            await connection.close()

    async def close(self) -> None:
        """Closes the pool."""
        await self.engine.dispose()


def _aad(org: str, key: RequestKey) -> bytes:
    """A sealed answer opens only for its own request."""
    return f"idempotency/{org}{key.method}/{key.request_id}".encode()


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    try:
        return await engine.connect()
    except DomainError:
        raise
    except Exception as failure:
        # A refused or slow connection never reaches the engine's error hook: the driver has no DBAPI error for it.
        error = errors.translate(failure)
        if error is None and isinstance(failure, TimeoutError):
            error = errors.unavailable()
        if error is None:
            raise
        raise error from failure
