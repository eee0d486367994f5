"""Events from the outbox of one service to the inbox of another, through everything that can happen to NATS."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from argosy.common.v1 import event_pb2
from nats import connect
from sqlalchemy import select, text, update

from deploy.local import nats, postgres
from libs.common.aio import Background
from libs.common.bus import Bus, EventServiceHandlers, Relay, Subscriber
from libs.common.bus import subscriber as subscriber_module
from libs.common.bus.retention import prune
from libs.common.db.engine import create_engine
from libs.common.db.tables import dead_letters, inbox, outbox
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import DomainError
from libs.common.testing.database import apply
from tests.conftest import free_port
from tests.integration.common.conftest import Notes, create_notes, note

CREATED = "notes.note.created"


class Producers:
    """Stands for the channels: hands the handlers of the producer to the subscriber, without a socket."""

    def __init__(self, database: Database) -> None:
        self._handlers = EventServiceHandlers(database)
        self.calls = 0

    def stub(self, stub_class: type[Any], service: str, /) -> Any:
        return self

    async def ListEvents(self, request: event_pb2.ListEventsRequest) -> event_pb2.ListEventsResponse:
        self.calls += 1
        return await self._handlers.list_events(request, None)


class Reader:
    """A consuming service that copies notes: its effect is a row with the id of the event's resource.

    Attributes:
        tries: how often it was its turn. The bus and the outbox may bring an event at the same time; the transaction
            waits when it opens, and ends there once the other one has applied the event.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tries = 0
        self.fail: Exception | None = None

    async def copy(self, event: event_pb2.Event, uow: UnitOfWork) -> None:
        await uow.connection()
        self.tries += 1
        if self.fail is not None:
            raise self.fail
        await Notes(uow).insert(note(f"orgs/{event.org}/notes/{event.resource.rsplit('/', 1)[1]}", body=event.id))

    async def names(self) -> list[str]:
        async with self.database.system(read_only=True) as uow:
            return sorted(entity.id for entity in (await Notes(uow).list(None, 1000))[0])


@pytest.fixture
async def reader(postgres_server: postgres.Server) -> AsyncIterator[Reader]:
    url = await postgres_server.create_service_database(f"reader_{secrets.token_hex(6)}", "secret")
    await apply(url, create_notes)
    database = Database(create_engine(url), "reader")
    yield Reader(database)
    await database.close()


@pytest.fixture
async def bus_server(nats_server: nats.Server) -> AsyncIterator[nats.Server]:
    """NATS without what the test before left in it."""
    nats_server.stop()
    nats_server.wipe()
    nats_server.start()
    yield nats_server
    if nats.probe(nats_server.port):
        nats_server.start()


@asynccontextmanager
async def running(
    database: Database, reader: Reader, url: str, readers_url: str = "", **options: Any
) -> AsyncGenerator[Producers]:
    """The relay of the producer and the subscriber of the reader, as their processes run them."""
    producers = Producers(database)
    out, back = Bus(url, "notes"), Bus(readers_url or url, "reader")
    subscriber = Subscriber(reader.database, back, producers, "reader", {"notes.note.*": reader.copy}, **options)
    async with Background("test") as background:
        for name, work in (("out", out.run()), ("in", back.run()), ("relay", Relay(database, out).run())):
            background.start(work, name=name)
        background.start(subscriber.run(), name="subscriber")
        yield producers


async def create(database: Database, *ids: str) -> None:
    for each in ids:
        async with database.unit_of_work("acme", "users/alice") as uow:
            uow.emit(CREATED, await Notes(uow).insert(note(f"orgs/acme/notes/{each}")))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 15) -> None:
    """Waits for something that another coroutine does."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def until_copied(reader: Reader, *ids: str) -> None:
    async def copied() -> bool:
        return await reader.names() == sorted(ids)

    await until(copied)


async def unpublished(database: Database) -> int:
    async with database.reading() as connection:
        query = select(outbox.c.id).where(outbox.c.publish_time.is_(None))
        return len((await connection.execute(query)).all())


@pytest.fixture
def no_reconcile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the bus delivers, once the first reading of the outbox is over."""
    monkeypatch.setattr(subscriber_module, "_RECONCILE_SECONDS", 3600.0)


async def test_an_event_arrives_at_once(
    database: Database, reader: Reader, bus_server: nats.Server, no_reconcile: None
) -> None:
    async with running(database, reader, bus_server.url()) as producers:
        await until(lambda: _true(producers.calls > 0))
        await create(database, "a")
        started = asyncio.get_running_loop().time()
        await until_copied(reader, "a")
    # Woken by NOTIFY, not by the beat of a second.
    assert asyncio.get_running_loop().time() - started < 0.9
    assert producers.calls == 1, "the bus delivered it"


async def _true(value: bool) -> bool:
    return value


async def test_events_are_complete_and_in_order(
    database: Database, reader: Reader, bus_server: nats.Server, no_reconcile: None
) -> None:
    async with database.unit_of_work("acme", "users/alice", "00-" + "1" * 32 + "-" + "2" * 16 + "-01") as uow:
        entity = await Notes(uow).insert(note("orgs/acme/notes/a", labels={"k": "v"}))
        payload = event_pb2.ListEventsRequest(page_size=7)
        uow.emit(CREATED, entity, payload)
        entity.count = 2
        await Notes(uow).save(entity)
        uow.emit("notes.note.updated", entity)
    await Relay(database, Bus("", "notes")).number()
    answer = await EventServiceHandlers(database).list_events(event_pb2.ListEventsRequest(), None)
    first, second = answer.events
    assert (first.type, first.resource_version, first.org, first.actor) == (CREATED, 1, "acme", "users/alice")
    assert first.traceparent.startswith("00-111")
    assert (second.type, second.resource_version) == ("notes.note.updated", 2)
    assert first.cursor < second.cursor == answer.next_cursor
    unpacked = event_pb2.ListEventsRequest()
    assert first.payload.Unpack(unpacked)
    assert unpacked.page_size == 7


async def test_a_killed_nats_loses_nothing(database: Database, reader: Reader, bus_server: nats.Server) -> None:
    async with running(database, reader, bus_server.url()):
        await create(database, "a")
        await until_copied(reader, "a")
        bus_server.kill()
        await create(database, "b", "c")
        assert await unpublished(database) >= 1
        bus_server.start()
        await create(database, "d")
        await until_copied(reader, "a", "b", "c", "d")
        await until(lambda: _none_left(database))
    assert reader.tries == 4


async def _none_left(database: Database) -> bool:
    return await unpublished(database) == 0


async def test_a_wiped_nats_loses_nothing(
    database: Database, reader: Reader, bus_server: nats.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published, not yet read, and then the disk of NATS is gone: only the outbox has it."""
    bus = Bus(bus_server.url(), "notes")
    async with Background("producer") as background:
        background.start(bus.run(), name="bus")
        background.start(Relay(database, bus).run(), name="relay")
        await create(database, "a", "b")
        await until(lambda: _none_left(database))
    bus_server.kill()
    bus_server.wipe()
    bus_server.start()
    monkeypatch.setattr(subscriber_module, "_RECONCILE_SECONDS", 0.1)
    async with running(database, reader, bus_server.url()):
        await until_copied(reader, "a", "b")
        # And the new stream works.
        await create(database, "c")
        await until_copied(reader, "a", "b", "c")
    assert reader.tries == 3


async def test_without_reconciling_a_wiped_nats_loses_events(
    database: Database, reader: Reader, bus_server: nats.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows that the test above can fail."""

    async def nothing(self: Subscriber, producer: str) -> None:
        return None

    bus = Bus(bus_server.url(), "notes")
    async with Background("producer") as background:
        background.start(bus.run(), name="bus")
        background.start(Relay(database, bus).run(), name="relay")
        await create(database, "a")
        await until(lambda: _none_left(database))
    bus_server.kill()
    bus_server.wipe()
    bus_server.start()
    monkeypatch.setattr(Subscriber, "reconcile", nothing)
    async with running(database, reader, bus_server.url()):
        await create(database, "b")
        await until_copied(reader, "b")


async def test_wiped_while_everything_runs(database: Database, reader: Reader, bus_server: nats.Server) -> None:
    async with running(database, reader, bus_server.url()):
        await create(database, "a")
        await until_copied(reader, "a")
        bus_server.kill()
        bus_server.wipe()
        bus_server.start()
        await create(database, "b")
        await until_copied(reader, "a", "b")


async def test_the_same_event_is_applied_once(database: Database, reader: Reader) -> None:
    await create(database, "a")
    await Relay(database, Bus("", "notes")).number()
    answer = await EventServiceHandlers(database).list_events(event_pb2.ListEventsRequest(), None)
    subscriber = Subscriber(
        reader.database, Bus("", "reader"), Producers(database), "reader", {"notes.*.created": reader.copy}
    )
    results = await asyncio.gather(*(subscriber.apply(answer.events[0]) for _ in range(6)))
    assert results == [True] * 6
    assert await reader.names() == ["a"]
    assert reader.tries == 1


async def test_without_a_bus_reconciling_delivers(
    database: Database, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber_module, "_RECONCILE_SECONDS", 0.1)
    async with running(database, reader, ""):
        await create(database, *(f"n{number}" for number in range(5)))
        await until_copied(reader, *(f"n{number}" for number in range(5)))


async def test_a_poisonous_event_is_put_aside(database: Database, reader: Reader, bus_server: nats.Server) -> None:
    poison = "b"

    async def copy(event: event_pb2.Event, uow: UnitOfWork) -> None:
        reader.fail = ValueError("cannot") if event.resource.endswith(poison) else None
        await reader.copy(event, uow)

    subscriber = Subscriber(reader.database, Bus("", "reader"), Producers(database), "reader", {CREATED: copy})
    await create(database, "a", "b", "c")
    await Relay(database, Bus("", "notes")).number()
    for attempt in range(1, subscriber_module.MAX_ATTEMPTS):
        await subscriber.reconcile("notes")
        assert await reader.names() == ["a"], f"attempt {attempt}: what follows waits for it"
    await subscriber.reconcile("notes")
    assert await reader.names() == ["a", "c"]
    async with reader.database.reading() as connection:
        letter = (await connection.execute(select(dead_letters))).one()
    assert (letter.attempts, letter.type, letter.error) == (5, CREATED, "ValueError: cannot")
    assert letter.dead_time is not None
    assert event_pb2.Event.FromString(letter.event).resource.endswith("/b")


async def test_an_absent_peer_is_waited_for(database: Database, reader: Reader) -> None:
    subscriber = Subscriber(reader.database, Bus("", "reader"), Producers(database), "reader", {CREATED: reader.copy})
    await create(database, "a")
    await Relay(database, Bus("", "notes")).number()
    reader.fail = DomainError("PEER_UNAVAILABLE", "away")
    for _ in range(subscriber_module.MAX_ATTEMPTS + 2):
        await subscriber.reconcile("notes")
    reader.fail = None
    await subscriber.reconcile("notes")
    assert await reader.names() == ["a"]
    async with reader.database.reading() as connection:
        assert (await connection.execute(select(dead_letters))).all() == []


async def test_a_failed_event_leaves_no_half_effect(database: Database, reader: Reader) -> None:
    async def copy(event: event_pb2.Event, uow: UnitOfWork) -> None:
        await reader.copy(event, uow)
        if reader.tries == 1:
            raise RuntimeError("after the effect")

    subscriber = Subscriber(reader.database, Bus("", "reader"), Producers(database), "reader", {CREATED: copy})
    await create(database, "a")
    await Relay(database, Bus("", "notes")).number()
    await subscriber.reconcile("notes")
    assert await reader.names() == []
    await subscriber.reconcile("notes")
    assert await reader.names() == ["a"]


async def test_the_relay_is_taken_over(database: Database, postgres_server: postgres.Server) -> None:
    first, second = Relay(database, Bus("", "notes")), Relay(database, Bus("", "notes"))
    async with Background("second") as later:
        async with Background("first") as background:
            background.start(first.run(), name="relay")
            await until(lambda: _true(first.leading))
            later.start(second.run(), name="relay")
            await asyncio.sleep(0.3)
            assert not second.leading
        await until(lambda: _true(second.leading))
        await create(database, "a")
        await until(lambda: _numbered(database, 1))


async def _numbered(database: Database, count: int) -> bool:
    async with database.reading() as connection:
        return (
            len((await connection.execute(select(outbox.c.cursor).where(outbox.c.cursor.is_not(None)))).all()) == count
        )


async def test_no_event_appears_behind_a_cursor(database: Database) -> None:
    """A transaction that began first and commits last has the smaller id, but not the smaller cursor."""
    relay = Relay(database, Bus("", "notes"))
    slow = database.unit_of_work("acme", "users/alice")
    connection = await slow.connection()
    columns = "INSERT INTO outbox (event_id, org, type, resource, event)"
    await connection.execute(text(f"{columns} VALUES (gen_random_uuid(), 'acme', 't', 'slow', '')"))
    await create(database, "fast")
    await relay.number()
    handlers = EventServiceHandlers(database)
    seen = await handlers.list_events(event_pb2.ListEventsRequest(), None)
    await slow.commit()
    await relay.number()
    rest = await handlers.list_events(event_pb2.ListEventsRequest(after_cursor=seen.next_cursor), None)
    assert (len(seen.events), len(rest.events)) == (1, 1)


async def test_two_relays_number_correctly(database: Database) -> None:
    await create(database, *(f"n{number}" for number in range(20)))
    relays = [Relay(database, Bus("", "notes")) for _ in range(4)]
    await asyncio.gather(*(relay.number() for relay in relays))
    async with database.reading() as connection:
        cursors = (await connection.execute(select(outbox.c.cursor).order_by(outbox.c.id))).scalars().all()
    assert cursors == list(range(1, 21))


async def test_a_restored_producer_is_read_again(database: Database, reader: Reader) -> None:
    await create(database, "a")
    await Relay(database, Bus("", "notes")).number()
    handlers = EventServiceHandlers(database)
    assert (await handlers.list_events(event_pb2.ListEventsRequest(after_cursor=900), None)).next_cursor == 1


async def test_the_outbox_is_pruned(database: Database, reader: Reader) -> None:
    await create(database, "old", "new", "waiting")
    async with database.system() as uow:
        connection = await uow.connection()
        aged = update(outbox).where(outbox.c.resource.like("%/old"))
        await connection.execute(aged.values(create_time=text("now() - interval '8 days'"), cursor=1))
        unsent = update(outbox).where(outbox.c.resource.like("%/waiting"))
        await connection.execute(unsent.values(create_time=text("now() - interval '8 days'")))
    await prune(database)
    async with database.reading() as connection:
        left = (await connection.execute(select(outbox.c.resource).order_by(outbox.c.id))).scalars().all()
        assert (await connection.execute(select(inbox))).all() == []
    assert left == ["orgs/acme/notes/new", "orgs/acme/notes/waiting"]


async def test_the_database_may_die_under_relay_and_subscriber(
    database: Database, reader: Reader, bus_server: nats.Server, postgres_server: postgres.Server
) -> None:
    async with running(database, reader, bus_server.url()):
        await create(database, "a")
        await until_copied(reader, "a")
        postgres_server.kill()
        await asyncio.sleep(0.2)
        postgres_server.start()
        await create(database, "b")
        await until_copied(reader, "a", "b")


@pytest.fixture
def guarded_server(server_folder: Path) -> Iterator[nats.Server]:
    """NATS with a user a service, as the local runner starts it."""
    users = {"notes": "one", "reader": "two"}
    server = nats.Server(server_folder / "guarded", free_port(), server_folder / "guarded.log", users)
    server.start()
    yield server
    server.stop()


async def test_users_can_do_what_services_do(
    database: Database, reader: Reader, guarded_server: nats.Server, no_reconcile: None
) -> None:
    async with running(
        database, reader, guarded_server.url("notes", "one"), guarded_server.url("reader", "two")
    ) as producers:
        await until(lambda: _true(producers.calls > 0))
        await create(database, "a", "b")
        await until_copied(reader, "a", "b")
        await until(lambda: _none_left(database))


async def test_users_cannot_do_more(guarded_server: nats.Server) -> None:
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error).lower())

    url = guarded_server.url("reader", "two")
    client = await connect(url, inbox_prefix="_INBOX_reader", error_cb=on_error)
    forbidden = ("ev.acme.notes.note.created", "$JS.API.STREAM.DELETE.EVENTS", "$JS.API.STREAM.PURGE.EVENTS")
    for subject in (*forbidden, "$JS.API.CONSUMER.DELETE.EVENTS.notes", "$JS.API.CONSUMER.MSG.NEXT.EVENTS.notes"):
        await client.publish(subject, b"")
        await client.flush()
        await until(lambda subject=subject: _true(any(subject.lower() in text for text in refused)))
    for subject in ("ev.>", "_INBOX_notes.>", ">"):
        await client.subscribe(subject)
        await client.flush()
        await until(lambda subject=subject: _true(any(f'subscription to "{subject.lower()}"' in t for t in refused)))
    await client.close()
    for stranger in (guarded_server.url(), guarded_server.url("reader", "one")):
        with pytest.raises(Exception, match=r"(?i)authorization"):
            await connect(stranger, allow_reconnect=False, error_cb=on_error)


def test_nats_syncs_before_it_acknowledges(guarded_server: nats.Server) -> None:
    config = json.loads((guarded_server.folder / "nats.conf").read_text())
    assert config["jetstream"]["sync_interval"] == "always"
    assert (guarded_server.folder / "nats.conf").stat().st_mode & 0o077 == 0
