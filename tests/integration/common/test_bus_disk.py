"""A bus whose disk was full: only a new start of it stores again, and the runner sees that it needs one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nats as client
import pytest
from nats.js import JetStreamContext

from deploy.local import nats
from tests.conftest import free_port

pytestmark = pytest.mark.timeout(60)
_SUBJECT = "ev.acme.dataset.dataset.created"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]).returncode:
        pytest.skip("only root may mount file systems of limited size")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def publishes(stream: JetStreamContext, size: int) -> bool:
    try:
        await stream.publish(_SUBJECT, bytes(size), timeout=0.5)
    except (client.errors.TimeoutError, client.js.errors.APIError):
        return False
    return True


def take(path: Path) -> None:
    """All that is free."""
    with path.open("ab") as file, suppress(OSError):
        status = os.fstatvfs(file.fileno())
        os.posix_fallocate(file.fileno(), file.tell(), status.f_bavail * status.f_frsize)


async def test_a_bus_that_was_full_stores_after_a_new_start(small: Path, tmp_path: Path) -> None:
    monitor = free_port()
    server = nats.Server(small, free_port(), tmp_path / "log", monitor=monitor)
    server.start()
    try:
        connection = await client.connect(server.url())
        stream = connection.jetstream()
        await stream.add_stream(name=nats.STREAM, subjects=["ev.>"])
        assert await publishes(stream, 10)
        assert not nats.broken(monitor, small)
        while True:
            take(small / "filler")
            if not await publishes(stream, 20_000):
                break
        # A new start would not help yet.
        assert not nats.broken(monitor, small)
        (small / "filler").unlink()
        assert not await publishes(stream, 10)
        assert "write error" in nats.broken(monitor, small)
        await connection.close()
        server.stop()
        assert not nats.broken(monitor, small)
        server.start()
        connection = await client.connect(server.url())
        stream = connection.jetstream()
        assert await publishes(stream, 10)
        assert not nats.broken(monitor, small)
        assert (await stream.get_msg(nats.STREAM, seq=1)).data == bytes(10)
        await connection.close()
    finally:
        server.stop()
