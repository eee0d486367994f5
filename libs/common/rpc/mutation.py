"""Calls that change something: once by request id, in one transaction that the binder commits."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from libs.common.rpc.call import Call
from libs.common.rpc.method import Exchange, Method, Step
from libs.common.rpc.translate import translate

if TYPE_CHECKING:
    from libs.common.db.idempotency import RequestKey
    from libs.common.db.uow import Database, UnitOfWork

# A serialisation failure is normal between calls that touch the same rows; more than this is contention, which waiting
# cures.
_ATTEMPTS = 3


def serve_once(method: Method, handler: Callable[[Message, Call[Any]], Awaitable[Message]], database: Database) -> Step:
    """Look-up by request id, then the handler, then the commit of rows, events and the answer together.

    The same request id gives the first answer again; with another body it is REQUEST_ID_REUSED. A CONFLICT between
    transactions is tried again with a fresh unit of work, so handlers must be re-runnable until the commit.
    """
    # Imported when a server with a database binds its methods: a service without one (gateway) loads no SQLAlchemy.
    from libs.common.db.idempotency import RequestKey

    path = method.policy.path

    async def attempt(exchange: Exchange, key: RequestKey | None) -> bytes:
        call = exchange.call

        def open_uow(call: Call[Any]) -> UnitOfWork:
            principal = call.principal
            return database.unit_of_work(call.org, principal.subject, call.traceparent, call.deadline, request=key)

        call.use_uow(open_uow)
        try:
            if key is not None:
                known = await database.recall(call.org, path, key.request_id, key.digest)
                if known is not None:
                    return known
            answer = (await handler(exchange.request, call)).SerializeToString()  # type: ignore[arg-type]
            if key is not None:
                await call.uow.remember(path, key.request_id, key.digest, answer)
            if call.opened_uow is not None:
                await call.opened_uow.commit()
            return answer
        finally:
            if call.opened_uow is not None:
                await call.opened_uow.rollback()

    async def mutate(exchange: Exchange) -> bytes:
        key = _key(exchange.request) if method.policy.has_request_id else None
        for _ in range(_ATTEMPTS - 1):
            try:
                return await attempt(exchange, key)
            except Exception as failure:
                if not translate(failure).is_reason("CONFLICT"):
                    raise
        return await attempt(exchange, key)

    def _key(request: Any) -> RequestKey | None:
        if not request.request_id:
            return None
        # Not the bytes that came: two clients may write the pairs of a map in different orders.
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        return RequestKey(path, request.request_id, digest)

    return mutate
