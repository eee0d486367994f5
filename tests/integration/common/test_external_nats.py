"""Subjects of a real NATS server: every message that JetStream keeps, in order, or an error that says why not."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local import nats
from libs.common.bus import external
from libs.common.bus.external import NATS_PORTS, ExternalSubject, Message, open_subject
from libs.common.clock import SYSTEM_CLOCK
from libs.common.domain import DomainError
from libs.common.http.links import Networks, parse_server
from libs.common.pki import LocalCa, server_name
from tests.conftest import free_port
from tests.subjects import Subjects, numbered, subjects

LOOPBACK = Networks(["127.0.0.0/8"], "SETTING")
PASSWORD = "s3cret/@%"
WRITTEN = "s3cret%2F%40%25"


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[nats.Server]:
    """Lets `runner` do everything, and `narrow` next to nothing."""
    users = {"runner": PASSWORD, "narrow": "narrow"}
    running = nats.Server(server_folder / "outside", free_port(), server_folder / "outside.log", users)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for messages that do not come."""
    monkeypatch.setattr(external, "_FETCH_SECONDS", 0.2)


@pytest.fixture
async def outside(server: nats.Server) -> AsyncGenerator[Subjects]:
    async with subjects(server.url(), "runner", PASSWORD) as connected:
        await connected.forget("LOGS", "MORE")
        yield connected


def opening(
    server: nats.Server, subject: str = "logs.>", login: str = f"runner:{WRITTEN}"
) -> AbstractAsyncContextManager[ExternalSubject]:
    address = parse_server(f"nats://{login}@127.0.0.1:{server.port}", NATS_PORTS, credentials=True)
    return open_subject(address, subject, LOOPBACK, "secret")


async def refusal(server: nats.Server, subject: str = "logs.>", login: str = f"runner:{WRITTEN}") -> DomainError:
    with pytest.raises(DomainError) as caught:
        async with opening(server, subject, login) as found:
            await found.begin(0)
    assert PASSWORD not in caught.value.message
    assert WRITTEN not in caught.value.message
    return caught.value


async def messages(found: ExternalSubject, count: int) -> list[Message]:
    """So many messages."""
    result: list[Message] = []
    async with asyncio.timeout(10):
        while len(result) < count:
            result += await found.fetch()
    return result


async def test_messages_come_in_order_from_any_one_on(server: nats.Server, outside: Subjects) -> None:
    await outside.keep("LOGS", "logs.>", "other.>")
    for first in range(0, 2_500, 500):
        await outside.publish("other.noise", [b"x"])
        await outside.publish("logs.web", numbered(*range(first, first + 500)))
    async with opening(server) as found:
        await found.begin(0)
        every = await messages(found, 2_500)
        assert [message.data for message in every] == numbered(*range(2_500))
        assert [message.sequence for message in every[:2]] == [2, 3]
        # What comes later is waited for, but not for long.
        assert await found.fetch() == []
        await outside.publish("logs.app", numbered(7))
        assert [message.data for message in await messages(found, 1)] == numbered(7)
    async with opening(server) as found:
        await found.begin(every[2_400].sequence)
        assert [message.data for message in await messages(found, 100)] == [
            *numbered(*range(2_401, 2_500)),
            *numbered(7),
        ]


async def test_large_messages_do_not_come_together(
    server: nats.Server, outside: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "FETCHED_BYTES", 300_000)
    sizes = [400_000, 10, 200_000, 200_000, 1_000_000]
    await outside.keep("LOGS", "logs.>")
    await outside.publish("logs.web", [b"x" * size for size in sizes])
    async with opening(server) as found:
        await found.begin(0)
        fetched = [[len(message.data) for message in await found.fetch()] for _ in range(4)]
    assert fetched == [[400_000], [10, 200_000], [200_000], [1_000_000]]


async def test_what_cannot_be_read_whole_is_refused(server: nats.Server, outside: Subjects) -> None:
    error = await refusal(server)
    assert (error.reason, "no JetStream stream keeps logs.>" in error.message) == ("STATE_CONFLICT", True)
    await outside.keep("LOGS", "logs.web")
    await outside.keep("MORE", "logs.app")
    assert "LOGS, MORE" in (await refusal(server)).message
    await outside.forget("MORE")
    await outside.keep("LOGS", "logs.>", retention="workqueue")
    assert "limits" in (await refusal(server)).message


async def test_another_stream_is_told_from_the_one_before(server: nats.Server, outside: Subjects) -> None:
    await outside.keep("LOGS", "logs.>")
    await outside.publish("logs.web", numbered(1, 2, 3))
    async with opening(server) as found:
        await found.begin(3)
        before = found.origin
        with pytest.raises(DomainError, match="lost messages"):
            await found.begin(4)
    async with opening(server) as found:
        assert found.origin == before
    await outside.keep("LOGS", "logs.>")
    async with opening(server) as found:
        assert found.origin != before


async def test_who_may_not_connect_or_read_is_told_so(
    server: nats.Server, outside: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    await outside.keep("LOGS", "logs.>")
    for login in ("runner:wrong", "nobody:wrong", "token"):
        error = await refusal(server, login=login)
        assert (error.reason, "refuses the user" in error.message) == ("INVALID_FIELD", True), login
    monkeypatch.setattr(external, "_ANSWER_SECONDS", 0.5)
    error = await refusal(server, login="narrow:narrow")
    assert (error.reason, "does not let its user read" in error.message) == ("INVALID_FIELD", True)


async def test_a_server_that_goes_away_is_an_error_and_not_the_end(server: nats.Server, outside: Subjects) -> None:
    await outside.keep("LOGS", "logs.>")
    await outside.publish("logs.web", numbered(1, 2))
    async with opening(server) as found:
        await found.begin(0)
        await messages(found, 2)
        server.kill()
        with pytest.raises(DomainError) as caught:
            await found.fetch()
    assert caught.value.reason == "PEER_UNAVAILABLE"
    assert (await refusal(server)).reason == "PEER_UNAVAILABLE"
    server.start()
    async with opening(server) as again:
        assert again.origin == found.origin
        await again.begin(1)
        assert [message.sequence for message in await messages(again, 1)] == [2]


@contextmanager
def configured_server(folder: Path, port: int, **more: Any) -> Generator[None]:
    """A server with a configuration of its own."""
    config = folder / "nats.conf"
    jetstream = {"store_dir": str(folder / "store")}
    config.write_text(json.dumps({"host": "127.0.0.1", "port": port, "jetstream": jetstream, **more}))
    with subprocess.Popen(nats.command(config), stderr=subprocess.DEVNULL) as process:
        try:
            while nats.probe(port):
                assert process.poll() is None
            yield
        finally:
            process.terminate()


async def test_whoever_reads_needs_few_permissions(tmp_path: Path) -> None:
    """Those that docs/architecture/dataset-imports.md names."""
    api = ("STREAM.NAMES", "STREAM.INFO.*", "CONSUMER.CREATE.>", "CONSUMER.MSG.NEXT.>")
    few = {"publish": [f"$JS.API.{name}" for name in api], "subscribe": ["_INBOX.>"]}
    users = [{"user": "runner", "password": "x"}, {"user": "reader", "password": "x", "permissions": few}]
    server = nats.Server(tmp_path, free_port(), tmp_path / "log")
    with configured_server(tmp_path, server.port, authorization={"users": users}):
        async with subjects(server.url(), "runner", "x") as outside:
            await outside.keep("LOGS", "logs.>")
            await outside.publish("logs.web", numbered(1, 2))
        async with opening(server, login="reader:x") as found:
            await found.begin(0)
            assert [message.data for message in await messages(found, 2)] == numbered(1, 2)


@pytest.fixture
def authority(tmp_path: Path) -> LocalCa:
    made = LocalCa(tmp_path, now=SYSTEM_CLOCK.now)
    made.create()
    made.issue("dataset")
    return made


async def test_tls_is_for_the_name_while_the_connection_goes_to_the_address(tmp_path: Path, authority: LocalCa) -> None:
    port = free_port()
    believed = ssl.create_default_context(cadata=authority.certificate.decode())

    async def connect(scheme: str, name: str, tls: ssl.SSLContext | None) -> str:
        address = parse_server(f"{scheme}://{name}:{port}", NATS_PORTS)
        with pytest.raises(DomainError) as caught:
            async with open_subject(
                address, "logs.>", LOOPBACK, "uri", look_up=lambda host, port: ["127.0.0.1"], tls=tls
            ):
                pass
        return caught.value.message

    files = {"cert_file": str(tmp_path / "dataset.crt"), "key_file": str(tmp_path / "dataset.key")}
    with configured_server(tmp_path, port, tls=files):
        for scheme in NATS_PORTS:
            assert "no JetStream stream keeps" in await connect(scheme, server_name("dataset"), believed)
            assert "certificate" in await connect(scheme, server_name("another"), believed)
            assert "certificate" in await connect(scheme, server_name("dataset"), None)
