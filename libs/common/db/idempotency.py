"""Once by request id: AIP-155, with the answer kept in the transaction of the change."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from google.protobuf.message import Message
from sqlalchemy import ColumnElement, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.db.tables import idempotency
from libs.common.domain import DomainError

# A client that retries does so within minutes; a day also covers one that was switched off over night.
KEPT_HOURS = 24


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes two calls the same.

    Attributes:
        method: full path of the RPC.
        request_id: chosen by the client.
        digest: SHA-256 of the request.
    """

    method: str
    request_id: str
    digest: bytes


def digest_of(request: Message) -> bytes:
    """SHA-256 of a request. Of its deterministic form: two clients may write the pairs of a map in different orders."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


async def find(connection: AsyncConnection, org: str, key: RequestKey) -> bytes | None:
    """The answer that was given before; None for a new request.

    Raises:
        DomainError: REQUEST_ID_REUSED when the same id came with another body.
    """
    columns = select(idempotency.c.request_sha256, idempotency.c.response)
    row = (await connection.execute(columns.where(*_of(org, key)))).one_or_none()
    if row is None:
        return None
    if row.request_sha256 != key.digest:
        message = "request_id: was used for another request; choose a new one"
        raise DomainError("REQUEST_ID_REUSED", message, request_id=key.request_id)
    return row.response


async def claim(connection: AsyncConnection, org: str, key: RequestKey) -> None:
    """Takes the request id for this transaction, before anything else in it.

    A second call with the same id waits here until the first has ended, so nothing of the work is done twice.

    Raises:
        DomainError: CONFLICT when the first was committed; `find` then has its answer.
    """
    row = {
        "org": org,
        "method": key.method,
        "request_id": key.request_id,
        "request_sha256": key.digest,
    }
    done = await connection.execute(insert(idempotency).values(row).on_conflict_do_nothing())
    if done.rowcount == 0:
        raise DomainError("CONFLICT", "The same request was served meanwhile.", name=key.request_id)


async def store(connection: AsyncConnection, org: str, key: RequestKey, answer: bytes) -> None:
    """Keeps the answer in the claimed row."""
    await connection.execute(update(idempotency).where(*_of(org, key)).values(response=answer))


async def prune(connection: AsyncConnection) -> int:
    """Forgets old answers; the number of rows deleted."""
    limit = func.now() - text(f"interval '{KEPT_HOURS} hours'")
    return (await connection.execute(delete(idempotency).where(idempotency.c.create_time < limit))).rowcount


def _of(org: str, key: RequestKey) -> tuple[ColumnElement[bool], ...]:
    return (
        idempotency.c.org == org,
        idempotency.c.method == key.method,
        idempotency.c.request_id == key.request_id,
    )
