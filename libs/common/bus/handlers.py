"""EventService: the outbox of a service, for subscribers that reconcile."""

from __future__ import annotations

from argosy.common.v1 import event_pb2
from sqlalchemy import func, select

from libs.common.db.tables import outbox
from libs.common.db.uow import Database

_DEFAULT_PAGE = 100
_MAX_PAGE = 1000


class EventServiceHandlers:
    """Serves ListEvents.

    Args:
        database: of the service.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_events(self, request: event_pb2.ListEventsRequest, call: object) -> event_pb2.ListEventsResponse:
        """Events in the order of their cursors. A caller who is ahead of the last one gets that as its next cursor."""
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        query = select(outbox.c.event, outbox.c.cursor).where(outbox.c.cursor > request.after_cursor)
        if request.types:
            query = query.where(outbox.c.type.in_(list(request.types)))
        async with self._database.reading() as connection:
            # Asked first: what is numbered between the two queries is then read twice rather than never.
            last = (await connection.execute(select(func.coalesce(func.max(outbox.c.cursor), 0)))).scalar_one()
            rows = (await connection.execute(query.order_by(outbox.c.cursor).limit(size))).all()
        events = [with_cursor(row.event, row.cursor) for row in rows]
        if len(rows) == size:
            return event_pb2.ListEventsResponse(events=events, next_cursor=rows[-1].cursor)
        return event_pb2.ListEventsResponse(events=events, next_cursor=max(last, *(row.cursor for row in rows), 0))


def with_cursor(body: bytes, cursor: int) -> event_pb2.Event:
    """A stored event with the cursor that the relay gave it."""
    event = event_pb2.Event.FromString(body)
    event.cursor = cursor
    return event
