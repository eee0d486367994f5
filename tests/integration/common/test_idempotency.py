"""Once by request id, however many calls come at once."""

from __future__ import annotations

import asyncio

import pytest
from argosy.common.v1 import event_pb2
from sqlalchemy import text, update

from libs.common.bus.retention import prune
from libs.common.db.idempotency import RequestKey, digest_of
from libs.common.db.tables import idempotency
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from tests.integration.common.conftest import Notes, note

METHOD = "/notes.NoteService/CreateNote"
BODY = digest_of(event_pb2.ListEventsRequest(page_size=1))
OTHER_BODY = digest_of(event_pb2.ListEventsRequest(page_size=2))


async def call(database: Database, request_id: str, digest: bytes = BODY, org: str = "acme") -> bytes:
    """What the binder does with a mutating call: look up, work, remember, commit; once more after a CONFLICT."""
    key = RequestKey(METHOD, request_id, digest)
    for last in (False, False, True):
        known = await database.recall(org, METHOD, request_id, digest)
        if known is not None:
            return known
        uow = database.unit_of_work(org, "users/alice", request=key)
        try:
            entity = await Notes(uow).insert(note(f"orgs/{org}/notes/{request_id}"))
            uow.emit("notes.note.created", entity)
            await uow.remember(METHOD, request_id, digest, entity.uid.encode())
            await uow.commit()
            return entity.uid.encode()
        except DomainError as error:
            await uow.rollback()
            if last or error.reason != "CONFLICT":
                raise
    raise AssertionError


async def rows(database: Database, table: str) -> int:
    async with database.reading() as connection:
        return (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()


async def test_the_first_answer_is_given_again(database: Database) -> None:
    first = await call(database, "r1")
    assert await call(database, "r1") == first
    assert await rows(database, "notes") == 1
    assert await rows(database, "outbox") == 1


async def test_another_body_is_refused(database: Database) -> None:
    await call(database, "r1")
    with pytest.raises(DomainError) as caught:
        await call(database, "r1", OTHER_BODY)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_an_id_belongs_to_one_organization(database: Database) -> None:
    assert await call(database, "r1") != await call(database, "r1", OTHER_BODY, org="other")
    assert await database.recall("third", METHOD, "r1", BODY) is None


async def test_duplicates_at_once_have_one_effect(database: Database) -> None:
    answers = await asyncio.gather(*(call(database, "r1") for _ in range(20)))
    assert len(set(answers)) == 1
    assert await rows(database, "notes") == 1
    assert await rows(database, "outbox") == 1


async def test_without_the_claim_duplicates_fail(database: Database) -> None:
    """Shows what the claim is for: the second call would run into the first one's row and fail."""

    async def bare() -> bytes:
        async with database.unit_of_work("acme", "users/alice") as uow:
            entity = await Notes(uow).insert(note("orgs/acme/notes/r1"))
            await uow.remember(METHOD, "r1", BODY, entity.uid.encode())
        return entity.uid.encode()

    answers = await asyncio.gather(*(bare() for _ in range(5)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, DomainError)]
    assert [error.reason for error in refused] == ["ALREADY_EXISTS"] * 4


async def test_a_failed_call_may_be_sent_again(database: Database) -> None:
    key = RequestKey(METHOD, "r1", BODY)
    uow = database.unit_of_work("acme", "users/alice", request=key)
    await Notes(uow).insert(note("orgs/acme/notes/half"))
    await uow.rollback()
    await call(database, "r1")
    assert await rows(database, "notes") == 1


async def test_old_answers_are_forgotten(database: Database) -> None:
    await call(database, "old")
    await call(database, "new")
    async with database.system() as uow:
        aged = update(idempotency).where(idempotency.c.request_id == "old")
        await (await uow.connection()).execute(aged.values(create_time=text("now() - interval '25 hours'")))
    await prune(database)
    assert await database.recall("acme", METHOD, "old", BODY) is None
    assert await database.recall("acme", METHOD, "new", BODY) is not None
