"""Repositories and units of work against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select, text

from deploy.local import postgres
from libs.common.db.engine import create_engine
from libs.common.db.repository import resource_row
from libs.common.db.tables import outbox
from libs.common.db.uow import Database
from libs.common.domain import DomainError, Parent, Secrecy
from tests.integration.common.conftest import NOTES, Notes, note

ALICE = "users/alice"


async def put(database: Database, name: str, **fields: object) -> None:
    async with database.unit_of_work(name.split("/")[1], ALICE) as uow:
        await Notes(uow).insert(note(name, **fields))


async def count(database: Database, org: str) -> int:
    """Rows that plain SQL sees: the repository's own filter is not in the way."""
    async with database.reading(org) as connection:
        return (await connection.execute(select(func.count()).select_from(NOTES))).scalar_one()


def reason(caught: pytest.ExceptionInfo[DomainError]) -> str:
    return caught.value.reason


async def test_a_resource_comes_back_as_it_went(database: Database) -> None:
    parents = [Parent("orgs/acme/notes/z", "ab" * 32, "copied_from")]
    wanted = note(
        "orgs/acme/notes/a",
        body="text",
        count=3,
        labels={"k": "v"},
        lineage=parents,
        secrecy=Secrecy.SECRET,
        state="NEW",
    )
    async with database.unit_of_work("acme", ALICE) as uow:
        await Notes(uow).insert(wanted)
    async with database.unit_of_work("acme", ALICE, read_only=True) as uow:
        found = await Notes(uow).get("orgs/acme/notes/a")
    assert found == wanted
    assert found.version == 1
    assert found.etag == wanted.etag


async def test_rows_of_another_organization_do_not_exist(database: Database) -> None:
    await put(database, "orgs/acme/notes/a")
    await put(database, "orgs/evil/notes/b")
    async with database.unit_of_work("evil", ALICE) as uow:
        with pytest.raises(DomainError) as caught:
            await Notes(uow).get("orgs/acme/notes/a")
        assert reason(caught) == "NOT_FOUND"
        assert [n.name for n in (await Notes(uow).list(None, 10))[0]] == ["orgs/evil/notes/b"]
    async with database.system() as uow:
        assert len((await Notes(uow).list(None, 10))[0]) == 2


async def test_row_level_security_is_a_wall_of_its_own(database: Database) -> None:
    await put(database, "orgs/acme/notes/a")
    assert await count(database, "acme") == 1
    assert await count(database, "*") == 1
    assert await count(database, "evil") == 0
    async with database.engine.connect() as connection:
        bare = (await connection.execute(select(func.count()).select_from(NOTES))).scalar_one()
    assert bare == 0, "a connection that names no organization sees nothing"
    uow = database.unit_of_work("evil", ALICE)
    with pytest.raises(Exception, match="row-level security"):
        await (await uow.connection()).execute(insert(NOTES).values(_row("orgs/acme/notes/c")))
    await uow.rollback()


async def test_without_the_policy_the_wall_is_gone(database: Database) -> None:
    """Shows that the test above can fail."""
    await put(database, "orgs/acme/notes/a")
    async with database.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE notes DISABLE ROW LEVEL SECURITY"))
    assert await count(database, "evil") == 1


def _row(name: str) -> dict[str, object]:
    entity = note(name)
    return {**resource_row(entity), "body": entity.body, "count": entity.count}


async def test_no_update_is_lost(database: Database) -> None:
    await put(database, "orgs/acme/notes/a")
    conflicts = 0

    async def add_one() -> None:
        nonlocal conflicts
        while True:
            try:
                async with database.unit_of_work("acme", ALICE) as uow:
                    entity = await Notes(uow).get("orgs/acme/notes/a")
                    await asyncio.sleep(0)
                    entity.count += 1
                    await Notes(uow).save(entity)
                return
            except DomainError as error:
                conflicts += error.reason == "CONFLICT"

    async with asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(add_one())
    async with database.system(read_only=True) as uow:
        entity = await Notes(uow).get("orgs/acme/notes/a")
    assert (entity.count, entity.version) == (12, 13)
    assert conflicts > 0, "the calls did not meet, so this proved nothing"


async def test_the_same_name_twice_is_named(database: Database) -> None:
    await put(database, "orgs/acme/notes/a")
    with pytest.raises(DomainError) as caught:
        await put(database, "orgs/acme/notes/a")
    assert reason(caught) == "ALREADY_EXISTS"
    assert caught.value.metadata == {"name": "orgs/acme/notes/a"}


async def test_soft_deletion(database: Database) -> None:
    await put(database, "orgs/acme/notes/a")
    async with database.unit_of_work("acme", ALICE) as uow:
        notes = Notes(uow)
        entity = await notes.get("orgs/acme/notes/a")
        before = entity.etag
        await notes.soft_delete(entity, entity.create_time)
        assert entity.etag != before
        assert await notes.find("orgs/acme/notes/a") is None
        assert (await notes.list("orgs/acme", 10))[0] == []
        assert len((await notes.list("orgs/acme", 10, show_deleted=True))[0]) == 1
        await notes.undelete(await notes.get("orgs/acme/notes/a", deleted=True), entity.create_time)
        with pytest.raises(DomainError) as caught:
            await notes.undelete(await notes.get("orgs/acme/notes/a"), entity.create_time)
    assert reason(caught) == "STATE_CONFLICT"


async def test_pages_hold_every_row_once(database: Database) -> None:
    start = note("orgs/acme/notes/x").create_time
    async with database.unit_of_work("acme", ALICE) as uow:
        for number in range(23):
            # Several rows share one time: the uid decides between them.
            moment = start + timedelta(seconds=number // 5)
            await Notes(uow).insert(note(f"orgs/acme/notes/n{number}", create_time=moment))
        pages, after = [], ""
        while True:
            page, after = await Notes(uow).list("orgs/acme", 7, after)
            pages.append(page)
            if not after:
                break
        with pytest.raises(DomainError) as caught:
            await Notes(uow).list("orgs/acme", 7, "yesterday x")
    rows = [entity for page in pages for entity in page]
    assert [len(page) for page in pages] == [7, 7, 7, 2]
    assert len({entity.name for entity in rows}) == 23
    assert rows == sorted(rows, key=lambda entity: entity.create_time, reverse=True)
    assert reason(caught) == "PAGE_TOKEN_INVALID"


async def test_an_event_leaves_only_with_its_change(database: Database) -> None:
    called: list[str] = []
    uow = database.unit_of_work("acme", ALICE)
    entity = await Notes(uow).insert(note("orgs/acme/notes/a"))
    uow.emit("notes.note.created", entity)
    uow.after_commit(lambda: called.append("rolled back"))
    await uow.rollback()
    async with database.unit_of_work("acme", ALICE) as uow:
        entity = await Notes(uow).insert(note("orgs/acme/notes/b"))
        uow.emit("notes.note.created", entity)
        uow.after_commit(lambda: called.append("committed"))
    async with database.reading() as connection:
        resources = (await connection.execute(select(outbox.c.resource))).scalars().all()
    assert resources == ["orgs/acme/notes/b"]
    assert called == ["committed"]


async def test_reads_cannot_write(database: Database) -> None:
    uow = database.unit_of_work("acme", ALICE, read_only=True)
    with pytest.raises(Exception, match="read-only"):
        await Notes(uow).insert(note("orgs/acme/notes/a"))
    await uow.rollback()


async def test_the_deadline_ends_a_statement(database: Database) -> None:
    uow = database.unit_of_work("acme", ALICE, deadline=time.monotonic() + 0.2)
    started = time.monotonic()
    with pytest.raises(DomainError) as caught:
        await (await uow.connection()).execute(text("SELECT pg_sleep(20)"))
    await uow.rollback()
    assert reason(caught) == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 5
    late = database.unit_of_work("acme", ALICE, deadline=time.monotonic() - 1)
    with pytest.raises(DomainError) as caught:
        await late.connection()
    assert reason(caught) == "DEADLINE_EXCEEDED"


async def test_a_nul_character_is_the_callers_fault(database: Database) -> None:
    with pytest.raises(DomainError) as caught:
        await put(database, "orgs/acme/notes/a", body="a\0b")
    assert reason(caught) == "INVALID_FIELD"
    with pytest.raises(DomainError) as caught:
        await put(database, "orgs/acme/notes/a", labels={"k": "\0"})
    assert reason(caught) == "INVALID_FIELD"


async def test_services_cannot_enter_each_others_databases(
    database: Database, postgres_server: postgres.Server
) -> None:
    url = database.engine.url
    stranger = await postgres_server.create_service_database("stranger", "secret")
    entered = url.set(username="stranger", password="secret")
    for target in (entered, entered.set(database="postgres"), entered.set(database="template1")):
        other = create_engine(target.render_as_string(hide_password=False))
        with pytest.raises(Exception, match="permission denied for database"):
            async with other.connect():
                pass
        await other.dispose()
    own = Database(create_engine(stranger), "stranger")
    await own.ping()
    await own.close()


async def test_all_connections_busy_is_overload(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1)
    engine.pool._timeout = 0.1  # type: ignore[attr-defined]
    database = Database(engine, "notes")
    holder = database.system()
    await holder.connection()
    with pytest.raises(DomainError) as caught:
        await database.ping()
    assert reason(caught) == "OVERLOADED"
    await holder.rollback()
    await database.close()


async def test_a_killed_server_heals(database: Database, postgres_server: postgres.Server) -> None:
    await put(database, "orgs/acme/notes/kept")
    uow = database.unit_of_work("acme", ALICE)
    await Notes(uow).insert(note("orgs/acme/notes/lost"))
    postgres_server.kill()
    try:
        with pytest.raises(DomainError) as caught:
            await uow.commit()
        assert reason(caught) == "DATABASE_UNAVAILABLE"
        with pytest.raises(DomainError) as caught:
            await put(database, "orgs/acme/notes/refused")
        assert reason(caught) == "DATABASE_UNAVAILABLE"
    finally:
        postgres_server.start()
    await put(database, "orgs/acme/notes/after")
    async with database.system(read_only=True) as uow:
        names = {entity.id for entity in (await Notes(uow).list(None, 10))[0]}
    assert names == {"kept", "after"}


async def test_connections_that_the_server_closed_are_not_handed_out(database: Database) -> None:
    units = [database.system() for _ in range(3)]
    pids = [(await (await uow.connection()).execute(text("SELECT pg_backend_pid()"))).scalar_one() for uow in units]
    for uow in units:
        await uow.rollback()
    async with database.system() as uow:
        own = (await (await uow.connection()).execute(text("SELECT pg_backend_pid()"))).scalar_one()
        for pid in set(pids) - {own}:
            await (await uow.connection()).execute(text("SELECT pg_terminate_backend(:pid, 2000)"), {"pid": pid})
    await asyncio.sleep(0.2)
    await asyncio.gather(*[put(database, f"orgs/acme/notes/n{i}") for i in range(4)])


async def test_durability_is_on(database: Database) -> None:
    async with database.reading() as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert (await connection.execute(text(f"SHOW {name}"))).scalar_one() == "on"
