"""Servers of NATS outside may be anybody: who may be connected to, and what a hostile one gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from nats.aio.client import Client

from libs.common.bus import external
from libs.common.bus.external import NATS_PORTS, open_subject
from libs.common.domain import DomainError
from libs.common.http.links import Networks, parse_server

SETTING = "ARGOSY_TEST_NETWORKS"
PUBLIC, LOOPBACK = Networks([], SETTING), Networks(["127.0.0.0/8"], SETTING)
GREETING = {"server_id": "x", "version": "2.15.1", "headers": True, "max_payload": 1 << 20, "auth_required": True}
HOSTILE = [
    "nats://127.0.0.1:PORT",
    "tls://127.0.0.1:PORT",
    "nats://127.1:PORT",
    "nats://2130706433:PORT",
    "nats://0x7f000001:PORT",
    "nats://0.0.0.0:PORT",
    "nats://[::1]:PORT",
    "nats://[::ffff:127.0.0.1]:PORT",
    "nats://localhost:PORT",
    "nats://LOCALHOST.:PORT",
    "nats://①②⑦.⓪.⓪.①:PORT",
    "nats://127.0.0.1:PORT/",
    "nats://127.0.0.1:PORT,nats://127.0.0.1:PORT",
    "nats://93.184.216.34,127.0.0.1:PORT",
    "nats://93.184.216.34#@127.0.0.1:PORT",
    "nats://93.184.216.34\\@127.0.0.1:PORT",
    "nats://ann:pw@127.0.0.1:PORT",
    "nats://[fe80::1%25eth0]:PORT",
    "ws://127.0.0.1:PORT",
    "wss://127.0.0.1:PORT",
    "http://127.0.0.1:PORT",
    "127.0.0.1:PORT",
    "//127.0.0.1:PORT",
    "nats:127.0.0.1:PORT",
    "nats:///127.0.0.1:PORT",
    "nats://",
    "nats://:PORT",
    "nats://127.0.0.1:PORT?tls=no",
    "nats://127.0.0.1:0",
    "nats://127.0.0.1:99999",
    "nats://127.0.0.1:PORT\r\nPING",
    " nats://127.0.0.1:PORT",
    "nats://10.0.0.1",
    "nats://169.254.169.254",
    "nats://192.168.0.1:4222",
    "nats://[fd00:ec2::254]",
]

# Says something when the client asks for something.
Saying = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


class Fake:
    """Greets as a server of NATS does, and says then whatever a test wants."""

    def __init__(self, saying: Saying, greeting: bytes) -> None:
        self.connections = 0
        self.heard = b""
        self.port = 0
        self._saying = saying
        self._greeting = greeting

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        with suppress(OSError):
            writer.write(self._greeting)
            while line := await reader.readline():
                self.heard += line
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
                elif line.startswith(b"PUB"):
                    await self._saying(writer, line)
        writer.close()


def greeting(**more: Any) -> bytes:
    return f"INFO {json.dumps(GREETING | more)}\r\n".encode()


@asynccontextmanager
async def fake(saying: Saying | None = None, first: bytes = b"") -> AsyncGenerator[Fake]:
    async def silent(_writer: asyncio.StreamWriter, _line: bytes) -> None:
        pass

    server = Fake(saying or silent, first or greeting())
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    monkeypatch.setattr(external, "_CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(external, "_ANSWER_SECONDS", 0.3)


async def refusal(address: str, networks: Networks = LOOPBACK, *, credentials: bool = True, **more: Any) -> DomainError:
    with pytest.raises(DomainError) as caught:
        server = parse_server(address, NATS_PORTS, credentials=credentials)
        async with open_subject(server, "logs.>", networks, "uri", **more):
            pass
    return caught.value


async def test_nobody_is_connected_to_who_may_not_be() -> None:
    assert len(set(HOSTILE)) >= 36
    async with fake() as server:
        for address in HOSTILE:
            error = await refusal(address.replace("PORT", str(server.port)), PUBLIC, credentials=False)
            assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "uri"), address
        error = await refusal(f"nats://db.example:{server.port}", PUBLIC, look_up=lambda *_: ["8.8.8.8", "127.0.0.1"])
        assert SETTING in error.message
        assert server.connections == 0
        # With the guard open, the same server is reached.
        await refusal(f"nats://127.0.0.1:{server.port}")
        assert server.connections == 1


async def test_without_tls_no_password_is_sent_where_tls_was_asked_for() -> None:
    async with fake() as server:
        error = await refusal(f"tls://ann:hunter2@127.0.0.1:{server.port}")
        assert "offers no TLS" in error.message
        assert server.heard == b""
        await refusal(f"nats://ann:hunter2@127.0.0.1:{server.port}")
        assert b"hunter2" in server.heard


async def test_servers_that_a_server_names_are_not_connected_to() -> None:
    async def leave(writer: asyncio.StreamWriter, _line: bytes) -> None:
        writer.write(greeting(connect_urls=[f"127.0.0.1:{other.port}"]))
        writer.close()

    async with fake() as other, fake(leave, greeting(connect_urls=[f"127.0.0.1:{other.port}"])) as server:
        assert (await refusal(f"nats://127.0.0.1:{server.port}")).reason == "PEER_UNAVAILABLE"
        assert (server.connections, other.connections) == (1, 0)


@pytest.mark.parametrize("begin", [b"INFO ", b"MSG _INBOX.x 1 999999999\r\n", b"MSG  " + b" " * 4000, b"+OK " * 4000])
async def test_endless_answers_are_cut_off(begin: bytes) -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter, _line: bytes) -> None:
        nonlocal sent
        writer.write(begin)
        while sent < 256 << 20:
            writer.write(b"a" * 65536)
            sent += 65536
            await writer.drain()

    async with fake(endless) as server:
        async with asyncio.timeout(10):
            assert (await refusal(f"nats://127.0.0.1:{server.port}")).reason == "PEER_UNAVAILABLE"
        # What buffers of the system took counts too.
        assert sent < 64 << 20


async def test_a_line_without_an_end_is_not_searched_for_it_for_ever() -> None:
    parser = external._BoundedParser(Client())
    parser.left = 64 << 20
    with pytest.raises(ConnectionError, match="endless line"):
        for _ in range(10):
            await parser.parse(b"INFO " + b"a" * 32_768)


@pytest.mark.parametrize(
    "first",
    [
        b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"INFO {\r\n",
        b"INFO []\r\n",
        b'INFO {"connect_urls": 5}\r\n',
        b'INFO {"version": 7, "nonce": {}}\r\n',
        b"INFO " + b"a" * 200_000,
        b"-ERR 'Authorization Violation'\r\n",
    ],
)
async def test_whoever_is_no_server_of_nats_is_told_from_one(first: bytes) -> None:
    async with fake(first=first) as server:
        assert (await refusal(f"nats://127.0.0.1:{server.port}")).reason in ("PEER_UNAVAILABLE", "INVALID_FIELD")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"streams": 5}',
        b'{"streams": [{}]}',
        b'{"streams": ["a b"]}',
        b'{"error": 5}',
        b'{"error": {"code": 400, "description": "a\\u0000b"}}',
        b'{"error": {"code": 400, "odd": 1}}',
    ],
)
async def test_answers_that_jetstream_does_not_give_are_errors(body: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(b"MSG %s 1 %d\r\n%s\r\n" % (line.split()[2], len(body), body))

    async with fake(answer) as server:
        error = await refusal(f"nats://127.0.0.1:{server.port}")
        assert error.reason in ("PEER_UNAVAILABLE", "STATE_CONFLICT")
        assert "\0" not in error.message


@pytest.mark.parametrize("address", ["nats://tok%40en@data.example", "tls://ann:p%2Fw@data.example:443"])
def test_who_connects_stands_in_no_picture_of_an_address(address: str) -> None:
    server = parse_server(address, NATS_PORTS, credentials=True)
    assert (server.user, server.password) in (("tok@en", ""), ("ann", "p/w"))
    assert server.address in ("nats://data.example:4222", "tls://data.example:443")
    for shown in (server.address, str(server), repr(server)):
        assert "tok" not in shown
        assert "p/w" not in shown
