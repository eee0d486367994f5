"""A full disk under the database: a clear error, and nothing accepted is lost."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from deploy.local import postgres
from libs.common.db.engine import create_engine
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.testing.database import apply
from tests.conftest import free_port
from tests.integration.common.conftest import Notes, create_notes, note

_SIZE = "160m"


@pytest.fixture
def small_disk(server_folder: Path) -> Iterator[Path]:
    """A file system of its own size."""
    folder = server_folder / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0711", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a file system of limited size")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


async def insert(database: Database, number: int) -> None:
    async with database.unit_of_work("acme", "users/alice") as uow:
        # Random, because PostgreSQL compresses long texts.
        entity = await Notes(uow).insert(note(f"orgs/acme/notes/n{number}", body=secrets.token_hex(500_000)))
        uow.emit("notes.note.created", entity)


async def insert_until_full(database: Database, disk: Path) -> tuple[int, DomainError]:
    """Fills the disk but for some rows, and inserts; the number of accepted rows and the first refusal."""
    status = os.statvfs(disk)
    (disk / "filler").write_bytes(b"\1" * max(0, status.f_bavail * status.f_frsize - (8 << 20)))
    for accepted in range(100):
        try:
            await insert(database, accepted)
        except DomainError as error:
            return accepted, error
    raise AssertionError("the disk is not full")


async def rows(database: Database) -> list[int]:
    async with database.reading() as connection:
        return [
            (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
            for table in ("notes", "outbox")
        ]


async def test_a_full_disk_is_said(database: Database, postgres_server: postgres.Server, small_disk: Path) -> None:
    """Only the rows are on the small disk: PostgreSQL refuses them and goes on."""
    folder = small_disk / "rows"
    folder.mkdir()
    if postgres_server.place.account is not None:
        os.chown(folder, postgres_server.place.account.pw_uid, postgres_server.place.account.pw_gid)
    user = database.engine.url.username
    admin = await asyncpg.connect(
        host="127.0.0.1",
        port=postgres_server.port,
        user=postgres.ADMIN,
        password=postgres_server.password,
        database=user,
    )
    try:
        await admin.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        await admin.execute("ALTER TABLE notes SET TABLESPACE small")
        accepted, error = await insert_until_full(database, small_disk)
        assert error.reason == "STORAGE_FULL"
        assert error.metadata == {"store": "database"}
        assert await rows(database) == [accepted, accepted]
        (small_disk / "filler").unlink()
        await insert(database, accepted)
        assert await rows(database) == [accepted + 1, accepted + 1]
    finally:
        await admin.execute("DROP TABLE IF EXISTS notes")
        await admin.execute("DROP TABLESPACE IF EXISTS small")
        await admin.close()


async def test_a_full_disk_under_everything_is_survived(small_disk: Path, server_folder: Path) -> None:
    """The write-ahead log is full too: PostgreSQL stops, and comes back with every accepted row."""
    server = postgres.Server(small_disk / "pg", free_port(), secrets.token_urlsafe(), server_folder / "small.log")
    try:
        server.start()
        url = await server.create_service_database("small", "secret")
        await apply(url, create_notes)
        database = Database(create_engine(url), "notes")
        accepted, error = await insert_until_full(database, small_disk)
        assert error.reason in ("STORAGE_FULL", "DATABASE_UNAVAILABLE")
        (small_disk / "filler").unlink()
        # What a supervisor does when the server has given up.
        server.kill()
        server.start()
        assert await rows(database) == [accepted, accepted]
        await insert(database, accepted)
        assert await rows(database) == [accepted + 1, accepted + 1]
        await database.close()
    finally:
        server.stop()
