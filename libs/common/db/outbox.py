"""Events leave in the transaction of the change that they tell of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from argosy.common.v1 import event_pb2
from google.protobuf.message import Message
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.db.mapping import lineage_to_proto
from libs.common.db.tables import outbox
from libs.common.domain import Resource
from libs.common.ids import uuid7

# Channel of LISTEN/NOTIFY; every service has its own database, so one name serves all.
CHANNEL = "outbox"


def make_event(
    event_type: str,
    resource: Resource,
    *,
    actor: str,
    traceparent: str,
    occur_time: datetime,
    payload: Message | None = None,
) -> event_pb2.Event:
    """The envelope of one event.

    Args:
        event_type: `<area>.<resource>.<verb in the past>`.
        resource: after the change, and after it was saved: its version travels along.
        actor: who did it.
        traceparent: W3C trace context.
        occur_time: aware.
        payload: the message of <area>_events.proto for this type.

    Raises:
        ValueError: the type has another form.
    """
    parts = event_type.split(".")
    if len(parts) != 3 or not all(part.replace("_", "").isalnum() for part in parts):
        raise ValueError(f"{event_type!r} is not <area>.<resource>.<verb>")
    event = event_pb2.Event(
        id=uuid7(),
        org=resource.org,
        type=event_type,
        resource=resource.name,
        resource_version=resource.version,
        traceparent=traceparent,
        actor=actor,
        secrecy=int(resource.secrecy),  # type: ignore[arg-type]
        lineage=lineage_to_proto(resource.lineage),
    )
    event.occur_time.FromDatetime(occur_time)
    if payload is not None:
        event.payload.Pack(payload)
    return event


def subject(event: event_pb2.Event) -> str:
    """NATS subject of an event: `ev.<org>.<area>.<resource>.<verb>`."""
    return f"ev.{event.org}.{event.type}"


async def store(connection: AsyncConnection, events: Sequence[event_pb2.Event]) -> None:
    """Writes events and wakes the relay when the transaction commits."""
    rows: list[dict[str, Any]] = [
        {
            "event_id": event.id,
            "org": event.org,
            "type": event.type,
            "resource": event.resource,
            "event": event.SerializeToString(),
        }
        for event in events
    ]
    await connection.execute(insert(outbox), rows)
    await connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})
