"""Real servers, one of each kind a test session, and a fresh database a test."""

from __future__ import annotations

import gc
import itertools
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from deploy.local import nats, postgres

# How long an example takes says how busy the machine is; pytest-timeout ends what hangs.
hypothesis.settings.register_profile("argosy", deadline=None)
hypothesis.settings.load_profile("argosy")

_numbers = itertools.count()
_ROOM = 2 << 30


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A short folder: unix sockets of the servers lie in it, and the database's own user must be able to reach it."""
    # In memory where there is room: a test database is a thousand small files.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM
    folder = Path(tempfile.mkdtemp(prefix="argosy-", dir=memory if roomy else None))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(server_folder: Path) -> Iterator[postgres.Server]:
    """One PostgreSQL for the session. A test that kills it must start it again."""
    server = postgres.Server(server_folder / "pg", free_port(), secrets.token_urlsafe(), server_folder / "postgres.log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def nats_server(server_folder: Path) -> Iterator[nats.Server]:
    """One NATS for the session. A test that kills it must start it again."""
    server = nats.Server(server_folder / "nats", free_port(), server_folder / "nats.log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def database_url(postgres_server: postgres.Server) -> str:
    """URL of an empty database with a role of its own."""
    return await postgres_server.create_service_database(f"test_{next(_numbers)}", secrets.token_urlsafe())


def pytest_collection_finish() -> None:
    """What collection left lives until the end: looking through it again and again is a third of short tests."""
    gc.collect()
    gc.freeze()
